"""PEFT's tables of ranks and alphas: which of their patterns means which layer.

A pattern comes out of a file and may be any regular expression, and some take ages to try. Here
those are understood that people write: names, dots, digits, choices, and gaps of any length.
"""

import re
from collections.abc import Mapping
from typing import Any

NAME = re.compile(r"\^?[\w.-]+")
"""A pattern without its escapes that is a name, or with ^ before it a whole path."""

TOKEN = re.compile(
    r"(?P<gap>\.[*+]\??)|(?P<digits>(?:\\d|\[0-9\])\+)"
    r"|\\\.|\\d|\[0-9\]|[\w.-]|\((?:\?:)?(?:[\w.|-]|\\\.)*\)"
)

CHOICES = re.compile(r"(?:[\w.-]|\\\.)+(?:\|(?:[\w.-]|\\\.)+)+")
"""Names apart by strokes, around the whole of which PEFT puts brackets."""

MAX_EXPRESSIONS = 16
"""Limit of a table's patterns that are more than a name, each of which is tried on every layer."""


class LayerTable:
    """One table of PEFT's settings.

    Args:
        table: pattern -> number.

    Raises:
        ValueError: a pattern of another kind, or too many.
        TypeError: a value that is no number.
    """

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._names: dict[str, tuple[int, float]] = {}
        self._expressions: list[tuple[re.Pattern[str], bool, int, float]] = []
        for place, (pattern, value) in enumerate(table.items()):
            name = pattern.replace(r"\.", ".").removesuffix("$")
            if NAME.fullmatch(name):
                self._names.setdefault(name, (place, float(value)))
            else:
                entry = (_expression(pattern), pattern.startswith("^"), place, float(value))
                self._expressions.append(entry)
        if len(self._expressions) > MAX_EXPRESSIONS:
            raise ValueError(f"it has more than {MAX_EXPRESSIONS} patterns that are no names")

    def of(self, path: str) -> float | None:
        """The number of a layer: PEFT takes the first pattern that is the end of its path.

        Args:
            path: of the layer; a pattern means whole names of it.

        Returns:
            None where no pattern fits.
        """
        names = path.split(".")
        ends = [".".join(names[start:]) for start in range(len(names))]
        found = [self._names[name] for name in (f"^{path}", *ends) if name in self._names]
        for expression, is_whole, place, number in self._expressions:
            if any(map(expression.fullmatch, ends[:1] if is_whole else ends)):
                found.append((place, number))
        return min(found)[1] if found else None


def _expression(pattern: str) -> re.Pattern[str]:
    pieces, end = [""], 0
    inner = pattern.removeprefix("^").removesuffix("$")
    inner = f"({inner})" if CHOICES.fullmatch(inner) else inner
    for token in TOKEN.finditer(inner):
        if token.start() != end:
            break
        end = token.end()
        if token["gap"]:
            pieces[-1] += "." * ("+" in token["gap"])
            pieces.append("")
        else:
            # Never given back: what was matched once is not tried in another way.
            pieces[-1] += token[0] + "+" * bool(token["digits"])
    if end != len(inner):
        raise ValueError(f"the pattern '{pattern[:80]}' is not understood")
    first, *others = pieces
    between = "".join(f"(?>.*?{piece})" for piece in others[:-1])
    return re.compile(first + between + "".join(f".*{piece}" for piece in others[-1:]))
