"""Sentences that name culprits, so that every message of the data layer names them alike."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from scumble.errors import UserError


def listed(names: Sequence[str], limit: int = 5) -> str:
    """Join names for one line of a report: the first `limit`, then how many more there are."""
    shown = ", ".join(names[:limit])
    more = len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown


def counted(count: int, noun: str) -> str:
    """Put a number before a noun: 1 picture, 2 pictures."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def unknown_column(where: str, flag: str, wanted: str, present: Iterable[str]) -> UserError:
    """Build the error for a column that is not there.

    Args:
        where: the file or data set that lacks the column.
        flag: the command-line option that names the column, without dashes.
        wanted: the column asked for.
        present: the columns there are.
    """
    columns = list(present)
    close = get_close_matches(wanted, columns, n=1)
    hint = f"Did you mean --{flag} {close[0]}?" if close else f"Name one of them with --{flag}."
    return UserError(f"{where} has no column '{wanted}', only: {listed(columns, limit=20)}", hint)
