"""Small components of Stable Diffusion 1 and 2, and their weights under the original names."""

import json
import re
from importlib.resources import files
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

NARROW: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {
        "unet": {"block_out_channels": [4, 8, 16, 16], "cross_attention_dim": 16},
        "vae": {"block_out_channels": [4, 8, 16, 16], "norm_num_groups": 4},
        "text_encoder": {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2},
    },
    "sd2": {
        "unet": {"block_out_channels": [4, 8, 16, 16], "cross_attention_dim": 16},
        "vae": {"block_out_channels": [4, 8, 16, 16], "norm_num_groups": 4},
        "text_encoder": {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2},
    },
}
NARROW["sd1"]["unet"] |= {"attention_head_dim": 2, "norm_num_groups": 4}
NARROW["sd2"]["unet"] |= {"attention_head_dim": [1, 2, 4, 4], "norm_num_groups": 4}

UNET_RULES = [
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.2."),
]
RESNET_RULES = [
    (r"\.norm1\.(weight|bias)$", r".in_layers.0.\1"),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.(weight|bias)$", r".out_layers.0.\1"),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
]
VAE_RULES = [
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"^encoder\.down_blocks\.(\d)\.resnets\.(\d)\.", r"encoder.down.\1.block.\2."),
    (r"^encoder\.down_blocks\.(\d)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
]
OPEN_CLIP_RULES = [
    (r"^embeddings\.token_embedding\.weight$", "token_embedding.weight"),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.", ".attn."),
]


def settings(version: str, component: str) -> dict[str, Any]:
    """The shipped configuration at small widths: the same blocks, the same number of layers."""
    path = files("scumble") / "assets" / "single_file" / version / f"{component}.json"
    return json.loads(path.read_text("utf-8")) | NARROW[version].get(component, {})


def build(version: str, component: str) -> nn.Module:
    """A component with random weights."""
    torch.manual_seed(len(component))
    if component == "text_encoder":
        return CLIPTextModel(CLIPTextConfig(**settings(version, component))).eval()
    cls = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[component]
    return cls.from_config(settings(version, component)).eval()


def renamed(key: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def unet_key(key: str) -> str:
    """Input block 3b + j + 1 holds layer j of level b; output block 3b + j likewise."""
    if found := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", key):
        way, level, kind, layer, rest = found.groups()
        number = 3 * int(level) + int(layer) + (way == "down")
        side = "input" if way == "down" else "output"
        key = f"{side}_blocks.{number}.{int(kind == 'attentions')}.{rest}"
    elif found := re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.*)", key):
        key = f"input_blocks.{3 * int(found[1]) + 3}.0.op.{found[2]}"
    elif found := re.match(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(.*)", key):
        # The first level up has no attention before its upsampler.
        key = f"output_blocks.{3 * int(found[1]) + 2}.{1 if found[1] == '0' else 2}.conv.{found[2]}"
    key = renamed(key, UNET_RULES)
    is_resnet = re.match(r"(input|output)_blocks\.\d+\.0\.|middle_block\.[02]\.", key)
    return renamed(key, RESNET_RULES) if is_resnet else key


def vae_key(key: str) -> str:
    """Decoder levels are counted from the picture upwards, so in the other direction."""
    if found := re.match(r"decoder\.up_blocks\.(\d)\.(resnets\.(\d)|upsamplers\.0)\.(.*)", key):
        level = 3 - int(found[1])
        part = "upsample" if found[3] is None else f"block.{found[3]}"
        key = f"decoder.up.{level}.{part}.{found[4]}"
    return renamed(key, VAE_RULES)


def vae_tensor(key: str, tensor: Tensor) -> Tensor:
    """The original layout has 1x1 convolutions where diffusers has linear layers."""
    is_linear = ".attn_1." in key and tensor.ndim == 2
    return tensor[:, :, None, None] if is_linear else tensor


def open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name as OpenCLIP does: q, k and v in one matrix, and a last layer that is never used."""
    out: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if found := re.match(r"(.*)\.q_proj\.(weight|bias)$", key):
            stem, kind = found.groups()
            parts = [tensors[f"{stem}.{letter}_proj.{kind}"] for letter in "qkv"]
            out[f"{renamed(stem + '.', OPEN_CLIP_RULES)}in_proj_{kind}"] = torch.cat(parts)
        elif not re.search(r"\.[kv]_proj\.", key):
            out[renamed(key, OPEN_CLIP_RULES)] = tensor
    last = {key.replace(".22.", ".23."): t + 1 for key, t in out.items() if ".22." in key}
    width = out["ln_final.bias"].numel()
    extra = {"text_projection": torch.ones(width, width), "logit_scale": torch.tensor(4.6)}
    return out | last | extra


def checkpoint(version: str, components: dict[str, nn.Module]) -> dict[str, Tensor]:
    """All weights as one original checkpoint holds them."""
    out = {
        f"model.diffusion_model.{unet_key(key)}": tensor
        for key, tensor in components["unet"].state_dict().items()
    }
    for key, tensor in components["vae"].state_dict().items():
        out[f"first_stage_model.{vae_key(key)}"] = vae_tensor(vae_key(key), tensor)
    text = {
        key.removeprefix("text_model."): tensor
        for key, tensor in components["text_encoder"].state_dict().items()
    }
    if version == "sd2":
        out |= {f"cond_stage_model.model.{key}": tensor for key, tensor in open_clip(text).items()}
    else:
        text["embeddings.position_ids"] = torch.arange(77)[None]
        stem = "cond_stage_model.transformer.text_model"
        out |= {f"{stem}.{key}": tensor for key, tensor in text.items()}
    # Real files also carry the averaged weights and the training schedule.
    out["model_ema.decay"] = torch.tensor(0.9999)
    out["alphas_cumprod"] = torch.linspace(1, 0, 1000)
    return {key: tensor.contiguous() for key, tensor in out.items()}
