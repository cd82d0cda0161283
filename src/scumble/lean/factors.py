"""Read a Linear, adapted or not, as a frozen map and a thin change; stack several of one input."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from scumble.adapters.layer import AdaptedLayer
from scumble.kernels.projection import Frozen, Norm, Thin
from scumble.kernels.weights import Stacked
from scumble.lean.forwards import is_listened_to, may_pass_over


def linear_of(layer: nn.Module) -> nn.Linear | None:
    """The frozen Linear of a layer that may carry adapters; None where it must be called itself."""
    linear = layer.base if isinstance(layer, AdaptedLayer) else layer
    fits = type(linear) is nn.Linear and may_pass_over(linear) and not is_listened_to(layer)
    return cast(nn.Linear, linear) if fits else None


def norm_of(layer: nn.Module) -> Norm:
    """A frozen LayerNorm as its numbers."""
    assert isinstance(layer, nn.LayerNorm)
    return Norm(layer.weight, layer.bias, layer.eps)


def read(layers: Sequence[nn.Module], dtype: torch.dtype) -> tuple[Frozen, Thin] | None:
    """Stack the maps of `layers`, which all take the same input and have outputs of one width.

    Args:
        layers: Linears, adapted or not.
        dtype: of the computation; only the thin matrices are cast.

    Returns:
        None where a layer is no frozen map with a thin change at present.
    """
    linears = [linear for layer in layers if (linear := linear_of(layer)) is not None]
    changes = [layer.thin() if isinstance(layer, AdaptedLayer) else [] for layer in layers]
    thin = [change for change in changes if change is not None]
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    is_mixed = len(biases) not in (0, len(linears))
    if len(linears) < len(layers) or len(thin) < len(layers) or is_mixed:
        return None
    weights: list[Tensor] = [linear.weight for linear in linears]
    weight = weights[0] if len(weights) == 1 else _stacked(weights)
    bias = (biases[0] if len(biases) == 1 else torch.cat(biases)) if biases else None
    pairs = [_as_one(change) for change in thin]
    rank = max((pair[0].shape[0] for pair in pairs if pair is not None), default=0)
    if rank == 0:
        return Frozen(weight, bias), Thin()
    downs, ups = [], []
    for pair, linear in zip(pairs, linears, strict=True):
        down_RI, up_OR = pair or _nothing(linear.weight)
        missing = rank - down_RI.shape[0]
        downs.append(functional.pad(down_RI, (0, 0, 0, missing)) if missing else down_RI)
        ups.append(functional.pad(up_OR, (0, missing)) if missing else up_OR)
    return Frozen(weight, bias), Thin(_stack(downs).to(dtype), _stack(ups).to(dtype))


def stack_weights(linears: Sequence[nn.Linear]) -> None:
    """Let the weights of several Linears lie behind one another, values and objects unchanged."""
    together = torch.cat([linear.weight.detach() for linear in linears])
    parts = together.split([linear.out_features for linear in linears])
    for linear, part in zip(linears, parts, strict=True):
        linear.weight.data = part


def unstack_weights(linears: Sequence[nn.Linear]) -> None:
    """Give each Linear memory of its own again."""
    for linear in linears:
        linear.weight.data = linear.weight.detach().clone()


def _stacked(weights: Sequence[Tensor]) -> Tensor | Stacked:
    """The weights as one: a view where `stack_weights` laid them so, else a copy made late."""
    first = weights[0]
    place = first.storage_offset()
    for weight in weights:
        is_next = (
            type(weight) is nn.Parameter
            and weight.untyped_storage()._cdata == first.untyped_storage()._cdata
            and weight.storage_offset() == place
            and weight.is_contiguous()
        )
        if not is_next:
            return Stacked(tuple(weights))
        place += weight.numel()
    rows = sum(weight.shape[0] for weight in weights)
    return first.detach().as_strided((rows, first.shape[1]), first.stride())


def _as_one(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
    """Several thin changes of one map as one of all their ranks."""
    if len(pairs) <= 1:
        return pairs[0] if pairs else None
    downs, ups = zip(*pairs, strict=True)
    return torch.cat(downs), torch.cat(ups, 1)


def _nothing(weight: Tensor) -> tuple[Tensor, Tensor]:
    outputs, inputs = weight.shape
    device = weight.device
    return torch.zeros(0, inputs, device=device), torch.zeros(outputs, 0, device=device)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))
