"""Adapters for the built-in base that visibly change what it draws, as files."""

from pathlib import Path

import torch

import scumble
from scumble.formats import AdapterWeights, ModuleWeights

BLOCKS = {"down_blocks.1": 96, "mid_block": 128, "up_blocks.1": 96}
"""Block -> width of its layers; captions are 128 wide."""


def write_example(path: Path, seed: int, **metadata: str) -> Path:
    """Write a LoRA of rank 4; equal seeds give equal changes."""
    torch.manual_seed(seed)
    modules = {}
    for block, width in BLOCKS.items():
        for name in ("to_k", "to_v"):
            tensors = {"down": torch.randn(4, 128) / 12, "up": torch.randn(width, 4) * 0.4}
            layer = f"{block}.attentions.0.transformer_blocks.0.attn2.{name}"
            modules[layer] = ModuleWeights("lora", tensors, 4.0)
    weights = AdapterWeights({"unet": modules}, {"base_model": "scumble-tiny", **metadata})
    return scumble.write_adapter(weights, path)
