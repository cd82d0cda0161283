"""One wrapper for every adapted layer, whatever is attached to it."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from scumble.adapters.base import Adapter, LayerSpec

Adaptable = nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm
"""What an adapter may sit on."""


class AdaptedLayer(nn.Module):
    """A frozen layer with any number of named adapters, each at its own strength.

    The wrapped layer is the very object that was in the model: taking the wrapper off puts it
    back untouched.

    Args:
        base: the layer to wrap.
    """

    def __init__(self, base: Adaptable) -> None:
        super().__init__()
        self.base = base
        self.spec = LayerSpec.of(base)
        self.adapters = nn.ModuleList()
        self.names: list[str] = []
        self.strengths: dict[str, float] = {}
        self._original: tuple[Tensor, Tensor | None] | None = None
        self.register_state_dict_post_hook(hide_wrapper)
        self.register_load_state_dict_pre_hook(expect_wrapper)

    @property
    def weight(self) -> Tensor:
        """The wrapped layer's weight, for code that inspects it."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The wrapped layer's bias, for code that inspects it."""
        return self.base.bias

    @property
    def is_merged(self) -> bool:
        """Whether the adapters are written into the weight at present."""
        return self._original is not None

    def add(self, name: str, adapter: Adapter, strength: float = 1.0) -> None:
        """Attach an adapter under a name that is still free."""
        if name in self.names:
            raise ValueError(f"an adapter named '{name}' is already attached")
        self.unmerge()
        self.names.append(name)
        self.adapters.append(adapter.to(self.base.weight.device))
        self.strengths[name] = strength

    def remove(self, name: str) -> None:
        """Take one adapter off again."""
        self.unmerge()
        index = self.names.index(name)
        del self.adapters[index], self.names[index], self.strengths[name]

    def get(self, name: str) -> Adapter:
        """The adapter of that name."""
        return cast(Adapter, self.adapters[self.names.index(name)])

    def active(self) -> list[tuple[Adapter, float]]:
        """The adapters whose strength is not zero, with it, in the order they were added."""
        pairs = zip(self.adapters, (self.strengths[name] for name in self.names), strict=True)
        return [(cast(Adapter, adapter), strength) for adapter, strength in pairs if strength]

    def thin(self) -> list[tuple[Tensor, Tensor]] | None:
        """What is added to a Linear's weight at present, as products of thin matrices.

        Returns:
            fp32 pairs (down (R, I), up (O, R)) with every factor in `up`; None where the output
            cannot be computed that way.
        """
        if self.is_merged:
            return []
        pairs = []
        for adapter, strength in self.active():
            pair = None if adapter.input_dropout else adapter.thin()
            if pair is None:
                return None
            down, up = pair
            pairs.append((down, up if strength == 1 else up * strength))
        return pairs

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output with every adapter's change in it."""
        if self.is_merged:
            return cast(Tensor, self.base(x))
        active = self.active()
        if not all(adapter.has_branch for adapter, _ in active):
            weight, bias = self._with_changes(active)
            bias = None if bias is None else bias.to(x.dtype)
            return self.spec.apply(x, weight.to(x.dtype), bias)
        own = cast(Tensor, self.base(x))
        y = own
        for adapter, strength in active:
            dropout = adapter.input_dropout
            seen = nn.functional.dropout(x, dropout) if dropout else x
            change = adapter.branch(seen, own, self.base)
            y = y + (change if strength == 1 else change * strength)
        return y

    @torch.no_grad()
    def merge(self) -> None:
        """Write the adapters into the weight: summed in fp32, rounded once."""
        if self.is_merged or not self.active():
            return
        weight, bias = self._with_changes(self.active())
        kept = self.base.bias
        original = (
            self.base.weight.detach().clone(),
            None if kept is None else kept.detach().clone(),
        )
        self.base.weight.copy_(weight)
        if kept is not None and bias is not None:
            kept.copy_(bias)
        self._original = original

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the kept original back, bit for bit (subtracting would drift)."""
        if self._original is not None:
            weight, bias = self._original
            self.base.weight.copy_(weight)
            if bias is not None:
                cast(Tensor, self.base.bias).copy_(bias)
            self._original = None

    def _with_changes(self, active: list[tuple[Adapter, float]]) -> tuple[Tensor, Tensor | None]:
        """Weight and bias in fp32, each adapter's change of the frozen ones added to them."""
        frozen = self.base.weight.float()
        weight, bias = frozen, None if self.base.bias is None else self.base.bias.float()
        for adapter, strength in active:
            weight = weight + strength * adapter.delta(frozen)
            change = adapter.bias_delta()
            if change is not None and bias is not None:
                bias = bias + strength * change
        return weight, bias


def hide_wrapper(
    layer: nn.Module, state: dict[str, Any], prefix: str, _metadata: dict[str, Any]
) -> None:
    """Save the wrapped layer under its own names: a merged model is an ordinary model on disk."""
    del layer
    for key in [key for key in state if key.startswith(prefix)]:
        tensor = state.pop(key)
        name = key.removeprefix(prefix)
        if name.startswith("base."):
            state[prefix + name.removeprefix("base.")] = tensor


def expect_wrapper(layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load what `hide_wrapper` saved; adapters keep their own values."""
    for name in ("weight", "bias"):
        if prefix + name in state:
            state[f"{prefix}base.{name}"] = state.pop(prefix + name)
    for name, parameter in layer.named_parameters():
        if not name.startswith("base."):
            state[prefix + name] = parameter
