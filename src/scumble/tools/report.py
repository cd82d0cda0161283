"""What a tool wrote, and how much of each change it kept: shares of squared Frobenius norms."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from scumble.adapters.low_rank import Spectrum
from scumble.tools.table import counted


class Kept(NamedTuple):
    """One layer that was made of lower rank.

    Args:
        component: of the model.
        module: path of the layer.
        rank: that it has now.
        energy: of its whole change.
        share: of that which was kept, 0 to 1.
    """

    component: str
    module: str
    rank: int
    energy: float
    share: float

    @classmethod
    def of(cls, component: str, module: str, spectrum: Spectrum, rank: int) -> "Kept":
        """What a rank keeps of a change whose singular values are known."""
        return cls(component, module, rank, spectrum.total_energy, spectrum.energy(rank))


@dataclass(frozen=True)
class Outcome:
    """What a tool wrote.

    Args:
        path: of the file or folder.
        lines: what the user should know of it.
        layers: those that were made of lower rank.
    """

    path: Path
    lines: tuple[str, ...] = ()
    layers: tuple[Kept, ...] = field(default=(), repr=False)


def kept_lines(layers: Sequence[Kept]) -> list[str]:
    """A line for each component: its ranks, what was kept in all, and where least."""
    lines = []
    for component in dict.fromkeys(layer.component for layer in layers):
        own = [layer for layer in layers if layer.component == component]
        total = sum(layer.energy for layer in own)
        share = sum(layer.energy * layer.share for layer in own) / total if total else 1.0
        least = min(own, key=lambda layer: layer.share)
        low, high = min(layer.rank for layer in own), max(layer.rank for layer in own)
        ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
        what = f"{component}: {counted(len(own), 'layer')} of {ranks}"
        if least.share == 1:
            lines.append(f"{what}, nothing lost")
        else:
            where = f"least in {least.module}: {percent(least.share)}"
            lines.append(f"{what} keep {percent(share)} of the change; {where}")
    return lines


def percent(share: float) -> str:
    """A share in percent, never rounded up to all or down to none."""
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    return f"{min(max(100 * share, 0.01), 99.99):.2f} %"
