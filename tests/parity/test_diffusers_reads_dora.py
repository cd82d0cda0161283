"""DoRA between unmodified diffusers and us: the same picture either way."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

import scumble
from scumble.adapters import ADAPTERS
from scumble.adapters.inject import Target, inject
from scumble.errors import UserError
from scumble.formats import AdapterWeights
from scumble.formats.weights import module_weights

PRESETS = {
    "attention": (("to_q", "to_k", "to_v", "to_out.0"), ()),
    "alpha not rank": (("to_q:4:8", "attn2.to_k:2:1.5"), ()),
    "convolutions": (("to_q:2", "conv1:4:8", "conv_shortcut", "proj_in", "ff.net.0.proj"), ()),
    "text encoder": (("to_q",), ("q_proj", "v_proj")),
    "beyond its attention": (("to_q:2",), ("q_proj", "fc1:3:6")),
}


@pytest.fixture
def make_dora(make_pipeline):
    """Builds a DoRA on the built-in base whose every part has moved."""

    def made(model, targets):
        parsed = [Target.parse(text, 4, None) for text in targets]
        adapters = inject(model, "made", ADAPTERS["dora"], parsed)
        torch.manual_seed(0)
        for adapter in adapters.adapters.values():
            nn.init.normal_(adapter.up, std=0.05)
            adapter.magnitude.data *= 1 + 0.2 * torch.randn_like(adapter.magnitude)
        return module_weights(adapters, "dora")

    def make(unet, text_encoder=()):
        pipeline = make_pipeline()
        components = {"unet": made(pipeline.unet, unet)}
        if text_encoder:
            components["text_encoder"] = made(pipeline.text_encoder, text_encoder)
        return AdapterWeights(components, {"base_model": "tiny"})

    return make


@pytest.mark.parametrize("preset", PRESETS)
def test_diffusers_draws_the_same_from_our_file(preset, make_dora, make_pipeline, draw, tmp_path):
    weights = make_dora(*PRESETS[preset])
    file = scumble.write_adapter(weights, tmp_path / "pytorch_lora_weights.safetensors")
    theirs, ours = make_pipeline(), make_pipeline()
    plain = draw(theirs)
    theirs.load_lora_weights(tmp_path)
    scumble.load_adapter(ours, tmp_path)
    assert np.abs(draw(theirs) - draw(ours)).max() <= 1e-5
    assert np.abs(draw(ours) - plain).max() > 0.05
    keys = [key for key in load_file(file) if "magnitude" in key]
    ends = {"unet": ".lora_magnitude_vector", "text_encoder": ".lora_magnitude_vector.weight"}
    assert all(key.endswith(ends[key.partition(".")[0]]) for key in keys)
    assert len(keys) == sum(len(modules) for modules in weights.components.values())


def test_we_draw_the_same_from_their_file(make_pipeline, draw, tmp_path):
    theirs = make_pipeline()
    targets = ["to_q", "to_out.0", "conv1"]
    theirs.unet.add_adapter(LoraConfig(r=3, lora_alpha=6, target_modules=targets, use_dora=True))
    torch.manual_seed(1)
    for name, parameter in theirs.unet.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
        if "magnitude" in name:
            parameter.data *= 1.1
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(theirs.unet),
        unet_lora_adapter_metadata={
            "r": 3,
            "lora_alpha": 6,
            "target_modules": targets,
            "use_dora": True,
        },
    )
    ours = make_pipeline()
    scumble.load_adapter(ours, tmp_path)
    assert np.abs(draw(theirs) - draw(ours)).max() <= 1e-5


def test_lengths_of_inputs_have_no_place_in_pefts_files(make_dora, tmp_path):
    weights = make_dora(("attn2.to_k",))
    path, entry = next(iter(weights.components["unet"].items()))
    entry.tensors["magnitude"] = torch.ones(1, entry.tensors["down"].shape[1])
    with pytest.raises(UserError, match=f"{path}.* a length for each input") as refusal:
        scumble.write_adapter(weights, tmp_path / "a.safetensors")
    assert "kohya" in refusal.value.hint
    assert list(tmp_path.iterdir()) == []


def test_lora_and_dora_side_by_side_have_no_place_in_pefts_files(make_dora, make_weights, tmp_path):
    weights = make_dora(("to_q",))
    weights.components["unet"] |= make_weights("to_v").components["unet"]
    with pytest.raises(UserError, match="some layers of the unet are LoRA and some DoRA"):
        scumble.write_adapter(weights, tmp_path / "a.safetensors")


PEFTS_OTHERS = {
    "loha": LoHaConfig(r=4, alpha=6, target_modules=["to_q", "conv1"]),
    "lokr": LoKrConfig(r=2, alpha=3, target_modules=["to_q", "conv1"]),
    "lokr of whole factors": LoKrConfig(r=1000, alpha=100, target_modules=["to_q", "conv1"]),
    "lokr with patterns": LoKrConfig(
        r=1000, alpha=100, target_modules=["to_q"], alpha_pattern={"attn2.to_q": 500}
    ),
}


@pytest.mark.parametrize("case", PEFTS_OTHERS)
def test_a_folder_of_pefts_other_types(case, make_pipeline, draw, tmp_path):
    theirs = make_pipeline()
    theirs.unet = get_peft_model(theirs.unet, PEFTS_OTHERS[case])
    torch.manual_seed(2)
    for name, parameter in theirs.unet.named_parameters():
        if "hada" in name or "lokr" in name:
            nn.init.normal_(parameter, std=0.2)
    theirs.unet.save_pretrained(tmp_path)
    ours = make_pipeline()
    plain = draw(ours)
    scumble.load_adapter(ours, tmp_path)
    assert np.abs(draw(theirs) - draw(ours)).max() <= 1e-5
    assert np.abs(draw(ours) - plain).max() > 0.01
