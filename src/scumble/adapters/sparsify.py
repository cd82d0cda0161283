"""Merging changes of a weight that disagree: TIES elects a sign per entry, DARE drops at random.

Both work on dense changes of one layer, of any shape and float type, and give float32, or float64
where a change has it, without gradients.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scumble.adapters.low_rank import require_finite
from scumble.errors import UserError


def ties(deltas: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """Merge changes entry by entry, counting only those that pull the way most of the mass does.

    TIES-Merging (arXiv:2306.01708), with weights as PEFT has them. Each change is trimmed; the
    sign of the sum of what is left is elected (a sum of 0 elects +); then

        merged = sum over agreeing changes of weight * delta / number of agreeing changes.

    This is a mean, not a sum: two equal changes of weight 1 give that change once. Weights scale
    what is merged and do not vote, so 0.5 for all halves the result. Where a weight is negative
    (PEFT lets such a change vote for the side it pulls away from) the negated change votes and
    counts; one of weight 0 does neither.

    Args:
        deltas: changes of one layer, all of one shape.
        weights: one per change.
        density: share of each change to keep, largest magnitudes first; above 0 and up to 1. 1
            trims nothing, as wanted after `dare`.

    Returns:
        The merged change, of the shape of each.

    Raises:
        UserError: the density or a weight is out of range, shapes or counts differ, or a value is
            NaN or infinite.
    """
    _check_parts(deltas, weights)
    pulls = [
        (abs(weight), trim(delta if weight > 0 else -delta, density))
        for weight, delta in zip(weights, deltas, strict=True)
        if weight
    ]
    if not pulls:
        return torch.zeros_like(_widened(deltas[0]))
    mass = _total([pull for _, pull in pulls])
    elected = torch.where(mass >= 0, 1.0, -1.0).to(mass.dtype)
    agreeing = [pull.sign() == elected for _, pull in pulls]
    merged = _total([w * pull * agrees for (w, pull), agrees in zip(pulls, agreeing, strict=True)])
    return merged / _total([agrees.to(mass.dtype) for agrees in agreeing]).clamp(min=1)


def trim(delta: Tensor, density: float) -> Tensor:
    """Keep the entries of largest magnitude and zero the rest.

    Args:
        delta: a change of a weight.
        density: share of the entries to keep, above 0 and up to 1; rounded down to whole entries,
            at least one. Of equal magnitudes the first in memory stay.

    Raises:
        UserError: the density is out of range, or a value is NaN or infinite.
    """
    check_density(density)
    values = _widened(delta).flatten()
    keep = max(1, int(density * values.numel()))
    magnitudes = values.abs()
    smallest_kept = magnitudes.kthvalue(values.numel() - keep + 1).values
    above = magnitudes > smallest_kept
    level = magnitudes == smallest_kept
    # A sort would leave open which of several equal magnitudes stay.
    first_level = level & (level.cumsum(0, dtype=torch.int32) <= keep - above.sum())
    return torch.where(above | first_level, values, 0).reshape(delta.shape)


def dare(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Drop entries at random and scale up the rest, so that merged changes collide less.

    DARE (arXiv:2311.03099): what stays is divided by the density, which keeps the mean change.

    Args:
        delta: a change of a weight.
        density: chance of an entry to stay, above 0 and up to 1; 1 changes nothing.
        generator: source of the draws, on the CPU; equal draws on every device and float type.

    Raises:
        UserError: the density is out of range, or a value is NaN or infinite.
    """
    check_density(density)
    values = _widened(delta)
    drawn = torch.rand(delta.shape, generator=generator, dtype=torch.float32)
    return torch.where((drawn < density).to(values.device), values / density, 0)


def check_density(density: float) -> None:
    """Refuse a share that none can keep.

    Raises:
        UserError: it is not above 0 and up to 1.
    """
    if not 0 < density <= 1:
        raise UserError(
            f"the density is {density:g}", "Give the share of entries to keep: above 0, up to 1."
        )


def _check_parts(deltas: Sequence[Tensor], weights: Sequence[float]) -> None:
    if not deltas or len(deltas) != len(weights):
        raise UserError(f"{len(deltas)} changes to merge, but {len(weights)} weights")
    shapes = {tuple(delta.shape) for delta in deltas}
    if len(shapes) > 1:
        raise UserError(f"changes of one shape can be merged, not of {sorted(shapes)}")
    if not all(math.isfinite(weight) for weight in weights):
        raise UserError(f"the weights are {list(weights)}", "Give plain numbers.")


def _total(tensors: Sequence[Tensor]) -> Tensor:
    """The sum, one tensor at a time: a stack of large changes would double the memory."""
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def _widened(delta: Tensor) -> Tensor:
    """The change in float32 or float64, known to be finite."""
    wide = delta.detach().to(torch.float64 if delta.dtype == torch.float64 else torch.float32)
    require_finite(wide)
    return wide
