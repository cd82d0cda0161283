"""Pictures that cannot be used, and odd ones that can."""

import os
import struct
import zlib
from collections.abc import Callable

from corpus import LFS_POINTER, WEB_PAGE, Case, Place, picture

FORMATS = {
    "png": "PNG",
    "jpg": "JPEG",
    "webp": "WEBP",
    "gif": "GIF",
    "bmp": "BMP",
    "tiff": "TIFF",
    "avif": "AVIF",
    "jp2": "JPEG2000",
}


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def png(width: int, height: int, data: bytes = b"", *more: bytes, bits: int = 1) -> bytes:
    """A PNG file that claims a size, with whatever data in it."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *more, chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def cut(file_format: str, share: float) -> bytes:
    content = picture(file_format)
    return content[: int(len(content) * share)]


def spoilt(file_format: str) -> bytes:
    """The beginning by which a file of this format is known, and nothing sensible behind it."""
    content = picture(file_format)
    keep = 12 if file_format in ("WEBP", "AVIF", "JPEG2000") else 6
    return content[:keep] + b"\xa5" * (len(content) - keep)


def bad_checksum() -> bytes:
    content = bytearray(picture())
    content[content.index(b"IDAT") + 20] ^= 0xFF
    return bytes(content)


def claimed_jpeg() -> bytes:
    """A JPEG file that claims the largest size there is."""
    content = bytearray(picture("JPEG"))
    start = content.index(b"\xff\xc0") + 5
    content[start : start + 4] = struct.pack(">HH", 65500, 65500)
    return bytes(content)


def claimed_bmp() -> bytes:
    content = bytearray(picture("BMP"))
    content[18:26] = struct.pack("<ii", 60_000, 60_000)
    return bytes(content)


def claimed_gif() -> bytes:
    content = bytearray(picture("GIF"))
    content[6:10] = struct.pack("<HH", 65535, 65535)
    return bytes(content)


def endless_tiff() -> bytes:
    """A TIFF file whose directory says that it is followed by itself."""
    entry = struct.pack("<HHII", 256, 4, 1, 64)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry + struct.pack("<I", 8)


BYTES: dict[str, Callable[[], bytes] | bytes] = {
    **{
        f"cut at {share:.0%}.{suffix}": lambda f=file_format, s=share: cut(f, s)
        for suffix, file_format in FORMATS.items()
        for share in (0.02, 0.3, 0.6, 0.9)
    },
    **{
        f"nonsense behind the first bytes.{suffix}": lambda f=file_format: spoilt(f)
        for suffix, file_format in FORMATS.items()
    },
    "nothing in it.png": b"",
    "one byte.jpg": b"\xff",
    "zeros.png": bytes(4096),
    "text.png": b"a red circle on a black ground\n",
    "web page.jpg": WEB_PAGE.encode(),
    "lfs pointer.png": LFS_POINTER.encode(),
    "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>',
    "document.jpg": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n",
    "archive.png": b"PK\x03\x04" + bytes(60),
    "film.gif": b"\0\0\0\x18ftypmp42" + bytes(60),
    "icon.png": lambda: picture("ICO", size=(32, 32)),
    "photo of a phone.jpg": b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(60),
    "wrong checksum.png": bad_checksum,
    "no size.png": lambda: png(0, 0, zlib.compress(b"")),
    "no data.png": lambda: png(64, 64),
    "no end of metadata.png": lambda: png(
        64, 64, b"", chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000)))
    ),
    "floating point.tiff": lambda: picture("TIFF", "F"),
    "directory of itself.tiff": endless_tiff,
    "bomb of zeros.png": lambda: png(20_000, 20_000, zlib.compress(bytes(2501 * 20_000), 1)),
    "bomb just below Pillow's own limit.png": lambda: png(178_500_000, 1),
    "bomb by its header.jpg": claimed_jpeg,
    "bomb by its header.bmp": claimed_bmp,
    "bomb by its header.gif": claimed_gif,
    "bomb of the largest number.png": lambda: png(2**31 - 1, 2**31 - 1),
}
"""Name of a file -> what is in it, which is no usable picture."""

PLACED: dict[str, Callable[[str], object]] = {
    "link to itself.png": lambda path: os.symlink(path, path),
    "link to nothing.png": lambda path: os.symlink("nowhere.png", path),
    "link to zeros without end.png": lambda path: os.symlink("/dev/zero", path),
    "link to what nobody may read.png": lambda path: os.symlink("/proc/self/mem", path),
    "pipe that nobody writes to.png": os.mkfifo,
}
"""Name -> puts something there that is no file."""


def put(place: Place, name: str) -> None:
    if name in PLACED:
        PLACED[name](str(place.pictures / name))
    else:
        content = BYTES[name]
        place.add(name, content if isinstance(content, bytes) else content())
    (place.pictures / name).with_suffix(".txt").write_text("a bad picture")


UNUSABLE = [*BYTES, *PLACED]


def refused(name: str) -> Case:
    def make(place: Place) -> list[str]:
        put(place, name)
        return place.train()

    return Case(f"image: {name}", make, (name, "--on_bad_image skip"))


CASES = [refused(name) for name in UNUSABLE]


def rotated(orientation: int) -> bytes:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture("JPEG", size=(96, 64), exif=exif)


def frames(file_format: str, **options: object) -> bytes:
    from PIL import Image

    others = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    return picture(file_format, save_all=True, append_images=others, **options)


ODD: dict[str, tuple[Callable[[], bytes], str]] = {
    "one pixel.png": (lambda: picture(size=(1, 1)), "smaller than the training resolution"),
    "a strip.png": (lambda: picture(size=(20_000, 10)), "smaller than the training resolution"),
    "a pillar.png": (lambda: picture(size=(10, 20_000)), "smaller than the training resolution"),
    "moving.gif": (lambda: frames("GIF"), "animated, only the first frame is used"),
    "moving.webp": (lambda: frames("WEBP"), "animated, only the first frame is used"),
    "moving.png": (lambda: frames("PNG"), "animated, only the first frame is used"),
    "grey and clear.png": (lambda: picture(mode="LA"), ""),
    "clear.png": (lambda: picture(transparency=(0, 0, 0)), ""),
    **{
        f"turned {orientation}.jpg": (
            lambda o=orientation: rotated(o),
            "turned upright as their EXIF data says",
        )
        for orientation in (2, 3, 5, 6, 8)
    },
    "sixteen bits.png": (lambda: picture(mode="I;16"), ""),
    "sixteen bits.tiff": (lambda: picture("TIFF", "I;16"), ""),
    "thirty-two bits.tiff": (lambda: picture("TIFF", "I"), ""),
    "inks.jpg": (lambda: picture("JPEG", "CMYK"), ""),
    "inks.tiff": (lambda: picture("TIFF", "CMYK"), ""),
    "palette.png": (lambda: picture(mode="P"), ""),
    "palette.gif": (lambda: picture("GIF", "P"), ""),
    "black or white.png": (lambda: picture(mode="1"), ""),
    "a photo in truth.png": (lambda: picture("JPEG"), ""),
    "a web picture in truth.jpg": (lambda: picture("WEBP"), ""),
    "loud.PNG": (picture, ""),
    "coming in waves.jpg": (lambda: picture("JPEG", progressive=True), ""),
    "two at once.jpg": (lambda: frames("MPO"), ""),
    "nonsense as metadata.jpg": (
        lambda: picture("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"),
        "",
    ),
}
"""Name of a file -> what is in it, and what the report says of it; nothing where it is ordinary."""
