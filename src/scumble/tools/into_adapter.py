"""Several changes of one layer into one adapter: exactly where that is possible, else by SVD."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scumble.adapters.low_rank import (
    Factors,
    Spectrum,
    compress,
    product_norm,
    stack,
    truncated_svd,
)
from scumble.errors import UserError
from scumble.formats import ModuleWeights
from scumble.formats.layer_shapes import weight_shape
from scumble.tools.combine import Part, Recipe
from scumble.tools.deltas import (
    adapter_of,
    factors_of,
    full_shape,
    lora_of,
    require_independent,
)
from scumble.tools.report import Kept


class Merged(NamedTuple):
    """One layer of a merged adapter: what acts there now, and how much of the change that is."""

    entry: ModuleWeights
    kept: Kept | None
    """None for whole differences, which have no rank and lose nothing."""


@torch.no_grad()
def merge_layer(
    layer: tuple[str, str], parts: Sequence[Part], recipe: Recipe, rank: int | None
) -> Merged:
    """Make one adapter of all that acts on a layer.

    Products are put side by side, and SVD lowers their rank if that is asked for. Other changes are
    formed and become products of `rank`. Whole differences stay such unless it is given, and those
    of norms and biases always.

    Args:
        layer: its component and module path.
        parts: at least one.
        recipe: how several changes become one.
        rank: of the result, at most; None is the sum of the parts' ranks.

    Raises:
        UserError: a change depends on the base, or the parts do not fit each other, or it takes a
            rank that was not given. The layer is named.
    """
    name = ".".join(layer)
    try:
        for part in parts:
            require_independent(part.entry)
        shape = _common_shape(layer[1], parts)
        products = [product for part in parts if (product := factors_of(part.entry)) is not None]
        are_products = len(products) == len(parts)
        if are_products and recipe.method == "sum":
            pairs = zip((part.strength for part in parts), products, strict=True)
            return _side_by_side(layer, stack(list(pairs)), shape, rank)
        if are_products and rank is None:
            rank = sum(product.rank for product in products)
        return _formed(layer, parts, shape, recipe, rank)
    except UserError as error:
        raise UserError(f"{name}: {error.message}", error.hint) from error


def cut(
    layer: tuple[str, str], spectrum: Spectrum, rank: int, shape: tuple[int, ...], scale: float = 1
) -> Merged:
    """Lay out the best product of a rank, at most.

    Args:
        layer: its component and module path.
        spectrum: of the change.
        rank: wanted; fewer where the change has no more.
        shape: of the layer's weight.
        scale: alpha / rank in the file.
    """
    rank = min(rank, spectrum.rank_for(1))
    entry = lora_of(spectrum.factors(rank), shape, scale=scale)
    return Merged(entry, Kept.of(*layer, spectrum, rank))


def _common_shape(module: str, parts: Sequence[Part]) -> tuple[int, ...]:
    """The layer's weight shape; the kernel may be flattened in all files but one."""
    shapes = [weight_shape(part.entry) for part in parts]
    return max((full_shape(module, shape) for shape in shapes if shape is not None), key=len)


def _side_by_side(
    layer: tuple[str, str], stacked: Factors, shape: tuple[int, ...], rank: int | None
) -> Merged:
    # Beyond the width of the layer, further rows add nothing.
    most = min(stacked.up_OR.shape[0], stacked.down_RI.shape[1])
    if stacked.rank <= (rank or most):
        energy = product_norm(stacked) ** 2
        return Merged(lora_of(stacked, shape), Kept(*layer, stacked.rank, energy, 1.0))
    return cut(layer, compress(stacked), rank or most, shape)


def _formed(
    layer: tuple[str, str],
    parts: Sequence[Part],
    shape: tuple[int, ...],
    recipe: Recipe,
    rank: int | None,
) -> Merged:
    name = ".".join(layer)
    adapters = [adapter_of(part.entry, shape) for part in parts]
    changes = [(part, adapter.bias_delta()) for part, adapter in zip(parts, adapters, strict=True)]
    biases = [(part, change) for part, change in changes if change is not None]
    whole: dict[str, Tensor] = {}
    if biases:
        whole["diff_b"] = recipe.combine(f"{name}.bias", *zip(*biases, strict=True))
    if all(part.entry.tensors.keys() == {"diff_b"} for part in parts):
        return Merged(ModuleWeights(parts[0].entry.type, whole, 1.0), None)
    delta = recipe.combine(f"{name}.weight", parts, [adapter.delta() for adapter in adapters])
    whole["diff"] = delta
    if len(shape) == 1:
        return Merged(ModuleWeights("norm_difference", whole, 1.0), None)
    is_whole = any(not adapter.has_rank for adapter in adapters)
    if biases or (is_whole and rank is None):
        return Merged(ModuleWeights("difference", whole, 1.0), None)
    if rank is None:
        types = ", ".join(sorted({part.entry.type for part in parts}))
        raise UserError(
            f"the sum of adapters of type {types} is no LoRA of a known rank",
            "Say how wide the result may be: --rank 32.",
        )
    return cut(layer, truncated_svd(delta.flatten(1), rank), rank, shape)
