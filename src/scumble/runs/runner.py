"""Starts the jobs of a queue, one after another: `python -m scumble.runs.runner FOLDER`.

At most one is at work in a folder. It ends when nothing waits, and may be killed at any time: what
trains goes on, and the next one waits for it.
"""

import json
import os
import sys
import time
from pathlib import Path

from scumble.formats.container import write_atomically
from scumble.runs.process import ask_to_stop, identity, start_detached
from scumble.runs.queue import ENDED, OUTPUT, PROCESS, STOP, Job, Queue

LOCK = ".runner.lock"
POLL_S = 0.5


def work(folder: Path) -> None:
    """Run what waits, unless somebody else does."""
    from filelock import FileLock, Timeout

    queue = Queue(folder)
    # Asked again behind the lock: a job that came while it was given back would wait for ever.
    while _first_waiting(queue) is not None:
        try:
            with FileLock(folder / LOCK, blocking=False):
                while (job := _first_waiting(queue)) is not None:
                    if any(other.state in ("running", "stopping") for other in queue.jobs()):
                        time.sleep(POLL_S)
                    else:
                        _run(job)
        except Timeout:
            return


def _first_waiting(queue: Queue) -> Job | None:
    return next((job for job in queue.jobs() if job.state == "waiting"), None)


def _run(job: Job) -> None:
    process = start_detached(job.arguments(), job.folder / OUTPUT)
    name = identity(process.pid) | {"runner": identity(os.getpid())}
    write_atomically(job.folder / PROCESS, json.dumps(name).encode())
    if (job.folder / STOP).exists():  # asked for while it was being started
        ask_to_stop(name)
    code = process.wait()
    write_atomically(job.folder / ENDED, json.dumps({"code": code}).encode())


if __name__ == "__main__":
    work(Path(sys.argv[1]))
