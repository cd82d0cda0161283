"""What fine-tuning changed, as a LoRA: `scumble.extract_adapter` and `scumble extract`."""

import json
from pathlib import Path
from typing import Any

import ldm_layout
import made
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import nn

import scumble
from scumble.cli.main import run
from scumble.errors import UserError
from scumble.families import FAMILIES

SD = FAMILIES["stable_diffusion"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "extracted.safetensors"


@pytest.fixture
def base(tiny_pipeline: Any, tmp_path: Path) -> Path:
    """The built-in base in fp32."""
    tiny_pipeline.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def tune(base: Path, tmp_path: Path) -> Any:
    """Saves the base with some tensors changed: (component.name -> what is added)."""

    def save(**changes: torch.Tensor) -> Path:
        pipeline = StableDiffusionPipeline.from_pretrained(base)
        with torch.no_grad():
            for name, change in changes.items():
                component, _, path = name.partition(".")
                getattr(pipeline, component).get_parameter(path).add_(change)
        pipeline.save_pretrained(tmp_path / "tuned")
        return tmp_path / "tuned"

    return save


def test_a_known_low_rank_difference_is_recovered(
    tiny_pipeline: Any, base: Path, tmp_path: Path, out: Path
) -> None:
    adapter = made.weights(tiny_pipeline, rank=4)
    scumble.merge_files([adapter], tmp_path / "tuned", base=str(base))
    outcome = scumble.extract_adapter(base, tmp_path / "tuned", out, 8, energy=0.999999)
    found = made.read(out)
    got, wanted = (made.deltas(x, tiny_pipeline) for x in (found, adapter))
    assert got.keys() == wanted.keys()
    assert all(made.relative(got[layer], wanted[layer]) < 1e-5 for layer in wanted)
    assert {layer.rank for layer in outcome.layers} == {4}
    assert min(layer.share for layer in outcome.layers) > 0.999999
    assert found.metadata["base_model"] == "base"
    assert json.loads(found.metadata["extracted_from"]) == {"base": "base", "tuned": "tuned"}
    assert not any(line.startswith("not in the adapter") for line in outcome.lines)
    assert sum("without any difference left out" in line for line in outcome.lines) == 1


def test_base_and_extracted_adapter_are_the_tuned_model(
    tiny_pipeline: Any, base: Path, tmp_path: Path, out: Path
) -> None:
    sources = [made.weights(tiny_pipeline, kind, rank=2) for kind in ("dora", "loha")]
    scumble.merge_files(sources, tmp_path / "tuned", base=str(base))
    scumble.extract_adapter(base, tmp_path / "tuned", out, 999)
    scumble.merge_files([out], tmp_path / "again", base=str(base))
    for part in ("unet", "text_encoder"):
        names = [f"{part}/diffusion_pytorch_model.safetensors", f"{part}/model.safetensors"]
        (name,) = (n for n in names if (base / n).exists())
        tuned, again = (load_file(tmp_path / folder / name) for folder in ("tuned", "again"))
        assert all(torch.allclose(again[k], t, atol=1e-5) for k, t in tuned.items())


def test_a_rank_too_low_keeps_the_best_and_says_so(
    tiny_pipeline: Any, base: Path, tmp_path: Path, out: Path
) -> None:
    adapter = made.weights(tiny_pipeline, rank=4)
    scumble.merge_files([adapter], tmp_path / "tuned", base=str(base))
    outcome = scumble.extract_adapter(base, tmp_path / "tuned", out, 1)
    wanted, got = made.deltas(adapter, tiny_pipeline), made.deltas(made.read(out), tiny_pipeline)
    for layer in outcome.layers:
        name = f"{layer.component}.{layer.module}"
        lost = made.relative(got[name], wanted[name]) ** 2
        assert layer.share == pytest.approx(1 - lost, abs=1e-4)
    assert any("unet: 4 layers of rank 1 keep" in line for line in outcome.lines)


def test_what_is_not_in_the_adapter_is_named_with_its_share(
    tune: Any, base: Path, out: Path, tiny_pipeline: Any
) -> None:
    weight = made.live_layer(tiny_pipeline, "unet", made.TO_K).weight
    bias = made.live_layer(tiny_pipeline, "unet", made.CONV).bias
    norm = made.live_layer(tiny_pipeline, "unet", made.NORM)
    post = tiny_pipeline.vae.post_quant_conv.weight
    one = torch.zeros_like(weight)
    one[0, 0] = 1.0
    two = torch.zeros_like(bias)
    two[0] = 2.0
    changes = {
        f"unet.{made.TO_K}.weight": one,
        f"unet.{made.CONV}.bias": two,
        f"unet.{made.NORM}.bias": torch.zeros_like(norm.bias).index_fill_(0, torch.tensor(0), 1.0),
        "vae.post_quant_conv.weight": 0.5
        * torch.nn.functional.one_hot(torch.tensor(0), post.numel()).reshape(post.shape).float(),
    }
    tuned = tune(**changes)
    outcome = scumble.extract_adapter(base, tuned, out, 4)
    (line,) = (line for line in outcome.lines if line.startswith("not in the adapter"))
    # 1 of 1 + 4 + 1 + 1/4 is in it.
    assert "84.00 % of the whole difference" in line
    assert f"unet.{made.CONV}.bias (64.00 %), unet.{made.NORM}.bias (16.00 %)" in line
    assert "vae.post_quant_conv.weight (4.00 %)" in line
    assert list(made.read(out).components["unet"]) == [made.TO_K]
    outcome = scumble.extract_adapter(base, tuned, out, 4, with_norms=True, force=True)
    (line,) = (line for line in outcome.lines if line.startswith("not in the adapter"))
    assert made.NORM not in line
    entry = made.read(out).components["unet"][made.NORM]
    assert entry.type == "norm_difference"
    assert torch.allclose(entry.tensors["diff_b"], changes[f"unet.{made.NORM}.bias"], atol=1e-6)
    assert not entry.tensors["diff"].any()


def test_targets_narrow_it_down_and_the_rest_is_named(
    tiny_pipeline: Any, base: Path, tmp_path: Path, out: Path
) -> None:
    scumble.merge_files([made.weights(tiny_pipeline)], tmp_path / "tuned", base=str(base))
    outcome = scumble.extract_adapter(base, tmp_path / "tuned", out, 8, targets=("attn2.to_k",))
    assert made.read(out).components.keys() == {"unet"}
    assert list(made.read(out).components["unet"]) == [made.TO_K]
    (line,) = (line for line in outcome.lines if line.startswith("not in the adapter"))
    assert f"unet.{made.CONV}.weight" in line
    assert line.endswith("and 1 more")
    with pytest.raises(UserError, match=r"'attn3\.to_k' matches no linear layer"):
        scumble.extract_adapter(
            base, tmp_path / "tuned", out, 8, targets=("attn3.to_k",), force=True
        )


def test_equal_models_and_other_architectures_are_refused(
    base: Path, tmp_path: Path, out: Path
) -> None:
    with pytest.raises(UserError, match="do not differ"):
        scumble.extract_adapter(base, base, out, 4)
    other = tmp_path / "tuned"
    StableDiffusionPipeline.from_pretrained(base).save_pretrained(other)
    file = other / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = f"{made.TO_K}.weight"
    save_file(tensors | {name: torch.zeros(3, 5)}, file, {"format": "pt"})
    with pytest.raises(
        UserError, match=rf"not of the same architecture: unet\.{name} is .*\(3, 5\)"
    ):
        scumble.extract_adapter(base, other, out, 4)
    save_file({k: t for k, t in tensors.items() if k != name}, file, {"format": "pt"})
    with pytest.raises(UserError, match=rf"unet\.{name} is .* and not there"):
        scumble.extract_adapter(base, other, out, 4)
    save_file(tensors | {name: tensors[name] * float("nan")}, file, {"format": "pt"})
    with pytest.raises(UserError, match=rf"'unet\.{name}' holds NaN"):
        scumble.extract_adapter(base, other, out, 4)
    assert not out.exists()


@pytest.mark.parametrize("version", ["sd1", "sd2"])
def test_a_folder_and_a_single_file_can_be_compared(
    version: str, tmp_path: Path, out: Path
) -> None:
    parts: dict[str, nn.Module] = {c: ldm_layout.build(version, c) for c in SD.components}
    base = made.save_narrow(tmp_path / "base", parts, version)
    layer = parts["unet"].get_submodule("mid_block.attentions.0.proj_in")
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    change = torch.outer(torch.randn(16), torch.randn(16)).reshape(layer.weight.shape)
    value = [
        p for n, p in parts["text_encoder"].named_parameters() if "layers.3.self_attn.v_proj.w" in n
    ]
    with torch.no_grad():
        layer.weight += change
        value[0] += 1
    tuned = made.save_checkpoint(tmp_path / "tuned.safetensors", parts, version)
    outcome = scumble.extract_adapter(base, tuned, out, 4, energy=0.9999)
    assert [(x.component, x.module, x.rank) for x in outcome.layers] == [
        ("unet", "mid_block.attentions.0.proj_in", 1),
        ("text_encoder", "text_model.encoder.layers.3.self_attn.v_proj", 1),
    ]
    found = made.read(out).components["unet"]["mid_block.attentions.0.proj_in"].tensors
    got = found["up"].flatten(1) @ found["down"].flatten(1)
    assert made.relative(got, change.flatten(1)) < 1e-5


def test_rank_and_energy_are_checked_before_any_model_is_sought(out: Path) -> None:
    with pytest.raises(UserError, match="the energy to keep is 2"):
        scumble.extract_adapter("nowhere", "either", out, 4, energy=2.0)
    with pytest.raises(UserError, match="the rank is 0"):
        scumble.extract_adapter("nowhere", "either", out, 0)


def test_the_command_extracts(
    tiny_pipeline: Any, base: Path, tmp_path: Path, out: Path, capsys: Any
) -> None:
    scumble.merge_files([made.weights(tiny_pipeline)], tmp_path / "tuned", base=str(base))
    words = ["--base", str(base), "--tuned", str(tmp_path / "tuned"), "--output", str(out)]
    assert run(["extract", *words, "--rank", "4", "--format", "kohya", "--dtype", "fp16"]) == 0
    said = capsys.readouterr().out
    assert "unet: 4 layers of rank 4 keep" in said
    assert said.splitlines()[-1] == str(out)
    assert made.read(out).components["unet"][made.CONV].tensors["up"].dtype == torch.float16
    assert run(["extract", *words, "--rank", "4"]) == 1
    assert "exists already" in capsys.readouterr().err
