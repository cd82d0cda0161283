"""The options of `scumble reproduce`; a docstring below is a field's help text."""

import math
from dataclasses import dataclass

from scumble.errors import UserError


@dataclass(kw_only=True)
class ReproduceFields:
    """What to reproduce"""

    source: str
    """An adapter file that scumble trained, converted ones included; a Hub id such as user/name; or
    the output folder of a run, or a checkpoint in it."""
    check: bool = False
    """Train nothing: say what is not as it was, and whether the run would give the same again."""
    tolerance: float = 1e-3
    """Largest relative difference of a layer's change that still counts as the same."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise UserError(f"--tolerance must be 0 or more, not {self.tolerance}")
