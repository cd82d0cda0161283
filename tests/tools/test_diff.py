"""`scumble diff` and `scumble.diff_adapters`: whether two files do the same."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sample_files import CONV, TO_K, TO_Q, lora, sample, saved

import scumble
from scumble.adapters.low_rank import Factors, compress
from scumble.cli.main import run
from scumble.formats import AdapterWeights, LearnedToken, ModuleWeights
from scumble.tools.diff import Difference


@pytest.fixture
def diff(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command; gives exit code, output and error text."""

    def run_verb(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(["diff", *map(str, words)])
        return code, *capsys.readouterr()

    return run_verb


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return saved(sample(), tmp_path / "first.safetensors")


def without_words(**unet: ModuleWeights) -> AdapterWeights:
    return replace(sample(**unet), tokens={})


def test_a_file_does_the_same_as_itself(diff: Callable, first: Path) -> None:
    code, page, _ = diff(first, first)
    assert code == 0
    assert "The files are the same, byte by byte." in page


def test_another_format_does_exactly_the_same(diff: Callable, first: Path, tmp_path: Path) -> None:
    second = saved(sample(), tmp_path / "second.safetensors", "kohya")
    code, page, _ = diff(first, second)
    assert code == 0
    assert "The files do the same, exactly." in page
    assert "(kohya)" in page
    assert "ss_network_dim" in page


def test_other_factors_of_one_change_differ_by_rounding_alone(
    diff: Callable, tmp_path: Path
) -> None:
    entry = lora(4, 2.0)
    down, up = entry.tensors["down"], entry.tensors["up"]
    again = compress(Factors(down, up * 0.5), 4).factors(4)
    other = ModuleWeights("lora", {"down": again.down_RI, "up": again.up_OR}, 4.0)
    a = saved(AdapterWeights({"unet": {TO_K: entry}}), tmp_path / "a.safetensors")
    b = saved(AdapterWeights({"unet": {TO_K: other}}), tmp_path / "b.safetensors")
    (found,) = scumble.diff_adapters(a, b).modules
    assert 0 < found.distance < 1e-6
    assert found.changed == {"alpha": ("2", "4")}
    assert diff(a, b)[0] == 1
    code, page, _ = diff(a, b, "--tolerance", "1e-6")
    assert code == 0
    assert "The files do the same, to a difference of" in page


def test_a_changed_layer_is_named_with_how_far_it_is(
    diff: Callable, first: Path, tmp_path: Path
) -> None:
    other = lora(8, 8.0, 12)
    other.tensors["up"] *= 1.25
    second = saved(sample(**{TO_Q: other}), tmp_path / "second.safetensors")
    code, page, _ = diff(first, second)
    assert code == 1
    assert "The files differ in 1 of 3 layers." in page
    assert f"0.25  unet.{TO_Q}" in page
    assert TO_K not in page


def test_a_scale_is_part_of_what_a_file_does(tmp_path: Path) -> None:
    a = saved(without_words(), tmp_path / "a.safetensors")
    b = saved(without_words(**{TO_K: lora(4, 1.0)}), tmp_path / "b.safetensors")
    found = {m.module: m for m in scumble.diff_adapters(a, b).modules}[TO_K]
    assert found.changed == {"alpha": ("2", "1")}
    assert found.distance == pytest.approx(0.5)


def test_layers_of_one_file_alone_are_named(diff: Callable, first: Path, tmp_path: Path) -> None:
    second = saved(sample(**{CONV: lora()}), tmp_path / "second.safetensors")
    code, page, _ = diff(second, first)
    assert code == 1
    assert f"only in first  unet.{CONV}" in page
    assert f"only in second  unet.{CONV}" in diff(first, second)[1]


def test_a_layer_that_changes_nothing_does_what_none_does(
    diff: Callable, first: Path, tmp_path: Path
) -> None:
    idle = lora()
    idle.tensors["up"].zero_()
    second = saved(sample(**{CONV: idle}), tmp_path / "second.safetensors")
    code, page, _ = diff(first, second)
    assert code == 0
    assert "The files do the same, exactly." in page


def test_other_dtypes_ranks_and_types_are_counted(
    diff: Callable, first: Path, tmp_path: Path
) -> None:
    halves = {name: tensor.half() for name, tensor in lora().tensors.items()}
    changed = {TO_K: ModuleWeights("lora", halves, 2.0), TO_Q: lora(2, 2.0, 12)}
    _, page, _ = diff(first, saved(sample(**changed), tmp_path / "second.safetensors"))
    lines = [" ".join(line.split()) for line in page.splitlines()]
    assert "dtype fp32 fp16 1" in lines
    assert "rank 8 2 1" in lines
    assert "alpha 8 2 1" in lines


def test_rounding_to_half_precision_is_within_its_tolerance(first: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.safetensors"
    scumble.convert_adapter(first, second, dtype="fp16")
    assert not scumble.diff_adapters(first, second).is_equal
    assert scumble.diff_adapters(first, second, tolerance=2e-3).is_equal


def test_changes_that_need_the_base_are_compared_by_their_tensors(tmp_path: Path) -> None:
    tensors = lora(2, 2.0, 4).tensors | {"magnitude": torch.ones(10, 1)}
    longer = tensors | {"magnitude": torch.full((10, 1), 1.5)}
    a, b, c = (
        saved(
            AdapterWeights({"unet": {TO_Q: ModuleWeights(kind, t, 2.0)}}),
            tmp_path / f"{kind}{number}.safetensors",
        )
        for number, (kind, t) in enumerate(
            [("dora", tensors), ("dora", longer), ("lora", lora(2, 2.0, 4).tensors)]
        )
    )
    assert scumble.diff_adapters(a, a).is_equal
    assert 0 < (scumble.diff_adapters(a, b).modules[0].distance or 0) < 1
    (found,) = scumble.diff_adapters(a, c).modules
    assert (found.distance, found.is_equal) == (None, False)
    assert found.changed["type"] == ("dora", "lora")
    assert "depends on the base" in scumble.diff_adapters(a, c).text()


def test_learned_words_are_compared_number_by_number(diff: Callable, tmp_path: Path) -> None:
    vectors = sample().tokens["<thing>"].vectors["text_encoder"]
    moved = vectors.clone()
    moved[1, 3] += 0.5
    files = [
        saved(
            AdapterWeights({}, {}, {"<thing>": LearnedToken({"text_encoder": rows})}),
            tmp_path / f"{number}.safetensors",
            "embedding",
        )
        for number, rows in enumerate((vectors, moved, vectors[:1]))
    ]
    assert diff(files[0], files[0])[0] == 0
    code, page, _ = diff(files[0], files[1])
    assert code == 1
    assert "The files differ in 1 of 1 learned word." in page
    (found,) = scumble.diff_adapters(files[0], files[1]).tokens
    assert found.distance == pytest.approx(0.5)
    (found,) = scumble.diff_adapters(files[0], files[2]).tokens
    assert (found.changed, found.is_equal) == ({"vectors": ("2", "1")}, False)


def test_metadata_alone_changes_nothing_that_a_file_does(
    diff: Callable, first: Path, tmp_path: Path
) -> None:
    other = replace(sample(), metadata={"base_model": "other/" + "n" * 60, "note": "ü"})
    code, page, _ = diff(first, saved(other, tmp_path / "second.safetensors"))
    assert code == 0
    lines = [" ".join(line.split()) for line in page.splitlines()]
    assert f"base_model some/base other/{'n' * 21}..." in lines
    assert "only in first trigger_phrase" in lines
    assert "only in second lora_adapter_metadata" not in lines
    assert "only in second note" in lines


def test_json_is_one_object_with_the_keys_that_are_promised(
    diff: Callable, first: Path, tmp_path: Path
) -> None:
    zero = lora(4, 2.0)
    zero.tensors["up"][:] = 0
    second = saved(sample(**{TO_K: zero}), tmp_path / "second.safetensors")
    code, text, _ = diff(second, first, "--json")
    found = json.loads(text)
    assert code == 1
    promised = (Difference.to_dict.__doc__ or "").partition("Keys: ")[2]
    for key in (*found, *found["modules"][0], *found["tokens"][0]):
        assert key in promised, key
    by_name = {m["module"]: m for m in found["modules"]}
    assert by_name[TO_K]["distance"] is None
    assert by_name[TO_K]["is_equal"] is False
    assert by_name[TO_Q]["distance"] == 0
    assert found["is_equal"] is False


def test_what_cannot_be_read_is_neither_equal_nor_different(
    diff: Callable, first: Path, tmp_path: Path
) -> None:
    code, _, error = diff(first, tmp_path / "nowhere.safetensors")
    assert code == 2
    assert "nowhere.safetensors" in error


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
def test_a_tolerance_must_be_a_number_from_0_up(first: Path, tolerance: float) -> None:
    with pytest.raises(scumble.UserError, match="tolerance"):
        scumble.diff_adapters(first, first, tolerance=tolerance)


def test_the_help_says_what_the_exit_code_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["diff", "--help"])
    assert "exit code is 0 if they do the same" in " ".join(capsys.readouterr().out.split())
