"""A short mark of a base's weights, by which an adapter knows the base that it was trained on."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scumble.errors import UserError
from scumble.families.locate import BaseModel
from scumble.families.original_names import from_original
from scumble.formats.streaming import open_streamed

FINGERPRINT = "base_fingerprint"
"""Metadata key under which adapter files keep the mark of the base they were trained on."""

MIDDLE = "mid_block.attentions.0.transformer_blocks.0"
MARKS = (
    *("conv_in.weight", "conv_out.weight"),
    *(f"{MIDDLE}.attn1.to_q.weight", f"{MIDDLE}.attn2.to_v.weight"),
)
"""Tensors of the denoiser that are small. No two trainings leave the first ones alike; the others
are among what adapters change, so that a base that one was merged into is told apart."""


def fingerprint(base: BaseModel, component: str) -> str | None:
    """The mark of a base that is on this machine.

    The same weights in fp32 and fp16, in one file or in a folder, have the same mark.

    Args:
        base: that was found.
        component: name of its denoiser.

    Returns:
        16 hexadecimal digits; None where the weights are not at hand, or were rounded to bf16.
    """
    paths = base.weight_files(component)
    if not paths:
        return None
    try:
        with open_streamed(paths) as weights:
            names = {key: _name(key, component, base) for key in weights.entries}
            return _mark({n: weights.tensor(key) for key, n in names.items() if n in MARKS})
    except UserError:
        return None


def _name(key: str, component: str, base: BaseModel) -> str:
    """What a tensor of the base's files is called in its denoiser; empty where it is not of it."""
    if not base.is_checkpoint:
        return key
    place = from_original(key)
    return place.keys[0] if place is not None and place.component == component else ""


def live_fingerprint(denoiser: nn.Module) -> str | None:
    """The mark of a loaded denoiser; None where its weights were rounded otherwise than to fp16."""
    state = {name: _tensor(denoiser, name) for name in MARKS}
    return _mark({name: tensor for name, tensor in state.items() if tensor is not None})


def _tensor(model: nn.Module, name: str) -> Tensor | None:
    path, _, attribute = name.rpartition(".")
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        return None
    return None if getattr(layer, "is_merged", False) else getattr(layer, attribute, None)


def _mark(tensors: Mapping[str, Tensor]) -> str | None:
    digest = hashlib.sha256()
    for name in MARKS:
        tensor = tensors.get(name)
        if type(tensor) not in (Tensor, nn.Parameter) or tensor is None:
            return None
        if tensor.dtype not in (torch.float32, torch.float16):
            return None
        halves = tensor.detach().to("cpu", torch.float16).contiguous()
        digest.update(halves.numpy().tobytes())
    return digest.hexdigest()[:16]
