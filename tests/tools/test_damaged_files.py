"""What a user sees of a file that is none: one clear line from every verb, and nothing written."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import sample_files
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from scumble.cli.main import run

STEM = f"lora_unet_{sample_files.TO_K.replace('.', '_')}"
BOMB = b"\xff\xff\xff\xff\xff\xff\xff\x3f{}"


def commands(file: Path, good: Path, out: Path) -> dict[str, list[str]]:
    """A command line of every verb that reads adapters, with one file in each place for one."""
    output = ["--output", str(out / "new.safetensors")]
    return {
        "inspect": ["inspect", str(file)],
        "inspect all": ["inspect", str(file), "--norms", "--hash", "--modules", "--json"],
        "diff": ["diff", str(file), str(good)],
        "diff second": ["diff", str(good), str(file)],
        "convert": ["convert", str(file), "--format", "kohya", *output],
        "merge": ["merge", str(good), f"{file}:0.5", *output],
        "merge base": ["merge", str(file), "--base", "scumble-tiny", "--output", str(out / "base")],
        "merge into": ["merge", str(good), "--base", str(file), *output],
        "resize": ["resize", str(file), "--rank", "2", *output],
        "extract": [
            "extract",
            "--base",
            "scumble-tiny",
            "--tuned",
            str(file),
            "--rank",
            "2",
            *output,
        ],
    }


VERBS = list(commands(Path(), Path(), Path()))
MODELS = ("merge into", "extract")
"""Where a whole model is wanted."""
WRITERS = [verb for verb in VERBS if "inspect" not in verb and "diff" not in verb]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = {sample_files.TO_K: sample_files.lora()}
    weights = sample_files.AdapterWeights({"unet": layers})
    path = tmp_path_factory.mktemp("good") / "good.safetensors"
    return sample_files.saved(weights, path, "kohya")


def changed(key: str, value: torch.Tensor) -> Callable[[Path, Path], object]:
    """Makes a copy of a good file with one other tensor."""
    return lambda path, good: save_file({**load_file(good), f"{STEM}.{key}": value}, path)


def spoilt(path: Path, good: Path) -> None:
    raw = bytearray(good.read_bytes())
    raw[12] ^= 0x40
    path.write_bytes(raw)


def not_finite(path: Path, good: Path) -> None:
    key = f"{STEM}.lora_up.weight"
    save_file({**load_file(good), key: torch.full_like(load_file(good)[key], torch.nan)}, path)


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "cut": lambda path, good: path.write_bytes(good.read_bytes()[:-40]),
    "spoilt": spoilt,
    "huge header": lambda path, _: path.write_bytes(BOMB),
    "empty": lambda path, _: path.write_bytes(b""),
    "alpha": changed("alpha", torch.tensor(1e38)),
    "no alpha": changed("alpha", torch.tensor(0.0)),
    "ranks": changed("lora_up.weight", torch.ones(10, 3)),
    "escape": lambda path, good: save_file(load_file(good) | {"\x1b[2J": torch.ones(3)}, path),
    "text": lambda path, _: path.write_text("This is no adapter.\n" * 20),
    "picture": lambda path, _: Image.new("RGB", (64, 64)).save(path, "PNG"),
    "pickled": lambda path, good: torch.save(load_file(good), path),
    "missing": lambda _path, _good: None,
    "folder": lambda path, _: path.mkdir(),
    "checkpoint": lambda path, _: save_file(
        {"model.diffusion_model.out.2.weight": torch.ones(4, 8, 3, 3)}, path
    ),
}
"""What is wrong -> puts such a file in the place."""


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[[list[str]], str]:
    """Runs a command that must fail: gives the line; nothing may be new or changed on the disk."""

    def run_command(words: list[str]) -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        code = run(words)
        said = capsys.readouterr()
        assert code == (2 if words[0] == "diff" else 1)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        assert said.err.startswith("scumble: ")
        assert "Traceback" not in said.out + said.err
        line, *hint = said.err.rstrip("\n").split("\n")
        assert line.isprintable()
        assert all(more.startswith("  ") for more in hint)
        assert len(hint) <= 1
        return line

    return run_command


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_no_adapter_is_named_and_nothing_written(
    damage, verb, good, refused, tmp_path
):
    path = tmp_path / "spoilt.safetensors"
    DAMAGES[damage](path, good)
    (tmp_path / "out").mkdir()
    line = refused(commands(path, good, tmp_path / "out")[verb])
    assert "spoilt" in line


@pytest.mark.parametrize("verb", ["inspect all", "diff", "convert", "merge", "resize"])
def test_numbers_that_are_none_are_named_by_every_verb_that_reads_them(
    verb, good, refused, tmp_path
):
    not_finite(tmp_path / "spoilt.safetensors", good)
    line = refused(commands(tmp_path / "spoilt.safetensors", good, tmp_path / "out")[verb])
    assert "holds NaN or infinite values" in line


@pytest.mark.parametrize("verb", WRITERS)
def test_what_is_there_stays(verb, good, refused, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "kept").write_text("mine")
    (tmp_path / "new.safetensors").write_text("mine")
    line = refused(commands(good, good, tmp_path)[verb])
    assert "exist" in line or "not empty" in line or verb in MODELS


@pytest.mark.parametrize("verb", WRITERS)
def test_a_file_where_the_folder_should_be_is_named_before_any_work(verb, good, refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(commands(good, good, tmp_path / "file")[verb])


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to this user")
@pytest.mark.parametrize("verb", WRITERS)
def test_a_closed_folder_is_named_before_any_work(verb, good, refused, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    refused(commands(good, good, tmp_path / "closed")[verb])


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in MODELS])
@pytest.mark.parametrize("path", ["~nobody-of-that-name/a.safetensors", "x" * 300])
def test_a_path_that_cannot_be_is_named(path, verb, good, refused, tmp_path):
    assert "there can be nothing at" in refused(commands(Path(path), good, tmp_path)[verb])


@pytest.mark.parametrize("verb", [verb for verb in VERBS if "inspect" in verb])
def test_metadata_that_nests_without_end_says_nothing(verb, good, capsys, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(load_file(good), path, {"ss_tag_frequency": "[" * 50_000})
    assert run(commands(path, good, tmp_path)[verb]) == 0
    assert "lora" in capsys.readouterr().out
