"""Store the weights of a built, frozen denoiser in few bits, layer by layer.

Every Linear and Conv2d is quantised but for the first and last convolution and the embeddings of
timestep and size, through which everything passes and which are 0.3 % of the weights, and for
layers so small that nothing is saved. Norms and biases stay as they are.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from scumble.adapters.layer import AdaptedLayer
from scumble.errors import UserError
from scumble.lean.forwards import LeanForward
from scumble.lean.quantised import QuantisedWeight
from scumble.lean.schemes import SCHEMES

UNTOUCHED = ("conv_in", "conv_out", "time_embedding", "add_embedding")
"""Parts of the denoiser that stay as they are."""

SMALLEST = 4096
"""Numbers in the smallest weight that is quantised."""


@dataclass
class Quantised:
    """What was done to a model.

    Args:
        scheme: how the weights are stored now.
        bytes_before: of all parameters.
        bytes_after: of all parameters.
        layers: module paths of what was quantised.
        left_alone: module path of each Linear and Conv2d that was not -> why.
    """

    scheme: str
    bytes_before: int
    bytes_after: int = 0
    layers: list[str] = field(default_factory=list)
    left_alone: dict[str, str] = field(default_factory=dict)


def quantise(
    model: nn.Module,
    scheme: str,
    *,
    device: torch.device | None = None,
    smallest: int = SMALLEST,
) -> Quantised:
    """Store a frozen model's weights in few bits; there is no way back.

    One layer at a time is replaced, so that no second model is ever in memory. Adapters may be
    attached before or after; lean forwards are put on after.

    Args:
        model: the denoiser, or the same on the meta device.
        scheme: "int8", "fp8" or "nf4".
        device: where each weight is quantised, and stays: a GPU does it in no time, and need not
            hold the plain model. What is not quantised is left to `model.to(device)`.
        smallest: weights of fewer numbers stay as they are.

    Raises:
        UserError: the scheme is not known or lacks its library, or adapters are merged.
        ValueError: lean forwards are on, which could not be taken off again.
    """
    if scheme not in SCHEMES:
        raise UserError(f"there is no precision '{scheme}'", f"Take one of: {', '.join(SCHEMES)}.")
    if scheme == "fp8" and device is not None and device.type == "mps":
        raise UserError("there is no fp8 on Apple's GPUs", "Take --base_precision int8.")
    if any(isinstance(m, AdaptedLayer) and m.is_merged for m in model.modules()):
        raise UserError("adapters are merged into the base", "Take them off, then quantise it.")
    if any(isinstance(vars(m).get("forward"), LeanForward) for m in model.modules()):
        raise ValueError("quantise the model first, then put lean forwards on it")
    record = Quantised(scheme, stored_bytes(model))
    for path, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        reason = _reason_to_leave(path, layer, smallest)
        if reason:
            record.left_alone[path] = reason
            continue
        weight = QuantisedWeight.of(layer.weight.detach().to(device or layer.weight.device), scheme)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.register_state_dict_pre_hook(refuse_saving)
        record.layers.append(path)
    record.bytes_after = stored_bytes(model)
    return record


def stored_bytes(model: nn.Module) -> int:
    """Memory of a model's parameters, as they are stored."""
    return sum(getattr(p, "stored_bytes", p.nbytes) for p in model.parameters())


def refuse_saving(layer: nn.Module, *_: Any) -> None:
    """Save no numbers that are only nearly those of the base.

    Raises:
        UserError: always.
    """
    weight: Any = layer.weight
    raise UserError(
        f"a base whose weights are stored as {weight.scheme} cannot be saved as a model",
        "Save the adapters, and put them on the base as it was before.",
    )


def _reason_to_leave(path: str, layer: nn.Linear | nn.Conv2d, smallest: int) -> str:
    weight = layer.weight
    if isinstance(weight, QuantisedWeight):
        return "quantised already"
    if path.split(".")[0] in UNTOUCHED:
        return "everything passes through it"
    if weight.requires_grad:
        return "learns"
    if weight.numel() < smallest:
        return "small"
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"is of {weight.dtype}"
    return ""
