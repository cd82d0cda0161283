"""What a value in a file must be to be a setting: of the type of its field."""

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from scumble.errors import UserError

WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
"""Type of a field -> how it is called."""

QUOTES = "YAML takes a bare no for false and yes for true: put the word in quotes."


class _MisfitError(Exception):
    """A value is not of the type."""


def as_type(value: Any, hint: Any, where: str) -> Any:
    """A file's value in the type of its field.

    Args:
        value: as the file's format has it.
        hint: the type of the field.
        where: names the value in the error.

    Raises:
        UserError: it has another type.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not NoneType)
    try:
        return _fitted(value, kind)
    except (_MisfitError, ValueError):
        shown = f"{value!r:.60}"
        advice = QUOTES if isinstance(value, bool) and kind is not bool else ""
        raise UserError(f"{where} must be {_words(kind)}, not {shown}", advice) from None


def _fitted(value: Any, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        if value in get_args(kind) and not isinstance(value, bool):
            return value
    elif get_origin(kind) is tuple:
        items = tuple(value) if isinstance(value, list) else (value,)
        if all(isinstance(item, str) for item in items):
            return items
    elif isinstance(value, bool) == (kind is bool) and isinstance(value, str | int | float):
        return value if kind is bool else kind(str(value))
    raise _MisfitError


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return WORDS.get(kind, "a list of texts")
