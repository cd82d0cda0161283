"""Aspect-ratio buckets, and the plan of which examples each training step sees.

A batch needs pictures of one size. Sorting pictures into buckets of equal area and similar aspect
lets them keep their shape: little is cropped and nothing is dropped.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scumble.errors import UserError
from scumble.randomness import generator


def bucket_sizes(
    resolution_px: int, step_px: int, max_aspect: float = 2.0
) -> list[tuple[int, int]]:
    """List the sizes that cost as much as the square of `resolution_px`, from wide to tall.

    Each is the largest of its kind: neither side can grow by a step within the square's area.
    The largest square is always among them.

    Args:
        resolution_px: edge of the square whose area is the budget.
        step_px: every side is a multiple of it; the model's own downsampling.
        max_aspect: longer side / shorter side at most.

    Returns:
        (height_px, width_px) pairs.

    Raises:
        UserError: the resolution is smaller than one step.
    """
    square = resolution_px // step_px * step_px
    if square < step_px or step_px < 1:
        message = f"resolution {resolution_px} is too small: this model works in steps of {step_px}"
        raise UserError(message, f"Set --resolution to {step_px} or a multiple of it.")

    def longest(side_px: int) -> int:
        return resolution_px**2 // side_px // step_px * step_px

    sizes = {(square, square)}
    for width in range(step_px, int(resolution_px * max_aspect) + 1, step_px):
        height = longest(width)
        narrow, wide = sorted((height, width))
        if narrow > 0 and longest(height) == width and wide <= narrow * max_aspect:
            sizes.add((height, width))
    return sorted(sizes, key=lambda size: (size[0] / size[1], size))


def nearest_bucket(
    width_px: int, height_px: int, sizes: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Choose the size whose aspect ratio is closest to the picture's, in equal measure both ways.

    A picture of extreme aspect goes to the widest or tallest size: none is ever turned away.

    Args:
        width_px: of the picture.
        height_px: of the picture.
        sizes: (height_px, width_px) pairs, as `bucket_sizes` gives them.
    """
    log_aspect = math.log(height_px / width_px)

    def distance(size: tuple[int, int]) -> tuple[float, int]:
        return abs(math.log(size[0] / size[1]) - log_aspect), -size[0] * size[1]

    return min(sizes, key=distance)


@dataclass(frozen=True)
class StepPlan:
    """What one optimizer step sees.

    Args:
        index: of the step in the run, from 0.
        epoch: from 0.
        micro_batches: example indices, one tuple per forward pass over all processes.
    """

    index: int
    epoch: int
    micro_batches: tuple[tuple[int, ...], ...]

    @property
    def examples(self) -> tuple[int, ...]:
        """All examples of the step, in the order of their positions."""
        return tuple(example for batch in self.micro_batches for example in batch)


class BatchPlan:
    """The order of examples as a pure function of the step, so a resumed run needs no cursor.

    A step draws a group of batch_size x accumulation examples from one bucket and cuts it into
    micro-batches afterwards: how a step is split never changes what it sees. The rest of a bucket
    makes a smaller group, so every example comes exactly once per epoch.

    Args:
        bucket_of: the bucket of each example.
        batch_size: examples per forward pass, over all processes.
        accumulation: forward passes per step.
        seed: the run's seed.

    Raises:
        UserError: there is nothing to plan, or the batch is empty.
    """

    def __init__(
        self, bucket_of: Sequence[tuple[int, int]], batch_size: int, accumulation: int, seed: int
    ) -> None:
        if not bucket_of:
            raise UserError("there are no examples to train on", "Check the data folder.")
        if batch_size < 1 or accumulation < 1:
            message = f"a batch of {batch_size} x {accumulation} examples trains nothing"
            hint = "Set --train_batch_size and --gradient_accumulation_steps to 1 or more."
            raise UserError(message, hint)
        members = defaultdict(list)
        for example, bucket in enumerate(bucket_of):
            members[bucket].append(example)
        self._buckets = [members[bucket] for bucket in sorted(members)]
        self._batch_size = batch_size
        self._group_size = batch_size * accumulation
        self._seed = seed
        self._order: tuple[int, list[list[int]]] | None = None
        self.steps_per_epoch = sum(math.ceil(len(b) / self._group_size) for b in self._buckets)
        # A full step's examples: the divisor that gives every example of a run the same weight.
        self.nominal = min(self._group_size, max(map(len, self._buckets)))

    def step(self, index: int) -> StepPlan:
        """Plan the step of this index; steps may be asked for in any order."""
        epoch, place = divmod(index, self.steps_per_epoch)
        group = self._groups(epoch)[place]
        cuts = range(0, len(group), self._batch_size)
        micro_batches = tuple(tuple(group[cut : cut + self._batch_size]) for cut in cuts)
        return StepPlan(index, epoch, micro_batches)

    def _groups(self, epoch: int) -> list[list[int]]:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self._shuffled_groups(epoch)
        return self._order[1]

    def _shuffled_groups(self, epoch: int) -> list[list[int]]:
        groups = []
        for number, members in enumerate(self._buckets):
            draws = generator(self._seed, "example order", epoch, number)
            shuffled = [members[i] for i in torch.randperm(len(members), generator=draws).tolist()]
            cuts = range(0, len(shuffled), self._group_size)
            groups += [shuffled[cut : cut + self._group_size] for cut in cuts]
        draws = generator(self._seed, "step order", epoch)
        return [groups[i] for i in torch.randperm(len(groups), generator=draws).tolist()]
