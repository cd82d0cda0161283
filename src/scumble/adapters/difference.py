"""Whole differences of weights, as other tools file them (LyCORIS's full and norm)."""

from collections.abc import Mapping, Set
from typing import ClassVar

from torch import Tensor

from scumble.adapters.base import Adapter
from scumble.errors import UserError


class Difference(Adapter):
    """delta W = `diff`, and the bias changes by `diff_b`. It has neither rank nor alpha.

    One of them may lack in a file.
    """

    file_names: ClassVar[Mapping[str, str]] = {"diff": "diff", "diff_b": "diff_b"}
    is_trainable: ClassVar[bool] = False
    has_rank: ClassVar[bool] = False

    def shapes(self, like: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
        """`diff` as the weight, and `diff_b` as the bias where the file has it.

        Raises:
            UserError: the file changes a bias that the layer lacks.
        """
        whole = {"diff": self.layer.weight_shape}
        if "diff_b" not in like:
            return whole
        if not self.layer.has_bias:
            raise UserError(f"'{self.file_names['diff_b']}' changes a bias, which the layer lacks")
        bias = {"diff_b": self.layer.weight_shape[:1]}
        return whole | bias if "diff" in like else bias

    def delta(self, weight: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The change of the weight itself; zeros where the bias alone changes."""
        diff: Tensor | None = getattr(self, "diff", None)
        if diff is None:
            return next(self.parameters()).new_zeros(self.layer.weight_shape)
        return diff

    def bias_delta(self) -> Tensor | None:
        """The change of the bias, where the file has one."""
        return getattr(self, "diff_b", None)

    @classmethod
    def is_complete(cls, names: Set[str]) -> bool:
        """`diff` or `diff_b`, or both."""
        return bool(names) and names <= set(cls.file_names)

    @classmethod
    def rank_of(cls, tensors: Mapping[str, Tensor]) -> int:
        """1 where there is anything."""
        return int(all(tensor.numel() for tensor in tensors.values()))


class NormDifference(Difference):
    """The same of a norm's scale and shift, under names of its own."""

    file_names: ClassVar[Mapping[str, str]] = {"diff": "w_norm", "diff_b": "b_norm"}

    def shapes(self, like: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
        """As the norm's scale and shift.

        Raises:
            UserError: the layer is no norm.
        """
        if not self.layer.is_norm:
            raise UserError("'w_norm' changes a norm, which the layer is not")
        return super().shapes(like)
