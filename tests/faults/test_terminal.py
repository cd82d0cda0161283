"""The terminal goes away, or what a run says can be written nowhere: the run itself is not lost."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from promises import files
from recipes import Workplace

from scumble.cli.main import main


def started(place: Workplace, output: int) -> int:
    """Run the command in a child whose output goes to a descriptor; its process number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
        os.chdir(place.folder)
        main(place.arguments())
    except SystemExit as ended:
        sys.stdout.flush()
        code = int(ended.code or 0)
    finally:
        os._exit(code)


def code_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def cut_pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize(
    "output",
    [
        cut_pipe,
        pytest.param(
            full_disk, marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device")
        ),
    ],
)
def test_a_run_that_nobody_hears_comes_to_its_end(original, tmp_path, monkeypatch, output):
    place = Workplace(tmp_path / "place", original.method)
    place.prepare()
    monkeypatch.setenv("XDG_CACHE_HOME", str(original.cache))
    assert code_of(started(place, output())) == 0
    name = "learned_embeds.safetensors"
    assert files(place.out)[name] == files(original.out)[name]


def test_other_work_that_nobody_could_read_has_failed(tmp_path):
    child = os.fork()
    if child == 0:
        try:
            os.dup2(full_disk(), 1)
            sys.stdout = os.fdopen(1, "w")
            main(["--version"])
        except SystemExit as ended:
            try:
                sys.stdout.flush()
            except OSError:
                os._exit(70)
            os._exit(int(ended.code or 0))
        finally:
            os._exit(71)
    assert code_of(child) != 0


def test_a_closed_terminal_stops_a_run_in_good_order(original, tmp_path, monkeypatch):
    long = (
        "--max_train_steps",
        "4000",
        "--checkpointing_steps",
        "4000",
        "--validation_steps",
        "4000",
    )
    place = Workplace(tmp_path / "place", original.method, long)
    place.prepare()
    monkeypatch.setenv("XDG_CACHE_HOME", str(original.cache))
    child = started(place, os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT))
    end = time.monotonic() + 60
    while not (place.out / "log.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(child, signal.SIGHUP)
    assert code_of(child) == 130, (tmp_path / "said").read_text()
    assert len(list(place.out.glob("checkpoint-*"))) == 1
