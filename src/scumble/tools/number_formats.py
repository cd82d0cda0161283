"""The number format of what a tool writes."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from scumble.errors import UserError
from scumble.formats import AdapterWeights, LearnedToken
from scumble.tools.table import counted

DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp64": torch.float64,
}
"""Number formats by the names that flags and tables give them."""


def dtype_named(name: str | None) -> torch.dtype | None:
    """The number format that a flag names; None stays None.

    Raises:
        UserError: there is none of that name.
    """
    if name is not None and name not in DTYPES:
        raise UserError(f"unknown number format '{name}'", f"Known: {', '.join(DTYPES)}.")
    return None if name is None else DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Call a number format as flags and tables do."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype)[6:])


def cast_adapter(
    weights: AdapterWeights, dtype: torch.dtype | Mapping[str, torch.dtype] | None
) -> tuple[AdapterWeights, list[str]]:
    """Round every number of an adapter once.

    Args:
        weights: of an adapter.
        dtype: wanted, of all; or by the name of a layer or word, which leaves the others alone.
            None changes nothing.

    Returns:
        The adapter, and what should be said of numbers that became 0.

    Raises:
        UserError: numbers are too large for the format, naming where.
    """
    if dtype is None:
        return weights, []
    if not isinstance(dtype, Mapping):
        dtype = {name: dtype for name, _ in named_tensors(weights)}
    _refuse_overflow(weights, dtype)
    vanished: Counter[torch.dtype] = Counter()
    for name, tensor in named_tensors(weights):
        if name in dtype:
            zeros = (_rounded(tensor, dtype[name]) == 0) & (tensor != 0)
            vanished[dtype[name]] += int(zeros.sum())
    components = {
        component: {
            module: replace(entry, tensors=_cast(entry.tensors, dtype.get(f"{component}.{module}")))
            for module, entry in modules.items()
        }
        for component, modules in weights.components.items()
    }
    tokens = {
        token: LearnedToken(_cast(learned.vectors, dtype.get(token)))
        for token, learned in weights.tokens.items()
    }
    small = [
        f"{counted(count, 'number')} too small for {dtype_name(kind)}: now 0"
        for kind, count in vanished.items()
        if count
    ]
    return replace(weights, components=components, tokens=tokens), small


def named_tensors(weights: AdapterWeights) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of an adapter, under the name of its layer or word."""
    for component, modules in weights.components.items():
        for module, entry in modules.items():
            for tensor in entry.tensors.values():
                yield f"{component}.{module}", tensor
    for token, learned in weights.tokens.items():
        for vectors in learned.vectors.values():
            yield token, vectors


def _refuse_overflow(weights: AdapterWeights, dtypes: Mapping[str, torch.dtype]) -> None:
    too_large = {
        name: count
        for name, tensor in named_tensors(weights)
        if name in dtypes and (count := int(_rounded(tensor, dtypes[name]).isinf().sum()))
    }
    if too_large:
        name, others = next(iter(too_large)), len(too_large) - 1
        dtype = dtypes[name]
        places = f"'{name}'" + (f" and {others} more" if others else "")
        raise UserError(
            f"{counted(sum(too_large.values()), 'number')} too large for {dtype_name(dtype)}, "
            f"in {places}",
            f"Its limit is {torch.finfo(dtype).max:g}. fp32 and bf16 reach further.",
        )


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    if dtype is None:
        return dict(tensors)
    return {name: _rounded(tensor, dtype) for name, tensor in tensors.items()}


def _rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another number format; whole numbers, which mark something, stay."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
