"""The queue of runs, which is a folder: whoever reads it knows everything, and no one has to live.

A job is a folder in it. Each of its files has one writer and is put in place whole:

    settings.yaml   the run's settings
    job.json        what is to be run, and since when it waits
    stop            there if the user asked for the end
    process.json    which process trains, and which notes its end; without it, the job waits
    ended.json      with which exit code it ended
    output.txt      what it said
"""

import json
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scumble.config import TrainConfig
from scumble.errors import UserError
from scumble.formats.container import is_plain_name, is_possible, write_atomically
from scumble.runs.listing import RECORD_NAME, is_alive
from scumble.runs.process import ask_to_stop, start_detached

JOB, SETTINGS, STOP, PROCESS, ENDED, OUTPUT = (
    "job.json",
    "settings.yaml",
    "stop",
    "process.json",
    "ended.json",
    "output.txt",
)
OUTPUT_BYTES = 16 * 1024
"""So much of the end of what a job said is read."""

State = Literal["waiting", "running", "stopping", "cancelled", "ended"]


@dataclass(frozen=True)
class Job:
    """A run in the queue, as it is on disk right now.

    Args:
        folder: of the job.
        method: that trains.
        output_dir: of the run.
        queued: since when it waits or waited, in seconds since 1970.
        state: `cancelled` before it ever ran; `ended` says nothing of how, the run's record does.
        code: exit code, where it is known.
    """

    folder: Path
    method: str
    output_dir: Path
    queued: float
    state: State
    code: int | None = None

    @property
    def name(self) -> str:
        """The job's name, which is its folder's."""
        return self.folder.name

    @property
    def is_open(self) -> bool:
        """Whether something is still to come."""
        return self.state in ("waiting", "running", "stopping")

    def arguments(self) -> list[str]:
        """The command that trains, behind the name of the interpreter."""
        words = ["-m", "scumble", "train", self.method, "--config", str(self.folder / SETTINGS)]
        if (self.output_dir / RECORD_NAME).exists():
            words += ["--resume_from_checkpoint", "latest"]
        return words

    def output(self) -> list[str]:
        """The last lines that it said; of a progress bar only the last state."""
        try:
            with (self.folder / OUTPUT).open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - OUTPUT_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return []
        return [line.rsplit("\r", 1)[-1].rstrip() for line in text.split("\n") if line.strip()]

    def complaint(self) -> str:
        """What a run that failed before it began has said about why."""
        lines = self.output()
        starts = [n for n, line in enumerate(lines) if line.startswith("scumble: ")]
        shown = lines[starts[-1] :] if starts else lines[-1:]
        return "\n".join(shown).removeprefix("scumble: ")


def settings_text(config: TrainConfig) -> str:
    """The settings of a run as a file that `--config` reads, secrets left out."""
    import yaml

    settings = {k: v for k, v in config.changed().items() if k != "method"}
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text


class Queue:
    """The jobs in a folder.

    Args:
        folder: made with the first job.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, config: TrainConfig) -> Job:
        """Put a run at the end and see to it that it will start.

        Args:
            config: its output folder gives the job its name.

        Raises:
            UserError: the folder cannot be written, or there is a job of this name.
        """
        folder = self.folder / Path(config.output_dir).name
        if folder.exists():
            raise UserError(f"there is a run called {folder.name} already", "Choose another name.")
        write_atomically(folder / SETTINGS, settings_text(config).encode())
        self._enqueue(folder, config.method, Path(config.output_dir))
        return self.job(folder.name)

    def jobs(self) -> list[Job]:
        """All jobs, the one that was queued first in front."""
        if not self.folder.is_dir():
            return []
        found = (_read_job(folder) for folder in self.folder.iterdir())
        return sorted((job for job in found if job is not None), key=lambda job: job.queued)

    def job(self, name: str) -> Job:
        """The job of this name.

        Raises:
            UserError: there is none.
        """
        job = _read_job(self.folder / name) if is_plain_name(name) else None
        if job is None:
            raise UserError(f"there is no run called '{name}' in the queue")
        return job

    def stop(self, name: str) -> Job:
        """End a run in good order, or take one that waits out of the queue; it can be resumed."""
        job = self.job(name)
        if job.is_open:
            write_atomically(job.folder / STOP, b"")
            ask_to_stop(_read(job.folder / PROCESS) or {})
        return self.job(name)

    def resume(self, name: str) -> Job:
        """Put a run that has ended at the end of the queue again; it goes on where it was."""
        job = self.job(name)
        if not job.is_open:
            self._enqueue(job.folder, job.method, job.output_dir)
        return self.job(name)

    def forget(self, name: str) -> None:
        """Take a job that has ended off the list; what its run wrote stays."""
        job = self.job(name)
        if not job.is_open:
            shutil.rmtree(job.folder)

    def wake(self) -> None:
        """See to it that somebody starts the jobs that wait."""
        if any(job.state == "waiting" for job in self.jobs()):
            arguments = ["-m", "scumble.runs.runner", str(self.folder.resolve())]
            start_detached(arguments, self.folder / "runner.txt")

    def _enqueue(self, folder: Path, method: str, output_dir: Path) -> None:
        content = {"method": method, "output_dir": str(output_dir), "queued": time.time()}
        write_atomically(folder / JOB, json.dumps(content).encode())
        for name in (STOP, ENDED, PROCESS):  # the last of them makes it wait
            with suppress(FileNotFoundError):
                (folder / name).unlink()
        self.wake()


def _read_job(folder: Path) -> Job | None:
    match _read(folder / JOB):
        case {"method": str(method), "output_dir": str(output), "queued": float(queued)}:
            if not is_possible(output):
                return None
            state, code = _state(folder)
            return Job(folder, method, Path(output), queued, state, code)
    return None


def _state(folder: Path) -> tuple[State, int | None]:
    asked = (folder / STOP).exists()
    process = _read(folder / PROCESS)
    if process is None:
        return ("cancelled" if asked else "waiting"), None
    # First whether somebody lives: the runner notes the end after its process has come to it.
    lives = is_alive(process) or is_alive(process.get("runner"))
    ended = _read(folder / ENDED)
    if ended is not None or not lives:
        code = (ended or {}).get("code")
        return "ended", code if isinstance(code, int) else None
    return ("stopping" if asked else "running"), None


def _read(path: Path) -> dict[str, Any] | None:
    """A file's content; None if it is not there or no object."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
