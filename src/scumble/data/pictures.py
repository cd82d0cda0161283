"""Raw bytes to an upright RGB picture, with a note of everything remarkable on the way."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 178_000_000
BACKGROUND_RGB = (255, 255, 255)

# Naming the formats keeps out those that start other programs (EPS) or hold no picture.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
_EXIF_ORIENTATION = 0x0112


class Finding(StrEnum):
    """What a scan can say of a picture; the value is the report's wording."""

    UNREADABLE = "unreadable or truncated"
    TOO_LARGE = f"more than {MAX_PIXELS // 1_000_000} million pixels"
    ANIMATED = "animated, only the first frame is used"
    TRANSPARENT = "transparent, placed on white"
    ROTATED = "turned upright as their EXIF data says"
    UPSCALED = "smaller than the training resolution, will be upscaled"
    DUPLICATE = "exact duplicates"
    NO_CAPTION = "without a caption"
    EMPTY_CAPTION = "with an empty caption"


class BadPictureError(Exception):
    """A file that gives no picture.

    Args:
        finding: the kind of trouble.
        reason: the trouble in words, without the file's name.
    """

    def __init__(self, finding: Finding, reason: str) -> None:
        super().__init__(reason)
        self.finding = finding


def decode(data: bytes) -> tuple[Image.Image, tuple[Finding, ...]]:
    """Decode a whole picture, so that a truncated file is found here and not while training.

    Args:
        data: the bytes of an image file.

    Returns:
        The upright RGB picture, and what is remarkable about the file.

    Raises:
        BadPictureError: the bytes give no picture, or one of more than MAX_PIXELS.
    """
    with _opened(data) as image:
        findings = []
        # Phones write MPO: a JPEG whose further frames are depth maps and previews.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            findings.append(Finding.ANIMATED)
        if image.getexif().get(_EXIF_ORIENTATION, 1) in range(2, 9):
            findings.append(Finding.ROTATED)
        upright = _eight_bit(ImageOps.exif_transpose(image))
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            alpha_min, _ = upright.getchannel("A").getextrema()
            if alpha_min != 255:
                findings.append(Finding.TRANSPARENT)
            canvas = Image.new("RGBA", upright.size, (*BACKGROUND_RGB, 255))
            upright = Image.alpha_composite(canvas, upright)
        return upright.convert("RGB"), tuple(findings)


def decode_mask(data: bytes) -> Image.Image:
    """Decode a whole mask: the upright grey of its colours, with transparency left out of account.

    Args:
        data: the bytes of an image file.

    Returns:
        A picture of mode "L".

    Raises:
        BadPictureError: the bytes give no picture, or one of more than MAX_PIXELS.
    """
    with _opened(data) as image:
        upright = _eight_bit(ImageOps.exif_transpose(image))
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
        return upright.convert("RGB").convert("L")


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open a picture for decoding, and word whatever Pillow has against it.

    Raises:
        BadPictureError: the bytes give no picture, or one of more than MAX_PIXELS.
    """
    if not data:
        raise BadPictureError(Finding.UNREADABLE, "the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                reason = f"{image.width} x {image.height}, a decompression bomb?"
                raise BadPictureError(Finding.TOO_LARGE, reason)
            yield image
    except Image.DecompressionBombError as error:
        raise BadPictureError(Finding.TOO_LARGE, "a decompression bomb?") from error
    except UnidentifiedImageError as error:
        raise BadPictureError(Finding.UNREADABLE, "not a picture in a known format") from error
    except BadPictureError:
        raise
    except Exception as error:  # Pillow's decoders meet damage with a dozen exception types.
        raise BadPictureError(Finding.UNREADABLE, str(error) or type(error).__name__) from error


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BadPictureError(
            Finding.UNREADABLE, "floating-point pixels: save it with 8 or 16 bits"
        )
    if not image.mode.startswith("I"):
        return image
    # Pillow's own conversion clips 16-bit greys at 255 instead of scaling them.
    return image.convert("I").point(lambda grey: grey * (255 / 65535) + 0.5).convert("L")
