"""What a check has to say: how bad it is, what about, and what to do."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "danger"]
LEVELS: tuple[Level, ...] = ("ok", "note", "danger")
"""From harmless to what will cost a run."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        level: `danger` where the run would fail, be lost, or bring nothing.
        topic: in one word; findings of a topic stand together.
        text: what was found, with its numbers.
        hint: what to do about it; empty where nothing is to be done.
    """

    level: Level
    topic: str
    text: str
    hint: str = ""

    def line(self) -> str:
        """All of it in one line, as a run says it at its start."""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.level}: {self.text}{hint}"


def worst(findings: Iterable[Finding]) -> Level:
    """The level of the worst of several findings."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")
