import io

import pytest
from PIL import Image

from scumble.data import pictures
from scumble.data.pictures import BadPictureError, Finding, decode

RED, BLUE = (255, 0, 0), (0, 0, 255)


def near(pixel, colour, tolerance=6):
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=True))


def half_and_half(mode="RGB", left=RED, right=BLUE):
    image = Image.new(mode, (16, 8), left)
    image.paste(right, (8, 0, 16, 8))
    return image


def test_a_plain_picture_has_no_findings(encode):
    image, findings = decode(encode(half_and_half(), "PNG"))
    assert (image.mode, image.size, findings) == ("RGB", (16, 8), ())
    assert image.tobytes() == half_and_half().tobytes()


def test_truncated(encode):
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    data = encode(noise, "JPEG")
    with pytest.raises(BadPictureError, match="truncated") as caught:
        decode(data[: len(data) // 2])
    assert caught.value.finding is Finding.UNREADABLE


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "the file is empty"), (b"hello", "not a picture in a known format")]
)
def test_no_picture(data, reason):
    with pytest.raises(BadPictureError, match=reason):
        decode(data)


def test_formats_that_start_other_programs_are_kept_out(encode):
    with pytest.raises(BadPictureError, match="known format"):
        decode(encode(half_and_half(), "EPS"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_gives_back_the_upright_picture(encode, orientation):
    upright = half_and_half()
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, findings = decode(encode(stored, "PNG", exif=exif))
    assert image.tobytes() == upright.tobytes()
    assert findings == (() if orientation == 1 else (Finding.ROTATED,))


def test_transparent_pixels_go_over_white(encode):
    clear, half = (0, 0, 0, 0), (255, 0, 0, 128)
    image, findings = decode(encode(half_and_half("RGBA", clear, half), "PNG"))
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert near(image.getpixel((15, 0)), (255, 127, 127))
    assert findings == (Finding.TRANSPARENT,)


def test_an_opaque_alpha_channel_is_no_finding(encode):
    image, findings = decode(encode(half_and_half().convert("RGBA"), "PNG"))
    assert image.getpixel((0, 0)) == RED
    assert findings == ()


def test_a_palette_with_a_transparent_colour(encode):
    image = half_and_half().convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    transparent = image.getpixel((0, 0))
    decoded, findings = decode(encode(image, "PNG", transparency=transparent))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert near(decoded.getpixel((15, 0)), BLUE)
    assert findings == (Finding.TRANSPARENT,)


def test_cmyk(encode):
    image, _ = decode(encode(half_and_half().convert("CMYK"), "JPEG", quality=95))
    assert image.mode == "RGB"
    assert near(image.getpixel((1, 4)), RED, tolerance=12)
    assert near(image.getpixel((14, 4)), BLUE, tolerance=12)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(encode, file_format):
    grey = Image.new("I;16", (3, 1))
    for x, value in enumerate((0, 32768, 65535)):
        grey.putpixel((x, 0), value)
    image, _ = decode(encode(grey, file_format))
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_floating_point_is_refused_in_words(encode):
    with pytest.raises(BadPictureError, match="floating-point"):
        decode(encode(Image.new("F", (2, 2), 0.5), "TIFF"))


def test_animation_gives_its_first_frame(encode):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    image, findings = decode(data)
    assert image.getpixel((0, 0)) == RED
    assert findings == (Finding.ANIMATED,)


def test_a_phones_multi_picture_file_is_no_animation(encode):
    frames = [Image.new("RGB", (64, 64), colour) for colour in (RED, BLUE)]
    data = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    image, findings = decode(data)
    assert near(image.getpixel((5, 5)), RED)
    assert findings == ()


def test_a_decompression_bomb_is_refused_before_decoding(encode, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 16 * 8 - 1)
    data = encode(half_and_half(), "PNG")
    with pytest.raises(BadPictureError, match="16 x 8") as caught:
        decode(data[:60])  # The header alone: reading pixels would say "truncated".
    assert caught.value.finding is Finding.TOO_LARGE


def test_what_pillow_takes_for_a_bomb_is_one_too(encode, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16)
    with pytest.raises(BadPictureError) as caught:
        decode(encode(half_and_half(), "PNG"))
    assert caught.value.finding is Finding.TOO_LARGE
