"""From a picture of any size to the pixels of its bucket: resize, crop, flip.

Shape suffixes: C colour, H height, W width.
"""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from scumble.errors import UserError

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# Less overhang than this gives crops that no one can tell apart.
_MIN_OVERHANG_PX = 2


@dataclass(frozen=True)
class Crop:
    """One way to show a picture at the size of its bucket.

    Args:
        bucket: (height_px, width_px).
        position: where to crop along the axis that overhangs: 0 left or top, 1 right or bottom.
        flip: mirrored left to right.
    """

    bucket: tuple[int, int]
    position: float = 0.5
    flip: bool = False

    @property
    def key(self) -> str:
        """The crop's part of a cache key."""
        height_px, width_px = self.bucket
        return f"{height_px}x{width_px}@{self.position!r}{'-flipped' if self.flip else ''}"


def crops_of(
    width_px: int,
    height_px: int,
    bucket: tuple[int, int],
    *,
    center_crop: bool,
    random_flip: bool,
    positions: int = 3,
) -> tuple[Crop, ...]:
    """List every way a picture may be shown: few enough that each can be cached.

    Args:
        width_px: of the picture.
        height_px: of the picture.
        bucket: (height_px, width_px).
        center_crop: only the middle is shown.
        random_flip: each crop is shown mirrored too.
        positions: crops along an overhanging axis, evenly spaced, both ends among them.
    """
    scale = _cover_scale(width_px, height_px, bucket)
    overhang_px = max(width_px * scale - bucket[1], height_px * scale - bucket[0])
    if center_crop or positions == 1 or overhang_px < _MIN_OVERHANG_PX:
        places = [0.5]
    else:
        places = [place / (positions - 1) for place in range(positions)]
    flips = (False, True) if random_flip else (False,)
    return tuple(Crop(bucket, place, flip) for place in places for flip in flips)


def pixels(image: Image.Image, crop: Crop, interpolation: str = "lanczos") -> Tensor:
    """Resize an RGB picture until it just covers the bucket, crop it and flip it.

    Args:
        image: upright RGB, as `Picture.load` gives it.
        crop: what to show of it.
        interpolation: a key of INTERPOLATIONS; all but nearest are antialiased.

    Returns:
        float32 of shape (3, H, W) in [-1, 1].

    Raises:
        UserError: the interpolation is unknown.
    """
    if interpolation not in INTERPOLATIONS:
        known = ", ".join(INTERPOLATIONS)
        raise UserError(f"unknown image interpolation '{interpolation}'", f"Use one of: {known}.")
    shown = _shown(image, crop, INTERPOLATIONS[interpolation])
    bytes_HWC = _as_bytes(shown)
    return bytes_HWC.permute(2, 0, 1).contiguous().float() / 127.5 - 1


def mask_weights(mask: Image.Image, crop: Crop, latent_HW: tuple[int, int]) -> Tensor:
    """Show a mask as `pixels` shows its picture, and average it over what each latent stands for.

    Args:
        mask: grey, as `Picture.load_mask` gives it.
        crop: what is shown of the picture.
        latent_HW: height and width of the picture's latents.

    Returns:
        float32 of shape (1, h, w) in [0, 1].
    """
    # Box averaging lets no white leak over an edge, as the picture's own filter might.
    weights_HWC = _as_bytes(_shown(mask, crop, Image.Resampling.BOX)).float() / 255
    return interpolate(weights_HWC.permute(2, 0, 1)[None], latent_HW, mode="area")[0]


def _shown(image: Image.Image, crop: Crop, resampling: Image.Resampling) -> Image.Image:
    height_px, width_px = crop.bucket
    scale = _cover_scale(image.width, image.height, crop.bucket)
    # Cropping in source coordinates keeps the aspect exact: no side is rounded to whole pixels.
    # Rounding of the division may pass the edge by one part in 10^16, which Pillow refuses.
    box_width = min(width_px / scale, image.width)
    box_height = min(height_px / scale, image.height)
    left = (image.width - box_width) * crop.position
    top = (image.height - box_height) * crop.position
    box = (left, top, left + box_width, top + box_height)
    shown = image.resize((width_px, height_px), resampling, box=box)
    return shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flip else shown


def _as_bytes(image: Image.Image) -> Tensor:
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, -1)


def _cover_scale(width_px: int, height_px: int, bucket: tuple[int, int]) -> float:
    return max(bucket[1] / width_px, bucket[0] / height_px)
