"""What the checks look at: plain numbers and names, gathered once, whoever asks for them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from scumble.config import TrainConfig
from scumble.data.scan import ScanReport

Kind = Literal["adapters", "rows", "weights"]
"""What learns: adapters, rows of new words, or every weight of the model."""


@dataclass(frozen=True)
class Shown:
    """A picture as the training shows it.

    Args:
        id: its name.
        width_px: of the upright picture.
        height_px: of the upright picture.
        bucket: (height, width) in pixels that it is shown at.
        captions: one or more; "" stands for none.
    """

    id: str
    width_px: int
    height_px: int
    bucket: tuple[int, int]
    captions: tuple[str, ...]

    @property
    def enlarged(self) -> float:
        """How many times larger it is shown than it is."""
        return max(self.bucket[0] / self.height_px, self.bucket[1] / self.width_px)

    @property
    def cut_away(self) -> float:
        """Share of its area that a crop leaves out."""
        shown = self.bucket[0] * self.bucket[1] / self.enlarged**2
        return max(0.0, 1 - shown / (self.height_px * self.width_px))


@dataclass(frozen=True)
class Rate:
    """How fast something learns.

    Args:
        kind: what learns.
        name: the model's part that it is of, or that has it on.
        rate: its highest learning rate, before the schedule.
        scale: the largest alpha / rank of its adapters, with the root of the rank where that is
            asked for; 1 for anything else.
        steps: that it learns for.
        is_first: whether it is what --learning_rate is for.
    """

    kind: Kind
    name: str
    rate: float
    scale: float
    steps: int
    is_first: bool = True

    @property
    def effective(self) -> float:
        """What decides how fast the model changes."""
        return self.rate * self.scale


@dataclass(frozen=True)
class Stretch:
    """A phase of the training.

    Args:
        name: of the phase.
        steps: that it takes.
    """

    name: str
    steps: int


@dataclass(frozen=True)
class BaseFacts:
    """The base model.

    Args:
        name: as the user named it.
        family: of models.
        prediction: what it predicts.
        native_px: edge of the pictures that it was trained on.
        parameters: of the denoiser, how many.
    """

    name: str
    family: str
    prediction: str
    native_px: int
    parameters: int

    @property
    def is_small(self) -> bool:
        """Whether it is for trials, as the built-in one: quick on anything, and learning fast."""
        return self.parameters < 50_000_000


@dataclass(frozen=True)
class Room:
    """Memory and disk.

    Args:
        level: of --memory.
        peak_bytes: foretold.
        more_bytes: than now.
        free_bytes: of the device's memory.
        checkpoint_bytes: of one checkpoint.
        disk_free_bytes: where the run writes.
    """

    level: str
    peak_bytes: int
    more_bytes: int
    free_bytes: int
    checkpoint_bytes: int
    disk_free_bytes: int


@dataclass(frozen=True)
class Machine:
    """What computes.

    Args:
        device: cpu, cuda or mps.
        name: of the device in words.
        dtype: of the frozen weights: float32, bfloat16 or float16.
        cores: that this process may use.
        threads: that PyTorch uses on the processor.
        threads_set: whether somebody chose their number.
        load: how many cores others kept busy when it was looked at.
        unused_card: why an NVIDIA card that is there is not used; empty where none is.
        has_bf16: whether the device computes in bf16 itself.
        tf32: whether fp32 products are allowed to be faster; None where the device has no such.
        fused_attention: whether PyTorch's kernels for it are switched on.
        versions: of the libraries that decide the speed.
        lacking: extras that are needed for the options chosen and not installed.
    """

    device: str
    name: str
    dtype: str
    cores: float
    threads: int
    load: float = 0.0
    threads_set: bool = False
    unused_card: str = ""
    has_bf16: bool = False
    tf32: bool | None = None
    fused_attention: bool = True
    versions: Mapping[str, str] = field(default_factory=dict)
    lacking: Sequence[str] = ()


@dataclass(frozen=True)
class Facts:
    """Everything that is known before the first step.

    Args:
        config: of the run.
        pictures: all that are trained on.
        report: of their scan.
        batch: pictures per step, if a bucket has so many.
        steps_per_epoch: of all pictures.
        stretches: the phases, in order.
        rates: of all that learns.
        base: the model.
        room: memory and disk.
        machine: what computes.
        beyond: caption -> tokens of it that the text encoder does not read.
    """

    config: TrainConfig
    pictures: Sequence[Shown]
    report: ScanReport
    batch: int
    steps_per_epoch: int
    stretches: Sequence[Stretch]
    rates: Sequence[Rate]
    base: BaseFacts
    room: Room
    machine: Machine
    beyond: Mapping[str, int] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return sum(stretch.steps for stretch in self.stretches)

    @property
    def buckets(self) -> Counter[tuple[int, int]]:
        """Size -> how many pictures are shown at it."""
        return Counter(picture.bucket for picture in self.pictures)

    @property
    def seen(self) -> float:
        """How often each picture is seen."""
        return self.steps / self.steps_per_epoch

    @property
    def is_subject(self) -> bool:
        """Whether all pictures show one thing, of which a few are enough."""
        return self.config.instance_prompt is not None or self.config.learns_words
