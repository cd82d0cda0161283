"""A frozen weight that is stored in few bits and behaves as the tensor it stands for.

Products and convolutions keep the stored form for the way back and widen it anew. Every other
operation gets plain numbers: slower, never wrong. Nothing can be written into it.

Shape suffixes: O outputs, C input channels, K kernel edges, N numbers of one output.
"""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from scumble.errors import UserError
from scumble.kernels.conv import FrozenConv2d, convolution
from scumble.kernels.projection import Frozen, Norm, Thin, projection
from scumble.lean.forwards import is_autocast
from scumble.lean.schemes import SCHEMES

aten: Any = torch.ops.aten


class QuantisedWeight(Tensor):
    """The weight of a Linear or Conv2d in one of the `SCHEMES`.

    It reports the shape and dtype of what was quantised. A convolution's is in channels_last
    layout, in which its numbers are stored as well.

    Args:
        scheme: name of the scheme.
        codes: the stored numbers.
        scales: what they are to be multiplied with.
        shape: of the weight.
        stored: dtype of the weight that was quantised: its numbers are read back in that.
        dtype: the dtype it is to have now.
    """

    scheme: str
    codes: Tensor
    scales: Tensor
    stored: torch.dtype

    @staticmethod
    def __new__(
        cls,
        scheme: str,
        codes: Tensor,
        scales: Tensor,
        shape: Sequence[int],
        stored: torch.dtype,
        dtype: torch.dtype,
    ) -> Self:
        """Make the tensor that has a shape but no memory of its own."""
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        outline = torch.empty(tuple(shape), device="meta", memory_format=layout)
        weight: Self = torch.Tensor._make_wrapper_subclass(
            cls, outline.shape, outline.stride(), dtype=dtype, device=codes.device
        )
        weight.scheme, weight.codes, weight.scales, weight.stored = scheme, codes, scales, stored
        return weight

    @classmethod
    @torch.no_grad()
    def of(cls, weight: Tensor, scheme: str) -> Self:
        """Quantise a weight.

        Args:
            weight: shape (O, C) or (O, C, K, K), in fp32, fp16 or bf16.
            scheme: key of `SCHEMES`.

        Raises:
            UserError: the scheme's library is missing.
        """
        rows = weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight
        weight_ON = rows.reshape(weight.shape[0], -1).contiguous()
        codes, scales = SCHEMES[scheme].encode(weight_ON)
        return cls(scheme, codes, scales, weight.shape, weight.dtype, weight.dtype)

    @property
    def data(self) -> Tensor:
        """The weight itself: it never learns."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        """Refuse other values.

        Raises:
            UserError: always.
        """
        del value
        raise _refusal(self)

    @property
    def stored_bytes(self) -> int:
        """Memory of the codes and scales."""
        return self.codes.nbytes + self.scales.nbytes

    @torch.no_grad()
    def dequantized(self) -> Tensor:
        """A new plain tensor of the same shape, dtype, device and layout."""
        outputs, *rest = self.shape
        matrix = (outputs, self.numel() // outputs)
        decode = SCHEMES[self.scheme].decode
        weight = decode(self.codes, self.scales, matrix, self.stored).to(self.dtype)
        if not rest[1:]:
            return weight
        channels, height, width = rest
        return weight.view(outputs, height, width, channels).permute(0, 3, 1, 2)

    def changed(self, change: Callable[[Tensor], Tensor], dtype: torch.dtype) -> "QuantisedWeight":
        """The same weight with its codes and scales elsewhere, or with another dtype."""
        codes, scales = change(self.codes), change(self.scales)
        return QuantisedWeight(self.scheme, codes, scales, self.shape, self.stored, dtype)

    def __repr__(self) -> str:  # type: ignore[override]
        about = f"{self.scheme}, shape={tuple(self.shape)}, dtype={self.dtype}"
        return f"QuantisedWeight({about}, device='{self.device}')"

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        """What PyTorch asks for before it moves a parameter whose parts lie inside."""
        return ["codes", "scales"], (self.scheme, self.shape, self.stored, self.dtype)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], about: Any, outer_size: Any, outer_stride: Any
    ) -> "QuantisedWeight":
        """The opposite of `__tensor_flatten__`."""
        del outer_size, outer_stride
        scheme, shape, stored, dtype = about
        return QuantisedWeight(scheme, inner["codes"], inner["scales"], shape, stored, dtype)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Let Linear and Conv2d compute without keeping the plain numbers for the way back."""
        del types
        frozen = FROZEN.get(func)
        result = None if frozen is None else frozen(*args, **(kwargs or {}))
        if result is not None:
            return result
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute any operation on the plain numbers; copies and moves stay quantised."""
        del types
        kwargs = kwargs or {}
        keep = KEPT.get(func)
        result = None if keep is None else keep(*args, **kwargs)
        if result is not None:
            return result
        _refuse_writes(func, args, kwargs)
        args, kwargs = tree_map(_plain, (args, kwargs))
        return func(*args, **kwargs)


def _plain(value: Any) -> Any:
    return value.dequantized() if isinstance(value, QuantisedWeight) else value


def _refuse_writes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[number] if number < len(args) else kwargs.get(argument.name)
        if isinstance(value, QuantisedWeight):
            raise _refusal(value)


def _refusal(weight: QuantisedWeight) -> UserError:
    return UserError(
        f"nothing can be written into a weight that is stored as {weight.scheme}",
        "Merge adapters into the base as it was before: load it without --base_precision.",
    )


def _linear(x: Any, weight: Any, bias: Any = None) -> Tensor | None:
    """A Linear whose own numbers are all frozen."""
    if not _is_frozen(x, weight, bias):
        return None
    return projection(x, Norm(), Frozen(weight, bias), Thin())


def _conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """A Conv2d whose own numbers are all frozen, without groups."""
    if not _is_frozen(x, weight, bias) or groups != 1 or x.ndim != 4 or isinstance(padding, str):
        return None
    edges = (_pair(value) for value in (stride, padding, dilation))
    return convolution(x, FrozenConv2d(weight, bias, *edges))


def _is_frozen(x: Any, weight: Any, bias: Any) -> bool:
    if not isinstance(weight, QuantisedWeight) or type(x) is not Tensor or is_autocast():
        return False
    return not (weight.requires_grad or (bias is not None and bias.requires_grad))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _same(weight: QuantisedWeight) -> QuantisedWeight:
    return weight.changed(lambda part: part, weight.dtype)


def _clone(weight: QuantisedWeight, *, memory_format: Any = None) -> QuantisedWeight | None:
    if _turns_round(weight, memory_format):
        return None
    return weight.changed(torch.clone, weight.dtype)


def _to(
    weight: QuantisedWeight,
    *,
    dtype: torch.dtype | None = None,
    device: Any = None,
    non_blocking: bool = False,
    memory_format: Any = None,
    **_: Any,
) -> QuantisedWeight | None:
    dtype = dtype or weight.dtype
    if _turns_round(weight, memory_format) or not dtype.is_floating_point:
        return None
    device = device or weight.device
    return weight.changed(lambda part: part.to(device, non_blocking=non_blocking), dtype)


def _turns_round(weight: Tensor, memory_format: Any) -> bool:
    """Whether the layout is to become another than the one that the numbers are stored in."""
    if memory_format in (None, torch.preserve_format):
        return False
    return not weight.is_contiguous(memory_format=memory_format)


FROZEN: dict[Any, Callable[..., Tensor | None]] = {
    torch.nn.functional.linear: _linear,
    torch.nn.functional.conv2d: _conv2d,
}
"""Operation -> the form that keeps no plain numbers, or gives None where it does not fit."""

KEPT: dict[Any, Callable[..., QuantisedWeight | None]] = {
    aten.detach.default: _same,
    aten.alias.default: _same,
    aten.clone.default: _clone,
    aten._to_copy.default: _to,
}
"""Operation -> the form whose result is quantised too, or None where it cannot be."""
