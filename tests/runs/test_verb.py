"""`scumble runs`: the table, its JSON, and watching until nothing runs any more."""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from scumble.cli import runs
from scumble.cli.main import run
from scumble.runs.listing_text import duration


def write_run(folder: Path, status: str, **facts: Any) -> None:
    folder.mkdir(parents=True)
    settings = {"method": "text_to_image"}
    record = {"status": status, "settings": settings, "total_steps": 1500, "started": time.time()}
    (folder / "run.json").write_text(json.dumps(record | facts))
    lines = [
        json.dumps({"step": n, "loss": 0.125, "elapsed_s": float(n), "memory_mib": 2048.0})
        for n in range(1, 301)
    ]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")


def myself() -> dict[str, Any]:
    started = psutil.Process().create_time()
    return {"pid": os.getpid(), "started": started, "host": platform.node()}


@pytest.fixture
def two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_run(Path("fox"), "running", process=myself(), base="org/stable-diffusion-v1-5")
    write_run(Path("cat"), "failed", started=time.time() - 7200, error="no space left \x1b[2J")
    return tmp_path


def test_the_runs_of_this_folder_are_a_table(
    two_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["runs"]) == 0
    head, first, second, blank, error = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "status", "step", "loss", "left", "memory", "base", "started"]
    assert first.split() == [
        *("fox", "running", "300/1500", "0.125", "20", "min", "2.0", "GiB"),
        *("stable-diffusion-v1-5", "0", "s", "ago"),
    ]
    assert second.split()[:5] == ["cat", "failed", "300/1500", "0.125", "-"]
    assert second.endswith("2 h ago")
    assert (blank, error) == ("", r"cat: no space left \u001b[2J")  # text steers no terminal
    assert max(map(len, (head, first, second))) <= 100


def test_json_has_everything(two_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs", str(two_runs), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["name"], first["eta_s"], first["settings"]["method"]) == (
        "fox",
        1200.0,
        "text_to_image",
    )
    assert (second["name"], second["status"]) == ("cat", "failed")


def test_watching_ends_when_nothing_runs(
    two_runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(_: float) -> None:
        record = json.loads(Path("fox/run.json").read_text())
        Path("fox/run.json").write_text(json.dumps(record | {"status": "finished"}))

    monkeypatch.setattr(runs.time, "sleep", finish)
    assert run(["runs", "--watch"]) == 0
    out = capsys.readouterr().out
    assert out.count("fox") == 2
    assert "finished" in out


def test_ctrl_c_ends_watching_in_good_order(
    two_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.time, "sleep", interrupt)
    assert run(["runs", "--watch"]) == 0


def test_a_folder_without_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
    assert run(["runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_folder_that_is_not_there_is_a_users_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["runs", str(tmp_path / "nowhere")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert run(["runs", "--json", "--watch"]) == 1
    assert "do not go together" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (40, "40 s"), (100, "2 min"), (7000, "2 h"), (86400, "1 day"), (4e5, "5 days")],
)
def test_durations_are_told_in_their_largest_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text
