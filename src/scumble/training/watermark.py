"""The most memory that each stage of a run used."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

BETWEEN = "between"
"""What belongs to no stage."""


class Watermark:
    """Peaks of memory by stage. Stages may stand in one another.

    A GPU is measured for each stage alone. Of a process only the peak since its start is known: a
    stage that stayed below the ones before shows theirs.

    Args:
        device: whose memory counts; the process's own where it is no GPU.
        of_process: its peak since its start, in MiB.
    """

    def __init__(self, device: torch.device, of_process: Callable[[], float]) -> None:
        self.device = device
        self.of_process = of_process
        self.peaks: dict[str, float] = {}
        self._stages = [BETWEEN]

    def peak_mib(self) -> float:
        """The most of all stages so far."""
        self._note()
        return max(self.peaks.values())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What is used meanwhile counts for this stage alone."""
        self._enter([*self._stages, name])
        try:
            yield
        finally:
            self._enter(self._stages[:-1])

    def by_stage(self) -> dict[str, float]:
        """Stage -> MiB, in the order in which they came."""
        self._note()
        return {name: round(peak, 1) for name, peak in self.peaks.items() if name != BETWEEN}

    def text(self) -> str:
        """One line for the user."""
        stages = [f"{name} {peak / 1024:.2f} GiB" for name, peak in self.by_stage().items()]
        return "most memory used: " + ", ".join(stages)

    def _enter(self, stages: list[str]) -> None:
        self._note()
        self._stages = stages
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _note(self) -> None:
        name = self._stages[-1]
        is_gpu = self.device.type == "cuda"
        now = torch.cuda.max_memory_allocated(self.device) / 2**20 if is_gpu else self.of_process()
        self.peaks[name] = max(now, self.peaks.get(name, 0.0))
