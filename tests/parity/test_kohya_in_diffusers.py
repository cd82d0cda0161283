"""Our files in kohya's format in unmodified diffusers, and those of LyCORIS in ours."""

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

import scumble
from scumble.families import FAMILIES
from scumble.formats import read_adapter

PRESETS = {
    "attention": (("to_q", "to_k", "to_v", "to_out.0"), ()),
    "ranks differ, alpha is another": (("to_q:4:3", "attn2.to_k:2:3", "to_out.0:8:3"), ()),
    "alpha that half precision would round": (("to_v:4:0.7", "to_out.0:4:0.7"), ()),
    "attention and convolutions": (("to_q", "conv1:4:8", "conv_shortcut", "ff.net.0.proj:2"), ()),
    "everything": (
        (
            *("to_q:4:2", "to_out.0:4:2", "conv1:4:8", "conv2:2:5", "time_emb_proj:2", "conv_in"),
            *("proj_in:3:1", "upsamplers.*.conv:2", "downsamplers.*.conv", "ff.net.2:2:3"),
            *("time_embedding.linear_1:2:1", "conv_out:2:6"),
        ),
        (),
    ),
    "text encoder too": (
        ("to_q:2", "conv2:4:8"),
        ("fc1:4:3", "fc2:2:3", "v_proj:4:3", "out_proj:2:3"),
    ),
}
"""Attention and text encoders have one alpha in each: diffusers takes the most common one for all
of it. And it knows the attention of a text encoder by its `out_proj` alone."""


def adapted(model):
    """Path -> rank and scale of the layers that PEFT adapts."""
    return {
        path: (layer.r["a"], layer.scaling["a"])
        for path, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_diffusers_reads_every_module_and_draws_the_same(
    preset, make_weights, make_pipeline, draw, tmp_path
):
    unet, text_encoder = PRESETS[preset]
    parts = {"text_encoder": text_encoder} if text_encoder else {}
    weights = make_weights(*unet, **parts)
    path = scumble.write_adapter(weights, tmp_path / "a.safetensors", "kohya")
    theirs, ours = make_pipeline(), make_pipeline()
    plain = draw(theirs)
    theirs.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name="a")
    scumble.load_adapter(ours, path)
    for component, modules in weights.components.items():
        assert adapted(getattr(theirs, component)) == {
            module: (entry.rank, pytest.approx(entry.alpha / entry.rank))
            for module, entry in modules.items()
        }
    assert np.abs(draw(theirs) - draw(ours)).max() <= 1e-5
    assert np.abs(draw(ours) - plain).max() > 0.005


def test_where_alphas_of_attention_differ_diffusers_needs_the_other_format(
    make_weights, make_pipeline, draw, tmp_path
):
    weights = make_weights("to_q:4:8", "to_k:4:1")
    ours = make_pipeline()
    scumble.load_adapter(ours, weights)
    worst = {}
    for name in ("kohya", "peft"):
        path = scumble.write_adapter(weights, tmp_path / f"{name}.safetensors", name)
        theirs = make_pipeline()
        theirs.load_lora_weights(str(tmp_path), weight_name=path.name)
        worst[name] = np.abs(draw(theirs) - draw(ours)).max()
    assert worst["peft"] <= 1e-5
    assert worst["kohya"] > 0.01
    assert scumble.read_adapter(tmp_path / "kohya.safetensors").components["unet"].keys() == (
        weights.components["unet"].keys()
    )


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_a_file_of_lycoris_own_is_placed_completely(component, make_pipeline, tmp_path):
    lycoris = pytest.importorskip("lycoris")
    pipeline = make_pipeline()
    model = getattr(pipeline, component)
    paths = {path.replace(".", "_"): path for path, _ in model.named_modules()}
    lycoris.LycorisNetwork.apply_preset({"target_name": [".*"]})
    network = lycoris.create_lycoris(model, 1.0, linear_dim=2, linear_alpha=1.0, algo="lora")
    network.apply_to()
    tensors = {key: tensor.contiguous().clone() for key, tensor in network.state_dict().items()}
    assert len(tensors) > 30
    save_file(tensors, tmp_path / "a.safetensors")
    names = FAMILIES["stable_diffusion"].key_names
    modules = read_adapter(tmp_path, names).components[component]
    wanted = {key.partition(".")[0].removeprefix("lycoris_") for key in tensors}
    assert modules.keys() == {names.to_file(component, paths[flat]) for flat in wanted}
    assert all((entry.rank, entry.alpha) == (2, 1.0) for entry in modules.values())
    for flat in wanted:
        down = modules[names.to_file(component, paths[flat])].tensors["down"]
        assert torch.equal(down, tensors[f"lycoris_{flat}.lora_down.weight"])
