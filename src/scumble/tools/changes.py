"""How big the change of a layer is, and how far two are apart, as far as no base is needed.

A convolution's kernel is flattened: two files of one change may have it in different forms.
"""

import math

import torch
from torch import Tensor

from scumble.adapters import ADAPTERS
from scumble.adapters.low_rank import product_norm
from scumble.errors import UserError
from scumble.formats.layer_shapes import weight_shape
from scumble.formats.weights import ModuleWeights
from scumble.tools.deltas import adapter_of, factors_of


def norm_of(entry: ModuleWeights) -> float | None:
    """The Frobenius norm of a change at strength 1; of two thin matrices without their product.

    Returns:
        The norm; None where only the base's weight would tell.

    Raises:
        UserError: the tensors do not go together.
    """
    factors = factors_of(entry)
    if factors is not None:
        return product_norm(factors)
    parts = change_of(entry)
    return None if parts is None else _length(*parts)


def change_of(entry: ModuleWeights) -> tuple[Tensor, Tensor | None] | None:
    """The change at strength 1: of the weight as a matrix in fp32, and of the bias, if any.

    Returns:
        Both; None where only the base's weight would tell.

    Raises:
        UserError: the tensors do not go together.
    """
    shape = weight_shape(entry)
    if ADAPTERS[entry.type].needs_weight or shape is None:
        return None
    adapter = adapter_of(entry, shape)
    bias = adapter.bias_delta()
    return adapter.delta().detach().reshape(shape[0], -1), None if bias is None else bias.detach()


def distance(first: ModuleWeights, second: ModuleWeights) -> float | None:
    """How far apart two changes of one layer are: ||A - B|| / ||A||, in Frobenius norms.

    Where only the base's weight would tell the changes, their tensors are compared instead.

    Returns:
        0 where all numbers agree; infinity where the first changes nothing, or the layers are of
        different shapes; None where neither changes nor tensors can be compared.

    Raises:
        UserError: the tensors of one do not go together.
    """
    if are_alike(first, second) and all(map(torch.equal, *_numbers(first, second))):
        return 0.0
    ours, theirs = change_of(first), change_of(second)
    if ours is None or theirs is None:
        if not are_alike(first, second):
            return None
        ours, theirs = ((torch.cat(numbers), None) for numbers in _numbers(first, second))
    if ours[0].shape != theirs[0].shape:
        return math.inf
    apart = _length(ours[0] - theirs[0], _difference(ours[1], theirs[1]))
    size = _length(*ours)
    return 0.0 if apart == 0 else apart / size if size else math.inf


def are_alike(first: ModuleWeights, second: ModuleWeights) -> bool:
    """Whether two adapters are equal but for the numbers in their tensors, and those in dtype."""
    return (
        first.type == second.type
        and first.alpha * second.rank == second.alpha * first.rank
        and first.tensors.keys() == second.tensors.keys()
        and all(t.numel() == second.tensors[name].numel() for name, t in first.tensors.items())
    )


def _numbers(*entries: ModuleWeights) -> list[list[Tensor]]:
    """The numbers of each adapter's tensors, in the order of the first; shapes do not matter.

    A 1x1 convolution and a Linear hold the same matrix.
    """
    return [[entry.tensors[n].double().flatten() for n in entries[0].tensors] for entry in entries]


def _difference(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    if first.shape != second.shape:
        raise UserError("its biases are of different shapes")
    return first - second


def _length(*parts: Tensor | None) -> float:
    return math.hypot(*(float(part.double().norm()) for part in parts if part is not None))
