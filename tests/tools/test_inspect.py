"""`scumble inspect` and `scumble.inspect_adapter`: what a file is, without a model."""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sample_files import CONV, NORM, TEXT, TO_K, TO_Q, lora, sample, saved

import scumble
from scumble.adapters import ADAPTERS, LayerSpec
from scumble.cli.main import run
from scumble.formats import AdapterWeights, ModuleWeights
from scumble.tools.table import WIDTH

KOHYA = {
    "ss_sd_model_name": "v1-5-pruned.ckpt",
    "ss_network_module": "networks.lora",
    "ss_network_dim": "4",
    "ss_learning_rate": "0.0001",
    "ss_unet_lr": "None",
    "ss_noise_offset": "0.0",
    "ss_seed": "0",
    "ss_training_started_at": "1676000000.12",
    "ss_tag_frequency": json.dumps({"10_my": {"solo": 18, "1girl": 20}, "1_b": {"solo": 4}}),
    "ss_dataset_dirs": json.dumps({"10_my": {"n_repeats": 10, "img_count": 20}}),
    "modelspec.trigger_phrase": "mychar",
}
STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command; gives exit code, output and error text."""

    def run_verb(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(["inspect", *map(str, words)])
        return code, *capsys.readouterr()

    return run_verb


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return saved(sample(), tmp_path / "a.safetensors")


@pytest.fixture
def kohya_file(tmp_path: Path) -> Path:
    """As kohya's scripts write it, with two keys that nothing reads."""
    tensors = {
        f"{STEM}.lora_down.weight": torch.ones(4, 768),
        f"{STEM}.lora_up.weight": torch.ones(10, 4),
        f"{STEM}.alpha": torch.tensor(1.0),
        f"{STEM}_of_nobody.lora_up.weight": torch.ones(10, 4),
        "lora_unet_mid_block_attentions_0_proj_in.oft_blocks": torch.ones(2, 4, 4),
    }
    save_file(tensors, tmp_path / "k.safetensors", metadata=KOHYA)
    return tmp_path / "k.safetensors"


def test_a_page_says_what_the_file_is(inspect: Callable, file: Path) -> None:
    code, page, _ = inspect(file)
    assert code == 0
    lines = [" ".join(line.split()) for line in page.splitlines()]
    assert lines[0] == str(file)
    assert any(line.startswith("format peft, ") for line in lines)
    assert "for SD1 (text width 768)" in lines
    assert "base model some/base" in lines
    assert "trigger words a photo of <thing>" in lines
    assert any(line.startswith("unet lora fp32 2 4 x1, 8 x1 2 x1, 8 x1 3,288 ") for line in lines)
    assert any(line.startswith("text_encoder lora fp32 1 2 2 1,556 ") for line in lines)
    assert "<thing> text_encoder fp32 2 768" in lines


def test_what_kohyas_metadata_says_is_shown_and_none_is_not(
    inspect: Callable, kohya_file: Path
) -> None:
    _, page, _ = inspect(kohya_file)
    lines = [" ".join(line.split()) for line in page.splitlines()]
    assert "base model v1-5-pruned.ckpt" in lines
    assert "trigger words mychar" in lines
    assert "started_at 2023-02-10 03:33 UTC" in lines
    assert "learning_rate 0.0001" in lines
    assert "10_my 20 pictures, repeats 10" in lines
    assert "tags solo 22, 1girl 20" in lines
    assert "seed 0" in lines
    assert "unet_lr" not in page
    assert "noise_offset" not in page


def test_keys_that_fit_nothing_are_listed_with_the_reason(
    inspect: Callable, kohya_file: Path
) -> None:
    code, page, _ = inspect(kohya_file)
    assert code == 0
    assert "2 keys fit nothing" in page
    assert "lora_unet_mid_block_attentions_0_proj_in.oft_blocks" in page
    assert "OFT" in page
    assert f"{STEM}_of_nobody.lora_up.weight" in page


def test_the_words_beside_a_file_count(inspect: Callable, file: Path) -> None:
    file.with_suffix(".json").write_text('{"activation text": "said beside"}')
    assert scumble.inspect_adapter(file).notes.trigger_words == (
        "a photo of <thing>",
        "said beside",
    )


def test_no_line_is_wider_than_a_terminal(inspect: Callable, tmp_path: Path) -> None:
    weights = sample(**{CONV: lora(4, 4.0)})
    weights.metadata["modelspec.description"] = "long words " * 40
    _, page, _ = inspect(saved(weights, tmp_path / "a.safetensors"), "--norms", "--modules")
    narrow = page.replace(str(tmp_path), "")
    assert max(map(len, narrow.splitlines())) <= WIDTH


def test_json_is_one_object_with_the_keys_that_are_promised(inspect: Callable, file: Path) -> None:
    code, text, errors = inspect(file, "--json")
    found = json.loads(text)
    assert (code, errors) == (0, "")
    docstring = " ".join((scumble.tools.inspect.Inspection.to_dict.__doc__ or "").split())
    promised = docstring.partition("Keys: ")[2].partition(". What")[0]
    for key in (*found, *found["modules"][0], *found["tokens"][0]):
        assert key in promised, key
    assert found["modules"][0] | {"bytes": 0, "parameters": 0} == {
        "component": "unet",
        "module": TO_K,
        "type": "lora",
        "rank": 4,
        "alpha": 2.0,
        "dtype": "fp32",
        "parameters": 0,
        "bytes": 0,
        "norm": None,
    }
    assert found["tokens"] == [
        {"token": "<thing>", "encoder": "text_encoder", "vectors": 2, "width": 768, "dtype": "fp32"}
    ]
    assert found["hashes"] == {}


def test_norms_are_those_of_the_changes(file: Path) -> None:
    assert all(m.norm is None for m in scumble.inspect_adapter(file).modules)
    entry = sample().components["unet"][TO_Q]
    delta = ADAPTERS["lora"].from_tensors(LayerSpec((10, 12)), entry.tensors, entry.alpha).delta()
    found = {m.module: m.norm for m in scumble.inspect_adapter(file, norms=True).modules}
    assert found[TO_Q] == pytest.approx(float(delta.detach().norm()), rel=1e-6)
    assert found.keys() == {TO_K, TO_Q, TEXT}


def test_the_strongest_layer_comes_first_and_blocks_share_the_whole(
    inspect: Callable, tmp_path: Path
) -> None:
    weak, strong = lora(2, 2.0, 4), lora(2, 2.0, 4)
    strong.tensors["up"][:] *= 3
    weights = AdapterWeights({"unet": {TO_K: weak, TO_Q: strong}})
    _, page, _ = inspect(saved(weights, tmp_path / "a.safetensors"), "--norms")
    lines = [line.split() for line in page.splitlines()]
    shares = {words[1]: words[-1] for words in lines if words[:1] == ["unet"] and len(words) == 5}
    assert shares == {"down_blocks.0": "10.0%", "up_blocks.1": "90.0%"}
    ranked = [words[1] for words in lines if len(words) == 2 and words[1].startswith("unet.")]
    assert ranked == [f"unet.{TO_Q}", f"unet.{TO_K}"]


def test_a_change_that_needs_the_base_has_no_norm_and_that_is_said(
    inspect: Callable, tmp_path: Path
) -> None:
    entry = lora(2, 2.0, 4)
    tensors = entry.tensors | {"magnitude": torch.ones(10, 1)}
    weights = AdapterWeights({"unet": {TO_Q: ModuleWeights("dora", tensors, 2.0)}})
    _, page, _ = inspect(saved(weights, tmp_path / "a.safetensors"), "--norms")
    assert "1 layer without a norm: the change depends on the base model." in page


def test_types_without_a_rank_have_none(tmp_path: Path) -> None:
    tensors = {
        f"lora_unet_{NORM.replace('.', '_')}.{n}": torch.ones(8) for n in ("w_norm", "b_norm")
    }
    save_file(tensors, tmp_path / "n.safetensors")
    (found,) = scumble.inspect_adapter(tmp_path / "n.safetensors", norms=True).modules
    assert (found.type, found.rank, found.alpha) == ("norm_difference", None, None)
    assert found.norm == pytest.approx(4.0)


def test_a_lokr_of_whole_factors_has_no_rank(tmp_path: Path) -> None:
    stem = f"lora_unet_{TO_Q.replace('.', '_')}"
    whole = {f"{stem}.lokr_w1": torch.ones(2, 2), f"{stem}.lokr_w2": torch.ones(4, 4)}
    save_file(whole | {f"{stem}.alpha": torch.tensor(8.0)}, tmp_path / "w.safetensors")
    (found,) = scumble.inspect_adapter(tmp_path / "w.safetensors").modules
    assert (found.type, found.rank, found.alpha) == ("lokr", None, None)
    thin = {f"{stem}.lokr_w2_a": torch.ones(4, 1), f"{stem}.lokr_w2_b": torch.ones(1, 4)}
    save_file({f"{stem}.lokr_w1": torch.ones(2, 2)} | thin, tmp_path / "t.safetensors")
    (found,) = scumble.inspect_adapter(tmp_path / "t.safetensors").modules
    assert found.rank == 1


def test_every_layer_is_listed_when_asked_for(inspect: Callable, file: Path) -> None:
    assert f"unet.{TO_K}" not in inspect(file)[1]
    assert f"unet.{TO_K}" in inspect(file, "--modules")[1]


def test_checksums_are_those_of_the_file_and_of_its_tensors(inspect: Callable, file: Path) -> None:
    content = file.read_bytes()
    (header,) = struct.unpack("<Q", content[:8])
    found = json.loads(inspect(file, "--hash", "--json")[1])["hashes"]
    assert found == {
        "sha256": hashlib.sha256(content).hexdigest(),
        "autov3": hashlib.sha256(content[8 + header :]).hexdigest(),
    }
    assert found["sha256"] in inspect(file, "--hash")[1]


def test_a_folder_of_a_run_will_do(inspect: Callable, tmp_path: Path) -> None:
    path = saved(sample(), tmp_path / "run" / "scumble_adapter.safetensors")
    assert str(path) in inspect(path.parent)[1]


def test_a_pickle_is_opened_only_when_allowed(inspect: Callable, tmp_path: Path) -> None:
    stem = f"{TO_Q.removesuffix('to_q')}processor.to_q_lora"
    tensors = {f"{stem}.down.weight": torch.ones(4, 12), f"{stem}.up.weight": torch.ones(10, 4)}
    torch.save(tensors, tmp_path / "pytorch_lora_weights.bin")
    code, _, error = inspect(tmp_path)
    assert code == 1
    assert "--allow_pickle" in error
    code, page, _ = inspect(tmp_path, "--allow_pickle")
    assert code == 0
    assert "attn_procs" in page


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["model.diffusion_model.out.0.weight"], "is a whole base model in one file"),
        (["conv_in.weight", "conv_norm_out.weight"], "is the denoiser of a base model"),
        (["text_model.embeddings.token_embedding.weight"], "is the text encoder of a base model"),
        (["encoder.mid_block.resnets.0.conv1.weight"], "is the VAE of a base model"),
        (["lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"], "Stable Diffusion XL"),
    ],
)
def test_what_is_no_adapter_of_this_family_is_called_by_its_name(
    inspect: Callable, tmp_path: Path, keys: list[str], message: str
) -> None:
    save_file({key: torch.ones(4, 4) for key in keys}, tmp_path / "x.safetensors")
    code, _, error = inspect(tmp_path / "x.safetensors")
    assert code == 1
    assert message in error


def test_a_whole_models_folder_is_called_so(inspect: Callable, tiny_folder: Path) -> None:
    code, _, error = inspect(tiny_folder)
    assert code == 1
    assert "holds a whole model" in error


def test_numbers_are_left_unread(tmp_path: Path) -> None:
    tensors = {f"unet.{TO_K}.lora_A.weight": torch.full((4, 768), torch.nan)}
    tensors[f"unet.{TO_K}.lora_B.weight"] = torch.ones(10, 4)
    save_file(tensors, tmp_path / "nan.safetensors")
    assert len(scumble.inspect_adapter(tmp_path / "nan.safetensors").modules) == 1
    with pytest.raises(scumble.UserError, match="NaN"):
        scumble.inspect_adapter(tmp_path / "nan.safetensors", norms=True)


@pytest.mark.parametrize("facts", [{"folders": [1]}, {"tags": [1]}, {"tags": "a"}, [1]])
def test_damaged_notes_of_its_training_are_called_so(
    inspect: Callable, tmp_path: Path, facts: object
) -> None:
    spoilt = replace(sample(), metadata={"training": json.dumps(facts)})
    code, _, error = inspect(saved(spoilt, tmp_path / "a.safetensors"))
    assert code == 1
    assert "the metadata 'training' is damaged" in error


def test_notes_of_a_kind_that_nobody_writes_say_nothing(inspect: Callable, tmp_path: Path) -> None:
    odd = {"steps": [1], "seed": {"a": 1}, "folders": {"a": 1}, "tags": {"a": [1]}}
    kohya = {"ss_dataset_dirs": "[1]", "ss_tag_frequency": '{"a": 1, "b": {"c": "d"}}'}
    for metadata in ({"training": json.dumps(odd)}, kohya):
        file = saved(replace(sample(), metadata=metadata), tmp_path / "a.safetensors")
        code, said, _ = inspect(file, "--json")
        assert code == 0
        found = json.loads(said)
        assert not any(found[part] for part in ("training", "folders", "tags"))
