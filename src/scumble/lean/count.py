"""Count exactly what a step costs, on the meta device, where nothing is computed or stored."""

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

aten: Any = torch.ops.aten


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


def on_meta(module: nn.Module) -> nn.Module:
    """A copy of a built model that has shapes and no numbers, adapters and all."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        twin = tensor.detach().to("meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if is_parameter else twin
    return copy.deepcopy(module, memo)


def count_step(loss: Callable[[], Tensor], there: Iterable[Tensor]) -> Count:
    """Run a step forward and backward, and count.

    Args:
        loss: runs forward, on the meta device; gradients go to whatever requires them.
        there: weights, parameters and inputs, which are in memory anyway.
    """
    known = {storage for tensor in there for storage in _storages(tensor)}
    saved = _SavedBytes(known)
    live = _Live(known)
    flops = FlopCounterMode(display=False, custom_mapping=_ATTENTION_FLOPS)
    with flops, live, _fused_attention():
        with saved.hooks():
            value = loss()
        value.backward()
        del value
    return Count(saved.total, live.peak, flops.get_total_flops(), live.launches)


def parameters_of(*modules: nn.Module) -> list[Tensor]:
    """Weights, adapters and buffers of modules."""
    return [t for module in modules for t in (*module.parameters(), *module.buffers())]


def _forward_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


def _backward_flops(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, q, k, v))


_ATTENTION_FLOPS = {
    aten._scaled_dot_product_flash_attention_for_cpu: _forward_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward_flops,
}


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Count attention as the kernels that are used in earnest.

    Where nothing is computed PyTorch chooses the form that keeps every weight of the softmax.
    A function of PyTorch is exchanged for a while: its own modes do not reach the way back, where
    gradient checkpointing computes once more.
    """
    usual = functional.scaled_dot_product_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> Tensor:
        if q.device.type != "meta":
            return usual(q, k, v, *rest, **options)
        mask = rest[0] if rest else options.get("attn_mask")
        kernel = aten._scaled_dot_product_flash_attention_for_cpu
        result: Tensor = kernel(q, k, v, attn_mask=mask)[0]
        return result

    functional.scaled_dot_product_attention = attend  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = usual


def _storages(tensor: Tensor) -> list[int]:
    """What identifies the memory behind a tensor: of its parts, where it is made of several."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return [storage for name in names for storage in _storages(getattr(tensor, name))]
    return [tensor.untyped_storage()._cdata]


class _SavedBytes:
    """Adds up the storages that autograd keeps, each once."""

    def __init__(self, known: set[int]) -> None:
        self.known = set(known)
        self.alive: list[torch.UntypedStorage] = []
        self.total = 0

    def hooks(self) -> AbstractContextManager[Any]:
        return saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        if hasattr(tensor, "__tensor_flatten__"):
            return tensor
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            # Held, so that no other storage takes its place and is taken for it.
            self.alive.append(storage)
            self.total += storage.nbytes()
        return tensor


class _Live(TorchDispatchMode):
    """Follows every storage that an operation makes until it is let go."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.now = self.peak = self.launches = 0
        self.seen = set(known)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.launches += 1
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not hasattr(tensor, "__tensor_flatten__"):
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
