"""The queue with real processes: order, stopping, going on, and whoever dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from scumble.config import TrainConfig
from scumble.errors import UserError
from scumble.runs.listing import read_run
from scumble.runs.process import identity
from scumble.runs.queue import ENDED, PROCESS, Queue, _read
from scumble.runs.runner import LOCK

PICTURES = Path(__file__).parents[2] / "examples" / "data" / "style_neon"
LONG = 100_000
"""More steps than a test waits for."""


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    """An empty queue; what still trains at the end of the test is killed."""
    queue = Queue(tmp_path / "queue")
    yield queue
    for job in queue.jobs():
        queue.stop(job.name)
    for job in queue.jobs():
        process = _read(job.folder / PROCESS)
        if process is not None and psutil.pid_exists(process["pid"]):
            psutil.Process(process["pid"]).kill()


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., TrainConfig]:
    """Maker of the settings of a small run."""

    def make(name: str, steps: int = 2, **changes: Any) -> TrainConfig:
        return TrainConfig(
            **{
                "pretrained_model_name_or_path": "scumble-tiny",
                "train_data_dir": str(PICTURES),
                "output_dir": str(tmp_path / "runs" / name),
                "max_train_samples": 2,
                "train_batch_size": 1,
                "max_train_steps": steps,
                "before_after": False,
                "latent_cache_dir": str(tmp_path / "cache"),
                **changes,
            }
        )

    return make


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def steps_of(config: TrainConfig) -> int:
    try:
        return read_run(config.output_dir).step
    except UserError:
        return 0


@pytest.mark.slow
def test_a_run_outlives_who_queued_it_and_goes_on_where_it_was_stopped(
    queue: Queue, settings: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    script = """
import sys, pathlib
from scumble.config import TrainConfig
from scumble.runs.queue import Queue
Queue(pathlib.Path(sys.argv[1])).add(TrainConfig(
    pretrained_model_name_or_path="scumble-tiny", train_data_dir=sys.argv[2], rank=3,
    output_dir=sys.argv[3] + "/long", max_train_samples=2, train_batch_size=1,
    max_train_steps=100_000, before_after=False, latent_cache_dir=sys.argv[3] + "/cache"))
"""
    words = [str(queue.folder), str(PICTURES), str(tmp_path / "runs")]
    subprocess.run([sys.executable, "-c", script, *words], check=True)
    config = settings("long", LONG)
    wait_for(lambda: steps_of(config) >= 3)
    assert queue.job("long").state == "running"
    assert queue.stop("long").state in ("stopping", "ended")
    wait_for(lambda: queue.job("long").state == "ended")
    stopped = read_run(config.output_dir)
    assert stopped.status == "stopped"
    assert stopped.settings is not None
    assert stopped.settings["rank"] == 3
    assert stopped.checkpoint is not None
    assert stopped.checkpoint.name == f"checkpoint-{stopped.step}"

    queue.resume("long")
    wait_for(lambda: steps_of(config) > stopped.step)
    assert any(f"step {stopped.step}" in line for line in queue.job("long").output())


@pytest.mark.long
@pytest.mark.slow
def test_a_run_goes_on_without_its_runner_and_the_next_waits_for_it(
    queue: Queue, settings: Callable[..., TrainConfig]
) -> None:
    first, second = settings("first", LONG), settings("second")
    queue.add(first)
    wait_for(lambda: steps_of(first) >= 1)
    trainer = psutil.Process((_read(queue.folder / "first" / PROCESS) or {})["pid"])
    runner = trainer.parent()
    assert runner is not None
    os.kill(runner.pid, signal.SIGKILL)
    wait_for(lambda: trainer.ppid() != runner.pid)
    seen = steps_of(first)
    queue.add(second)
    wait_for(lambda: steps_of(first) > seen)
    assert [job.state for job in queue.jobs()] == ["running", "waiting"]
    queue.stop("first")
    wait_for(lambda: queue.job("second").state == "ended")
    assert read_run(first.output_dir).status == "stopped"
    assert read_run(second.output_dir).status == "finished"


def test_what_waits_can_be_taken_out_and_put_back(
    queue: Queue, settings: Callable[..., TrainConfig]
) -> None:
    queue.folder.mkdir()
    with FileLock(queue.folder / LOCK):  # a runner that is busy
        queue.add(settings("first"))
        queue.add(settings("second"))
        assert [(job.name, job.state) for job in queue.jobs()] == [
            ("first", "waiting"),
            ("second", "waiting"),
        ]
        assert queue.stop("first").state == "cancelled"
        assert queue.resume("first").state == "waiting"
        assert [job.name for job in queue.jobs()] == ["second", "first"]
        for name in ("first", "second"):
            queue.stop(name)
            queue.forget(name)
    assert queue.jobs() == []


def test_a_run_has_not_ended_before_its_code_is_noted(
    queue: Queue, settings: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "wake", lambda: None)
    folder = queue.add(settings("gone")).folder
    gone = subprocess.Popen([sys.executable, "-c", ""])
    names = identity(gone.pid), identity(os.getpid())
    gone.wait()
    for runner, state in ((names[1], "running"), (names[0], "ended")):
        (folder / PROCESS).write_text(json.dumps(names[0] | {"runner": runner}))
        assert (queue.job("gone").state, queue.job("gone").code) == (state, None)
    (folder / PROCESS).write_text(json.dumps(names[0] | {"runner": names[1]}))
    (folder / ENDED).write_text(json.dumps({"code": 3}))
    assert (queue.job("gone").state, queue.job("gone").code) == ("ended", 3)


def test_why_a_run_could_not_begin_is_known(
    queue: Queue, settings: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = settings("bad", train_data_dir=str(tmp_path / "nowhere"), hub_token="hf_secret")
    job = queue.add(config)
    wait_for(lambda: queue.job("bad").state == "ended")
    job = queue.job("bad")
    assert job.code == 1
    assert job.complaint().startswith(f"there is no folder {tmp_path / 'nowhere'}")
    texts = [path.read_text("utf-8") for path in queue.folder.rglob("*") if path.is_file()]
    assert not any("hf_secret" in text for text in texts)
    with pytest.raises(UserError, match="there is a run called bad already"):
        queue.add(config)
    with pytest.raises(UserError, match="there is no run called"):
        queue.job("../bad")
