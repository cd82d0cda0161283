"""Whether numbered layers are what their numbers say, by the shapes that go together."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from scumble.errors import UserError


class Shape(NamedTuple):
    """What a kind of layer looks like.

    Args:
        pattern: the end of its name; its first group is the block around it.
        inputs: name of a width; equal names are equal widths. "{}" is the block.
        outputs: as `inputs`.
        times: how many times that width the outputs are.
        kernel: edge of a convolution's kernel; 0 for a matrix.
    """

    pattern: str
    inputs: str
    outputs: str
    times: int = 1
    kernel: int = 0


SHAPES = (
    Shape(r"(.+)\.attn2\.to_[kv]", "text", "{}"),
    Shape(r"(.+)\.attn\d\..+", "{}", "{}"),
    Shape(r"(.+)\.ff\.net\.0\.proj", "{}", "{}", times=8),
    Shape(r"(.+)\.conv1", "into {}", "{}", kernel=3),
    Shape(r"(.+)\.conv2", "{}", "{}", kernel=3),
    Shape(r"(.+)\.conv_shortcut", "into {}", "{}", kernel=1),
    Shape(r"(.+)\.time_emb_proj", "time", "{}"),
    Shape(r".+\.self_attn\..+", "encoder", "encoder"),
)


def check_shapes(layers: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse layers whose shapes do not go together.

    Args:
        layers: path of a layer -> its "up" (O, R, ...) and "down" (R, I, ...).

    Raises:
        UserError: naming the layer that its number would mean.
    """
    widths: dict[str, int] = {}
    for path, pair in layers.items():
        up, down = pair["up"], pair["down"]
        if not _fits(path, up, down, widths):
            raise UserError(
                f"its layers have numbers and no names, and the one that would be '{path}' has the "
                f"shapes {tuple(up.shape)} and {tuple(down.shape)}, which do not fit there",
                "It is of another family of models, or adapts other layers. Nothing was loaded.",
            )


def _fits(path: str, up: Tensor, down: Tensor, widths: dict[str, int]) -> bool:
    """Whether a layer has the widths that others had before it; notes those that it is first of."""
    if up.ndim < 2 or down.ndim < 2:
        return False
    for shape in SHAPES:
        match = re.fullmatch(shape.pattern, path)
        if match is None:
            continue
        block = match[1] if match.groups() else ""
        outputs, rest = divmod(up.shape[0], shape.times)
        edges = (shape.kernel,) * 2 if shape.kernel else ()
        return (
            not rest
            and down.shape[2:] == edges
            and widths.setdefault(shape.inputs.format(block), down.shape[1]) == down.shape[1]
            and widths.setdefault(shape.outputs.format(block), outputs) == outputs
        )
    return True
