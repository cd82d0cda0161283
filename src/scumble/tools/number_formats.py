"""The number format of what a tool writes."""

from dataclasses import replace

import torch

from scumble.errors import UserError
from scumble.formats import AdapterWeights, ModuleWeights
from scumble.tools.reading import DTYPES


def dtype_named(name: str | None) -> torch.dtype | None:
    """The number format that a flag names; None stays None.

    Raises:
        UserError: there is none of that name.
    """
    if name is not None and name not in DTYPES:
        raise UserError(f"unknown number format '{name}'", f"Known: {', '.join(DTYPES)}.")
    return None if name is None else DTYPES[name]


def cast_adapter(weights: AdapterWeights, dtype: torch.dtype | None) -> AdapterWeights:
    """Round an adapter's layers once; learned words stay as they are.

    Args:
        weights: of an adapter.
        dtype: wanted; None changes nothing.

    Raises:
        UserError: a value leaves the range of the number format.
    """
    if dtype is None:
        return weights
    components = {
        component: {
            module: _cast(f"{component}.{module}", entry, dtype)
            for module, entry in modules.items()
        }
        for component, modules in weights.components.items()
    }
    return replace(weights, components=components)


def _cast(name: str, entry: ModuleWeights, dtype: torch.dtype) -> ModuleWeights:
    tensors = {
        key: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for key, tensor in entry.tensors.items()
    }
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise UserError(
            f"'{name}' holds values beyond the range of {str(dtype).removeprefix('torch.')}",
            "Write wider numbers: --dtype fp32 or bf16.",
        )
    return replace(entry, tensors=tensors)
