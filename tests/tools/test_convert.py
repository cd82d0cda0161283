"""`scumble convert` and `scumble.convert_adapter`: the same adapter for another program."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sample_files import TO_K, TO_Q, lora, sample, saved

import scumble
from scumble.cli.main import run
from scumble.config.tools import ConvertFields
from scumble.formats import FORMATS, AdapterWeights, ModuleWeights


@pytest.fixture
def convert(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command; gives exit code, output and error text."""

    def run_verb(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(["convert", *map(str, words)])
        return code, *capsys.readouterr()

    return run_verb


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return saved(sample(), tmp_path / "in" / "a.safetensors")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "b.safetensors"


def test_it_goes_to_another_format_and_back(convert: Callable, file: Path, out: Path) -> None:
    code, said, _ = convert(file, "--format", "kohya", "--output", out)
    assert code == 0
    assert said.startswith(f"read {file} (peft, fp32, 27.2 kB), wrote {out} (kohya, fp32, ")
    assert "3 layers and 1 learned word" in said.splitlines()[0]
    assert any(key.startswith("lora_te_") for key in load_file(out))
    assert scumble.diff_adapters(file, out).is_equal
    back = out.with_name("back.safetensors")
    assert convert(out, "--format", "peft", "--output", back)[0] == 0
    assert load_file(back).keys() == load_file(file).keys()
    assert "sshs_model_hash" in scumble.read_adapter(out).metadata
    assert not any("hash" in key for key in scumble.read_adapter(back).metadata)
    assert scumble.diff_adapters(file, back).is_equal


def test_kohyas_file_says_its_own_name_unless_it_has_one(
    convert: Callable, file: Path, out: Path, tmp_path: Path
) -> None:
    for path in (out, out.with_name("c.safetensors")):
        convert(file, "--format", "kohya", "--output", path)
        assert scumble.read_adapter(path).metadata["ss_output_name"] == path.stem
    again = tmp_path / "d.safetensors"
    convert(out, "--format", "kohya", "--output", again)
    assert scumble.read_adapter(again).metadata["ss_output_name"] == out.stem
    training = {"training": json.dumps({"name": "mine"})}
    named = saved(replace(sample(), metadata=training), tmp_path / "e.safetensors")
    convert(named, "--format", "kohya", "--output", again, "--force")
    assert scumble.read_adapter(again).metadata["ss_output_name"] == "mine"


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000, None])
def test_nothing_is_written_over_a_description_that_is_none(
    convert: Callable, file: Path, out: Path, content: str | None
) -> None:
    beside = out.with_suffix(".json")
    beside.mkdir(parents=True) if content is None else out.parent.mkdir(parents=True)
    if content is not None:
        beside.write_text(content)
    code, _, error = convert(file, "--format", "kohya", "--output", out, "--force")
    assert code == 1
    assert "b.json is in the place of the adapter's description" in error
    assert not out.exists()


def test_programs_find_a_description_and_a_picture_beside_kohyas(
    convert: Callable, file: Path, out: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "p.png")
    words = ("--format", "kohya", "--output", out, "--preview", tmp_path / "p.png")
    code, said, _ = convert(file, *words, "--trigger", "say this")
    assert code == 0
    assert "beside it: b.json" in said
    assert json.loads(out.with_suffix(".json").read_text())["activation text"] == "say this"
    with Image.open(out.with_suffix(".preview.png")) as picture:
        assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert scumble.inspect_adapter(out).notes.trigger_words == ("say this",)


def test_numbers_are_rounded_once(convert: Callable, file: Path, out: Path) -> None:
    assert convert(file, "--format", "peft", "--output", out, "--dtype", "bf16")[0] == 0
    before, after = load_file(file), load_file(out)
    assert after.keys() == before.keys()
    for key, tensor in before.items():
        assert torch.equal(after[key], tensor.to(torch.bfloat16)), key


def test_numbers_too_large_for_the_dtype_are_an_error_by_name(
    convert: Callable, out: Path, tmp_path: Path
) -> None:
    large = lora()
    large.tensors["up"][:3, 0] = 1e5
    file = saved(AdapterWeights({"unet": {TO_K: large, TO_Q: lora(8)}}), tmp_path / "a.safetensors")
    code, _, error = convert(file, "--format", "peft", "--output", out, "--dtype", "fp16")
    assert code == 1
    assert "3 numbers too large for fp16" in error
    assert f"unet.{TO_K}" in error
    assert TO_Q not in error
    assert not out.parent.exists()
    assert convert(file, "--format", "peft", "--output", out, "--dtype", "bf16")[0] == 0


def test_numbers_that_vanish_are_counted(convert: Callable, out: Path, tmp_path: Path) -> None:
    small = lora()
    small.tensors["up"][:2, 0] = 1e-9
    small.tensors["up"][2, 0] = 0
    file = saved(AdapterWeights({"unet": {TO_K: small}}), tmp_path / "a.safetensors")
    _, said, _ = convert(file, "--format", "peft", "--output", out, "--dtype", "fp16")
    assert "2 numbers too small for fp16: now 0" in said


def test_an_existing_file_is_replaced_only_when_asked_for(
    convert: Callable, file: Path, out: Path
) -> None:
    out.parent.mkdir(parents=True)
    out.write_bytes(b"mine")
    code, _, error = convert("no such file", "--format", "peft", "--output", out)
    assert code == 1
    assert "--force" in error
    assert convert(file, "--format", "peft", "--output", out)[0] == 1
    assert out.read_bytes() == b"mine"
    assert convert(file, "--format", "peft", "--output", out, "--force")[0] == 0
    assert scumble.diff_adapters(file, out).is_equal


def test_what_lies_beside_is_not_replaced_either(convert: Callable, file: Path, out: Path) -> None:
    out.parent.mkdir(parents=True)
    out.with_suffix(".json").write_text('{"notes2": "mine"}')
    code, _, error = convert(file, "--format", "kohya", "--output", out)
    assert code == 1
    assert "b.json" in error
    assert not out.exists()


def test_a_file_can_be_converted_in_its_place(convert: Callable, file: Path) -> None:
    before = load_file(file)
    words = ("--format", "peft", "--output", file, "--force", "--dtype", "fp16")
    assert convert(file, *words)[0] == 0
    assert all(torch.equal(t, before[k].half()) for k, t in load_file(file).items())


@pytest.mark.parametrize(
    ("name", "message"),
    [("b.bin", "must end in .safetensors"), ("b", "b.safetensors"), ("", "is a folder")],
)
def test_an_output_of_another_name_is_refused(
    convert: Callable, file: Path, tmp_path: Path, name: str, message: str
) -> None:
    code, _, error = convert(file, "--format", "peft", "--output", tmp_path / name)
    assert code == 1
    assert message in error


def test_what_a_format_cannot_hold_is_refused_and_nothing_written(
    convert: Callable, file: Path, out: Path
) -> None:
    code, _, error = convert(file, "--format", "embedding", "--output", out)
    assert code == 1
    assert "'embedding' holds learned tokens alone" in error
    assert not out.parent.exists()


def test_a_picture_goes_with_kohya_alone_and_must_be_one(
    convert: Callable, file: Path, out: Path
) -> None:
    code, _, error = convert(file, "--format", "peft", "--output", out, "--preview", "p.png")
    assert code == 1
    assert "--preview goes with --format kohya" in error
    code, _, error = convert(file, "--format", "kohya", "--output", out, "--preview", file)
    assert code == 1
    assert "cannot be read as a picture" in error
    assert not out.exists()


def test_what_fits_nothing_is_refused_or_named(
    convert: Callable, file: Path, out: Path, tmp_path: Path
) -> None:
    tensors = load_file(file) | {"unet.nobody.lora_C.weight": torch.ones(2)}
    save_file(tensors, tmp_path / "odd.safetensors")
    words = (tmp_path / "odd.safetensors", "--format", "peft", "--output", out)
    code, _, error = convert(*words)
    assert code == 1
    assert "unet.nobody.lora_C.weight" in error
    code, said, _ = convert(*words, "--partial")
    assert code == 0
    assert "left out: 'unet.nobody.lora_C.weight'" in said


def test_the_file_of_2023_becomes_one_of_today(
    convert: Callable, out: Path, tmp_path: Path
) -> None:
    stem = f"{TO_Q.removesuffix('to_q')}processor.to_q_lora"
    entry = lora(4, 4.0, 12)
    tensors = {f"{stem}.{name}.weight": tensor for name, tensor in entry.tensors.items()}
    torch.save(tensors, tmp_path / "pytorch_lora_weights.bin")
    words = (tmp_path / "pytorch_lora_weights.bin", "--format", "peft", "--output", out)
    assert "--allow_pickle" in convert(*words)[2]
    assert convert(*words, "--allow_pickle")[0] == 0
    weights = scumble.read_adapter(out)
    (found,) = weights.components["unet"].values()
    assert torch.equal(found.tensors["up"], entry.tensors["up"])
    assert found.alpha == 4


def test_an_unknown_format_or_dtype_is_named_to_python_callers(file: Path, out: Path) -> None:
    with pytest.raises(scumble.UserError, match="unknown adapter format 'lora'"):
        scumble.convert_adapter(file, out, "lora")
    with pytest.raises(scumble.UserError, match="unknown number format 'fp8'"):
        scumble.convert_adapter(file, out, dtype="fp8")


def test_marks_that_are_whole_numbers_stay_so(out: Path, tmp_path: Path) -> None:
    tensors = {"weight": torch.randn(10), "on_input": torch.tensor(0)}
    weights = AdapterWeights({"unet": {TO_K: ModuleWeights("ia3", tensors, 1.0)}})
    scumble.convert_adapter(
        saved(weights, tmp_path / "a.safetensors", "kohya"), out, "kohya", dtype="fp16"
    )
    (mark,) = (t for key, t in load_file(out).items() if key.endswith("on_input"))
    assert mark.dtype == torch.int64


def test_equal_input_gives_equal_bytes(file: Path, tmp_path: Path) -> None:
    again = saved(replace(sample()), tmp_path / "again.safetensors")
    paths = [tmp_path / "x" / "o.safetensors", tmp_path / "y" / "o.safetensors"]
    for source, path in zip((file, again), paths, strict=True):
        scumble.convert_adapter(source, path, "kohya", dtype="fp16")
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_command_offers_every_format() -> None:
    assert set(get_args(get_type_hints(ConvertFields)["format"])) == FORMATS.keys()


@pytest.mark.parametrize("format", ["attn_procs", "kohya", "peft"])
def test_formats_of_layers_do_exactly_the_same(format: str, out: Path, tmp_path: Path) -> None:
    widths = {"to_q": 320, "to_k": 768, "to_v": 768, "to_out.0": 320}
    attention = TO_K.removesuffix("to_k")
    unet = {f"{attention}{part}": lora(4, 4.0, width, 320) for part, width in widths.items()}
    weights = AdapterWeights({"unet": unet})
    file = saved(weights, tmp_path / "a.safetensors")
    scumble.convert_adapter(file, out, format)
    assert scumble.inspect_adapter(out).format == format
    assert scumble.diff_adapters(file, out).is_equal
