"""`scumble doctor` on real runs: what it finds, that it leaves nothing, that runs say the same."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files as resources
from pathlib import Path

import pytest

from scumble import TrainConfig
from scumble.cli.doctor import screen
from scumble.cli.main import run
from scumble.training import speedometer
from scumble.training.ceiling import Ceiling
from scumble.training.doctor import Diagnosis, examine
from scumble.training.lock import locked
from scumble.training.run import train


def texts(diagnosis: Diagnosis, *levels: str) -> str:
    found = [f for f in diagnosis.findings if f.level in (levels or ("ok", "note", "danger"))]
    return "\n".join(f"{finding.topic}: {finding.text} -> {finding.hint}" for finding in found)


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if ".cache" not in path.parts}


def test_one_screen_of_what_the_run_will_do(
    make_config: Callable[..., TrainConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures" / "long.png").write_bytes((tmp_path / "pictures/0.png").read_bytes())
    (tmp_path / "pictures" / "long.txt").write_text("a " + "very " * 90 + "long caption")
    before = files(tmp_path)
    config = make_config(max_train_steps=None, num_train_epochs=50, learning_rate=1e-4)
    diagnosis = examine(config)
    found = texts(diagnosis)
    assert "7 found, 7 usable, 0 skipped, 7 to learn; 64x64 (7); 33% cut away" in found
    assert "1 exact duplicates: long.png (same as 0.png)" in found
    assert re.search(r"1 caption cut at 75 tokens: long.png \(by \d+ tokens\)", found)
    assert "steps: 200 steps of 2 pictures, 4 per epoch: each picture is seen 50.0 times" in found
    assert "strength: adapters 0.0001 x 1 = 0.0001" in found
    assert "scumble-tiny: stable diffusion, 5.1 M parameters, predicts v, made for 64 px" in found
    assert re.search(r"peak foretold \d+\.\d\d GiB, .* free \(--memory balanced\)", found)
    assert re.search(r"time: about .* per full step", found)
    assert re.search(r"speed: \w.* = \d+% of the .*FLOP/s that matrix products reach here", found)
    assert texts(diagnosis, "danger") == ""
    lines = list(screen(diagnosis))
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100
    assert lines[-1].startswith("NOTE: nothing stands in the way")
    numbers = diagnosis.numbers
    assert numbers["training_s"] == pytest.approx(
        200 * numbers["step_s text_to_image"] * 7 / 8, rel=1e-6
    )
    assert 0 < numbers["share_of_ceiling"] < 1.2
    assert files(tmp_path) == before
    assert capsys.readouterr().out == ""


def test_danger_ends_with_1_and_is_said_at_the_start_of_the_run(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["text_to_image", "--pretrained_model_name_or_path", "scumble-tiny", "--rank", "32"]
    words += ["--train_data_dir", str(pictures), "--output_dir", str(tmp_path / "out")]
    words += ["--alpha", "1", "--max_train_steps", "2", "--train_batch_size", "2"]
    words += ["--no_before_after", "--tokenizer_max_length", "77"]
    assert run(["doctor", *words[:-2], "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["verdict"] == "danger"
    (danger,) = [f for f in answer["findings"] if f["level"] == "danger"]
    assert danger["topic"] == "strength"
    assert "will have no effect: learning rate 0.0001 x 1 / rank (32)" in danger["text"]
    assert answer["numbers"]["foretold_peak_mib"] > 100
    assert run(["doctor", *words]) == 1, "a flag that is refused in train is refused here"
    assert "--tokenizer_max_length is not available" in capsys.readouterr().err

    assert run(["train", *words[:-2]]) == 0
    out = capsys.readouterr().out
    assert f"danger: {danger['text']} ({danger['hint']})" in out
    assert "note: 2 steps at this learning rate will change little" in out
    assert "ok:" not in out


def test_what_would_stop_the_run_is_a_danger(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    (tmp_path / "pictures" / "2.txt").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    diagnosis = examine(make_config())
    dangers = [finding for finding in diagnosis.findings if finding.level == "danger"]
    assert [finding.topic for finding in dangers] == ["output", "start"]
    assert "is not empty" in dangers[0].text
    assert "2.png" in dangers[1].text
    assert diagnosis.verdict == "danger"
    with locked(tmp_path / "out", {"pid": 4711, "host": "there"}):
        again = texts(examine(make_config(resume_from_checkpoint="latest")), "danger")
    assert "another run is writing into" in again
    assert "process 4711 on there" in again


def test_a_base_for_inpainting_is_refused_before_anything_is_loaded(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    tiny = Path(str(resources("scumble") / "assets" / "tiny"))
    for name in ("model_index.json", *(f"{part}/config.json" for part in ("unet", "vae"))):
        (tmp_path / "base" / name).parent.mkdir(parents=True, exist_ok=True)
        text = (tiny / name).read_text()
        text = text.replace('"in_channels": 4', '"in_channels": 9') if "unet" in name else text
        (tmp_path / "base" / name).write_text(text)
    shutil.copytree(tiny / "scheduler", tmp_path / "base" / "scheduler")
    diagnosis = examine(make_config(pretrained_model_name_or_path=str(tmp_path / "base")))
    assert "takes 9 channels: it is made to fill in" in texts(diagnosis, "danger")


def test_a_subject_with_its_class_is_rehearsed_and_no_class_picture_is_drawn(
    pictures: Path, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config(
        method="dreambooth",
        train_data_dir=None,
        instance_data_dir=str(pictures),
        instance_prompt="a photo of sks dog",
        with_prior_preservation=True,
        class_prompt="a photo of a dog",
        class_data_dir=str(tmp_path / "class"),
        num_class_images=7,
        train_text_encoder=True,
        aspect_ratio_buckets=True,
        validation_share=0.2,
        validation_steps=2,
    )
    diagnosis = examine(config)
    found = texts(diagnosis)
    assert "5 captions without sks" in found
    assert "6 usable, 0 skipped, 5 to learn; 80x48 (5); 10% cut away" in found
    assert "adapters of text_encoder 0.0005 x 1 = 0.0005" in found
    assert diagnosis.numbers["drawing_the_class_s"] > 0
    assert diagnosis.numbers["pictures_and_measurements_s"] > 0
    assert not (tmp_path / "class").exists()


def test_a_run_that_goes_on_is_examined_for_what_is_left_of_it(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    train(make_config(max_train_steps=2))
    more = {"resume_from_checkpoint": "latest"}
    done = examine(make_config(max_train_steps=2, **more))
    assert "the run is finished after 2 steps" in texts(done, "note")
    assert done.numbers["training_s"] == 0
    diagnosis = examine(make_config(max_train_steps=4, **more))
    assert "the run goes on from step 2" in texts(diagnosis, "ok")
    step_s = diagnosis.numbers["step_s text_to_image"]
    assert diagnosis.numbers["training_s"] == pytest.approx(2 * step_s, rel=0.01)
    too_far = examine(make_config(max_train_steps=1, **more))
    assert "2 steps behind it, more than the 1" in texts(too_far, "danger")


def test_two_phases_are_both_timed(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(
        method="pivotal_tuning",
        placeholder_token="<pip>",
        initializer_token="circle",
        learnable_property="style",
        max_train_steps=600,
    )
    diagnosis = examine(config)
    assert "600 steps (300 for the word, then 300 for the adapters)" in texts(diagnosis)
    assert {"step_s word", "step_s adapters"} <= diagnosis.numbers.keys()
    assert "rows of text_encoder 0.0005" in texts(diagnosis)


def test_a_run_says_once_that_it_is_slow(
    make_config: Callable[..., TrainConfig],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speedometer, "AFTER_STEPS", 2)
    ceilings = iter([Ceiling(1e15, 1e15, 0.0), Ceiling(1e6, 1e6, 1.0)])
    monkeypatch.setattr(speedometer, "measure_ceiling", lambda *_: next(ceilings))
    config = make_config(max_train_steps=3, learning_rate=1e-4)
    for worth_s, slow in ((0.0, 1), (0.0, 0), (1e9, 0)):
        monkeypatch.setattr(speedometer, "WORTH_S", worth_s)
        train(replace(config, output_dir=f"{config.output_dir}-{worth_s}-{slow}"))
        said = re.findall(r"note: slow: .* to go", capsys.readouterr().out)
        assert len(said) == slow
