"""Count exactly what a training step needs: arithmetic, launches, kept activations, memory.

    python benchmarks/count.py --bases sd15 --resolutions 512 --batches 1 4

Nothing is computed: the step runs on the meta device, so the numbers are those of any machine. Each
base is the UNet of that configuration with rank-4 LoRA on its attention, and nothing is autocast.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from scumble.adapters import ADAPTERS
from scumble.adapters.inject import Target, inject
from scumble.lean.count import count_step, parameters_of
from scumble.lean.install import put_on
from scumble.lean.levels import LEVELS

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOKENS = 77

SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
"""What Stable Diffusion XL's UNet sets; the rest is what the class has anyway."""

BASES = {"sd15": "sd1", "sd21": "sd2", "sdxl": None}
"""Base -> its folder among the package's configurations."""

SETTINGS = {
    "peft": "diffusers + PEFT",
    "plain": "diffusers + our LoRA",
    "checkpointing": "the same, gradient checkpointing",
    **{name: f"--memory {name}" for name in LEVELS},
}
"""Setting -> its name in the table."""


@dataclass(frozen=True)
class Row:
    """What one training step needs; the optimizer's own work is left out.

    Args:
        base: a key of `BASES`.
        resolution: edge in pixels.
        batch: pictures.
        setting: a key of `SETTINGS`.
        flops: of the matrix products, convolutions and attention, forward and backward.
        launches: operations that compute something, about one kernel each.
        saved_bytes: kept from the forward for the backward pass.
        peak_bytes: most that is alive at once besides weights, adapters and inputs.
        resident_bytes: weights, adapters and AdamW's two moments.
    """

    base: str
    resolution: int
    batch: int
    setting: str
    flops: int
    launches: int
    saved_bytes: int
    peak_bytes: int
    resident_bytes: int

    @property
    def foretold_bytes(self) -> int:
        """The highest memory of the whole run, without the CUDA context and torch's workspaces."""
        return self.resident_bytes + self.peak_bytes


def unet_config(base: str) -> dict[str, Any]:
    """The configuration of a base's UNet."""
    folder = BASES[base]
    if folder is None:
        return dict(SDXL)
    path = files("scumble") / "assets" / "single_file" / folder / "unet.json"
    config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return config


def build(base: str, setting: str, dtype: torch.dtype, rank: int = 4) -> Any:
    """A UNet on the meta device with adapters, set up as `setting` says."""
    # It warns of a cast that changes nothing here.
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config(base)).to(dtype)
    unet.requires_grad_(False)
    if setting == "peft":
        _add_peft(unet, rank)
    else:
        targets = [Target(name, rank, float(rank)) for name in TARGETS]
        inject(unet, "default", ADAPTERS["lora"], targets, init="gaussian", seed=0)
    if setting in LEVELS:
        put_on(unet.eval(), LEVELS[setting])
    if setting == "checkpointing":
        unet.train()
        unet.enable_gradient_checkpointing()
    return unet


def _add_peft(unet: Any, rank: int) -> None:
    from peft import LoraConfig

    with torch.device("meta"):
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS)))
    for parameter in unet.parameters():
        if parameter.requires_grad:
            # As the script does it with fp16; with bf16 it trains in bf16, which loses most steps.
            parameter.data = parameter.data.float()


def inputs_of(unet: Any, resolution: int, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """What a UNet is called with."""
    config = unet.config
    options: dict[str, Any] = {"device": "meta", "dtype": dtype}
    inputs = {
        "sample": torch.empty(batch, 4, resolution // 8, resolution // 8, **options),
        "timestep": torch.empty(batch, device="meta", dtype=torch.long),
        "encoder_hidden_states": torch.empty(batch, TOKENS, config.cross_attention_dim, **options),
        "return_dict": False,
    }
    if config.addition_embed_type == "text_time":
        times = 6
        texts = config.projection_class_embeddings_input_dim
        texts -= times * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.empty(batch, texts, **options),
            "time_ids": torch.empty(batch, times, **options),
        }
    return inputs


def count(base: str, resolution: int, batch: int, setting: str, precision: str, rank: int) -> Row:
    """Count one training step."""
    dtype = DTYPES[precision]
    unet = build(base, setting, dtype, rank)
    inputs = inputs_of(unet, resolution, batch, dtype)
    target = torch.empty(inputs["sample"].shape, device="meta")

    def loss() -> Tensor:
        return functional.mse_loss(unet(**inputs)[0].float(), target)

    there = [*parameters_of(unet), target, *_tensors(inputs)]
    result = count_step(loss, there)
    trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    return Row(
        base=base,
        resolution=resolution,
        batch=batch,
        setting=setting,
        flops=result.flops,
        launches=result.launches,
        saved_bytes=result.saved_bytes,
        peak_bytes=result.peak_bytes,
        resident_bytes=_storage_bytes(parameters_of(unet)) + 2 * 4 * trained,
    )


def forward_flops(base: str, resolution: int, batch: int) -> dict[str, int]:
    """The arithmetic of a forward pass without adapters, by kind."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config(base))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(**inputs_of(unet, resolution, batch, torch.float32))
    # On the meta device PyTorch computes attention as two batched products.
    kinds = {"convolution": "aten.convolution", "attention": "aten.bmm"}
    found = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    parts = {kind: found.pop(name) for kind, name in kinds.items()}
    return parts | {"linear": sum(found.values())}


def _tensors(inputs: dict[str, Any]) -> list[Tensor]:
    values = [*inputs.values(), *inputs.get("added_cond_kwargs", {}).values()]
    return [value for value in values if isinstance(value, Tensor)]


def _storage_bytes(tensors: Sequence[Tensor]) -> int:
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def table(rows: Sequence[Row]) -> str:
    """The rows of one base, resolution and batch for people."""
    names = ("GFLOP", "launches", "saved MB", "peak MB", "in all MB")
    lines = ["| setting | " + " | ".join(names) + " |", "|---" + "|---:" * len(names) + "|"]
    for row in rows:
        cells = [
            f"{row.flops / 1e9:,.1f}",
            f"{row.launches:,}",
            *(
                f"{size / 1e6:,.1f}"
                for size in (row.saved_bytes, row.peak_bytes, row.foretold_bytes)
            ),
        ]
        lines.append(f"| {SETTINGS[row.setting]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bases", nargs="+", choices=BASES, default=["sd15"])
    parser.add_argument("--resolutions", nargs="+", type=int, default=[512])
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--precision", choices=DTYPES, default="bf16", help="of the frozen weights")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args(words)
    if any(resolution % 64 for resolution in options.resolutions):
        parser.error("--resolutions must be multiples of 64")
    return options


def main() -> None:
    """Count, print tables and write JSON when asked."""
    options = parse_arguments()
    results = []
    for base, resolution, batch in product(options.bases, options.resolutions, options.batches):
        kinds = forward_flops(base, resolution, batch)
        parts = ", ".join(f"{kind} {flops / 1e9:,.1f}" for kind, flops in kinds.items())
        print(f"\n{base}, {resolution} px, batch {batch}, {options.precision}, rank {options.rank}")
        print(f"forward {sum(kinds.values()) / 1e9:,.1f} GFLOP: {parts}\n")
        rows = [
            count(base, resolution, batch, setting, options.precision, options.rank)
            for setting in options.settings
        ]
        print(table(rows), flush=True)
        results += [{**asdict(row), "foretold_bytes": row.foretold_bytes} for row in rows]
    print(
        "\nsaved: kept from forward to backward. peak: most at once besides what is always there."
        "\nin all: with weights, adapters and AdamW's moments, without the CUDA context."
    )
    if options.json:
        content = {"precision": options.precision, "rank": options.rank, "rows": results}
        options.json.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
