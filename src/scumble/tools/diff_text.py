"""A comparison of two files as a page for the terminal."""

import math
from collections import Counter
from typing import TYPE_CHECKING

from scumble.tools.table import counted, number, page, pairs, section, table

if TYPE_CHECKING:
    from scumble.tools.diff import Difference, ModuleDifference

FARTHEST = 10
SHORT = 30
"""Length at which texts of the metadata are cut."""


def render(found: "Difference") -> str:
    """Lay out the page."""
    return page(
        pairs(
            {
                "first": f"{found.first} ({found.formats[0]})",
                "second": f"{found.second} ({found.formats[1]})",
            }
        ),
        _verdict(found),
        _layers(found.modules),
        _farthest(found.modules),
        _kinds(found.modules),
        _tokens(found),
        _metadata(found),
    )


def _verdict(found: "Difference") -> str:
    if found.same_bytes:
        return "The files are the same, byte by byte."
    if found.is_equal:
        known = [entry.distance for entry in found.modules]
        known += [entry.distance for entry in found.tokens]
        largest = max((distance for distance in known if distance is not None), default=0.0)
        how = "exactly" if largest == 0 else f"to a difference of {number(largest)}"
        return f"The files do the same, {how}."
    counts = {
        "layer": [entry.is_equal for entry in found.modules],
        "learned word": [entry.is_equal for entry in found.tokens],
    }
    parts = [
        f"{equal.count(False)} of {counted(len(equal), kind)}"
        for kind, equal in counts.items()
        if not all(equal)
    ]
    return f"The files differ in {' and '.join(parts)}."


def _layers(modules: "list[ModuleDifference]") -> str:
    rows = []
    for component in dict.fromkeys(entry.component for entry in modules):
        own = [entry for entry in modules if entry.component == component]
        sides = Counter(entry.only_in for entry in own)
        known = [entry.distance for entry in own if entry.distance is not None]
        counts = (sides["first"], sides["second"], sides[None])
        differing = sum(not entry.is_equal for entry in own if entry.only_in is None)
        largest = _distance(max(known)) if known else "-"
        rows.append((component, *map(str, counts), str(differing), largest))
    head = ("component", "only in first ", "only in second ", "in both ", "differing ", "largest ")
    return table(head, rows) if rows else ""


def _farthest(modules: "list[ModuleDifference]") -> str:
    """The layers that differ most; those of only one file first."""
    differing = [entry for entry in modules if not entry.is_equal]
    differing.sort(key=lambda e: (e.only_in is None, -(e.distance or 0.0)))
    rows = [
        (
            f"only in {entry.only_in}" if entry.only_in else _distance(entry.distance),
            f"{entry.component}.{entry.module}",
        )
        for entry in differing[:FARTHEST]
    ]
    more = len(differing) - len(rows)
    body = table(("difference ", "layer"), rows) if rows else ""
    return section("differing most", body + (f"\nand {more} more" if more else ""))


def _kinds(modules: "list[ModuleDifference]") -> str:
    """Differences that need not show in pictures: how a change is written."""
    kinds = Counter(
        (name, before, after)
        for entry in modules
        for name, (before, after) in entry.changed.items()
        if name != "shape" or entry.changed.keys() <= {"shape"}
    )
    rows = [
        (name, before, after, str(count)) for (name, before, after), count in kinds.most_common()
    ]
    body = table(("", "first", "second", "layers "), rows) if rows else ""
    return section("written differently", body)


def _tokens(found: "Difference") -> str:
    rows = [
        (
            entry.token,
            entry.encoder,
            f"only in {entry.only_in}" if entry.only_in else _distance(entry.distance),
            ", ".join(f"{name} {a} -> {b}" for name, (a, b) in entry.changed.items()),
        )
        for entry in found.tokens
    ]
    return table(("word", "text encoder", "difference ", ""), rows) if rows else ""


def _metadata(found: "Difference") -> str:
    both = [(key, a, b) for key, (a, b) in found.metadata.items() if None not in (a, b)]
    rows = [(key, _short(a or ""), _short(b or "")) for key, a, b in both]
    alone = {
        "only in first": ", ".join(key for key, (_, b) in found.metadata.items() if b is None),
        "only in second": ", ".join(key for key, (a, _) in found.metadata.items() if a is None),
    }
    return page(
        section("metadata", table(("", "first", "second"), rows) if rows else ""),
        section(
            "metadata of one file", pairs({side: keys for side, keys in alone.items() if keys})
        ),
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHORT else f"{line[: SHORT - 3]}..."


def _distance(distance: float | None) -> str:
    if distance is None:
        return "depends on the base"
    return "complete" if math.isinf(distance) else number(distance)
