"""Names of original checkpoints: there and back, and the same as diffusers' own converters."""

from pathlib import Path
from typing import Any

import ldm_layout
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from scumble.errors import UserError
from scumble.families import FAMILIES, single_file
from scumble.families.original_names import (
    PREFIXES,
    Original,
    Place,
    Version,
    from_original,
    to_original,
    version_of,
)

COMPONENTS = FAMILIES["stable_diffusion"].components
VERSIONS: tuple[Version, ...] = ("sd1", "sd2")
TEXT = "text_model.encoder.layers.3.self_attn"
BLOCK = "cond_stage_model.model.transformer.resblocks.3.attn"
VAE_MIDDLE = "first_stage_model.decoder.mid.attn_1"

GOLDEN: dict[tuple[str, str, Version], str] = {
    ("unet", "time_embedding.linear_2.bias", "sd1"): "time_embed.2.bias",
    ("unet", "down_blocks.0.downsamplers.0.conv.bias", "sd1"): "input_blocks.3.0.op.bias",
    (
        "unet",
        "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k.weight",
        "sd1",
    ): "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight",
    (
        "unet",
        "down_blocks.3.resnets.0.time_emb_proj.weight",
        "sd2",
    ): "input_blocks.10.0.emb_layers.1.weight",
    ("unet", "up_blocks.0.upsamplers.0.conv.weight", "sd1"): "output_blocks.2.1.conv.weight",
    ("unet", "up_blocks.2.upsamplers.0.conv.weight", "sd2"): "output_blocks.8.2.conv.weight",
    (
        "unet",
        "up_blocks.3.resnets.2.conv_shortcut.weight",
        "sd1",
    ): "output_blocks.11.0.skip_connection.weight",
    ("unet", "mid_block.resnets.1.norm2.weight", "sd1"): "middle_block.2.out_layers.0.weight",
    (
        "vae",
        "decoder.up_blocks.2.resnets.0.conv_shortcut.weight",
        "sd1",
    ): "decoder.up.1.block.0.nin_shortcut.weight",
    (
        "vae",
        "encoder.down_blocks.1.downsamplers.0.conv.weight",
        "sd2",
    ): "encoder.down.1.downsample.conv.weight",
    ("vae", "encoder.mid_block.attentions.0.group_norm.weight", "sd1"): (
        "encoder.mid.attn_1.norm.weight"
    ),
    ("text_encoder", f"{TEXT}.k_proj.weight", "sd1"): f"transformer.{TEXT}.k_proj.weight",
    (
        "text_encoder",
        "text_model.embeddings.position_ids",
        "sd1",
    ): "transformer.text_model.embeddings.position_ids",
    (
        "text_encoder",
        "text_model.embeddings.position_embedding.weight",
        "sd2",
    ): "model.positional_embedding",
    (
        "text_encoder",
        "text_model.encoder.layers.22.mlp.fc2.weight",
        "sd2",
    ): "model.transformer.resblocks.22.mlp.c_proj.weight",
}
"""(component, diffusers' name, version) -> name in the released checkpoints."""


@pytest.fixture(scope="module")
def models() -> dict[Version, dict[str, nn.Module]]:
    """Version -> its components, small, with the blocks of the real ones."""
    return {v: {c: ldm_layout.build(v, c) for c in COMPONENTS} for v in VERSIONS}


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> Version:
    return request.param


def originals(version: Version, components: dict[str, nn.Module]) -> dict[str, Tensor]:
    """A checkpoint's tensors, each named and shaped as the table says."""
    whole: dict[str, Tensor] = {}
    blocks: dict[str, dict[int, Tensor]] = {}
    for component, module in components.items():
        for key, tensor in module.state_dict().items():
            place = to_original(component, key, version)
            assert place is not None
            shaped = tensor.reshape(place.shape(tuple(tensor.shape)))
            if place.block is None:
                assert place.key not in whole
                whole[place.key] = shaped
            else:
                blocks.setdefault(place.key, {})[place.block] = shaped
    return whole | {key: torch.cat([rows[n] for n in range(3)]) for key, rows in blocks.items()}


def test_names_are_those_of_the_released_checkpoints() -> None:
    for (component, key, version), original in GOLDEN.items():
        place = to_original(component, key, version)
        assert place == Original(PREFIXES[component] + original)
        assert from_original(place.key) == Place(component, (key,))


def test_every_tensor_goes_there_and_back(version: Version, models: Any) -> None:
    for component, module in models[version].items():
        for key, tensor in module.state_dict().items():
            place = to_original(component, key, version)
            back = from_original(place.key)
            name = back.keys[place.block or 0]
            assert (back.component, name.removeprefix("text_model.")) == (
                component,
                key.removeprefix("text_model."),
            )
            assert (len(back.keys) == 3) == (place.block is not None)
            shape = place.shape(tuple(tensor.shape))
            rows = (shape[0] * len(back.keys), *shape[1:])
            assert back.shape(rows) == tuple(tensor.shape)


def test_a_checkpoint_made_by_the_table_is_the_released_layout(
    version: Version, models: Any
) -> None:
    made = originals(version, models[version])
    released = ldm_layout.checkpoint(version, models[version])
    assert made.keys() <= released.keys()
    for key, tensor in made.items():
        assert torch.equal(tensor, released[key]), key
    # What is left is none of diffusers', but for the numbers that it counts itself.
    left = {key for key in released.keys() - made.keys() if from_original(key) is not None}
    positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    assert left == ({positions} if version == "sd1" else set())


def test_diffusers_converters_read_it_bit_for_bit(
    version: Version, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_file, "config", lambda _, part: ldm_layout.settings(version, part))
    path = tmp_path / "m.safetensors"
    made = originals(version, models[version])
    save_file({key: tensor.contiguous() for key, tensor in made.items()}, path)
    for component, module in models[version].items():
        loaded = single_file.load_component(str(path), component, torch.float32).state_dict()
        assert loaded.keys() == module.state_dict().keys()
        for key, tensor in module.state_dict().items():
            assert torch.equal(loaded[key], tensor), key


def test_openclip_holds_queries_keys_and_values_in_one() -> None:
    for leaf in ("weight", "bias"):
        keys = tuple(f"{TEXT}.{name}_proj.{leaf}" for name in "qkv")
        fused = f"{BLOCK}.in_proj_{leaf}"
        for block, key in enumerate(keys):
            assert to_original("text_encoder", key, "sd2") == Original(fused, block)
        assert from_original(fused) == Place("text_encoder", keys)
    assert from_original(f"{BLOCK}.in_proj_weight").shape((48, 16)) == (16, 16)
    assert from_original(f"{BLOCK}.in_proj_bias").shape((48,)) == (16,)


@pytest.mark.parametrize(
    ("now", "early", "original"),
    [
        ("to_q", "query", "q"),
        ("to_k", "key", "k"),
        ("to_v", "value", "v"),
        ("to_out.0", "proj_attn", "proj_out"),
    ],
)
def test_the_vaes_attention_is_made_of_convolutions_there(
    now: str, early: str, original: str
) -> None:
    stem = "decoder.mid_block.attentions.0"
    for name in (now, early):
        place = to_original("vae", f"{stem}.{name}.weight", "sd1")
        assert place == Original(f"{VAE_MIDDLE}.{original}.weight", None, True)
        assert place.shape((16, 8)) == (16, 8, 1, 1)
        bias = to_original("vae", f"{stem}.{name}.bias", "sd1")
        assert bias == Original(f"{VAE_MIDDLE}.{original}.bias")
        assert bias.shape((16,)) == (16,)
    back = from_original(f"{VAE_MIDDLE}.{original}.weight")
    assert back == Place("vae", (f"{stem}.{now}.weight",), True)
    # Programs since have saved it either way.
    assert back.shape((16, 8, 1, 1)) == back.shape((16, 8)) == (16, 8)


def test_live_names_and_names_in_files_are_the_same_tensors(version: Version) -> None:
    for key in ("final_layer_norm.bias", "encoder.layers.0.self_attn.v_proj.weight"):
        live = to_original("text_encoder", key, version)
        assert live == to_original("text_encoder", f"text_model.{key}", version)


@pytest.mark.parametrize(
    "key",
    [
        "cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight",
        "cond_stage_model.model.transformer.resblocks.23.ln_1.bias",
        "cond_stage_model.model.text_projection",
        "cond_stage_model.model.logit_scale",
        "model_ema.diffusion_modelinput_blocks00weight",
        "first_stage_model.loss.logvar",
        "alphas_cumprod",
        "conv_in.weight",
        "",
    ],
)
def test_what_diffusers_does_not_have_has_no_place(key: str) -> None:
    assert from_original(key) is None


def test_position_numbers_have_no_place_in_version_2() -> None:
    assert to_original("text_encoder", "text_model.embeddings.position_ids", "sd2") is None


@pytest.mark.parametrize(
    ("component", "key", "version"),
    [
        ("unet", "add_embedding.linear_1.weight", "sd1"),
        ("unet", "down_blocks.4.resnets.0.conv1.weight", "sd1"),
        ("unet", "down_blocks.0.resnets.2.conv1.weight", "sd2"),
        ("unet", "down_blocks.3.attentions.0.norm.weight", "sd1"),
        ("unet", "mid_block.attentions.0.transformer_blocks.1.norm1.weight", "sd1"),
        ("unet", "embeddings.position_ids", "sd1"),
        ("vae", "decoder.mid_block.attentions.1.to_q.weight", "sd1"),
        ("text_encoder", "encoder.layers.12.mlp.fc1.weight", "sd1"),
        ("text_encoder", "encoder.layers.23.mlp.fc1.weight", "sd2"),
        ("text_encoder", "text_projection.weight", "sd2"),
    ],
)
def test_a_tensor_of_another_model_is_refused_by_name(
    component: str, key: str, version: Version
) -> None:
    with pytest.raises(UserError, match=f"the {component} of .* has no tensor .*{key}"):
        to_original(component, key, version)


def names_of(components: dict[str, nn.Module]) -> dict[str, list[str]]:
    return {component: list(module.state_dict()) for component, module in components.items()}


def test_the_version_is_told_by_the_names(version: Version, models: Any) -> None:
    names = names_of(models[version])
    assert version_of(names) == version
    names["text_encoder"] = [f"text_model.{key}" for key in names["text_encoder"]]
    assert version_of(names) == version


def test_a_smaller_model_is_of_no_version(models: Any, tiny_pipeline: Any) -> None:
    settings = ldm_layout.settings("sd1", "unet") | {"layers_per_block": 1}
    distilled = models["sd1"] | {"unet": UNet2DConditionModel.from_config(settings)}
    with pytest.raises(UserError, match=r"the unet lacks 'down_blocks\.0\.resnets\.1\.norm1"):
        version_of(names_of(distilled))
    with pytest.raises(UserError, match="lacks"):
        version_of(names_of({c: getattr(tiny_pipeline, c) for c in COMPONENTS}))
