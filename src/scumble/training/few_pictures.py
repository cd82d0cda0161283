"""A few of a run's pictures, which stand for all: one step of the commonest size."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from scumble.config import TrainConfig, given
from scumble.data.buckets import BatchPlan, nearest_bucket
from scumble.data.scan import Picture
from scumble.training.checkup.facts import Shown
from scumble.training.find import Found

STREAMED = 256
"""Of a stream only so many pictures are looked at."""


class FewPictures:
    """Chooses them when a workshop is opened, and remembers all.

    Args:
        config: of the run.
        processes: that train together.
    """

    def __init__(self, config: TrainConfig, processes: int) -> None:
        self.config = config
        self.batch = given(config.train_batch_size) * processes
        self.all: list[Picture] = []
        self.held_out = 0
        self.sizes: Sequence[tuple[int, int]] = ()
        self.is_part = False

    def __call__(self, found: Found) -> Found:
        """Leave out what is not needed; no picture of the class is drawn."""
        self.sizes = found.sizes
        self.all = self._pictures(found)
        self.held_out = len(found.held_out)
        members: dict[tuple[int, int], list[Picture]] = defaultdict(list)
        for picture in self.all:
            members[self._bucket(picture)].append(picture)
        commonest = max(members.values(), key=len)
        few = commonest[: self.batch * self.config.gradient_accumulation_steps]
        # What the largest size needs is what the run needs.
        largest = members[max(members, key=lambda size: size[0] * size[1])]
        few += largest[:1] if largest is not commonest else []
        return replace(
            found,
            train=few,
            held_out=found.held_out[:1],
            streaming=False,
            class_pictures=self._of_class(few),
        )

    def shown(self) -> list[Shown]:
        """All pictures, as the run will show them."""
        return [Shown(p.id, p.width_px, p.height_px, self._bucket(p), p.captions) for p in self.all]

    def steps_per_epoch(self) -> int:
        """Of all pictures."""
        buckets = [self._bucket(picture) for picture in self.all]
        accumulation = self.config.gradient_accumulation_steps
        return BatchPlan(buckets, self.batch, accumulation, self.config.seed).steps_per_epoch

    def _pictures(self, found: Found) -> list[Picture]:
        if not found.streaming:
            return list(found.train)
        limit = min(STREAMED, self.config.max_train_samples or STREAMED)
        pictures = list(islice(found.train, limit + 1))
        self.is_part = len(pictures) > limit and self.config.max_train_samples is None
        return pictures[:limit]

    def _bucket(self, picture: Picture) -> tuple[int, int]:
        return nearest_bucket(picture.width_px, picture.height_px, self.sizes)

    def _of_class(self, few: Sequence[Picture]) -> list[Picture]:
        if not self.config.with_prior_preservation or self.config.prior_from != "images":
            return []
        return [replace(p, captions=(self.config.class_prompt or "",)) for p in few]
