"""Ctrl-C, kill and a closed terminal: finish the step, save, and stop in good order."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from scumble import console

ENDING = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""What asks a process to end, but for Ctrl-C: kill, and a terminal that is closed."""
SAME_WISH_S = 5.0
"""Signals that come so close together through a launcher are one."""


class StopRequest:
    """While entered, Ctrl-C and `ENDING` set `requested` instead of killing the process.

    A second signal interrupts at once. Where a closed terminal is to be ignored, as nohup asks for,
    it is.
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *ENDING):
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            # A launcher passes on what its processes may have had themselves already.
            if "RANK" in os.environ and time.monotonic() - self._since < SAME_WISH_S:
                return
            raise KeyboardInterrupt
        self.requested, self._since = True, time.monotonic()
        console.say("stopping after this step; once more stops at once")


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Have SIGTERM interrupt at once, as Ctrl-C does: it would end the process without a word."""
    in_charge = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, _interrupt) if in_charge else None
    try:
        yield
    finally:
        if in_charge:
            signal.signal(signal.SIGTERM, previous)


@contextmanager
def interruptible(record: Path) -> Iterator[None]:
    """Where no step is taken, SIGTERM interrupts at once, as Ctrl-C does; how to go on is said.

    Args:
        record: of the run, which is there once something of it can be resumed.
    """
    try:
        with sigterm_interrupts():
            yield
    except KeyboardInterrupt:
        way = "--resume_from_checkpoint latest" if record.exists() else "nothing else"
        console.say(
            "interrupted; what was drawn, encoded and saved so far is kept\n"
            f"  Go on with the same command and {way}."
        )
        raise


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
