"""How much of the forward pass is kept for the way back, and how much is computed again."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """One setting of --memory.

    Args:
        name: as the flag says it.
        recompute_feed_forward: compute GEGLU's projection again: half of what is left, for 6 %
            more arithmetic.
        recompute_attention: compute q, k and v again: a third of what is left then, for 3 % more.
    """

    name: str
    recompute_feed_forward: bool = False
    recompute_attention: bool = False


LEVELS: dict[str, Level] = {
    level.name: level
    for level in (
        Level("balanced"),
        Level("low", recompute_feed_forward=True),
        Level("lowest", recompute_feed_forward=True, recompute_attention=True),
    )
}
"""From the fastest to the leanest."""
