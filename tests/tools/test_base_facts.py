"""What a base predicts goes with it from a folder to one file and back; what is lost is named."""

import json
from pathlib import Path
from typing import Any

import ldm_layout
import made
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import scumble
from scumble.cli.main import run
from scumble.families import FAMILIES, locate, single_file
from scumble.formats import AdapterWeights

SD = FAMILIES["stable_diffusion"]
LAYER = "mid_block.attentions.0.proj_in"
VERSIONS = ("sd1", "sd2")
PREDICTIONS = ("epsilon", "v_prediction")


@pytest.fixture(scope="module")
def originals() -> dict[str, dict[str, nn.Module]]:
    return {v: {c: ldm_layout.build(v, c) for c in SD.components} for v in VERSIONS}


def adapter(components: dict[str, nn.Module]) -> AdapterWeights:
    entry = made.entry(components["unet"].get_submodule(LAYER), rank=2)
    return AdapterWeights({"unet": {LAYER: entry}})


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def scheduler(folder: Path) -> dict[str, Any]:
    text = (folder / "scheduler" / "scheduler_config.json").read_text()
    return dict(json.loads(text))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_one_file_predicts_what_its_folder_did(
    version: str, prediction: str, originals: Any, tmp_path: Path, capsys: Any
) -> None:
    parts, file = originals[version], tmp_path / "one.safetensors"
    base = made.save_narrow(tmp_path / "base", parts, version, prediction_type=prediction)
    outcome = scumble.merge_files([adapter(parts)], file, base=base)
    assert not any("cannot hold" in line for line in outcome.lines)
    spelled = {"epsilon": "epsilon", "v_prediction": "v"}[prediction]
    assert metadata(file)["modelspec.prediction_type"] == spelled
    found = locate(str(file))
    assert SD.objective(found).prediction == prediction
    assert capsys.readouterr().out == ""
    scumble.merge_files([adapter(parts)], tmp_path / "again.safetensors", base=found)
    assert SD.objective(locate(str(tmp_path / "again.safetensors"))).prediction == prediction
    scumble.merge_files([adapter(parts)], tmp_path / "folder", base=found)
    assert scheduler(tmp_path / "folder")["prediction_type"] == prediction


def test_a_file_of_a_whole_size_says_its_version_and_resolution(
    originals: Any, tmp_path: Path
) -> None:
    path = made.save_checkpoint(tmp_path / "a.safetensors", originals["sd2"], "sd2")
    assert SD.geometry(locate(str(path))).native_px == 768
    save_file(load_file(path), path, {"modelspec.resolution": "512x512"})
    assert SD.geometry(locate(str(path))).native_px == 512


def test_what_the_user_says_counts_where_a_file_says_nothing(
    originals: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = originals["sd2"]
    path = made.save_checkpoint(tmp_path / "a.safetensors", parts, "sd2")
    lines = scumble.merge_files([adapter(parts)], tmp_path / "guessed", base=path).lines
    assert any("taken to be a 768-pixel model that predicts v" in line for line in lines)
    source = scumble.write_adapter(adapter(parts), tmp_path / "adapter.safetensors")
    words = ["merge", str(source), "--base", str(path), "--prediction_type", "epsilon", "--output"]
    assert run([*words, str(tmp_path / "folder")]) == 0
    assert run([*words, str(tmp_path / "one.safetensors")]) == 0
    assert scheduler(tmp_path / "folder")["prediction_type"] == "epsilon"
    assert metadata(tmp_path / "one.safetensors")["modelspec.prediction_type"] == "epsilon"


def test_what_the_user_says_is_written_into_a_copied_folder(
    tiny_pipeline: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    base = locate(made.BASE, prediction_type="epsilon")
    scumble.merge_files([made.weights(tiny_pipeline)], tmp_path / "folder", base=base)
    assert scheduler(tmp_path / "folder") == scheduler(tiny_folder) | {"prediction_type": "epsilon"}


def test_an_extracted_adapter_says_what_its_base_predicts(
    tiny_pipeline: Any, tmp_path: Path
) -> None:
    scumble.merge_files([made.weights(tiny_pipeline)], tmp_path / "tuned", base=made.BASE)
    words = ["extract", "--base", made.BASE, "--tuned", str(tmp_path / "tuned"), "--rank", "4"]
    for number, (more, said) in enumerate(
        [([], "v"), (["--prediction_type", "epsilon"], "epsilon")]
    ):
        out = tmp_path / f"{number}.safetensors"
        assert run([*words, *more, "--output", str(out)]) == 0
        assert made.read(out).metadata["modelspec.prediction_type"] == said


def test_what_one_file_cannot_hold_is_named(originals: Any, tmp_path: Path) -> None:
    parts = originals["sd1"]
    base = made.save_narrow(tmp_path / "base", parts, "sd1", rescale_betas_zero_snr=True)
    index = json.loads((base / "model_index.json").read_text())
    more = {"safety_checker": ["a", "b"], "tokenizer": ["a", "b"]}
    (base / "model_index.json").write_text(json.dumps(index | more))
    for name in more:
        (base / name).mkdir()
    added = {"added_tokens": [{"content": "<|endoftext|>"}, {"content": "<pip>"}, 3]}
    (base / "tokenizer" / "tokenizer.json").write_text(json.dumps(added))
    (base / "tokenizer" / "added_tokens.json").write_text('{"<b>": 49408, "<pip>": 49409}')
    outcome = scumble.merge_files([adapter(parts)], tmp_path / "one.safetensors", base=base)
    (line,) = [line for line in outcome.lines if "cannot hold" in line]
    assert line == (
        "one file cannot hold: safety_checker, words added to the tokenizer (<b>, <pip>), "
        "settings of the scheduler (rescale_betas_zero_snr)"
    )


@pytest.mark.parametrize(
    "text", ["[]", '{"added_tokens": 3}', '{"added_tokens": ["content"]}', "{"]
)
def test_a_tokenizer_that_is_damaged_has_no_added_words(
    text: str, originals: Any, tmp_path: Path
) -> None:
    base = made.save_narrow(tmp_path / "base", originals["sd1"], "sd1")
    (base / "tokenizer").mkdir()
    (base / "tokenizer" / "tokenizer.json").write_text(text)
    out = tmp_path / "one.safetensors"
    lines = scumble.merge_files([adapter(originals["sd1"])], out, base=base).lines
    assert not any("cannot hold" in line for line in lines)


def test_the_shipped_settings_are_those_of_the_versions() -> None:
    assert [single_file.shipped(v, "scheduler")["prediction_type"] for v in VERSIONS] == list(
        PREDICTIONS
    )
