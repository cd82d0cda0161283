"""What happened to a run and when, and every line that it said: events.jsonl in its folder."""

import json
import os
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from scumble import console
from scumble.errors import Stopped, UserError, first_line
from scumble.redaction import redacted

EVENTS_NAME = "events.jsonl"
MOST_KEPT = 10_000
"""So many events wait for the folder; of a scan that says more, the oldest are lost."""


class Events:
    """Appends to a run's events; nothing of an earlier sitting is ever taken away.

    The folder is made by others: until `open`, events wait. A log that cannot be written costs the
    run nothing.

    Args:
        folder: the run's output folder; None on processes that write nothing.
        rank: of this process.
    """

    def __init__(self, folder: Path | None = None, rank: int = 0) -> None:
        self.path = folder and folder / EVENTS_NAME
        self.rank = rank
        self._start = time.monotonic()
        self._waiting: deque[dict[str, Any]] = deque(maxlen=MOST_KEPT)
        self._is_open = False

    def note(self, event: str, **facts: Any) -> None:
        """Note that something happened.

        Args:
            event: what, in a word.
            facts: about it, ready for JSON.
        """
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        elapsed = round(time.monotonic() - self._start, 3)
        entry = {"time": now, "elapsed_s": elapsed, "rank": self.rank, "event": event}
        self._waiting.append(entry | facts)
        self._write()

    def open(self) -> None:
        """From now on there is a folder to write into."""
        self._is_open = True
        self._write()

    def go_on(self) -> None:
        """The folder is this run's own: where earlier sittings have told, so do we."""
        if self.path is not None and self.path.is_file():
            self.open()

    @contextmanager
    def of_a_run(self, **facts: Any) -> Iterator[None]:
        """Keep all that is said meanwhile, and how the run began and ended."""
        self.note("started", **facts)
        with console.heard_by(lambda text: self.note("said", text=text)):
            try:
                yield
            except BaseException as error:
                self._note_end(error)
                raise
            self.note("finished")

    def _note_end(self, error: BaseException) -> None:
        if isinstance(error, Stopped | KeyboardInterrupt):
            self.note("stopped", reason=first_line(error))
            return
        trace = "".join(traceback.format_exception(error))
        known = isinstance(error, UserError)
        self.note("failed", error=first_line(error), **({} if known else {"traceback": trace}))

    def _write(self) -> None:
        if self.path is None or not self._is_open:
            return
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in self._waiting)
        content = redacted(text).encode("utf-8", "backslashreplace")
        with suppress(OSError):
            with self.path.open("ab") as file:
                # What a killed sitting left unfinished must not swallow the next line.
                if file.tell() and not _ends_line(self.path):
                    content = b"\n" + content
                file.write(content)
            self._waiting.clear()


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
