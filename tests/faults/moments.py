"""Moments of a run: the n-th line of this package's code that runs in a phase.

Time would make for moments that never come again, and most of them in the same few phases.
"""

import sys
from collections import Counter
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from torch import nn

PHASES = {
    "scan": {"scan", "_scan"},
    "class pictures": {"draw_class_pictures"},
    "encode": {"PictureEncoder.encode"},
    "captions": {"EncodedTexts.encode"},
    "fit": {"fit"},
    "train": {"train_steps", "Journal.add", "Journal.flush", "Average.update"},
    "held out": {"HeldOut.loss"},
    "checkpoint": {"CheckpointWriter.write"},
    "samples": {"draw_samples", "save_samples"},
    "result": {"save_learnt", "save_model"},
    "pictures": {"write_pictures"},
    "card": {"write_curve", "write_card"},
    "record": {"Record.save"},
}
"""Phase -> the functions that belong to it, with all that they call; a phase within stands out."""

COUNTED = ("cli/", "data/", "hub/", "training/", "formats/container.py")
"""Where lines are counted: what only computes has too many of them, and changes no file."""

START, BEST = "between phases", "best checkpoint"
ALL = (START, *PHASES, BEST)
_PHASE_OF = {name: phase for phase, names in PHASES.items() for name in names}


class Clock:
    """Counts the lines of each phase, and acts when one comes.

    Args:
        phase: in which the moment lies; None only counts.
        line: how many lines of the phase come before it.
        act: what happens then.
    """

    def __init__(self, phase: str | None, line: int, act: Callable[[], None]) -> None:
        self.counts: Counter[str] = Counter()
        self._phase, self._line, self._act = phase, line, act
        self._inside = [START]
        self._known: dict[CodeType, str | None] = {}

    def start(self) -> None:
        """Count from now on what this thread does, but in models: that has no lines that count."""
        compute = nn.Module.__call__

        def uncounted(*arguments: Any, **options: Any) -> Any:
            counting = sys.gettrace()
            sys.settrace(None)
            try:
                return compute(*arguments, **options)
            finally:
                sys.settrace(counting)

        nn.Module.__call__ = uncounted  # type: ignore[assignment]
        sys.settrace(self._enter)

    def _enter(self, frame: FrameType, _event: str, _value: Any) -> Any:
        code = frame.f_code
        if code not in self._known:
            counts = any(f"/scumble/{part}" in code.co_filename for part in COUNTED)
            self._known[code] = _PHASE_OF.get(code.co_qualname, "") if counts else None
        phase = self._known[code]
        if phase is None:
            return None
        if not phase or (phase == "result" and self._inside[-1] in ("checkpoint", BEST)):
            return self._inner
        is_best = phase == "checkpoint" and frame.f_locals.get("name") is not None
        self._inside.append(BEST if is_best else phase)
        return self._outer

    def _inner(self, _frame: FrameType, event: str, _value: Any) -> Any:
        if event == "line":
            self._count()
        return self._inner

    def _outer(self, _frame: FrameType, event: str, _value: Any) -> Any:
        if event == "line":
            self._count()
        elif event == "return":
            self._inside.pop()
        return self._outer

    def _count(self) -> None:
        phase = self._inside[-1]
        self.counts[phase] += 1
        if phase == self._phase and self.counts[phase] == self._line:
            self._act()
