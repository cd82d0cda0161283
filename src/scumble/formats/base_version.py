"""Which version of its family an adapter was trained on, read off its tensors' widths."""

from torch import Tensor

from scumble.adapters import ADAPTERS
from scumble.formats.key_names import BaseVersion, KeyNames
from scumble.formats.training_facts import prediction_of, training_facts
from scumble.formats.weights import AdapterWeights, ModuleWeights

INPUT_SIDES = ("lora_down.weight", "hada_w1_b", "diff")
"""Tensors of a Linear's adapter whose second edge is the width of the layer's input."""

FACTORS = (("lokr_w1", "lokr_w1_b"), ("lokr_w2", "lokr_w2_b"))
"""Tensors whose second edges multiply to that width: one of each pair is there."""


def base_version(weights: AdapterWeights, key_names: KeyNames) -> BaseVersion | None:
    """The version of the base; None where neither tensors nor metadata show it, or none is so."""
    told = training_facts(weights.metadata).get("text_width")
    width = text_width(weights, key_names) or (told if isinstance(told, int) else 0)
    versions = key_names.versions.get(width, {})
    return versions.get(prediction_of(weights.metadata)) or versions.get("")


def text_width(weights: AdapterWeights, key_names: KeyNames) -> int:
    """How many numbers a piece of text is to the base; 0 where no tensor shows it."""
    for learned in weights.tokens.values():
        return next(iter(learned.vectors.values())).shape[-1]
    for component, ends in key_names.text_layers.items():
        for module, entry in weights.components.get(component, {}).items():
            if module.endswith(tuple(f".{end}" for end in ends)) and (width := _width(entry)):
                return width
    return 0


def _width(entry: ModuleWeights) -> int:
    names = ADAPTERS[entry.type].file_names
    named = {names[parameter]: tensor for parameter, tensor in entry.tensors.items()}
    for name in INPUT_SIDES:
        if name in named:
            return _edge(named[name])
    edges = [_edge(named[name]) for pair in FACTORS for name in pair if name in named]
    return edges[0] * edges[1] if len(edges) == 2 else 0


def _edge(tensor: Tensor) -> int:
    return tensor.shape[1] if tensor.ndim > 1 else 0
