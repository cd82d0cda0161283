"""What happens to the tensors of a base on their way into a new one: changed, rounded once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scumble.errors import UserError
from scumble.formats.streaming import Entry
from scumble.tools.combine import Part, Recipe
from scumble.tools.deltas import adapter_of

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Edit:
    """Adds what adapters change to a base's tensors.

    Args:
        layers: (component, module path) -> the parts that act there.
        shapes: (component, module path) -> shape of the layer's weight.
        recipe: how parts become one change.
        dtype: of what is written; None keeps each tensor's own.
    """

    layers: Mapping[tuple[str, str], Sequence[Part]]
    shapes: Mapping[tuple[str, str], tuple[int, ...]]
    recipe: Recipe
    dtype: torch.dtype | None = None

    def kind(self, entry: Entry) -> Entry:
        """What a tensor will be like."""
        return entry if entry.dtype not in FLOATS else Entry(self.dtype or entry.dtype, entry.shape)

    @torch.no_grad()
    def __call__(self, component: str, name: str, tensor: Tensor) -> Tensor:
        """Change one tensor as diffusers has it: summed in fp32, rounded once.

        Raises:
            UserError: the result does not fit the number format, or the base was damaged.
        """
        wide = self._changed(component, name, tensor)
        result = wide.to(self.kind(Entry(tensor.dtype, tuple(tensor.shape))).dtype)
        if wide is not tensor or result.dtype != tensor.dtype:
            _require_finite(f"{component}.{name}", tensor, result)
        return result

    def _changed(self, component: str, name: str, tensor: Tensor) -> Tensor:
        module, _, leaf = name.rpartition(".")
        parts = self.layers.get((component, module), ())
        if not parts or leaf not in ("weight", "bias"):
            return tensor
        frozen = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        changing, deltas = [], []
        for part in parts:
            adapter = adapter_of(part.entry, self.shapes[component, module])
            delta = adapter.delta(frozen) if leaf == "weight" else adapter.bias_delta()
            if delta is not None:
                changing.append(part)
                deltas.append(delta)
        if not deltas:
            return tensor
        try:
            return frozen + self.recipe.combine(f"{component}.{name}", changing, deltas)
        except UserError as error:
            raise UserError(f"{component}.{name}: {error.message}", error.hint) from error


def _require_finite(name: str, before: Tensor, after: Tensor) -> None:
    if bool(after.isfinite().all()):
        return
    if not bool(before.isfinite().all()):
        raise UserError(f"the base's '{name}' holds NaN or infinite values", "Fetch it again.")
    raise UserError(
        f"'{name}' would hold values beyond the range of {str(after.dtype).removeprefix('torch.')}",
        "Write wider numbers (--dtype fp32 or bf16), or merge with less strength.",
    )
