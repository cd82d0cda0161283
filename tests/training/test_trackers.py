"""Trackers get what a run does, with the real packages, and can end no run."""

import json
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import scumble
from scumble.errors import UserError
from scumble.training.trackers import Trackers, choose_trackers

DRAWING = {
    "max_train_steps": 4,
    "validation_prompt": "a circle",
    "validation_steps": 2,
    "validation_share": 0.2,
    "num_validation_images": 2,
    "num_inference_steps": 1,
    "hub_token": "hf_secret",
}
NUMBERS = {"train_loss", "lr", "grad_norm", "samples_per_s", "steps_per_s", "memory_mib"}


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def wandb_records(content: bytes) -> Iterator[Any]:
    """What wandb keeps for a later upload: records in LevelDB's log format, blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    position, parts = 7, b""  # behind the file's mark
    while position + 7 <= len(content):
        if 2**15 - position % 2**15 < 7:
            position += 2**15 - position % 2**15
        _, size, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


@pytest.fixture
def wandb_offline(monkeypatch, tmp_path):
    """Real wandb, which sends nothing and asks nobody."""
    wandb = pytest.importorskip("wandb")
    wandb.teardown()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield wandb
    wandb.teardown()


def test_tensorboard_gets_numbers_pictures_and_settings_unless_told_otherwise(
    make_config, tmp_path
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scumble.train(make_config(**DRAWING, before_after=True))
    (folder,) = (tmp_path / "out" / "logs").iterdir()
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    tags = accumulator.Tags()
    assert set(tags["scalars"]) == NUMBERS | {"held_out_loss"}
    steps = {name: [e.step for e in accumulator.Scalars(name)] for name in tags["scalars"]}
    assert steps.pop("held_out_loss") == [2, 4]
    assert steps == {name: [1, 2, 3, 4] for name in NUMBERS}
    assert tags["images"] == ["validation", "result"]
    (settings,) = folder.rglob("hparams.yml")
    assert "train_batch_size: 2" in settings.read_text()
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"hf_secret" not in written
    assert str(tmp_path).encode() not in written


def test_a_resumed_run_takes_back_what_came_after_its_checkpoint(make_config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scumble.train(make_config(checkpointing_steps=2))
    scumble.train(make_config(resume_from_checkpoint="checkpoint-2", max_train_steps=3))
    (folder,) = (tmp_path / "out" / "logs").iterdir()
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("train_loss")] == [1, 2, 3]
    assert [entry["step"] for entry in log_of(tmp_path / "out")] == [1, 2, 3]


def test_none_leaves_the_log_alone(make_config, tmp_path):
    scumble.train(make_config(report_to="none"))
    assert not (tmp_path / "out" / "logs").exists()
    assert len(log_of(tmp_path / "out")) == 4


def test_the_log_has_the_numbers_the_measurements_and_the_pictures(make_config, tmp_path):
    scumble.train(make_config(**DRAWING, report_to=("none",)))
    entries = log_of(tmp_path / "out")
    assert [e["step"] for e in entries if "loss" in e] == [1, 2, 3, 4]
    assert set(entries[0]) == (NUMBERS - {"train_loss"}) | {
        "step",
        "phase",
        "epoch",
        "loss",
        "elapsed_s",
    }
    assert [e["step"] for e in entries if "held_out_loss" in e] == [2, 4]
    (drawn,) = [e for e in entries if "samples" in e]
    names = ["step_000002_0.png", "step_000002_1.png"]
    assert (drawn["samples"], drawn["prompts"]) == (names, ["a circle"] * 2)
    first = entries[0]
    assert first["samples_per_s"] == pytest.approx(2 * first["steps_per_s"], rel=0.01)


def test_wandb_gets_numbers_pictures_and_settings_offline(make_config, tmp_path, wandb_offline):
    scumble.train(make_config(**DRAWING, report_to=("wandb", "tensorboard")))
    wandb_offline.teardown()  # its service has written everything then
    logs = tmp_path / "out" / "logs"
    (file,) = logs.glob("wandb/offline-run-*/*.wandb")
    records = list(wandb_records(file.read_bytes()))
    items = [item for record in records for item in record.history.item]
    assert NUMBERS | {"held_out_loss"} <= {item.key or ".".join(item.nested_key) for item in items}
    assert len(list(file.parent.glob("files/media/images/validation*.png"))) == 2
    settings = {u.key: u.value_json for r in records for u in r.config.update}
    settings |= {u.key: u.value_json for r in records for u in r.run.config.update}
    assert settings["train_batch_size"] == "2"
    assert not {"hub_token", "train_data_dir", "output_dir"} & set(settings)
    assert len(list(logs.glob("*/events*"))) == 1  # the other one works beside it


def test_wandb_without_a_login_is_an_error_before_anything_is_done(
    make_config, tmp_path, wandb_offline, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match=r"cannot log in.*\n.*WANDB_MODE=offline"):
        scumble.train(make_config(report_to="wandb"))
    assert not (tmp_path / "out").exists()


def test_trackio_gets_numbers_pictures_and_settings(make_config, tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    from trackio.utils import TRACKIO_DIR  # the first to import it decided where it is

    scumble.train(make_config(**DRAWING, report_to="trackio"))
    (file,) = TRACKIO_DIR.glob("*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("select step, metrics from metrics order by id").fetchall()
    found = {step: {} for step, _ in rows}
    for step, metrics in rows:
        found[step] |= json.loads(metrics)
    assert found.keys() >= {1, 2, 3, 4}
    assert all(found[step].keys() >= NUMBERS for step in (1, 2, 3, 4))
    assert {"held_out_loss", "validation 0", "validation 1"} <= set(found[2])


def test_a_tracker_that_breaks_while_training_is_said_once_and_costs_nothing(
    make_config, tmp_path, monkeypatch, capsys
):
    from torch.utils.tensorboard import SummaryWriter

    add, given = SummaryWriter.add_scalar, []

    def broken(self, name, *rest, **options):
        given.append(name)
        if len(given) > 7:
            raise OSError("no space left on device")
        add(self, name, *rest, **options)

    monkeypatch.setattr(SummaryWriter, "add_scalar", broken)
    scumble.train(make_config(**DRAWING))
    assert len(given) == 8
    said = capsys.readouterr().out
    assert said.count("the tracker tensorboard failed") == 1
    assert "no space left on device" in said
    assert len([e for e in log_of(tmp_path / "out") if "loss" in e]) == 4
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "finished"


def test_a_tracker_that_does_not_start_is_an_error_that_names_it(make_config, tmp_path):
    (tmp_path / "out" / "logs").mkdir(parents=True)
    (tmp_path / "out" / "logs" / "text2image-fine-tune").write_text("in the way")
    with pytest.raises(UserError, match="the tracker tensorboard does not start"):
        scumble.train(make_config())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["comet_ml"], "pip install comet_ml,"),
        (["tensorbord"], "tensorbord is not a tracker.*\n.*tensorboard, trackio, wandb, all, none"),
        (["none", "tensorboard"], "none stands alone"),
    ],
)
def test_a_tracker_that_cannot_be_is_an_error_at_once(make_config, tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        scumble.train(make_config(report_to=names))
    assert not (tmp_path / "out").exists()


def test_a_missing_tracker_of_an_extra_names_the_extra(monkeypatch):
    from accelerate import tracking

    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(UserError, match=r"pip install 'scumble\[wandb\]'"):
        choose_trackers(["tensorboard", "wandb"])
    assert choose_trackers(["all"]) == ["tensorboard"]


def test_without_tensorboard_nothing_is_asked_of_anybody(monkeypatch):
    from scumble.training import trackers

    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    assert choose_trackers([]) == []
    Trackers().log({"loss": 0.1}, 1)


def test_trackers_are_parted_by_blanks_or_commas(make_config):
    assert make_config(report_to="tensorboard,wandb").report_to == ("tensorboard", "wandb")
    assert make_config(report_to=None).report_to == ()


@pytest.mark.parametrize("cause", [OSError("disk"), KeyboardInterrupt()])
def test_the_record_says_how_a_run_ended(make_config, tmp_path, monkeypatch, cause):
    from scumble.training.sitting import Sitting

    def broken(self):
        raise cause

    monkeypatch.setattr(Sitting, "train", broken)
    with pytest.raises(type(cause)):
        scumble.train(make_config())
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    ended = ("failed", "disk") if isinstance(cause, OSError) else ("stopped", None)
    assert (record["status"], record.get("error")) == ended
