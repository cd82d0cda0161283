"""Plain text in columns, narrow enough for a terminal of 100 columns."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

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


def pairs(items: Mapping[str, str], width: int = 0) -> str:
    """Names with what belongs to them behind, long values wrapped.

    Args:
        items: name -> value.
        width: of the names; as wide as the longest if not given.
    """
    width = width or max(map(len, items), default=0)
    lines = []
    for name, value in items.items():
        parts = textwrap.wrap(value, WIDTH - width - len(GAP)) or [""]
        first, *more = [part for part in parts]
        lines.append(f"{name.ljust(width)}{GAP}{first}".rstrip())
        lines += [" " * width + GAP + part for part in more]
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
