"""A run is rebuilt from what an adapter's file or a run's folder says of it, and compared."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend

import scumble
from scumble import TrainConfig
from scumble.cli.main import run as scumble_run
from scumble.errors import UserError
from scumble.formats.container import read_content
from scumble.kernels.attention import backends_for
from scumble.training.blueprint import BLUEPRINT
from scumble.training.original import open_original
from scumble.training.picture_list import LIST_NAME

TOKEN = "hf_" + "a1" * 17
ADAPTER = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, draw_pictures: Any) -> TrainConfig:
    """A run with many options, which no test may change."""
    folder = tmp_path_factory.mktemp("finished")
    draw_pictures(folder / "pictures")
    config = TrainConfig(
        pretrained_model_name_or_path="scumble-tiny",
        train_data_dir=str(folder / "pictures"),
        output_dir=str(folder / "out"),
        train_batch_size=2,
        learning_rate=1e-3,
        before_after=False,
        max_train_steps=3,
        rank=3,
        random_flip=True,
        caption_dropout=0.3,
        snr_gamma=5.0,
        target_modules=("to_q", "to_v:2"),
        lr_scheduler="cosine",
        validation_share=0.2,
        validation_steps=2,
        hub_token=TOKEN,
    )
    scumble.train(config)
    return config


@pytest.fixture
def trained(finished: TrainConfig, tmp_path: Path) -> TrainConfig:
    """The same, to be changed."""
    for name in ("pictures", "out"):
        shutil.copytree(Path(finished.output_dir).parent / name, tmp_path / name)
    record = tmp_path / "out" / "run.json"
    old = str(Path(finished.output_dir).parent)
    record.write_text(record.read_text().replace(old, str(tmp_path)))
    where = {"train_data_dir": str(tmp_path / "pictures"), "output_dir": str(tmp_path / "out")}
    return replace(finished, **where)


def reproduce(source: Path, *words: str) -> int:
    return scumble_run(["reproduce", str(source), *words, "--no_before_after"])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, without the progress bars."""
    caught = capsys.readouterr()
    return caught.out + "".join(x for x in caught.err.splitlines(True) if x.startswith("scumble"))


def test_a_file_alone_gives_the_same_bytes_again(
    trained: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    # Not a word of the old run's folder is read: the file lies elsewhere, in another format.
    for name, format in (("mine", "peft"), ("kohya", "kohya")):
        weights = scumble.read_adapter(Path(trained.output_dir) / ADAPTER)
        scumble.write_adapter(weights, tmp_path / f"{name}.safetensors", format)
    for path in Path(trained.output_dir).glob("*.json*"):
        path.unlink()
    capsys.readouterr()
    assert reproduce(tmp_path / "mine.safetensors") == 1
    assert "--train_data_dir is not in the file: it was called 'pictures'" in said(capsys)
    pictures = ("--train_data_dir", str(trained.train_data_dir))
    assert reproduce(tmp_path / "mine.safetensors", *pictures) == 0
    text = said(capsys)
    assert "identical: the files are the same, byte for byte" in text
    assert "not as it was" not in text
    assert "last digits" not in text
    made = tmp_path / "mine-reproduced" / ADAPTER
    assert made.read_bytes() == (Path(trained.output_dir) / ADAPTER).read_bytes()
    assert reproduce(tmp_path / "kohya.safetensors", *pictures, "--check") == 0
    assert "it would be reproduced bit for bit" in said(capsys)


def test_what_is_not_as_it_was_is_named(
    trained: TrainConfig, tmp_path: Path, capsys: Any, tiny_folder: Path
) -> None:
    run, folder = Path(trained.output_dir), Path(str(trained.train_data_dir))
    assert reproduce(run, "--check") == 0
    assert "bit for bit" in said(capsys)
    held_out = {json.loads(x)["id"] for x in (run / LIST_NAME).read_text().splitlines()[-1:]}
    first, second, *others = sorted(set(f"{n}.png" for n in range(6)) - held_out)
    (folder / first).write_bytes((folder / others[0]).read_bytes())
    (folder / second).with_suffix(".txt").write_text("something else")
    options = (
        "--learning_rate",
        "0.5",
        "--pretrained_model_name_or_path",
        str(other(tiny_folder, tmp_path)),
    )
    assert reproduce(run, "--check", *options) == 3
    lines = said(capsys).splitlines()
    expected = (
        f"pictures: {first} is another picture",
        f"pictures: {second} had the caption ",
        "--learning_rate was 0.001 and is 0.5",
        "the base's unet has other weights: scumble-tiny then, base now",
    )
    for line in expected:
        assert any(x.startswith(f"not as it was: {line}") for x in lines), (line, lines)
    assert sum(x.startswith("not as it was") for x in lines) == len(expected)
    assert lines[-1].startswith("it would not be reproduced")
    # The file has digests alone.
    where = ("--train_data_dir", str(folder))
    assert reproduce(run / ADAPTER, "--check", *where) == 3
    assert "pictures: as many as then, and not the same ones" in said(capsys)


def other(base: Path, tmp_path: Path) -> Path:
    """A copy of a base with another number in its denoiser."""
    copy = Path(shutil.copytree(base, tmp_path / "base"))
    (file,) = (copy / "unet").glob("*.safetensors")
    weights = load_file(file)
    weights["conv_out.bias"][0] += 1
    save_file(weights, file, {"format": "pt"})
    return copy


def test_another_result_has_an_exit_code_of_its_own(
    trained: TrainConfig, tmp_path: Path, capsys: Any
) -> None:
    run = Path(trained.output_dir)
    out = ("--output_dir", str(tmp_path / "again"))
    assert reproduce(run, *out, "--max_train_steps", "1") == 3
    assert "different: most in" in said(capsys)


def test_a_run_that_was_stopped_is_compared_where_it_stopped(
    make_config: Any, tmp_path: Path, capsys: Any
) -> None:
    config = make_config(max_train_steps=4, checkpointing_steps=2, lr_scheduler="linear")
    scumble.train(config)
    run = Path(config.output_dir)
    checkpoint = run / "checkpoint-2"
    kept = (checkpoint / ADAPTER).read_bytes()
    out = tmp_path / "again"
    where = ("--output_dir", str(out), "--train_data_dir", str(config.train_data_dir))
    assert reproduce(checkpoint / ADAPTER, *where) == 0
    assert "identical" in said(capsys)
    assert (out / "checkpoint-2" / ADAPTER).read_bytes() == kept
    (run / "run.json").write_text("{")  # the newest checkpoint says the same
    assert open_original(str(run)).place == "checkpoint-4"
    assert open_original(str(checkpoint)).steps == 2


def test_a_run_that_went_on_under_other_settings_says_so_for_good(
    make_config: Any, capsys: Any
) -> None:
    scumble.train(make_config(max_train_steps=1, learning_rate=1e-3))
    more = {"learning_rate": 1e-4, "resume_from_checkpoint": "latest"}
    for steps in (2, 3):
        result = scumble.train(make_config(max_train_steps=steps, **more))
    metadata = read_content(result.adapter, outline=True).metadata
    assert json.loads(metadata[BLUEPRINT])["changes"] == [
        "--learning_rate was 0.001 and is 0.0001 now"
    ]
    capsys.readouterr()
    assert reproduce(result.output_dir, "--check") == 3
    assert "gone on with after a change: --learning_rate was 0.001" in said(capsys)


def test_a_blueprint_has_no_path_no_secret_and_nothing_idle(finished: TrainConfig) -> None:
    file = Path(finished.output_dir) / ADAPTER
    text = read_content(file, outline=True).metadata[BLUEPRINT]
    assert str(file.parents[1]) not in text
    assert TOKEN not in text
    settings = json.loads(text)["settings"]
    assert not {"output_dir", "report_to", "hub_token", "num_inference_steps"} & settings.keys()
    assert settings["learning_rate"] == 1e-3


def test_a_file_that_says_nothing_is_refused(
    finished: TrainConfig, tmp_path: Path, capsys: Any
) -> None:
    weights = scumble.read_adapter(Path(finished.output_dir) / ADAPTER)
    del weights.metadata[BLUEPRINT]
    path = scumble.write_adapter(weights, tmp_path / "old.safetensors", "peft")
    assert reproduce(path) == 1
    assert "does not say how it was trained" in said(capsys)


METHOD_OPTIONS: dict[str, dict[str, Any]] = {
    "text_to_image": {},
    "dreambooth": {
        "instance_prompt": "a photo of sks toy",
        "with_prior_preservation": True,
        "prior_from": "base",
        "class_prompt": "a photo of a toy",
    },
    "textual_inversion": {"placeholder_token": "<pip>", "initializer_token": "dog"},
    "pivotal_tuning": {"placeholder_token": "<pip>", "initializer_token": "dog"},
    "full": {},
}


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(m, marks=() if m == "pivotal_tuning" else pytest.mark.long)
        for m in METHOD_OPTIONS
    ],
)
def test_every_method_gives_the_same_bytes_twice(
    method: str, make_config: Any, tmp_path: Path, capsys: Any
) -> None:
    options = {
        "method": method,
        "max_train_steps": 2,
        "deterministic": True,
        **METHOD_OPTIONS[method],
    }
    if "placeholder_token" in options:
        options["learnable_property"] = "object"
    if method in ("dreambooth",):
        options |= {"instance_data_dir": make_config().train_data_dir, "train_data_dir": None}
    results = [
        scumble.train(make_config(**options, output_dir=str(tmp_path / name)))
        for name in ("one", "two")
    ]
    assert len({digest(result.adapter) for result in results}) == 1
    assert not torch.are_deterministic_algorithms_enabled()
    assert "deterministic: the same bits each time with" in capsys.readouterr().out
    assert reproduce(tmp_path / "one", "--check") == 0
    assert "bit for bit" in said(capsys)


@pytest.mark.long
def test_another_process_gives_the_same_bytes(make_config: Any, tmp_path: Path) -> None:
    first = scumble.train(make_config(deterministic=True, max_train_steps=8))
    command = [sys.executable, "-m", "scumble", "reproduce", str(first.output_dir)]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}  # it takes as many as the run had
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "again"), "--no_before_after"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical: the files are the same, byte for byte" in done.stdout


def digest(result: Path) -> str:
    files = sorted(result.rglob("*.safetensors")) if result.is_dir() else [result]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def test_deterministic_refuses_what_is_not(make_config: Any, monkeypatch: Any) -> None:
    with pytest.raises(UserError, match="does not give the same bits twice"):
        make_config(deterministic=True, attention="xformers")
    with pytest.raises(UserError, match="--compile chooses kernels by their speed"):
        make_config(deterministic=True, compile=True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(UserError, match="CUBLAS_WORKSPACE_CONFIG=:0:0 does not go with"):
        scumble.train(make_config(deterministic=True))


def test_an_operation_without_a_deterministic_kernel_is_named(
    make_config: Any, monkeypatch: Any
) -> None:
    def write(*_: object) -> None:
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))

    monkeypatch.setattr("scumble.training.loop.StepWork.__call__", write)
    with pytest.raises(UserError, match="no deterministic kernel for put_"):
        scumble.train(make_config(deterministic=True))


def test_attention_that_varies_is_left_out(monkeypatch: Any) -> None:
    hopper = (torch.float16, 64, (9, 0))
    assert SDPBackend.CUDNN_ATTENTION in backends_for(*hopper)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert SDPBackend.CUDNN_ATTENTION not in backends_for(*hopper)
    assert backends_for(*hopper)[0] is SDPBackend.FLASH_ATTENTION
