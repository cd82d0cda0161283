"""Transforms from a Pillow picture to a tensor, named and behaving as in torchvision.transforms.

Shape suffixes: C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


class InterpolationMode(Enum):
    """How pictures are resized; the values are torchvision's."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


FILTERS = {
    InterpolationMode.NEAREST: Image.Resampling.NEAREST,
    InterpolationMode.BILINEAR: Image.Resampling.BILINEAR,
    InterpolationMode.BICUBIC: Image.Resampling.BICUBIC,
    InterpolationMode.LANCZOS: Image.Resampling.LANCZOS,
}


class Compose:
    """One transform after the other.

    Args:
        transforms: the first is applied first.
    """

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, picture: Any) -> Any:
        """Apply all."""
        for transform in self.transforms:
            picture = transform(picture)
        return picture


class Lambda:
    """A function as a transform.

    Args:
        function: picture -> picture.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, picture: Any) -> Any:
        """Apply it."""
        return self.function(picture)


class Resize:
    """Bring the short edge to a size; the long one follows, rounded down.

    Args:
        size: of the short edge, in pixels.
        interpolation: how.
    """

    def __init__(
        self, size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR
    ) -> None:
        self.size = size
        self.filter = FILTERS[interpolation]

    def __call__(self, picture: Image.Image) -> Image.Image:
        """Resize, unless it has that size."""
        short, long = sorted(picture.size)
        if short == self.size:
            return picture
        longer = int(self.size * long / short)
        is_tall = picture.width <= picture.height
        size = (self.size, longer) if is_tall else (longer, self.size)
        return picture.resize(size, self.filter)


class CenterCrop:
    """Cut the middle out, as a square; a picture that is too small gets a black edge.

    Args:
        size: of its edges.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, picture: Image.Image) -> Image.Image:
        """Crop."""
        picture = _at_least(picture, self.size)
        left = round((picture.width - self.size) / 2)
        top = round((picture.height - self.size) / 2)
        return picture.crop((left, top, left + self.size, top + self.size))


class RandomCrop:
    """Cut a square out, at a place that torch's generator draws.

    Args:
        size: of its edges.

    Raises:
        ValueError: the picture is smaller than that.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, picture: Image.Image) -> Image.Image:
        """Crop."""
        if min(picture.size) < self.size:
            raise ValueError(f"no square of {self.size} pixels fits in {picture.size}")
        top, left = (
            int(torch.randint(0, edge - self.size + 1, ()))
            for edge in (picture.height, picture.width)
        )
        return picture.crop((left, top, left + self.size, top + self.size))


class RandomHorizontalFlip:
    """Mirror left and right, now and then.

    Args:
        p: how likely.
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, picture: Image.Image) -> Image.Image:
        """Mirror or leave."""
        return ImageOps.mirror(picture) if float(torch.rand(())) < self.p else picture


class ToTensor:
    """A picture of bytes as numbers from 0 to 1, shape (C, H, W)."""

    def __call__(self, picture: Image.Image) -> Tensor:
        """Convert."""
        array = np.array(picture, copy=True)
        pixels_HWC = torch.from_numpy(array).view(picture.height, picture.width, -1)
        return pixels_HWC.permute(2, 0, 1).contiguous().float().div(255)


class Normalize:
    """Subtract a mean and divide by a spread, for each channel or one for all.

    Args:
        mean: one number, or one per channel.
        std: likewise.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def __call__(self, pixels_CHW: Tensor) -> Tensor:
        """Normalise."""
        return (pixels_CHW - self.mean) / self.std


def _at_least(picture: Image.Image, size: int) -> Image.Image:
    right, below = max(size - picture.width, 0), max(size - picture.height, 0)
    if not right and not below:
        return picture
    # The odd pixel goes to the right and below.
    border = (right // 2, below // 2, (right + 1) // 2, (below + 1) // 2)
    return ImageOps.expand(picture, border)
