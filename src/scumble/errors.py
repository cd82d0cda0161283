"""Errors that are the user's to fix: shown as one clear line, never as a traceback."""

import re

from scumble.redaction import redacted

LONGEST = 1000
"""So many characters of what another library says are passed on: some repeat all that they got."""


OVERLONG = re.compile(r"\S{1000,}")
"""No word of ours, and no path: what a damaged file gave for one."""


class UserError(Exception):
    """Something the user can put right: what is wrong, and what to do about it.

    The command line and the web page print it without a traceback and exit with code 1.

    Args:
        message: what is wrong, naming the file, flag or key; secrets in it are hidden.
        hint: what to do next, as a sentence.
        everywhere: every process of a run ends with it, and the main one says it for all.
    """

    def __init__(self, message: str, hint: str = "", *, everywhere: bool = False) -> None:
        message, hint = _clear(message), _clear(hint)
        super().__init__(f"{message}\n  {hint}" if hint else message)
        self.message = message
        self.hint = hint
        self.everywhere = everywhere


class Stopped(Exception):  # noqa: N818 - not an error
    """The user asked the work to stop, and it did so in good order.

    Args:
        message: where it stopped, what was saved, and how to go on.
    """


def _clear(text: str) -> str:
    """A text without secrets, and without words that fill screens."""
    return OVERLONG.sub(lambda word: f"{word[0][:200]}...", redacted(text))


def first_line(error: BaseException) -> str:
    """What an exception of another library says: its first line, cut short, secrets hidden."""
    lines = redacted(str(error)).strip().splitlines()
    said = lines[0] if lines else type(error).__name__
    return said if len(said) <= LONGEST else f"{said[:LONGEST]}..."
