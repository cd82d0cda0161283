"""Adapters into a base for good: `scumble merge --base`, from and to folders and single files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ldm_layout
import made
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch import Tensor, nn

import scumble
from scumble.cli.main import run
from scumble.errors import UserError
from scumble.families import FAMILIES, Components, locate, single_file
from scumble.formats import AdapterWeights
from scumble.formats.streaming import open_streamed

SD = FAMILIES["stable_diffusion"]
KINDS = ("lora", "dora", "loha", "lokr", "ia3", "difference")
DOWN = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
NARROW = {
    "unet": (DOWN, "up_blocks.3.resnets.2.conv_shortcut", "mid_block.attentions.0.proj_in"),
    "text_encoder": tuple(
        f"text_model.encoder.layers.3.{name}" for name in ("self_attn.v_proj", "mlp.fc1")
    ),
}
"""Layers of small components with the blocks of the real ones; v_proj is a third of a matrix."""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "merged"


@pytest.fixture(params=("sd1", "sd2"))
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One version, whose shipped configuration is made narrow."""

    def narrow(path: str, component: str) -> dict[str, Any]:
        return ldm_layout.settings(single_file._version(path), component)

    monkeypatch.setattr(single_file, "config", narrow)
    return request.param


@pytest.fixture(scope="module")
def originals() -> dict[str, dict[str, nn.Module]]:
    return {v: {c: ldm_layout.build(v, c) for c in SD.components} for v in ("sd1", "sd2")}


class Parts:
    """Components as a pipeline has them."""

    def __init__(self, components: dict[str, nn.Module]) -> None:
        vars(self).update(components)


def states(pipeline: Any) -> dict[str, Tensor]:
    parts = ("unet", "text_encoder", "vae")
    return {
        f"{part}.{name}": tensor.clone()
        for part in parts
        for name, tensor in getattr(pipeline, part).state_dict().items()
    }


def opened(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any) -> np.ndarray:
    options = {"num_inference_steps": 2, "output_type": "np"}
    generator = torch.Generator().manual_seed(3)
    return pipeline("a red circle", generator=generator, **options).images[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_base_is_what_merging_on_a_pipeline_gives(
    kind: str, tiny_pipeline: Any, out: Path
) -> None:
    adapter = made.weights(tiny_pipeline, kind)
    scumble.merge_files([(adapter, 0.6)], out, base=made.BASE, dtype="fp32")
    before = states(tiny_pipeline)
    scumble.load_adapter(tiny_pipeline, adapter, strength=0.6)
    scumble.merge_adapters(tiny_pipeline)
    wanted, got = states(tiny_pipeline), states(opened(out))
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())
    assert sum(not torch.equal(before[name], tensor) for name, tensor in wanted.items()) >= 5
    assert np.array_equal(draw(opened(out)), draw(tiny_pipeline))


def test_norms_and_biases_are_changed_too(tiny_pipeline: Any, out: Path) -> None:
    norm = made.weights(tiny_pipeline, "norm_difference", places={"unet": (made.NORM,)})
    scumble.merge_files([(norm, -2)], out, base=made.BASE, dtype="fp32")
    layer = opened(out).unet.get_submodule(made.NORM)
    was = tiny_pipeline.unet.get_submodule(made.NORM)
    tensors = norm.components["unet"][made.NORM].tensors
    assert torch.allclose(layer.weight, was.weight - 2 * tensors["diff"], atol=1e-6)
    assert torch.allclose(layer.bias, was.bias - 2 * tensors["diff_b"], atol=1e-6)


def test_several_adapters_are_added_and_rounded_once(tiny_pipeline: Any, out: Path) -> None:
    sources = [(made.weights(tiny_pipeline, seed=n), 0.3 + n) for n in range(3)]
    scumble.merge_files(sources, out, base=made.BASE, dtype="bf16")
    got = opened(out, torch.bfloat16)
    weight = made.live_layer(tiny_pipeline, "unet", made.CONV).weight
    deltas = [made.deltas(a, tiny_pipeline)[f"unet.{made.CONV}"] for a, _ in sources]
    change = sum(s * delta.float() for delta, (_, s) in zip(deltas, sources, strict=True))
    wanted = (weight + change).bfloat16()
    changed = made.live_layer(got, "unet", made.CONV).weight
    assert changed.dtype == torch.bfloat16
    assert float((changed != wanted).float().mean()) < 1e-3
    assert torch.equal(got.vae.quant_conv.weight, tiny_pipeline.vae.quant_conv.weight.bfloat16())


def test_a_folder_keeps_its_number_format_and_all_its_files(
    tiny_pipeline: Any, tiny_folder: Path, tmp_path: Path, out: Path
) -> None:
    base = tmp_path / "base"
    opened(tiny_folder).to(torch.float16).save_pretrained(base)
    spare = base / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    spare.write_bytes((base / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())
    outcome = scumble.merge_files([made.weights(tiny_pipeline)], out, base=str(base))

    def files(folder: Path) -> set[str]:
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    kept = files(base) - {"unet/diffusion_pytorch_model.fp16.safetensors"}
    assert files(out) == kept | {"README.md"}
    assert "left out: unet/diffusion_pytorch_model.fp16.safetensors" in outcome.lines
    with open_streamed([out / "unet" / "diffusion_pytorch_model.safetensors"]) as weights:
        assert {entry.dtype for entry in weights.entries.values()} == {torch.float16}
        (source,) = json.loads(weights.metadata["merged_from"])
    assert source == {"name": "adapter 1", "strength": 1.0}
    for name in ("tokenizer/tokenizer.json", "scheduler/scheduler_config.json", "unet/config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    same = "vae/diffusion_pytorch_model.safetensors"
    got, was = load_file(out / same), load_file(base / same)
    assert all(torch.equal(got[name], tensor) for name, tensor in was.items())


def test_a_merged_base_has_a_card_of_its_own(tiny_pipeline: Any, out: Path) -> None:
    weights = made.weights(tiny_pipeline)
    scumble.merge_files([(weights, 0.5)], out, base="scumble-tiny")
    card = ModelCard.load(out / "README.md")
    assert card.data.base_model == "scumble-tiny"
    assert card.data.to_dict()["base_model_relation"] == "merge"
    assert "| `adapter 1` | 0.5 |" in card.text
    assert "# out" in card.text or f"# {out.name}" in card.text


def test_a_variant_is_read_and_written_without_its_name(
    tiny_pipeline: Any, tiny_folder: Path, tmp_path: Path, out: Path
) -> None:
    opened(tiny_folder).save_pretrained(tmp_path / "base", variant="fp16")
    with pytest.raises(UserError, match="not on this machine") as caught:
        scumble.merge_files([made.weights(tiny_pipeline)], out, base=str(tmp_path / "base"))
    assert "--variant fp16" in str(caught.value)
    base = locate(str(tmp_path / "base"), variant="fp16")
    scumble.merge_files([made.weights(tiny_pipeline)], out, base=base)
    assert (out / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert np.abs(draw(opened(out)) - draw(tiny_pipeline)).max() > 1e-2


def test_a_base_of_the_hub_comes_from_its_cache(
    tiny_pipeline: Any, tiny_folder: Path, tmp_path: Path, out: Path
) -> None:
    cache = tmp_path / "cache" / "models--ann--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    snapshot = cache / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_folder, snapshot)
    base = locate("ann/tiny", cache_dir=str(tmp_path / "cache"))
    adapter = made.weights(tiny_pipeline)
    scumble.merge_files([adapter], out, base=base, dtype="fp32")
    scumble.load_adapter(tiny_pipeline, adapter)
    scumble.merge_adapters(tiny_pipeline)
    got = states(opened(out))
    assert all(torch.equal(got[name], t) for name, t in states(tiny_pipeline).items())
    shutil.rmtree(snapshot / "tokenizer")
    with pytest.raises(UserError, match="the tokenizer of ann/tiny is not on this machine"):
        scumble.merge_files([adapter], out, base=base, force=True)
    (snapshot / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="weights of the vae of ann/tiny are not on this machine"):
        scumble.merge_files([adapter], out, base=base, force=True)
    assert np.array_equal(draw(opened(out)), draw(tiny_pipeline))


def narrow_adapter(components: dict[str, nn.Module]) -> AdapterWeights:
    return made.weights(Parts(components), rank=2, places=NARROW, base_model="narrow")


def loaded(path: Path) -> dict[str, Tensor]:
    components = Components(locate(str(path)))
    SD.load(components, SD.components, torch.float32)
    return states(Parts(components.parts))


def assert_merged(got: dict[str, Tensor], components: dict[str, nn.Module]) -> None:
    parts = Parts(components)
    deltas = made.deltas(narrow_adapter(components), parts)
    changes = {f"{layer}.weight": delta.float() for layer, delta in deltas.items()}
    level = "text_encoder.text_model."
    if not any(name.startswith(level) for name in states(parts)):
        changes = {name.replace(level, "text_encoder."): d for name, d in changes.items()}
    wanted = states(parts)
    assert got.keys() == wanted.keys()
    assert changes.keys() <= wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(got[name], tensor + changes.get(name, 0)), name


@pytest.mark.parametrize("kind", ["folder", "model.safetensors", "model.ckpt"])
def test_one_file_comes_of_a_folder_or_a_file(
    kind: str, version: str, originals: Any, tmp_path: Path
) -> None:
    parts, base, out = originals[version], tmp_path / kind, tmp_path / "out.safetensors"
    if kind == "folder":
        made.save_narrow(base, parts, version)
    else:
        made.save_checkpoint(base, parts, version)
    outcome = scumble.merge_files([narrow_adapter(parts)], out, base=base)
    assert_merged(loaded(out), parts)
    wanted, got = ldm_layout.checkpoint(version, parts), load_file(out)
    if kind == "folder":
        assert got.keys() <= wanted.keys()
    else:
        assert got.keys() == wanted.keys() - {"model_ema.decay"}
        assert any("averaged weights" in line for line in outcome.lines)
    assert all(got[name].shape == wanted[name].shape for name in got)
    changed = [name for name in got if not torch.equal(got[name], wanted[name])]
    assert len(changed) == 5


def test_a_folder_comes_of_one_file(version: str, originals: Any, tmp_path: Path) -> None:
    parts, out = originals[version], tmp_path / "folder"
    base = made.save_checkpoint(tmp_path / "model.safetensors", parts, version)
    scumble.merge_files([narrow_adapter(parts)], out, base=base)
    pipeline = opened(out)
    assert_merged(states(pipeline), parts)
    assert len(pipeline.tokenizer) == 49408
    wanted = "epsilon" if version == "sd1" else "v_prediction"
    assert pipeline.scheduler.config.prediction_type == wanted
    assert_merged(loaded(out), parts)


@pytest.mark.parametrize("version", ["sd1"], indirect=True)
def test_a_denoiser_for_inpainting_stays_one_file(
    version: str, originals: Any, tmp_path: Path
) -> None:
    tensors = ldm_layout.checkpoint(version, originals[version])
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.randn(4, 9, 3, 3)
    torch.save(tensors, base := tmp_path / "model.ckpt")
    adapter = narrow_adapter(originals[version])
    with pytest.raises(UserError, match="takes 9 channels, not 4"):
        scumble.merge_files([adapter], tmp_path / "folder", base=base)
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]
    scumble.merge_files([adapter], tmp_path / "out.safetensors", base=base)


def test_a_base_of_another_shape_cannot_be_one_file(tiny_pipeline: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Stable Diffusion 1\.x and 2\.x have"):
        scumble.merge_files(
            [made.weights(tiny_pipeline)], tmp_path / "x.safetensors", base=made.BASE
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("strength", [1e8, float("1e38")])
def test_numbers_out_of_range_are_named_and_nothing_is_written(
    strength: float, tiny_pipeline: Any, out: Path
) -> None:
    with pytest.raises(UserError, match=r"'unet\..*weight' would hold values beyond .* float16"):
        scumble.merge_files(
            [(made.weights(tiny_pipeline), strength)], out, base=made.BASE, dtype="fp16"
        )
    assert not list(out.parent.iterdir())


def misfit(tiny_pipeline: Any) -> AdapterWeights:
    adapter = made.weights(tiny_pipeline)
    unet = adapter.components["unet"]
    unet = unet | {"down_blocks.7.conv": unet[made.CONV], made.TO_V: unet[made.CONV]}
    return replace(adapter, components=adapter.components | {"unet": unet})


def test_layers_that_the_base_lacks_are_named_before_any_work(
    tiny_pipeline: Any, out: Path
) -> None:
    adapter = misfit(tiny_pipeline)
    with pytest.raises(UserError, match=r"'unet\..*to_v' .* does not fit: .*, and 1 more"):
        scumble.merge_files([adapter], out, base=made.BASE)
    assert not list(out.parent.iterdir())
    outcome = scumble.merge_files([adapter], out, base=made.BASE, partial=True)
    said = "\n".join(outcome.lines)
    assert "4 layers of scumble-tiny changed" in said
    assert "'unet.down_blocks.7.conv' (adapter 1) is a layer that this base lacks" in said


def test_learned_words_are_written_beside(tiny_pipeline: Any, out: Path) -> None:
    adapter = replace(made.weights(tiny_pipeline), tokens=made.word("<a>"))
    outcome = scumble.merge_files([adapter], out, base=made.BASE)
    words = out / "learned_embeds.safetensors"
    assert any(f"(<a>): draw with --adapter {words}" in line for line in outcome.lines)
    tokens = made.read(words).tokens
    assert torch.equal(
        tokens["<a>"].vectors["text_encoder"], adapter.tokens["<a>"].vectors["text_encoder"]
    )


def test_what_is_there_is_kept_unless_asked_otherwise(
    tiny_pipeline: Any, tiny_folder: Path, tmp_path: Path, out: Path
) -> None:
    adapter = made.weights(tiny_pipeline)

    def merge(output: Path, **options: Any) -> None:
        scumble.merge_files([adapter], output, base=made.BASE, **options)

    merge(out)
    with pytest.raises(UserError, match="exists already"):
        merge(out)
    (out / "unet" / "model.bin").write_text("of an older base")
    merge(out, force=True)
    assert not (out / "unet" / "model.bin").exists()
    diary = tmp_path / "diary"
    diary.mkdir()
    (diary / "monday.txt").write_text("mine")
    with pytest.raises(UserError, match="is no base model, and is not replaced by one"):
        merge(diary, force=True)
    with pytest.raises(UserError, match="is the base itself"):
        scumble.merge_files([adapter], tiny_folder, base=str(tiny_folder), force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["diary", "merged"]


def test_a_base_of_other_weights_is_said(tiny_pipeline: Any, out: Path) -> None:
    adapter = made.weights(tiny_pipeline, base_fingerprint="0" * 16)
    outcome = scumble.merge_files([adapter], out, base=made.BASE)
    assert any("whose weights are not those of this base" in line for line in outcome.lines)


def test_equal_merges_give_equal_bytes(tiny_pipeline: Any, out: Path) -> None:
    sources = [made.weights(tiny_pipeline, seed=n) for n in range(2)]
    content = []
    for _ in range(2):
        scumble.merge_files(sources, out, base=made.BASE, method="dare_ties", force=True)
        content.append({path: path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert content[0] == content[1]


def test_the_command_merges_into_a_base(tiny_pipeline: Any, out: Path, capsys: Any) -> None:
    adapter = made.weights(tiny_pipeline)
    path = scumble.write_adapter(adapter, out.with_name("a.safetensors"))
    words = ["merge", f"{path}:0.6,text_encoder=0", "--base", made.BASE, "--output", str(out)]
    assert run(words) == 0
    assert capsys.readouterr().out.splitlines() == ["4 layers of scumble-tiny changed", str(out)]
    got, was = states(opened(out)), states(tiny_pipeline)
    changed = {name for name in got if not torch.equal(got[name], was[name])}
    assert changed == {f"unet.{module}.weight" for module in made.PLACES["unet"]}
    assert run([*words, "--rank", "4", "--force"]) == 1
    assert "--rank is for a merged adapter" in capsys.readouterr().err
