"""Small adapter files for the tests of the tools, with names of real layers."""

from pathlib import Path

import torch

from scumble.families import FAMILIES
from scumble.formats import AdapterWeights, LearnedToken, ModuleWeights, write_adapter

NAMES = FAMILIES["stable_diffusion"].key_names
TO_K = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
TO_Q = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
NORM = "down_blocks.0.resnets.0.norm1"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


def lora(rank: int = 4, alpha: float = 2.0, inputs: int = 768, outputs: int = 10) -> ModuleWeights:
    torch.manual_seed(rank)
    tensors = {"down": torch.randn(rank, inputs), "up": torch.randn(outputs, rank)}
    return ModuleWeights("lora", tensors, alpha)


def sample(**unet: ModuleWeights) -> AdapterWeights:
    """Two layers of the UNet, one of the text encoder, a word of two vectors."""
    layers = {TO_K: lora(), TO_Q: lora(8, 8.0, 12)} | unet
    torch.manual_seed(0)
    token = LearnedToken({"text_encoder": torch.randn(2, 768)})
    metadata = {"base_model": "some/base", "trigger_phrase": "a photo of <thing>"}
    return AdapterWeights(
        {"unet": layers, "text_encoder": {TEXT: lora(2)}}, metadata, {"<thing>": token}
    )


def saved(weights: AdapterWeights, path: Path, format: str = "peft") -> Path:
    return write_adapter(weights, path, NAMES, format)
