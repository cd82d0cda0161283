"""Runs as they are seen from outside: their files, their processes, and what happens to both."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from scumble.errors import UserError
from scumble.runs.listing import find_runs, is_alive, read_run

Make = Callable[..., Path]


def myself() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "host": platform.node(),
    }


@pytest.fixture
def make_run(tmp_path: Path) -> Make:
    """Writes a run's record and the log of its steps, half a second each."""

    def make(name: str, status: str = "finished", steps: int = 3, **facts: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        record = {"status": status, "settings": {"method": "text_to_image"}, "total_steps": 10}
        (folder / "run.json").write_text(json.dumps(record | facts))
        lines = [
            json.dumps({"step": n, "loss": n / 10, "elapsed_s": n / 2, "memory_mib": 100.0 + n})
            for n in range(1, steps + 1)
        ]
        (folder / "log.jsonl").write_text("".join(line + "\n" for line in lines))
        return folder

    return make


def test_a_run_tells_how_far_it_is(make_run: Make) -> None:
    run = read_run(make_run("fox", "running", process=myself(), base="scumble-tiny"))
    assert (run.name, run.status, run.step, run.total) == ("fox", "running", 3, 10)
    assert run.loss == pytest.approx(0.2)  # the mean, as on the progress bar
    assert run.eta_s == pytest.approx(3.5)  # 7 steps at half a second
    assert (run.memory_mib, run.base, run.method) == (103.0, "scumble-tiny", "text_to_image")
    assert run.pid == os.getpid()


def test_the_loss_is_that_of_the_last_steps_whoever_took_them(make_run: Make) -> None:
    folder = make_run("fox", "running", process=myself())
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 4, "loss": 0.8, "elapsed_s": 0.5}) + "\n")  # after a resume
    run = read_run(folder)
    assert (run.loss, run.eta_s) == (pytest.approx(0.35), None)


def test_a_run_whose_process_is_gone_was_interrupted(make_run: Make) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(process.pid).create_time()
    record = {"pid": process.pid, "started": started, "host": platform.node()}
    folder = make_run("fox", "running", process=record)
    assert read_run(folder).status == "running"
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert read_run(folder).status == "interrupted"  # a zombie trains no more
    process.communicate()
    run = read_run(folder)
    assert (run.status, run.eta_s, run.pid, run.can_resume) == ("interrupted", None, None, True)


def test_a_number_of_a_process_that_is_used_again_is_not_the_run(make_run: Make) -> None:
    earlier = myself() | {"started": psutil.Process().create_time() - 3600}
    assert read_run(make_run("fox", "running", process=earlier)).status == "interrupted"


def test_a_run_on_another_machine_is_believed_while_it_writes(make_run: Make) -> None:
    elsewhere = myself() | {"host": "another"}
    assert is_alive(elsewhere) is None
    folder = make_run("fox", "running", process=elsewhere)
    assert read_run(folder).status == "running"
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    assert read_run(folder).status == "interrupted"


def test_runs_are_found_below_a_folder_the_last_started_first(
    make_run: Make, tmp_path: Path
) -> None:
    make_run("a/old", started=100.0)
    make_run("new", started=300.0)
    make_run("b/c/between", started=200.0)
    make_run("new/nested", started=900.0)  # a run holds no other
    make_run(".hidden/run", started=900.0)
    (tmp_path / "loop").symlink_to(tmp_path)
    found = [run.name for run in find_runs([tmp_path, tmp_path / "a" / "old"])]
    assert found == ["new", "between", "old"]


def test_what_a_run_has_drawn_and_saved_is_listed_in_its_order(make_run: Make) -> None:
    names = ["samples/step_000020_0.png", "samples/step_000005_1.png", "samples/step_000005_0.png"]
    names += ["sample_0.png", "before_after.png", "checkpoint-9/manifest.json", "a.safetensors"]
    folder = make_run("fox", result="../../a.safetensors")
    for name in [*names, "checkpoint-10/manifest.json", "checkpoint-best/manifest.json"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    run = read_run(folder)
    drawn = [path.relative_to(folder).as_posix() for path in run.samples]
    assert drawn == [names[2], names[1], names[0], "sample_0.png"]
    assert run.checkpoint == folder / "checkpoint-10"
    assert run.before_after == folder / "before_after.png"
    assert run.result == folder / "a.safetensors"  # beside the record, whatever that says
    assert json.loads(json.dumps(run.to_dict()))["result"] == str(run.result)


def test_a_damaged_record_is_shown_as_such_and_hides_no_other(
    make_run: Make, tmp_path: Path
) -> None:
    (make_run("cut") / "run.json").write_text('{"status": "runn')
    make_run("whole")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text('{"name": "of another program"}')
    found = {run.name: run for run in find_runs([tmp_path])}
    assert {name: run.status for name, run in found.items()} == {
        "cut": "unreadable",
        "whole": "finished",
    }
    assert "run.json is damaged" in (found["cut"].error or "")


@pytest.mark.parametrize("value", ["text", None, [], {}, float("nan"), True])
def test_a_record_of_odd_values_is_read_all_the_same(make_run: Make, value: Any) -> None:
    names = ("status", "process", "started", "total_steps", "base", "result", "peak_memory_mib")
    run = read_run(make_run("odd", **dict.fromkeys((*names, "error"), value)))
    assert run.status == "interrupted"


def test_a_folder_without_a_run_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        find_runs([tmp_path / "nowhere"])
    assert find_runs([tmp_path]) == []


def test_listing_needs_no_torch() -> None:
    code = "import sys, scumble.runs.listing; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
