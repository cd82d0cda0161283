"""Count exactly what a step costs, on the meta device, where nothing is computed or stored."""

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Count:
    """What one forward and backward pass needs.

    Args:
        saved_bytes: kept between forward and backward, weights and parameters left out.
        peak_bytes: most that is alive at once besides what was there before.
        flops: multiplications and additions of matrix products, convolutions and attention.
        launches: operations that compute something, about one kernel each.
    """

    saved_bytes: int
    peak_bytes: int
    flops: int
    launches: int


def count_step(loss: Callable[[], Tensor], there: Iterable[Tensor]) -> Count:
    """Run a step forward and backward, and count.

    Args:
        loss: runs forward, on the meta device; gradients go to whatever requires them.
        there: weights, parameters and inputs, which are in memory anyway.
    """
    saved = _SavedBytes(there)
    live = _Live()
    with FlopCounterMode(display=False) as flops, live:
        with saved.hooks():
            value = loss()
        value.backward()
        del value
    return Count(saved.total, live.peak, flops.get_total_flops(), live.launches)


def parameters_of(*modules: nn.Module) -> list[Tensor]:
    """Weights, adapters and buffers of modules."""
    return [t for module in modules for t in (*module.parameters(), *module.buffers())]


class _SavedBytes:
    """Adds up the storages that autograd keeps, each once."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        self.known = {t.untyped_storage()._cdata for t in there}
        self.alive: list[torch.UntypedStorage] = []
        self.total = 0

    def hooks(self) -> AbstractContextManager[Any]:
        return saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            # Held, so that no other storage takes its place and is taken for it.
            self.alive.append(storage)
            self.total += storage.nbytes()
        return tensor


class _Live(TorchDispatchMode):
    """Follows every storage that an operation makes until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.launches = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {id(t.untyped_storage()) for t in tree_leaves(args) if isinstance(t, Tensor)}
        del before
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if not func.is_view:
            self.launches += 1
        for tensor in made:
            self._follow(tensor)
        return result

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.seen:
            return
        size = storage.nbytes()
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._let_go, key, size)

    def _let_go(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size
