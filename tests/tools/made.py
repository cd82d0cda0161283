"""Adapters of every type on the built-in base, and small whole models, for the tools' tests."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ldm_layout
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import scumble
from scumble.adapters import ADAPTERS, LayerSpec
from scumble.formats import AdapterWeights, LearnedToken, ModuleWeights
from scumble.tools.deltas import delta_of

BASE = "scumble-tiny"
TO_K = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
TO_V = TO_K.replace("to_k", "to_v")
CONV = "down_blocks.0.resnets.0.conv1"
MID = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
NORM = "down_blocks.0.resnets.0.norm1"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
PLACES = {"unet": (TO_K, TO_V, CONV, MID), "text_encoder": (TEXT,)}


def live_layer(pipeline: Any, component: str, module: str) -> nn.Module:
    model = getattr(pipeline, component)
    has_level = hasattr(model, "text_model")
    return model.get_submodule(module if has_level else module.removeprefix("text_model."))


def entry(layer: nn.Module, kind: str = "lora", rank: int = 4, seed: int = 0) -> ModuleWeights:
    """Random tensors of a type for a layer, as a file holds them."""
    torch.manual_seed(seed)
    spec = LayerSpec.of(layer)
    like = {"diff": (), "diff_b": ()} if "difference" in kind and spec.has_bias else {}
    adapter = ADAPTERS[kind](spec, rank, rank / 2, like)
    for name, parameter in adapter.named_parameters():
        nn.init.normal_(parameter, mean=float(name == "magnitude"), std=0.2)
    if kind == "ia3":
        adapter.on_input = torch.tensor(0)
    tensors = adapter.tensors()
    return ModuleWeights(kind, tensors, adapter.file_alpha)


def weights(
    pipeline: Any,
    kind: str = "lora",
    *,
    rank: int = 4,
    seed: int = 0,
    places: Mapping[str, Sequence[str]] = PLACES,
    **metadata: str,
) -> AdapterWeights:
    components = {
        component: {
            module: entry(live_layer(pipeline, component, module), kind, rank, seed + number)
            for number, module in enumerate(modules)
        }
        for component, modules in places.items()
    }
    return AdapterWeights(components, {"base_model": BASE} | metadata)


def word(token: str, seed: int = 0) -> dict[str, LearnedToken]:
    torch.manual_seed(seed)
    return {token: LearnedToken({"text_encoder": torch.randn(2, 32)})}


def read(path: Path) -> AdapterWeights:
    return scumble.read_adapter(path)


def deltas(adapter: AdapterWeights, pipeline: Any) -> dict[str, Tensor]:
    """Layer -> what the adapter changes of its weight, in float64."""
    found = {}
    for component, modules in adapter.components.items():
        for module, there in modules.items():
            weight = live_layer(pipeline, component, module).weight.detach()
            delta = delta_of(there, weight.shape, weight.float())
            found[f"{component}.{module}"] = delta.double()
    return found


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def save_narrow(
    folder: Path, components: Mapping[str, nn.Module], version: str, **scheduling: Any
) -> Path:
    """A whole base in diffusers' layout, of small components."""
    from diffusers import DDIMScheduler

    for name, module in components.items():
        module.save_pretrained(folder / name)
    settings = ldm_layout.settings(version, "scheduler") | scheduling
    scheduler = DDIMScheduler.from_config(settings)
    scheduler.save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
    index |= {name: ["a", "b"] for name in (*components, "scheduler")}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def save_checkpoint(path: Path, components: Mapping[str, nn.Module], version: str) -> Path:
    tensors = ldm_layout.checkpoint(version, dict(components))
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors}, path)
    else:
        save_file(tensors, path)
    return path
