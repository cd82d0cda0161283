"""A lean forward on one instance of a module, and which modules it may pass over."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from scumble.adapters.layer import AdaptedLayer

Forward = Callable[..., Any]

AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


class LeanForward:
    """Stands on an instance in place of its own forward; autocast regions get the own one.

    Args:
        module: the instance.
        lean: called with the module, its own forward, the settings, and what the module is given.
        settings: further arguments of `lean`.
    """

    def __init__(self, module: nn.Module, lean: Forward, *settings: Any) -> None:
        self.module = module
        self.plain: Forward = module.forward
        self.lean = lean
        self.settings = settings

    def __call__(self, *args: Any, **more: Any) -> Any:
        """What calling the module computes."""
        if is_autocast():
            return self.plain(*args, **more)
        return self.lean(self.module, self.plain, *self.settings, *args, **more)


def is_autocast() -> bool:
    """Whether PyTorch chooses the dtypes at present, operation by operation."""
    return any(torch.is_autocast_enabled(kind) for kind in AUTOCAST_DEVICES)


def is_frozen(module: nn.Module) -> bool:
    """Whether none of a module's own weights learns."""
    return not any(p.requires_grad for p in module._parameters.values() if p is not None)


def is_listened_to(module: nn.Module) -> bool:
    """Whether somebody else hooks into a module's calls, or has replaced its forward."""
    forward = vars(module).get("forward")
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or not (forward is None or isinstance(forward, LeanForward))
    )


def may_pass_over(*modules: nn.Module) -> bool:
    """Whether the numbers of frozen modules may be used without calling the modules.

    Not those of an adapted layer, which has none of its own.
    """
    return all(
        is_frozen(module) and not is_listened_to(module) and not isinstance(module, AdaptedLayer)
        for module in modules
    )
