"""Plain text in columns, narrow enough for a terminal of 100 columns."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest

WIDTH = 100
GAP = "  "


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Align rows under their heads.

    Args:
        head: titles of the columns; those that end in a blank align to the right, as numbers do.
        rows: cells, as many as titles.
    """
    cells = [[title.strip() for title in head], *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        GAP.join(
            cell.rjust(width) if title.endswith(" ") else cell.ljust(width)
            for cell, width, title in zip(row, widths, head, strict=True)
        ).rstrip()
        for row in cells
    )


def pairs(items: Mapping[str, str]) -> str:
    """Names with what belongs to them behind; long values are wrapped, long names stand alone."""
    width = max((len(name) for name in items if len(name) <= WIDTH // 3), default=0)
    room = WIDTH - width - 2 * len(GAP)  # of which one for a section that it may stand in
    lines = []
    for name, value in items.items():
        parts = textwrap.wrap(value, room) or [""]
        if len(name) > width:
            lines.append(name)
            name = ""
        lines += [
            f"{label.ljust(width)}{GAP}{part}".rstrip()
            for label, part in zip_longest([name], parts, fillvalue="")
        ]
    return "\n".join(lines)


def section(title: str, body: str) -> str:
    """A part of a page under its title; nothing where the part is empty."""
    return f"{title}\n{textwrap.indent(body, GAP)}" if body else ""


def page(*parts: str) -> str:
    """Parts of a page with a blank line between them; empty ones are left out."""
    return "\n\n".join(part for part in parts if part)


def size(nbytes: int) -> str:
    """A number of bytes as people read it."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes} B"


def counted(count: int, noun: str) -> str:
    """A count with its noun in the right number."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def number(value: float) -> str:
    """A measured number in four digits at most."""
    return f"{value:.4g}" if value else "0"


def spread(values: Sequence[float | None]) -> str:
    """Values of many layers in one cell: "4", "4 x96, 8 x32", or "1 to 64"; "-" for none."""
    counts = {value: values.count(value) for value in dict.fromkeys(values)}
    known = sorted(value for value in counts if value is not None)
    if not known:
        return "-"
    if len(counts) == 1:
        return f"{known[0]:g}"
    if len(counts) == 2 and len(known) == 2:
        return ", ".join(f"{value:g} x{counts[value]}" for value in known)
    return f"{known[0]:g} to {known[-1]:g}"
