"""Attention processors of 2023: read in every spelling of theirs, written as they were read."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

import scumble
from scumble.errors import UserError
from scumble.families import FAMILIES
from scumble.formats import (
    AdapterWeights,
    LearnedToken,
    ModuleWeights,
    read_adapter,
    write_adapter,
)

NAMES = FAMILIES["stable_diffusion"].key_names
ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn2"
LAYER = "text_model.encoder.layers.1.self_attn"
PARTS = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}


def pair(seed=0, rank=4):
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, 6, generator=generator)
    return {"down": down, "up": torch.randn(10, rank, generator=generator)}


def keys(stem, entry):
    return {f"{stem}.{side}.weight": tensor for side, tensor in entry.items()}


def module(rank=4, alpha=None, seed=0):
    return ModuleWeights("lora", pair(seed, rank), rank if alpha is None else alpha)


def whole(**changes):
    unet = {f"{ATTENTION}.{path}": module(seed=ord(part[0])) for part, path in PARTS.items()}
    text = {f"{LAYER}.{part}_proj": module(2, seed=ord(part[0])) for part in PARTS}
    return AdapterWeights({"unet": unet | changes, "text_encoder": text}, {"note": "x"})


@pytest.mark.parametrize("prefix", ["", "unet."])
@pytest.mark.parametrize("part", PARTS)
def test_a_processor_is_read_with_and_without_its_component(prefix, part, tmp_path):
    wanted = pair(3)
    save_file(
        keys(f"{prefix}{ATTENTION}.processor.to_{part}_lora", wanted), tmp_path / "a.safetensors"
    )
    weights = read_adapter(tmp_path, NAMES)
    ((path, got),) = weights.components["unet"].items()
    assert (path, got.alpha) == (f"{ATTENTION}.{PARTS[part]}", 4)
    assert all(torch.equal(got.tensors[side], wanted[side]) for side in wanted)


TEXT_SPELLINGS = {
    "0.15": "text_encoder.{layer}.{part}_proj.to_{part}_lora",
    "0.16": "text_encoder.{layer}.to_{part}_lora",
    "0.18": "text_encoder.{layer}.{part}_proj.lora_linear_layer",
}


@pytest.mark.parametrize("release", TEXT_SPELLINGS)
def test_every_spelling_of_a_text_encoder_is_read(release, tmp_path):
    tensors = keys(f"unet.{ATTENTION}.processor.to_q_lora", pair(9))
    for seed, part in enumerate(PARTS):
        stem = TEXT_SPELLINGS[release].format(layer=LAYER, part=part)
        tensors |= keys(stem, pair(seed))
    save_file(tensors, tmp_path / "a.safetensors")
    got = read_adapter(tmp_path, NAMES).components["text_encoder"]
    assert sorted(got) == sorted(f"{LAYER}.{part}_proj" for part in PARTS)
    for seed, part in enumerate(PARTS):
        assert torch.equal(got[f"{LAYER}.{part}_proj"].tensors["up"], pair(seed)["up"])


def all_four(used):
    """As 0.15 wrote them: every layer has all four parts, of which diffusers used its own."""
    tensors = {}
    for layer, part in itertools.product(PARTS, PARTS):
        entry = pair(ord(part[0]))
        if layer != part and not used:
            entry["up"] = torch.zeros_like(entry["up"])
        tensors |= keys(f"text_encoder.{LAYER}.{layer}_proj.to_{part}_lora", entry)
    return tensors


def test_parts_that_never_acted_are_passed_over(tmp_path):
    save_file(all_four(used=False), tmp_path / "a.safetensors")
    weights = read_adapter(tmp_path, NAMES)
    assert sorted(weights.components["text_encoder"]) == sorted(f"{LAYER}.{p}_proj" for p in PARTS)
    for part in PARTS:
        got = weights.components["text_encoder"][f"{LAYER}.{part}_proj"]
        assert torch.equal(got.tensors["up"], pair(ord(part[0]))["up"])


def test_parts_that_hold_something_and_never_acted_are_named(tmp_path):
    save_file(all_four(used=True), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"to_\w+_lora\.up\.weight' belongs to a part other than"):
        read_adapter(tmp_path, NAMES)
    weights = read_adapter(tmp_path, NAMES, partial=True)
    assert len(weights.components["text_encoder"]) == 4
    pairs = [key.replace(".up.", ".down.") for key in weights.left_out]
    assert len(weights.left_out) == 2 * len(set(pairs)) == 24


def test_layers_beside_the_processors_are_read(tmp_path):
    path = "down_blocks.0.attentions.0.proj_in"
    tensors = keys(f"unet.{ATTENTION}.processor.to_q_lora", pair())
    save_file(tensors | keys(f"unet.{path}.lora", pair(1)), tmp_path / "a.safetensors")
    assert sorted(read_adapter(tmp_path, NAMES).components["unet"]) == [path, f"{ATTENTION}.to_q"]


def test_custom_diffusion_is_refused_by_name(tmp_path):
    key = f"{ATTENTION}.processor.to_k_custom_diffusion.weight"
    save_file({key: torch.ones(4, 6)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=f"'{key}' is of Custom Diffusion"):
        read_adapter(tmp_path, NAMES)


def test_a_processor_with_something_unknown_is_named(tmp_path):
    tensors = keys(f"{ATTENTION}.processor.to_q_lora", pair())
    save_file(tensors | {"odd.weight": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"'odd\.weight' is neither that of an attention processor"):
        read_adapter(tmp_path, NAMES)


def test_reading_gives_back_what_was_written(tmp_path):
    path = write_adapter(whole(), tmp_path / "a.safetensors", NAMES, "attn_procs")
    stems = {key.rpartition("_lora.")[0] for key in load_file(path)}
    assert stems == {f"unet.{ATTENTION}.processor.to_{part}" for part in PARTS} | {
        f"text_encoder.{LAYER}.to_{part}" for part in PARTS
    }
    back = read_adapter(path, NAMES)
    assert back.metadata == whole().metadata
    for component, modules in whole().components.items():
        assert back.components[component].keys() == modules.keys()
        for name, entry in modules.items():
            got = back.components[component][name]
            assert got.alpha == entry.alpha
            assert all(torch.equal(got.tensors[side], entry.tensors[side]) for side in got.tensors)
    again = write_adapter(back, tmp_path / "b.safetensors", NAMES, "attn_procs")
    assert path.read_bytes() == again.read_bytes()


TUCKER = ModuleWeights(
    "lora",
    {"down": torch.ones(2, 6, 1, 1), "up": torch.ones(10, 2, 1, 1), "mid": torch.ones(2, 2, 3, 3)},
    2,
)
UNHELD = {
    "alpha": ({f"{ATTENTION}.to_q": module(4, 2.0)}, "the alpha of '.*to_q' is 2, not its rank 4"),
    "ranks": ({f"{ATTENTION}.to_q": module(2)}, "all four parts of an attention at one rank"),
    "part": ({f"{ATTENTION[:-1]}1.to_q": module()}, "needs all four .* has q at 4"),
    "layer": ({"mid_block.attentions.0.proj_in": module()}, "'.*proj_in' is none"),
    "tucker": ({"mid_block.resnets.0.conv1": TUCKER}, "is a LoRA in Tucker form"),
}


@pytest.mark.parametrize("case", UNHELD)
def test_what_the_format_cannot_hold_is_not_written(case, tmp_path):
    changes, message = UNHELD[case]
    with pytest.raises(UserError, match=message) as refused:
        write_adapter(whole(**changes), tmp_path / "a.safetensors", NAMES, "attn_procs")
    assert "peft" in refused.value.hint
    assert list(tmp_path.iterdir()) == []


def test_learned_tokens_are_not_written(tmp_path):
    tokens = {"<a>": LearnedToken({"text_encoder": torch.ones(1, 8)})}
    weights = AdapterWeights(whole().components, {}, tokens)
    with pytest.raises(UserError, match="holds no learned tokens"):
        write_adapter(weights, tmp_path / "a.safetensors", NAMES, "attn_procs")


@pytest.fixture(scope="module")
def trained(tiny_folder):
    """A LoRA on every attention of the built-in base's denoiser that changes its pictures."""
    unet = StableDiffusionPipeline.from_pretrained(tiny_folder).unet
    torch.manual_seed(0)
    modules = {}
    for path, layer in unet.named_modules():
        if path.endswith((".to_q", ".to_k", ".to_v", ".to_out.0")):
            up = torch.randn(layer.out_features, 2) * 0.05
            modules[path] = ModuleWeights(
                "lora", {"down": torch.randn(2, layer.in_features), "up": up}, 2.0
            )
    return AdapterWeights({"unet": modules})


def draw(pipeline):
    generator = torch.Generator().manual_seed(3)
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"}
    return pipeline("a red circle", generator=generator, **options).images[0]


def test_diffusers_draws_the_same_from_our_file(trained, tiny_folder, tiny_pipeline, tmp_path):
    path = write_adapter(trained, tmp_path / "a.safetensors", NAMES, "attn_procs")
    theirs = StableDiffusionPipeline.from_pretrained(tiny_folder)
    plain = draw(theirs)
    theirs.load_lora_weights(path)
    scumble.load_adapter(tiny_pipeline, path)
    assert np.abs(draw(theirs) - draw(tiny_pipeline)).max() <= 1e-5
    assert np.abs(draw(tiny_pipeline) - plain).max() > 0.05


def test_a_pickled_file_without_components_draws_the_same(
    trained, tiny_folder, tiny_pipeline, tmp_path
):
    path = write_adapter(trained, tmp_path / "a.safetensors", NAMES, "attn_procs")
    scumble.load_adapter(tiny_pipeline, path)
    bare = {key.removeprefix("unet."): tensor for key, tensor in load_file(path).items()}
    (tmp_path / "seed").mkdir()
    torch.save(bare, tmp_path / "seed" / "pytorch_lora_weights.bin")
    other = StableDiffusionPipeline.from_pretrained(tiny_folder)
    scumble.load_adapter(other, tmp_path / "seed", allow_pickle=True)
    assert np.array_equal(draw(other), draw(tiny_pipeline))
