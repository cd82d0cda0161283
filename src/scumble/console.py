"""What the user sees while work goes on: plain lines and progress bars, from one process only."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from scumble.redaction import redacted


def is_main_process() -> bool:
    """Whether this process is the one that speaks, of those a launcher started."""
    return os.environ.get("RANK", "0") == "0"


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal would obey instead of showing it, and what it cannot show: halves of characters,
as in names that are no UTF-8. Line ends and tabs are left."""


def plain(text: str) -> str:
    """Text as it may be printed: secrets hidden, control characters spelled out.

    As JSON spells them, so that JSON stays JSON.
    """
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", redacted(text))


class _Guarded:
    """A stream on which nobody can write a secret: no library, no warning, no traceback."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.may_be_lost = False

    def write(self, text: str) -> int:
        with self._maybe_lost():
            self._stream.write(redacted(text))
        return len(text)

    def flush(self) -> None:
        with self._maybe_lost():
            self._stream.flush()

    @contextmanager
    def _maybe_lost(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            if not self.may_be_lost:
                raise
            # What is still to come, and what is still in the stream, goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_output() -> None:
    """Hide secrets in all that this process will ever print, whoever prints it.

    And in its command line, which trackers send along. Not by sys.excepthook: it hears of no
    warning, log line or thread, and of no library that prints an error before it raises.
    """
    if not isinstance(sys.stdout, _Guarded):
        sys.stdout = cast(TextIO, _Guarded(sys.stdout))
        sys.stderr = cast(TextIO, _Guarded(sys.stderr))
    sys.argv[1:] = [redacted(word) for word in sys.argv[1:]]


@contextmanager
def unheard() -> Iterator[None]:
    """Go on where nobody hears any more: the terminal is gone, or the disk of the output full.

    For work that is worth more than what is said of it.
    """
    guarded = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, _Guarded)]
    for stream in guarded:
        stream.may_be_lost = True
    try:
        yield
    finally:
        for stream in guarded:
            stream.may_be_lost = False


_listeners: list[Callable[[str], None]] = []


@contextmanager
def heard_by(listener: Callable[[str], None]) -> Iterator[None]:
    """Have a listener hear every line that is said, for as long as the context lasts."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


_kept: list[list[str]] = []


@contextmanager
def unsaid() -> Iterator[list[str]]:
    """Keep the lines that are said instead of printing them, for as long as the context lasts."""
    _kept.append([])
    try:
        yield _kept[-1]
    finally:
        _kept.pop()


def say(text: str) -> None:
    """Print a line, above any progress bar."""
    _print(text, sys.stdout)


def warn(text: str) -> None:
    """Print a line beside what is printed for programs to read, such as JSON."""
    _print(text, sys.stderr)


def _print(text: str, stream: TextIO) -> None:
    if _kept:
        _kept[-1].append(plain(text))
    elif is_main_process():
        from tqdm import tqdm

        tqdm.write(plain(text), file=stream)
        stream.flush()
        for listener in _listeners:
            listener(plain(text))


def progress(total: int | None, label: str, *, start: int = 0, unit: str = "it") -> Any:
    """Open a progress bar with time left; use it as a context manager.

    Args:
        total: how many updates are to come in all; None if that is not known.
        label: what is being done.
        start: how many are done already.
        unit: what is counted.
    """
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=label,
        initial=start,
        unit=unit,
        dynamic_ncols=True,
        disable=not is_main_process(),
    )
