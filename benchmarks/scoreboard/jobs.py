"""Runs jobs: each trains in a process of its own, then scores in another; what is done stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from fnmatch import fnmatch
from pathlib import Path
from threading import Lock

from .methods import LESSONS, ROOT, SUBJECT, Job, all_jobs, training_command

SCORE, TRAINED = "score.json", "trained.json"
COMMAND = ROOT / "benchmarks" / "scoreboard.py"


class JobError(Exception):
    """A job ended badly; the message says where to look."""


def wanted_jobs(seeds: int, pattern: str) -> list[Job]:
    """The jobs whose name holds the pattern, and what they need, in the order to run them."""
    jobs = list(all_jobs(seeds))
    wanted = {job for job in jobs if fnmatch(job.name, f"*{pattern}*")}
    wanted |= {need for job in wanted for need in job.needs()}
    return [job for job in jobs if job in wanted]


def is_done(job: Job, work: Path) -> bool:
    """Whether the job has a score."""
    return (work / job.name / SCORE).is_file()


def is_stale(job: Job, work: Path, quick: bool) -> bool:
    """Whether its score comes from other settings than the table holds now."""
    score = json.loads((work / job.name / SCORE).read_text("utf-8"))
    return bool(score["command"] != training_command(job, "WORK", quick))


def write_word_sets(work: Path) -> None:
    """Copy the data sets, with the new word for the trigger in every caption."""
    for name, lesson in LESSONS.items():
        target = work / "data" / name
        if target.is_dir():
            continue
        fresh = target.with_name(f"{name}.partial")
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(ROOT / "examples" / "data" / name, fresh)
        for path in fresh.glob("*.txt"):
            words = path.read_text("utf-8").replace(
                lesson.phrase(lesson.trigger), lesson.phrase(lesson.word)
            )
            assert lesson.word in words, path
            if lesson.kind == SUBJECT:
                words = words.replace(f"an {lesson.word}", f"a {lesson.word}")
            path.write_text(words, "utf-8")
        fresh.rename(target)


def run_jobs(jobs: Sequence[Job], work: Path, processes: int, quick: bool) -> list[str]:
    """Run what has no score yet; return what failed."""
    work.mkdir(parents=True, exist_ok=True)
    write_word_sets(work)
    open_jobs = [job for job in jobs if not is_done(job, work)]
    stale = [job.name for job in jobs if is_done(job, work) and is_stale(job, work, quick)]
    say(f"{len(open_jobs)} of {len(jobs)} jobs to do, {processes} at a time")
    if stale:
        say(f"scored with other settings; delete their folders to redo them: {', '.join(stale)}")
    progress = Progress(len(open_jobs), processes)
    failed = []
    with ThreadPoolExecutor(processes) as pool:
        running: dict[Job, Future[None]] = {}
        for job in open_jobs:
            # Workers begin jobs in this order, so what a job waits for is under way or done.
            first = [running[need] for need in job.needs() if need in running]
            running[job] = pool.submit(run_job, job, first, work, quick, progress)
        try:
            for future in as_completed(running.values()):
                if error := future.exception():
                    failed.append(str(error))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def run_job(
    job: Job, first: Sequence[Future[None]], work: Path, quick: bool, progress: Progress
) -> None:
    """Train if that is not done, then score.

    Raises:
        JobError: the training or the scoring did, or a job that this one needs.
    """
    if any(future.exception() for future in first):
        raise JobError(f"{job.name}: what it needs failed")
    started = time.monotonic()
    try:
        train(job, work, quick)
        words = [sys.executable, str(COMMAND), "--work", str(work), "--score", job.name]
        call(job, work, [*words, "--quick"] if quick else words)
    except JobError as error:
        progress.add(str(error), time.monotonic() - started)
        raise
    progress.add(job.name, time.monotonic() - started)


def train(job: Job, work: Path, quick: bool) -> None:
    """Train, unless a finished training with these settings lies there."""
    folder = work / job.name
    mark = folder / TRAINED
    folder.mkdir(parents=True, exist_ok=True)
    words = training_command(job, str(work), quick)
    if not words or (mark.is_file() and json.loads(mark.read_text("utf-8"))["words"] == words):
        return
    for path in (mark, folder / "log.txt"):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / "out", ignore_errors=True)
    started = time.monotonic()
    cpu_s = call(job, work, [sys.executable, "-m", "scumble", *words])
    for checkpoint in (folder / "out").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    wall_s = round(time.monotonic() - started, 1)
    content = {"words": words, "wall_s": wall_s, "cpu_s": round(cpu_s, 1)}
    mark.write_text(json.dumps(content) + "\n", "utf-8")


def call(job: Job, work: Path, command: Sequence[str]) -> float:
    """Run a command on one thread, with its words in the job's log.

    Returns:
        The processor's seconds, which do not depend on what else runs.

    Raises:
        JobError: it ended with an error.
    """
    one = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_MININTERVAL": "30"}
    log = work / job.name / "log.txt"
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | one, stdout=file, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = log.read_text("utf-8", errors="replace").strip().splitlines()[-1:]
        raise JobError(f"{job.name} FAILED, see {log}: {''.join(last)}")
    return usage.ru_utime + usage.ru_stime


class Progress:
    """Says what is done and how long the rest will take."""

    def __init__(self, total: int, processes: int) -> None:
        self.total, self.processes = total, processes
        self.seconds: list[float] = []
        self.lock = Lock()

    def add(self, line: str, seconds: float) -> None:
        """Note a job that ended."""
        with self.lock:
            self.seconds.append(seconds)
            done = len(self.seconds)
            left = sum(self.seconds) / done * (self.total - done) / self.processes
            say(f"[{done}/{self.total}] {line}: {seconds:.0f} s; {left / 60:.0f} min left")


def say(line: str) -> None:
    """Print at once, even where that is a file."""
    print(line, flush=True)
