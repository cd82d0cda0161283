"""What an adapter changes of one layer, away from any model: the numbers that the tools work with.

Shape suffixes: O output channels, I input channels (times the kernel), R rank.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from scumble.adapters import ADAPTERS, Adapter, LayerSpec, LoRA
from scumble.adapters.low_rank import Factors
from scumble.errors import UserError
from scumble.formats import ModuleWeights
from scumble.formats.layer_shapes import weight_shape

KERNELS = {"conv1": 3, "conv2": 3, "conv_in": 3, "conv_out": 3, "conv": 3}
"""Names of convolutions whose kernel is wider than 1, in every UNet of diffusers -> its edge."""


def adapter_of(
    entry: ModuleWeights, weight_shape: Sequence[int], *, has_bias: bool = True
) -> Adapter:
    """Build the adapter that a file holds for a layer, without the layer.

    Args:
        entry: from the file.
        weight_shape: of the layer's weight; a kernel may be flattened into the second dimension.
        has_bias: whether the layer has one.

    Raises:
        UserError: the tensors do not fit such a layer.
    """
    layer = LayerSpec(tuple(weight_shape), has_bias=has_bias)
    return ADAPTERS[entry.type].from_tensors(layer, entry.tensors, entry.alpha)


@torch.no_grad()
def delta_of(
    entry: ModuleWeights, weight_shape: Sequence[int], weight: Tensor | None = None
) -> Tensor:
    """Compute the change of a layer's weight at strength 1, scale included.

    Args:
        entry: from the file.
        weight_shape: of the layer's weight; a kernel may be flattened into the second dimension.
        weight: the frozen weight in fp32; types that need none leave it alone.

    Returns:
        The change in fp32, of the weight's shape.

    Raises:
        UserError: the tensors do not fit such a layer.
    """
    return adapter_of(entry, weight_shape).delta(weight).detach()


@torch.no_grad()
def factors_of(entry: ModuleWeights) -> Factors | None:
    """The change as a product of two thin matrices, or None where the type is no such product."""
    kind = ADAPTERS[entry.type]
    if not issubclass(kind, LoRA) or kind.needs_weight:
        return None
    shape = weight_shape(entry)
    assert shape is not None
    adapter = adapter_of(entry, shape)
    assert isinstance(adapter, LoRA)
    down, up_OR = adapter.factors()
    return Factors(down.flatten(1), up_OR)


def require_independent(entry: ModuleWeights) -> None:
    """Refuse an adapter whose change cannot be told without the base's weights.

    Raises:
        UserError: it is of such a type.
    """
    if ADAPTERS[entry.type].needs_weight:
        raise UserError(
            f"the change of an adapter of type {entry.type} depends on the base's own weights",
            "Merge it into its base (scumble merge --base BASE); from that, scumble extract makes "
            "a LoRA.",
        )


def lora_of(factors: Factors, weight_shape: Sequence[int], *, scale: float = 1.0) -> ModuleWeights:
    """Lay a product out as files hold it.

    Args:
        factors: of the change, everything inside.
        weight_shape: of the layer's weight.
        scale: alpha / rank that the file shall have; not 0.
    """
    ones = (1,) * len(weight_shape[2:])
    down = factors.down_RI.reshape(factors.rank, *weight_shape[1:])
    up = (factors.up_OR / scale).reshape(weight_shape[0], factors.rank, *ones)
    tensors = {"down": down.contiguous(), "up": up.contiguous()}
    return ModuleWeights("lora", tensors, scale * factors.rank)


def full_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give a flattened kernel its edges back, where the layer's name tells them.

    Args:
        path: of the layer.
        shape: as `weight_shape` gives it.
    """
    edge = KERNELS.get(path.rpartition(".")[2], 1)
    if len(shape) != 2 or edge == 1 or shape[1] % edge**2:
        return shape
    return (shape[0], shape[1] // edge**2, edge, edge)
