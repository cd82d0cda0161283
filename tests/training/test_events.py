"""events.jsonl tells what happened to a run and when, over all its sittings."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

import scumble
from scumble.errors import UserError
from scumble.runs.listing import read_run
from scumble.training.events import EVENTS_NAME, Events
from scumble.training.watermark import Watermark


def events_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / EVENTS_NAME).read_text().splitlines()]


def test_three_sittings_are_told_one_after_another(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    secret = "hf_" + "b2" * 17
    scumble.train(make_config(max_train_steps=1, instance_prompt=f"a {secret}", hub_token=secret))
    assert read_run(out).step == 1
    with (out / EVENTS_NAME).open("a") as file:
        file.write('{"time": "cut sho')  # a kill in the middle of a line
    more = {"resume_from_checkpoint": "latest", "learning_rate": 1e-4}

    def broken(*_: object) -> None:
        raise ZeroDivisionError(f"the card fell out, {secret}")

    with monkeypatch.context() as patch:
        patch.setattr("scumble.training.loop.StepWork.__call__", broken)
        with pytest.raises(ZeroDivisionError):
            scumble.train(make_config(max_train_steps=2, **more))
    assert read_run(out).error == "the card fell out, ***"
    scumble.train(make_config(max_train_steps=2, **more))

    text = (out / EVENTS_NAME).read_text()
    assert secret not in text
    torn = next(line for line in text.splitlines() if line.endswith("cut sho"))
    (out / EVENTS_NAME).write_text(text.replace(torn + "\n", ""))
    events = events_of(out)
    kinds = [e["event"] for e in events if e["event"] not in ("said", "stage")]
    first = ["started", "checkpoint", "finished"]
    second, third = ["started", "resumed", "failed"], ["started", "resumed", "checkpoint"]
    assert kinds == [*first, *second, *third, "finished"]
    resumed, failed = (next(e for e in events if e["event"] == k) for k in ("resumed", "failed"))
    assert resumed["step"] == 1
    assert "--learning_rate was 0.001 and is 0.0001 now" in resumed["changes"]
    assert "ZeroDivisionError: the card fell out" in failed["traceback"]
    times = [datetime.fromisoformat(event["time"]) for event in events]
    assert times == sorted(times)
    assert all(time.tzinfo for time in times)
    assert all(e["rank"] == 0 and e["elapsed_s"] >= 0 for e in events)
    said = [event["text"] for event in events if event["event"] == "said"]
    assert any(line.startswith("pictures: 6 found") for line in said)
    stages = [event["name"] for event in events if event["event"] == "stage"]
    assert stages[:3] == ["encoding", "loading", "training"]
    # The log of steps is as it was.
    steps = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in steps] == [1, 2]
    peaks = json.loads((out / "run.json").read_text())["peak_memory_by_stage_mib"]
    assert set(peaks) == {"encoding", "loading", "training"}
    assert any(line.strip().startswith("most memory used: encoding") for line in said)
    assert not (out / "debug").exists()


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="early"), Events(tmp_path / "out").of_a_run():
        raise ValueError("early")
    assert list(tmp_path.iterdir()) == []


def test_what_others_have_told_is_not_gone_on_with(make_config: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / EVENTS_NAME).write_text("theirs\n")
    with pytest.raises(UserError, match="is not empty"):
        scumble.train(make_config())
    assert (tmp_path / "out" / EVENTS_NAME).read_text() == "theirs\n"


def test_a_log_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    events = Events(tmp_path)
    (tmp_path / EVENTS_NAME).mkdir()
    events.open()
    events.note("checkpoint", step=1)
    (tmp_path / EVENTS_NAME).rmdir()
    events.note("checkpoint", step=2)
    assert [event["step"] for event in events_of(tmp_path)] == [1, 2]


def test_a_stage_in_another_counts_for_itself() -> None:
    readings = iter([10.0, 30.0, 20.0, 90.0, 40.0, 40.0, 40.0])
    memory = Watermark(torch.device("cpu"), lambda: next(readings))
    with memory.stage("training"), memory.stage("pictures"):
        pass
    assert memory.by_stage() == {"training": 90.0, "pictures": 20.0}
    assert memory.peak_mib() == 90.0
    assert memory.text() == "most memory used: training 0.09 GiB, pictures 0.02 GiB"
