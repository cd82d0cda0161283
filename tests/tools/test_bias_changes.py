"""Adapters that change biases alone: merged, drawn with, measured."""

from pathlib import Path
from typing import Any

import made
import pytest
import torch

import scumble
from scumble.formats import AdapterWeights, ModuleWeights


def unet_output(pipeline: Any) -> torch.Tensor:
    torch.manual_seed(1)
    size = pipeline.unet.config.sample_size
    text = torch.randn(2, 77, pipeline.unet.config.cross_attention_dim)
    with torch.no_grad():
        return pipeline.unet(torch.randn(2, 4, size, size), torch.tensor([10, 500]), text).sample


@pytest.mark.parametrize("others", [("bias",), ("lora",), ("whole", "bias"), ()])
def test_changes_of_biases_alone_are_added_up(
    others: tuple[str, ...], tiny_pipeline: Any, tmp_path: Path
) -> None:
    out = tmp_path / "merged.safetensors"
    places = {"unet": (made.CONV,)}
    biases = torch.randn(made.live_layer(tiny_pipeline, "unet", made.CONV).out_channels)

    def source(kind: str, number: int) -> Any:
        if kind != "bias":
            kind = {"lora": "lora", "whole": "difference"}[kind]
            return made.weights(tiny_pipeline, kind, places=places, seed=number)
        entry = ModuleWeights("difference", {"diff_b": biases * (1 + number)}, 1.0)
        return AdapterWeights({"unet": {made.CONV: entry}}, {"base_model": made.BASE})

    sources = [(source(kind, n), 0.5 + n) for n, kind in enumerate(("bias", *others))]
    merged = made.read(scumble.merge_files(sources, out).path)
    entry = merged.components["unet"][made.CONV]
    assert entry.type == "difference"
    assert ("diff" in entry.tensors) == (not {"lora", "whole"}.isdisjoint(others))
    plain = unet_output(tiny_pipeline)
    for number, (adapter, strength) in enumerate(sources):
        scumble.load_adapter(tiny_pipeline, adapter, strength=strength, name=f"part {number}")
    together = unet_output(tiny_pipeline)
    scumble.unload_adapters(tiny_pipeline)
    scumble.load_adapter(tiny_pipeline, merged)
    apart = (unet_output(tiny_pipeline) - together).abs().max()
    assert apart < 1e-5 < 1e-3 < (together - plain).abs().max()
    scumble.unload_adapters(tiny_pipeline)
    (layer,) = scumble.inspect_adapter(out, norms=True).modules
    assert layer.norm is not None
    assert layer.norm > 0
