"""Which layer an adapter's tensors are for, by their shapes alone, and whether they go on one.

Shape suffixes: O output channels, I input channels (times the kernel), R rank.
"""

import math

import torch

from scumble.adapters import ADAPTERS, Adapter, LayerSpec
from scumble.errors import UserError
from scumble.formats.weights import ModuleWeights

MAX_NUMBERS = 2**26
"""Limit of a layer's weight, a third more than a base's largest: the embeddings of its words.

Thin factors of a small file may multiply to more than any memory.
"""

WHOLE = ("diff", "w_norm", "diff_b", "b_norm")
"""Differences of weights, then of biases."""

CORES = {"lora_mid.weight", "hada_t1", "hada_t2", "lokr_t1", "lokr_t2"}
"""Kernels apart from their factors (Tucker form), put together with one of them first."""


def weight_shape(entry: ModuleWeights) -> tuple[int, ...] | None:
    """The shape of the layer's weight, as far as the adapter's tensors tell it.

    Returns:
        The shape; a kernel is flattened into the second dimension where the file has it so. (O,)
        where the bias alone changes. None for types that scale the frozen weight and do not tell.

    Raises:
        UserError: the tensors are of shapes that do not go together.
    """
    try:
        return _weight_shape(_shapes(entry))
    except (IndexError, KeyError) as error:
        raise _misfit(entry) from error


def check_shapes(entry: ModuleWeights) -> None:
    """Refuse tensors that go on no layer at all.

    Raises:
        UserError: they are of shapes that do not go together, or of a layer too large to be.
    """
    shape = weight_shape(entry)
    if shape is None:
        return
    if len(shape) not in (1, 2, 4):
        raise _misfit(entry)
    if math.prod(shape) > MAX_NUMBERS:
        size = " x ".join(map(str, shape))
        raise UserError(f"its tensors are for a layer of {size}, and no base has one so large")
    shapes = _shapes(entry)
    between = entry.rank * max(shape) * math.prod(shape[2:])
    if CORES & shapes.keys() and between > MAX_NUMBERS:
        raise UserError(f"its rank is {entry.rank} for a kernel apart, more than any adapter has")
    # Lengths may run along inputs whose kernel is flattened here: only a real layer tells.
    kind: type[Adapter] = getattr(ADAPTERS[entry.type], "inner", ADAPTERS[entry.type])
    tensors = {name: t for name, t in entry.tensors.items() if name in kind.file_names}
    plain = ModuleWeights(entry.type, tensors, entry.alpha)
    try:
        _build(kind, LayerSpec(shape), plain)
    except UserError as error:
        raise _misfit(entry) from error


def require_fit(entry: ModuleWeights, layer: LayerSpec) -> None:
    """Refuse tensors that do not go on a layer, before any memory is taken for them.

    Raises:
        UserError: naming the tensor.
    """
    _build(ADAPTERS[entry.type], layer, entry)


def _build(kind: type[Adapter], layer: LayerSpec, entry: ModuleWeights) -> None:
    try:
        with torch.device("meta"):
            kind.from_tensors(layer, entry.tensors, entry.alpha)
    except (ValueError, IndexError, RuntimeError) as error:
        raise _misfit(entry) from error


def _misfit(entry: ModuleWeights) -> UserError:
    listed = ", ".join(f"{name} {shape}" for name, shape in _shapes(entry).items())
    return UserError(f"its tensors do not go together: {listed}")


def _shapes(entry: ModuleWeights) -> dict[str, tuple[int, ...]]:
    names = ADAPTERS[entry.type].file_names
    return {names[name]: tuple(tensor.shape) for name, tensor in entry.tensors.items()}


def _weight_shape(shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    if "lora_up.weight" in shapes:
        down = shapes["lora_down.weight"]
        kernel = shapes.get("lora_mid.weight", down)[2:]
        return (shapes["lora_up.weight"][0], down[1], *kernel)
    if "hada_w1_a" in shapes:
        return _product(shapes, "hada_w1_a", "hada_w1_b", "hada_t1")
    if "lokr_w1" in shapes or "lokr_w1_a" in shapes:
        small = shapes.get("lokr_w1") or _product(shapes, "lokr_w1_a", "lokr_w1_b", "lokr_t1")
        large = shapes.get("lokr_w2") or _product(shapes, "lokr_w2_a", "lokr_w2_b", "lokr_t2")
        return (small[0] * large[0], small[1] * large[1], *large[2:])
    return next((shapes[name] for name in WHOLE if name in shapes), None)


def _product(
    shapes: dict[str, tuple[int, ...]], left: str, right: str, core: str
) -> tuple[int, ...]:
    """Of two factors; where a core is between them (Tucker form), the left one lies turned."""
    if core in shapes:
        return (shapes[left][1], shapes[right][1], *shapes[core][2:])
    return (shapes[left][0], shapes[right][1])
