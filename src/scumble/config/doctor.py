"""The options of `scumble doctor` beside those of the run; a docstring is a field's help text."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class DoctorFields:
    """Doctor"""

    json: bool = False
    """Print everything that was found and measured as JSON, instead of a screen."""
