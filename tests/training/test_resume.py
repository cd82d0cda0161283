"""Stopping and going on, by every way a run can end, without a bit of difference."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import scumble
from scumble.errors import Stopped, UserError
from scumble.training import sitting

STATE = "training_state.pt"
HARD_SETTINGS = {
    "max_train_steps": 8,
    "checkpointing_steps": 4,
    "random_flip": True,
    "caption_dropout": 0.3,
    "rank_dropout": 0.2,
    "lora_dropout": 0.2,
    "noise_offset": 0.1,
    "gradient_accumulation_steps": 2,
    "lr_scheduler": "cosine",
}
"""8 steps over 6 pictures in groups of 4: step 4 is in the middle of an epoch's order."""


def digest(folder: Path) -> str:
    content = (folder / "pytorch_lora_weights.safetensors").read_bytes()
    return hashlib.sha256(content).hexdigest()


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def flags(config: scumble.TrainConfig) -> list[str]:
    words = []
    for name, value in config.changed().items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        else:
            words += [f"--{name}", str(value)]
    return words


def start(config: scumble.TrainConfig, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "scumble", "train", "text_to_image", *flags(config)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    )


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.01)


@pytest.mark.slow
def test_kill_9_and_resume_equals_an_undisturbed_run(make_config, tmp_path, capsys):
    scumble.train(make_config(**HARD_SETTINGS, output_dir=str(tmp_path / "whole")))
    killed = make_config(**HARD_SETTINGS, output_dir=str(tmp_path / "killed"))
    process = start(killed)
    wait_for(tmp_path / "killed" / "checkpoint-4", process)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "pytorch_lora_weights.safetensors").exists()
    killed.resume_from_checkpoint = "latest"
    scumble.train(killed)
    # Every draw is named by its step: a run begun anew would end alike, so this must be said too.
    assert "checkpoint-4, step 4" in capsys.readouterr().out
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 8


@pytest.mark.slow
def test_ctrl_c_saves_and_the_run_goes_on_from_there(make_config, tmp_path):
    settings = HARD_SETTINGS | {"max_train_steps": 400, "checkpointing_steps": 1000}
    config = make_config(**settings)
    process = start(config)
    wait_for(tmp_path / "out" / "log.jsonl", process)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert "--resume_from_checkpoint latest" in output
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "stopped"
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    stopped_after = int(checkpoint.name.split("-")[1])
    assert 0 < stopped_after < 400


def stop_after(monkeypatch, step: int) -> None:
    """Request a stop as a signal would, once `step` steps are done."""
    between = sitting.Sitting._between_steps

    def stopping(self, result, update, average, stop):
        stop.requested = self.done == step
        between(self, result, update, average, stop)

    monkeypatch.setattr(sitting.Sitting, "_between_steps", stopping)


def test_a_stop_at_any_step_changes_nothing(make_config, tmp_path, monkeypatch, capsys):
    scumble.train(make_config(**HARD_SETTINGS, output_dir=str(tmp_path / "whole")))
    config = make_config(**HARD_SETTINGS, output_dir=str(tmp_path / "parts"))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped, match="step 3 of 8"):
            scumble.train(config)
    config.resume_from_checkpoint = "latest"
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stopped, match="step 5 of 8"):
            scumble.train(config)
    assert "checkpoint-3, step 3" in capsys.readouterr().out
    scumble.train(config)
    assert "checkpoint-5, step 5" in capsys.readouterr().out
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


def test_a_torn_checkpoint_is_named_and_passed_over(make_config, tmp_path, capsys):
    config = make_config(max_train_steps=6, checkpointing_steps=2)
    scumble.train(config)
    before = digest(tmp_path / "out")
    torn = tmp_path / "out" / "checkpoint-6" / "training_state.pt"
    torn.write_bytes(torn.read_bytes()[:-100])
    (tmp_path / "out" / "run.json").write_text("{}")
    config.resume_from_checkpoint = "latest"
    scumble.train(config)
    output = capsys.readouterr().out
    assert "passed over checkpoint-6" in output
    assert "step 4" in output
    assert digest(tmp_path / "out") == before


def test_resuming_a_finished_run_does_nothing(make_config, tmp_path, capsys):
    config = make_config()
    scumble.train(config)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    config.resume_from_checkpoint = "latest"
    scumble.train(config)
    assert "already finished" in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}


def test_a_finished_run_can_be_lengthened_and_says_what_differs(make_config, tmp_path, capsys):
    scumble.train(make_config(max_train_steps=4))
    scumble.train(make_config(max_train_steps=6, resume_from_checkpoint="checkpoint-4"))
    assert "--max_train_steps was 4 and is 6 now" in capsys.readouterr().out
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 6


def test_changed_pictures_are_said(make_config, pictures, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            scumble.train(make_config())
    (pictures / "0.txt").write_text("another caption")
    scumble.train(make_config(resume_from_checkpoint="latest"))
    said = "pictures: 0.png had the caption 'a red circle at night' and has 'another caption' now"
    assert f"not as before: {said}" in capsys.readouterr().out


def test_only_so_many_checkpoints_are_kept(make_config, tmp_path):
    scumble.train(make_config(checkpointing_steps=1, checkpoints_total_limit=2))
    kept = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert kept == ["checkpoint-3", "checkpoint-4"]


def test_an_unknown_checkpoint_lists_those_that_exist(make_config):
    scumble.train(make_config())
    with pytest.raises(UserError, match="checkpoint-4"):
        scumble.train(make_config(resume_from_checkpoint="checkpoint-9"))


def test_going_on_touches_no_other_files(make_config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        scumble.train(make_config(resume_from_checkpoint="latest"))
    assert (tmp_path / "out" / "README.md").read_text() == "mine"


def test_a_run_whose_checkpoints_are_all_damaged_is_left_alone(make_config, tmp_path):
    scumble.train(make_config())
    before = digest(tmp_path / "out")
    (tmp_path / "out" / "checkpoint-4" / "training_state.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint .* is intact"):
        scumble.train(make_config(resume_from_checkpoint="latest", seed=9))
    assert digest(tmp_path / "out") == before


def test_a_checkpoint_of_another_run_may_not_overwrite_this_one(make_config, tmp_path):
    scumble.train(make_config())
    scumble.train(make_config(output_dir=str(tmp_path / "other")))
    before = digest(tmp_path / "out")
    foreign = str(tmp_path / "other" / "checkpoint-4")
    with pytest.raises(UserError, match="already holds a run"):
        scumble.train(make_config(resume_from_checkpoint=foreign, max_train_steps=6))
    assert digest(tmp_path / "out") == before


def test_other_targets_or_ranks_are_one_clear_error(make_config):
    scumble.train(make_config())
    for changes in ({"rank": 8}, {"target_modules": ("to_q",)}):
        with pytest.raises(UserError, match="--rank, --target_modules"):
            scumble.train(make_config(resume_from_checkpoint="latest", **changes))


def test_fewer_steps_than_done_is_one_clear_error(make_config):
    scumble.train(make_config())
    with pytest.raises(UserError, match="more than the 2"):
        scumble.train(make_config(resume_from_checkpoint="latest", max_train_steps=2))


def test_a_new_learning_rate_holds_after_going_on(make_config, tmp_path):
    scumble.train(make_config())
    scumble.train(
        make_config(resume_from_checkpoint="latest", max_train_steps=6, learning_rate=5e-4)
    )
    log = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["lr"] for line in log] == [1e-3] * 4 + [5e-4] * 2


def test_checkpoints_that_were_taken_back_are_set_aside(make_config, tmp_path):
    scumble.train(make_config(checkpointing_steps=2, max_train_steps=6))
    scumble.train(
        make_config(
            resume_from_checkpoint="checkpoint-2",
            max_train_steps=3,
            checkpoints_total_limit=1,
        )
    )
    names = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    superseded = {"superseded-1-checkpoint-4", "superseded-1-checkpoint-6"}
    assert names == {"checkpoint-3", "logs", *superseded}


def test_a_run_cut_off_while_drawing_is_finished_by_resuming(make_config, tmp_path, monkeypatch):
    config = make_config(before_after=True, num_inference_steps=2, num_validation_images=1)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("scumble.training.results.draw_before_after", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scumble.train(config)
    before = digest(tmp_path / "out")
    config.resume_from_checkpoint = "latest"
    scumble.train(config)
    assert (tmp_path / "out" / "before_after.png").exists()
    assert (tmp_path / "out" / "README.md").exists()
    assert digest(tmp_path / "out") == before


def test_going_on_after_a_nan_is_bit_exact(make_config, tmp_path, monkeypatch, capsys):
    from scumble.training.denoising import DenoisingLoss

    settings = HARD_SETTINGS | {"checkpointing_steps": 100}
    scumble.train(make_config(**settings, output_dir=str(tmp_path / "whole")))
    config = make_config(**settings)
    draw = DenoisingLoss.samples

    def broken(self, plan, positions):
        drawn = draw(self, plan, positions)
        bad = float("nan") if plan.index == 4 else 1
        return drawn._replace(latents=drawn.latents * bad)

    with monkeypatch.context() as patch:
        patch.setattr(DenoisingLoss, "samples", broken)
        with pytest.raises(UserError, match="step 5"):
            scumble.train(config)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-4"]
    assert len(losses(tmp_path / "out")) == 4
    config.resume_from_checkpoint = "latest"
    scumble.train(config)
    assert "checkpoint-4, step 4" in capsys.readouterr().out
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def test_the_saved_moments_matter(make_config, tmp_path, monkeypatch):
    """The comparisons above would not notice a resume that forgot them, if they changed nothing."""
    from scumble.training.optimizers import Update

    scumble.train(make_config(**HARD_SETTINGS, output_dir=str(tmp_path / "whole")))
    config = make_config(**HARD_SETTINGS)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            scumble.train(config)
    config.resume_from_checkpoint = "latest"
    with monkeypatch.context() as patch:
        patch.setattr(Update, "load_state", lambda *_: None)
        scumble.train(config)
    assert digest(tmp_path / "out") != digest(tmp_path / "whole")


@pytest.mark.parametrize(
    "changes", [{"lora_plus_ratio": 4.0}, {"layer_learning_rates": ("attn1.to_q:2e-4",)}]
)
def test_other_rates_group_parameters_anew_and_moments_stay_with_them(
    make_config, tmp_path, changes
):
    """The second moment of the step behind the stop is the square of its gradient in the first."""
    scumble.train(make_config(max_train_steps=2))
    config = make_config(max_train_steps=3, resume_from_checkpoint="latest", **changes)
    scumble.train(config)
    before, after = (
        torch.load(tmp_path / "out" / f"checkpoint-{step}" / STATE, weights_only=True)["update"]
        for step in (2, 3)
    )
    assert before["moments"].keys() == after["moments"].keys()
    parameters = torch.load(tmp_path / "out" / "checkpoint-3" / STATE, weights_only=True)
    for name, moments in after["moments"].items():
        assert moments["exp_avg"].shape == parameters["parameters"][name].shape
        gradient = (moments["exp_avg"] - 0.9 * before["moments"][name]["exp_avg"]) / 0.1
        squares = (moments["exp_avg_sq"] - 0.999 * before["moments"][name]["exp_avg_sq"]) / 0.001
        torch.testing.assert_close(squares, gradient.square(), rtol=0.05, atol=1e-7)


def test_after_a_nan_with_fp16_nothing_moves_however_late_it_is_read(
    make_config, tmp_path, monkeypatch
):
    from scumble.training import journal, runtime
    from scumble.training.denoising import DenoisingLoss

    monkeypatch.setattr(runtime, "weight_dtype", lambda *_: (torch.float16, ""))
    settings = {"max_train_steps": 8, "ema_decay": 0.9}
    whole = {"checkpointing_steps": 3, "output_dir": str(tmp_path / "whole")}
    scumble.train(make_config(**settings, **whole))
    config = make_config(**settings, checkpointing_steps=100)
    draw = DenoisingLoss.samples

    def broken(self, plan, positions):
        drawn = draw(self, plan, positions)
        bad = float("nan") if plan.index == 3 else 1
        return drawn._replace(latents=drawn.latents * bad)

    start = journal.Journal.__init__

    def late(self, *arguments):
        start(self, *arguments)
        self._lag = 4

    with monkeypatch.context() as patch:
        patch.setattr(DenoisingLoss, "samples", broken)
        patch.setattr(journal.Journal, "__init__", late)
        with pytest.raises(UserError, match="step 4"):
            scumble.train(config)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]
    good, kept = (
        torch.load(tmp_path / folder / "checkpoint-3" / STATE, weights_only=True)
        for folder in ("whole", "out")
    )
    for part in ("parameters", "average"):
        assert all(torch.equal(good[part][name], kept[part][name]) for name in good[part])
    for name, moments in good["update"]["moments"].items():
        again = kept["update"]["moments"][name]
        assert all(torch.equal(value, again[key]) for key, value in moments.items())


def test_a_full_disk_as_torch_words_it_costs_no_older_checkpoint(
    make_config, tmp_path, monkeypatch
):
    config = make_config(checkpointing_steps=2)
    save, calls = torch.save, []

    def full(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(UserError, match="No space left"):
            scumble.train(config)
    names = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert names == {"checkpoint-2", "logs"}
    config.resume_from_checkpoint = "latest"
    scumble.train(config)
    scumble.train(make_config(output_dir=str(tmp_path / "whole")))
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")
