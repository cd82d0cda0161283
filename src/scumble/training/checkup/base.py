"""Checks of the base model, and of whether it and what is taught fit into memory."""

import math
from collections.abc import Iterator

from scumble.training.checkup.facts import Facts
from scumble.training.checkup.finding import Finding
from scumble.training.fit import SHARE, way_out

TOPIC = "base"
MEMORY = "memory"
GIB = 2**30


def base(facts: Facts) -> Iterator[Finding]:
    """Which it is."""
    base = facts.base
    edge = _edge(facts)
    yield Finding(
        "ok",
        TOPIC,
        f"{base.name}: {base.family.replace('_', ' ')}, {_millions(base.parameters)} parameters, "
        f"predicts {base.prediction.removesuffix('_prediction')}, made for {base.native_px} px, "
        f"taught at {edge}; no NaN in it",
    )


def resolution(facts: Facts) -> Iterator[Finding]:
    """Pictures of another size than the base was made for."""
    native, edge = facts.base.native_px, _edge(facts)
    if edge < 0.75 * native:
        yield Finding(
            "note",
            TOPIC,
            f"taught at {edge} px and drawn at {native}: fine detail is not learnt",
            f"--resolution {native} is what the base was made for.",
        )
    elif edge > 1.5 * native:
        yield Finding(
            "note",
            TOPIC,
            f"taught at {edge} px, and the base was made for {native}: it repeats things there",
            f"Say --resolution {native}.",
        )


def memory(facts: Facts) -> Iterator[Finding]:
    """What the run will need of the device."""
    room = facts.room
    yield Finding(
        "ok",
        MEMORY,
        f"peak foretold {room.peak_bytes / GIB:.2f} GiB, {room.more_bytes / GIB:.2f} more than "
        f"now, of {room.free_bytes / GIB:.2f} GiB free (--memory {room.level})",
    )


def too_large(facts: Facts) -> Iterator[Finding]:
    """A run that will not fit, or hardly."""
    room = facts.room
    if room.more_bytes <= SHARE * room.free_bytes:
        return
    hint = way_out(facts.config, room.level)
    is_hopeless = room.more_bytes > room.free_bytes
    yield Finding(
        "danger" if is_hopeless else "note",
        MEMORY,
        "the run needs more than there is" if is_hopeless else "hardly anything is left over",
        f"{hint[0].upper()}{hint[1:]}.",
    )


def _edge(facts: Facts) -> int:
    """The edge of a square as large as the pictures."""
    height, width = facts.buckets.most_common(1)[0][0]
    return round(math.sqrt(height * width))


def _millions(count: int) -> str:
    return f"{count / 1e6:,.0f} M" if count >= 1e7 else f"{count / 1e6:.1f} M"
