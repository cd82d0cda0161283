"""Our files in unmodified diffusers, and theirs in ours: the same picture."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict

import scumble
from scumble.errors import UserError
from scumble.formats import AdapterWeights, LearnedToken

PRESETS = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "attention, alpha not rank": ("to_q:4:8", "attn2.to_k:2:1.5", "to_out.0:8:8"),
    "attention and convolutions": ("to_q", "conv1", "conv_shortcut", "ff.net.0.proj:2"),
    "everything, alpha not rank": ("to_q:4:2", "conv1:4:8", "time_emb_proj:2", "proj_in:3:1"),
}
"""Diffusers' own converter loses the attention part of a LoRA that reaches convolutions too."""


@pytest.mark.parametrize("preset", PRESETS)
def test_diffusers_draws_the_same_from_our_file(
    preset, make_weights, make_pipeline, draw, tmp_path
):
    weights = make_weights(*PRESETS[preset])
    scumble.write_adapter(weights, tmp_path / "pytorch_lora_weights.safetensors")
    theirs, ours = make_pipeline(), make_pipeline()
    plain = draw(theirs)
    theirs.load_lora_weights(tmp_path)
    scumble.load_adapter(ours, tmp_path)
    assert np.abs(draw(theirs) - draw(ours)).max() <= 1e-5
    assert np.abs(draw(ours) - plain).max() > 0.05


TEXT_PRESETS = {
    "both as they come": (("to_q",), ("q_proj", "v_proj")),
    "alpha not rank in the denoiser alone": (("to_q:4:8",), ("q_proj:3",)),
    "alpha not rank in the text encoder alone": (("to_q:2",), ("out_proj:4:2",)),
    "ranks differ, alpha as rank": (("to_q:2", "to_k:5"), ("q_proj:3", "k_proj:2")),
    "beyond attention": (("to_q:2", "conv1:4:8"), ("fc1", "fc2:2:6", "v_proj:4:1")),
}


@pytest.mark.parametrize("preset", TEXT_PRESETS)
def test_diffusers_reads_every_component_of_ours(
    preset, make_weights, make_pipeline, draw, tmp_path
):
    unet, text_encoder = TEXT_PRESETS[preset]
    weights = make_weights(*unet, text_encoder=text_encoder)
    scumble.write_adapter(weights, tmp_path / "pytorch_lora_weights.safetensors")
    theirs, ours = make_pipeline(), make_pipeline()
    theirs.load_lora_weights(tmp_path)
    scumble.load_adapter(ours, tmp_path)
    drawn = draw(ours)
    assert np.abs(draw(theirs) - drawn).max() <= 1e-5
    without = make_pipeline()
    scumble.load_adapter(without, AdapterWeights({"unet": weights.components["unet"]}))
    assert np.abs(draw(without) - drawn).max() > 0.005


@pytest.mark.parametrize("with_text_encoder", [False, True])
def test_we_draw_the_same_from_their_file(with_text_encoder, make_pipeline, draw, tmp_path):
    theirs = make_pipeline()
    unet_targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]
    theirs.unet.add_adapter(LoraConfig(r=3, lora_alpha=6, target_modules=unet_targets))
    options = {"unet_lora_layers": get_peft_model_state_dict(theirs.unet)}
    options["unet_lora_adapter_metadata"] = {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": unet_targets,
    }
    models = [theirs.unet]
    if with_text_encoder:
        targets = ["q_proj", "out_proj"]
        theirs.text_encoder.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets))
        models.append(theirs.text_encoder)
    torch.manual_seed(1)
    for model in models:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    options["unet_lora_layers"] = get_peft_model_state_dict(theirs.unet)
    if with_text_encoder:
        options["text_encoder_lora_layers"] = get_peft_model_state_dict(theirs.text_encoder)
    StableDiffusionPipeline.save_lora_weights(tmp_path, **options)
    ours = make_pipeline()
    plain = draw(ours)
    scumble.load_adapter(ours, tmp_path)
    assert np.abs(draw(theirs) - draw(ours)).max() <= 1e-5
    assert np.abs(draw(ours) - plain).max() > 0.01


PATTERNS = {
    "rank_pattern": {"attn2.to_q": 2, r"mid_block\..*\.to_v": 6},
    "alpha_pattern": {"to_v": 9, r"^down_blocks\..*\.attn1\.to_q": 1},
}
"""As PEFT reads them: regular expressions for the end of a path."""


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, PATTERNS])
def test_a_folder_of_pefts_own(options, make_pipeline, draw, tmp_path):
    theirs = make_pipeline()
    config = LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "to_v"], **options)
    theirs.unet = get_peft_model(theirs.unet, config)
    torch.manual_seed(2)
    for name, parameter in theirs.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    theirs.unet.save_pretrained(tmp_path)
    ours = make_pipeline()
    scumble.load_adapter(ours, tmp_path)
    assert np.abs(draw(theirs) - draw(ours)).max() <= 1e-5


@pytest.mark.parametrize("start", ["pissa", "olora", "pissa_niter_2"])
def test_a_folder_of_peft_that_is_for_a_changed_base_is_refused(
    start, make_pipeline, draw, tmp_path
):
    theirs = make_pipeline()
    config = LoraConfig(r=4, lora_alpha=2, target_modules=["to_q"], init_lora_weights=start)
    theirs.unet = get_peft_model(theirs.unet, config)
    theirs.unet.save_pretrained(tmp_path)
    ours = make_pipeline()
    plain = draw(ours)
    with pytest.raises(UserError, match=f"started as '{start}'") as refusal:
        scumble.load_adapter(ours, tmp_path)
    assert "path_initial_model_for_weight_conversion" in refusal.value.hint
    assert np.array_equal(draw(ours), plain)


def test_the_same_as_a_lora_of_twice_the_rank_is_read(make_pipeline, draw, tmp_path):
    theirs = make_pipeline()
    config = LoraConfig(r=4, lora_alpha=2, target_modules=["to_q"], init_lora_weights="pissa")
    theirs.unet = get_peft_model(theirs.unet, config)
    start = tmp_path / "start"
    theirs.unet.save_pretrained(start)
    torch.manual_seed(2)
    for name, parameter in theirs.unet.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    drawn = draw(theirs)
    theirs.unet.save_pretrained(
        tmp_path / "end", path_initial_model_for_weight_conversion=str(start)
    )
    ours = make_pipeline()
    scumble.load_adapter(ours, tmp_path / "end")
    assert np.abs(draw(ours) - drawn).max() <= 1e-4


def test_merged_equals_apart(make_weights, make_pipeline, draw):
    pipeline = make_pipeline()
    plain = draw(pipeline)
    scumble.load_adapter(pipeline, make_weights("to_q", "conv1"), name="a", strength=0.8)
    scumble.load_adapter(pipeline, make_weights("to_k:2"), name="b", strength=-0.5)
    apart = draw(pipeline)
    scumble.merge_adapters(pipeline)
    assert np.abs(draw(pipeline) - apart).max() <= 1e-4
    scumble.unmerge_adapters(pipeline)
    assert np.array_equal(draw(pipeline), apart)
    scumble.unload_adapters(pipeline)
    assert np.array_equal(draw(pipeline), plain)


def test_strengths_and_names(make_weights, make_pipeline, draw):
    pipeline = make_pipeline()
    plain = draw(pipeline)
    scumble.load_adapter(pipeline, make_weights("to_q"), name="a")
    scumble.load_adapter(pipeline, make_weights("to_v"), name="b")
    both = draw(pipeline)
    scumble.set_strengths(pipeline, {"a": 0.0})
    assert not np.array_equal(draw(pipeline), both)
    scumble.set_strengths(pipeline, {"b": 0.0})
    assert np.array_equal(draw(pipeline), plain)
    for call in (
        lambda: scumble.set_strengths(pipeline, {"c": 1}),
        lambda: scumble.unload_adapters(pipeline, "c"),
    ):
        with pytest.raises(UserError, match="Loaded: a, b"):
            call()
    scumble.unload_adapters(pipeline, "a")
    with pytest.raises(UserError, match="Loaded: b"):
        scumble.unload_adapters(pipeline, "a")


def test_an_adapter_of_another_base_is_refused_whole(make_weights, make_pipeline, draw):
    pipeline = make_pipeline()
    plain = draw(pipeline)
    wider = make_weights("to_q")
    first = next(iter(wider.components["unet"].values()))
    first.tensors["down"] = torch.zeros(4, 999)
    with pytest.raises(UserError, match=r"shape \(4, 999\)"):
        scumble.load_adapter(pipeline, wider)
    deeper = make_weights("to_q")
    modules = deeper.components["unet"]
    modules["down_blocks.9.attn.to_q"] = modules.pop(next(iter(modules)))
    with pytest.raises(UserError, match=r"down_blocks\.9\.attn\.to_q.*lacks"):
        scumble.load_adapter(pipeline, deeper)
    assert np.array_equal(draw(pipeline), plain)


def draw_thing(pipeline):
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"}
    generator = torch.Generator().manual_seed(3)
    return pipeline("a <thing> in the sun", generator=generator, **options).images[0]


def learned(count, width=128):
    torch.manual_seed(count)
    return LearnedToken({"text_encoder": torch.randn(count, width)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 3])
def test_diffusers_draws_the_same_from_our_token(count, dtype, make_pipeline, tmp_path):
    weights = AdapterWeights({}, {"base_model": "tiny"}, {"<thing>": learned(count)})
    scumble.write_adapter(weights, tmp_path / "learned_embeds.safetensors", "embedding")
    theirs, ours = make_pipeline().to(dtype), make_pipeline().to(dtype)
    plain = draw_thing(theirs)
    theirs.load_textual_inversion(str(tmp_path))
    scumble.load_adapter(ours, tmp_path)
    drawn = draw_thing(ours)
    assert np.array_equal(draw_thing(theirs), drawn)
    assert np.abs(drawn - plain).max() > 0.01


def test_diffusers_refuses_a_bundle_and_reads_the_plain_files(
    make_weights, make_pipeline, tmp_path
):
    layers = make_weights("to_q", text_encoder=("q_proj",))
    both = AdapterWeights(layers.components, layers.metadata, {"<thing>": learned(2)})
    bundle = scumble.write_adapter(both, tmp_path / "scumble_adapter.safetensors")
    theirs, ours = make_pipeline(), make_pipeline()
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        theirs.load_lora_weights(str(bundle))
    scumble.load_adapter(ours, tmp_path)
    scumble.write_adapter(layers, tmp_path / "pytorch_lora_weights.safetensors")
    tokens = AdapterWeights({}, {}, both.tokens)
    scumble.write_adapter(tokens, tmp_path / "learned_embeds.safetensors", "embedding")
    theirs.load_lora_weights(str(tmp_path), weight_name="pytorch_lora_weights.safetensors")
    theirs.load_textual_inversion(str(tmp_path))
    assert np.abs(draw_thing(theirs) - draw_thing(ours)).max() <= 1e-5
