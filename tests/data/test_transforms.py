import pytest
import torch
from PIL import Image

from scumble.data.transforms import INTERPOLATIONS, Crop, crops_of, mask_weights, pixels
from scumble.errors import UserError


def ramp(width, height):
    """Make a picture whose red is its column and whose green is its row."""
    image = Image.new("RGB", (width, height))
    for x in range(width):
        for y in range(height):
            image.putpixel((x, y), (x, y, 0))
    return image


def as_bytes(tensor):
    return ((tensor + 1) * 127.5).round().to(torch.uint8)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_at_its_own_size_a_picture_is_unchanged(interpolation):
    shown = pixels(ramp(6, 4), Crop((4, 6)), interpolation)
    assert (shown.dtype, tuple(shown.shape)) == (torch.float32, (3, 4, 6))
    assert as_bytes(shown)[0].tolist() == [[0, 1, 2, 3, 4, 5]] * 4
    assert as_bytes(shown)[1].tolist() == [[row] * 6 for row in range(4)]


def test_black_and_white_span_minus_one_to_one():
    image = Image.new("RGB", (2, 1), (0, 0, 0))
    image.putpixel((1, 0), (255, 255, 255))
    assert pixels(image, Crop((1, 2)))[0].tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize(("position", "first"), [(0.0, 0), (0.5, 3), (1.0, 6)])
def test_position_moves_along_the_axis_that_overhangs(position, first):
    wide = as_bytes(pixels(ramp(10, 4), Crop((4, 4), position)))
    assert wide[0, 0].tolist() == list(range(first, first + 4))
    assert wide[1, :, 0].tolist() == [0, 1, 2, 3]
    tall = as_bytes(pixels(ramp(4, 10), Crop((4, 4), position)))
    assert tall[1, :, 0].tolist() == list(range(first, first + 4))
    assert tall[0, 0].tolist() == [0, 1, 2, 3]


def test_flip_mirrors_left_to_right():
    plain = pixels(ramp(5, 3), Crop((3, 5)))
    flipped = pixels(ramp(5, 3), Crop((3, 5), flip=True))
    assert torch.equal(flipped, plain.flip(-1))
    assert not torch.equal(flipped, plain)


def test_halving_covers_the_bucket_and_averages():
    image = Image.new("RGB", (8, 4))
    for x in range(8):
        for y in range(4):
            image.putpixel((x, y), (200 if x % 2 else 100, 0, 0))
    shown = as_bytes(pixels(image, Crop((2, 2), 0.5), "bilinear"))
    # 8 x 4 covers 2 x 2 at half size; antialiasing mixes 100 and 200, nearest would pick one.
    assert all(140 <= red <= 160 for red in shown[0].flatten().tolist())


def test_a_smaller_picture_is_enlarged_with_its_aspect_kept():
    shown = as_bytes(pixels(ramp(3, 2), Crop((4, 4), 0.0), "nearest"))
    assert shown[0, 0].tolist() == [0, 0, 1, 1]
    assert shown[1, :, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("size", [(1, 1), (1, 999), (997, 3), (641, 427), (13, 17)])
@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
def test_any_size_fits_any_bucket(size, position):
    shown = pixels(Image.new("RGB", size, (255, 255, 255)), Crop((24, 40), position, flip=True))
    assert tuple(shown.shape) == (3, 24, 40)
    assert torch.all(shown == 1)


@pytest.mark.parametrize("width_and_height", [(781, 488), (488, 781)])
def test_rounding_never_leaves_the_picture(width_and_height):
    # 696 / (696 / 781) is a little more than 781.
    bucket = (648, 696) if width_and_height == (781, 488) else (696, 648)
    for crop in (Crop(bucket, 1.0), Crop(bucket, 0.5), Crop((781, 781)), Crop((696, 696))):
        shown = pixels(Image.new("RGB", width_and_height), crop, "nearest")
        assert tuple(shown.shape[1:]) == crop.bucket


def test_an_unknown_interpolation_names_the_known_ones():
    with pytest.raises(UserError, match=r"'cubic'[\s\S]*nearest, bilinear, bicubic, lanczos"):
        pixels(ramp(2, 2), Crop((2, 2)), "cubic")


class TestCrops:
    def test_all_variants(self):
        crops = crops_of(100, 50, (32, 32), center_crop=False, random_flip=True)
        assert [(crop.position, crop.flip) for crop in crops] == [
            (0.0, False),
            (0.0, True),
            (0.5, False),
            (0.5, True),
            (1.0, False),
            (1.0, True),
        ]
        assert len({crop.key for crop in crops}) == 6

    def test_positions_are_evenly_spaced_with_both_ends(self):
        crops = crops_of(50, 100, (32, 32), center_crop=False, random_flip=False, positions=5)
        assert [crop.position for crop in crops] == [0.0, 0.25, 0.5, 0.75, 1.0]

    def test_center_crop_is_one(self):
        crops = crops_of(100, 50, (32, 32), center_crop=True, random_flip=False)
        assert crops == (Crop((32, 32), 0.5, False),)

    @pytest.mark.parametrize(("width", "count"), [(64, 1), (67, 1), (68, 3)])
    def test_an_overhang_under_two_pixels_of_the_bucket_is_not_worth_it(self, width, count):
        crops = crops_of(width, 64, (32, 32), center_crop=False, random_flip=False)
        assert len(crops) == count

    def test_the_bucket_is_part_of_the_key(self):
        assert Crop((32, 64)).key != Crop((64, 32)).key


def grey(rows):
    """Make a mask from its rows of greys."""
    image = Image.new("L", (len(rows[0]), len(rows)))
    for y, values in enumerate(rows):
        for x, value in enumerate(values):
            image.putpixel((x, y), value)
    return image


class TestMaskWeights:
    def test_black_is_nothing_white_is_all_and_each_latent_is_an_average(self):
        mask = grey([[0, 0, 255, 255, 0, 255], [0, 0, 255, 255, 255, 51]])
        weights = mask_weights(mask, Crop((2, 6)), (1, 3))
        assert (weights.dtype, tuple(weights.shape)) == (torch.float32, (1, 1, 3))
        assert torch.allclose(weights, torch.tensor([[[0.0, 1.0, 0.55]]]))

    def test_flip_mirrors_left_to_right(self):
        mask = grey([[0, 0, 255, 255]] * 4)
        plain = mask_weights(mask, Crop((4, 4)), (2, 2))
        assert plain.tolist() == [[[0, 1], [0, 1]]]
        assert torch.equal(mask_weights(mask, Crop((4, 4), flip=True), (2, 2)), plain.flip(-1))

    @pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("size", [(80, 32), (32, 80), (57, 23), (160, 48)])
    def test_it_shows_what_the_picture_shows(self, size, position, flip):
        mask = Image.new("L", size)
        mask.paste(255, (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2))
        crop = Crop((32, 32), position, flip)
        red_CHW = pixels(mask.convert("RGB"), crop, "bilinear")
        shown = torch.nn.functional.avg_pool2d((red_CHW[:1] + 1) / 2, 4)
        weights = mask_weights(mask, crop, (8, 8))
        assert torch.allclose(weights, shown, atol=0.15)
        assert (weights - shown).abs().mean() < 0.02

    def test_an_edge_stays_sharp_when_the_mask_is_made_smaller(self):
        mask = grey([[0] * 16 + [255] * 16] * 32)
        weights = mask_weights(mask, Crop((8, 8)), (4, 4))
        assert weights.tolist() == [[[0, 0, 1, 1]] * 4]

    @pytest.mark.parametrize("size", [(1, 1), (997, 3), (641, 427), (13, 17)])
    @pytest.mark.parametrize("value", [0, 255])
    def test_one_colour_stays_exact_at_any_size(self, size, value):
        weights = mask_weights(Image.new("L", size, value), Crop((24, 40), 0.5), (3, 5))
        assert torch.equal(weights, torch.full((1, 3, 5), value / 255))
