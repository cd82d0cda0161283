"""A kernel from two matrices, with or without a small core between them (Tucker form).

Shape suffixes: O output channels, I input channels, R rank.
"""

import torch
from torch import Tensor


def rebuild(out: Tensor, into: Tensor, core: Tensor | None = None) -> Tensor:
    """Multiply the parts of a kernel out, as LyCORIS lays them down.

    Args:
        out: shape (O, R); (R, O) beside a core.
        into: shape (R, I), or (R, I K K) for a kernel that is not held apart.
        core: shape (R, R, K, K), the kernel held apart.

    Returns:
        Shape (O, I), (O, I K K), or (O, I, K, K) with a core.
    """
    if core is None:
        return out @ into
    return torch.einsum("rs...,ro,si->oi...", core, out, into)
