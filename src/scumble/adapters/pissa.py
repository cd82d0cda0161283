"""PiSSA: LoRA that starts from the largest parts of the frozen weight (arXiv:2404.02948).

Shape suffixes: O output channels, I input channels, R rank, K kernel edge.
"""

from typing import ClassVar

import torch
from torch import Tensor

from scumble.adapters.lora import LoRA
from scumble.adapters.low_rank import truncated_svd
from scumble.errors import UserError


class PiSSA(LoRA):
    """delta W = (alpha / rank) (up down - up_0 down_0), the start subtracted, the base untouched.

    It is computed as (up - up_0) down + up_0 (down - down_0): exactly zero at the start, and
    without two large numbers that cancel in half precision. In files it is a LoRA of twice the
    rank.

    Checkpoints hold the start: found anew it would differ where the base is loaded otherwise, in
    another number format for one.
    """

    down_0: Tensor
    up_0: Tensor
    from_zero: ClassVar[tuple[str, ...]] = ()
    from_weight: ClassVar[tuple[str, ...]] = ("down", "up")

    @torch.no_grad()
    def initialise(self, init: str, generator: torch.Generator, weight: Tensor) -> None:  # noqa: ARG002
        """Split the best product of this rank between `down` and `up`, and remember it.

        Args:
            init: not used.
            generator: source of the directions that the search starts from.
            weight: the frozen weight.

        Raises:
            UserError: the weight is not that wide.
        """
        matrix_OI = weight.float().flatten(1)
        if self.rank > min(matrix_OI.shape):
            raise UserError(
                f"the layer has only {min(matrix_OI.shape)} singular values, fewer than the rank",
                "Give it a smaller rank of its own, as in conv_out:4.",
            )
        down_RI, up_OR = truncated_svd(matrix_OI, self.rank, generator).factors(self.rank)
        for name, start in (("down", down_RI), ("up", up_OR)):
            parameter = self.get_parameter(name)
            parameter.copy_(start.reshape(parameter.shape) / self.scale**0.5)
            self.register_buffer(f"{name}_0", parameter.detach().clone(), persistent=False)

    def product(self) -> tuple[Tensor, Tensor]:
        """Down (2R, I) or (2R, I, K, K) and up (O, 2R), without the scale."""
        down = torch.cat([self.down, self.down - self.down_0])
        return down, torch.cat([self.up - self.up_0, self.up_0], 1).flatten(1)

    def tensors(self) -> dict[str, Tensor]:
        """Copies of `product` on the CPU, as a LoRA of twice the rank."""
        down, up_OR = (part.detach().cpu().clone() for part in self.product())
        return {"down": down, "up": up_OR.reshape(-1, 2 * self.rank, *self.up.shape[2:])}

    @property
    def file_alpha(self) -> float:
        """Twice the alpha, for the scale to stay at twice the rank."""
        return 2 * self.alpha
