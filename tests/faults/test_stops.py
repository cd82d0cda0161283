"""Two runs on one folder, signals where no step is taken, and results that are not finite."""

import os
import signal
from pathlib import Path

import pytest
from promises import files
from recipes import Workplace

from scumble.errors import UserError
from scumble.runs.listing import read_run
from scumble.training.interrupts import StopRequest, interruptible
from scumble.training.lock import LOCK_NAME, locked

HOLDER = {"pid": 4711, "host": "there"}


def test_a_second_run_on_a_folder_is_kept_out(copied, capsys):
    place = copied(until=2)
    before = files(place.out)
    assert read_run(place.out).status == "interrupted"
    with locked(place.out, HOLDER):
        # Whatever the record says of its process, and the clock of when that began.
        assert (read_run(place.out).status, read_run(place.out).pid) == ("running", 4711)
        assert place.run_here(resume=True) == 1
    said = capsys.readouterr().err
    assert f"another run is writing into {Path('out')}: process 4711 on there" in said
    assert files(place.out) == before
    assert not (place.out / LOCK_NAME).exists()


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path):
    folder = tmp_path / "out"
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(folder, HOLDER):
            os.write(writing, b"locked")
            signal.pause()
    os.read(reading, 6)
    with pytest.raises(UserError, match="another run"), locked(folder, HOLDER):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (folder / LOCK_NAME).exists()
    with locked(folder, HOLDER):
        (folder / "result").touch()
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_a_lock_leaves_no_folder_that_it_made(tmp_path):
    with locked(tmp_path / "a" / "b", HOLDER):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("record", "way"), [("run.json", "latest"), ("none", "nothing else")])
def test_sigterm_where_no_step_is_taken_says_how_to_go_on(tmp_path, capsys, record, way):
    (tmp_path / "run.json").touch()
    with pytest.raises(KeyboardInterrupt), interruptible(tmp_path / record):
        os.kill(os.getpid(), signal.SIGTERM)
    assert way in capsys.readouterr().out


@pytest.mark.parametrize(("by_nohup", "stops"), [(signal.SIG_IGN, False), (signal.SIG_DFL, True)])
def test_a_closed_terminal_stops_no_run_that_nohup_started(by_nohup, stops):
    before = signal.signal(signal.SIGHUP, by_nohup)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested == stops
        assert signal.getsignal(signal.SIGHUP) == by_nohup
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("method", ["full", "textual_inversion"])
def test_what_is_not_finite_is_no_result(tmp_path, monkeypatch, capsys, method):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wild = ("--learning_rate", "3e38", "--max_train_steps", "1", "--lr_scheduler", "constant")
    place = Workplace(tmp_path / "place", method, (*wild, "--validation_share", "0"))
    place.prepare()
    assert place.run_here() == 1
    assert "after step 1" in capsys.readouterr().err
    left = [path.name for path in place.out.iterdir()]
    assert not [name for name in left if name.startswith(("model", "learned", ".", "checkpoint"))]
