from dataclasses import replace

import pytest
from PIL import Image

from scumble.data.pictures import BadPictureError, decode_mask
from scumble.data.scan import ScanReport, scan
from scumble.data.sources import image_folder
from scumble.errors import UserError

WHITE = (255, 255, 255)


def mask_files(folder):
    """Name each picture's mask by its bytes, as `touch` wrote them."""
    return {
        example.id: example.read_mask and example.read_mask().decode()
        for example in image_folder(folder)
    }


@pytest.fixture
def touch(folder):
    """Write files that hold their own names."""

    def write(*names):
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(name.encode())

    return write


class TestPairs:
    def test_masks_are_no_pictures_and_belong_to_those_of_their_name(self, folder, touch):
        touch("cat.jpg", "cat.mask.png", "dog.png", "dog-masklabel.png", "sub/cat.png", "none.png")
        touch("Fox.v2.png", "Fox.v2.MASK.WEBP", "unmask.png", "a-mask.png", "mask.png")
        touch("-masklabel.png")
        assert mask_files(folder) == {
            "-masklabel.png": None,
            "Fox.v2.png": "Fox.v2.MASK.WEBP",
            "a-mask.png": None,
            "cat.jpg": "cat.mask.png",
            "dog.png": "dog-masklabel.png",
            "mask.png": None,
            "none.png": None,
            "sub/cat.png": None,
            "unmask.png": None,
        }
        assert image_folder(folder).notes == []

    def test_a_mask_without_its_picture_is_noted_by_name(self, folder, touch):
        touch("cat.png", "dog.mask.png", "dog-masklabel.png", "sub/cat-masklabel.png")
        assert mask_files(folder) == {"cat.png": None}
        assert image_folder(folder).notes == [
            "masks without a picture: dog-masklabel.png, dog.mask.png, sub/cat-masklabel.png"
        ]

    def test_of_two_masks_one_is_used_and_the_other_noted(self, folder, touch):
        touch("a.png", "a-masklabel.png", "a.mask.png", "b.png", "b.mask.webp", "b.mask.png")
        assert mask_files(folder) == {"a.png": "a.mask.png", "b.png": "b.mask.png"}
        assert image_folder(folder).notes == [
            "masks unused because the picture has another one: a-masklabel.png, b.mask.webp"
        ]

    def test_a_mask_that_two_pictures_share_is_noted(self, folder, touch):
        touch("a.png", "a.jpg", "a.mask.png")
        assert mask_files(folder) == {"a.jpg": "a.mask.png", "a.png": "a.mask.png"}
        assert image_folder(folder).notes == [
            "masks shared by pictures of the same name: a.mask.png"
        ]

    def test_nothing_but_masks(self, folder, touch):
        touch("a.mask.png")
        with pytest.raises(UserError, match=r"no pictures in .*masks without a picture: a\.mask"):
            image_folder(folder)

    def test_captions_go_to_pictures_only(self, folder, add_picture):
        add_picture("a.png", "a")
        add_picture("a.mask.png", "of a mask")
        source = image_folder(folder)
        assert [example.captions for example in source] == [("a",)]
        assert source.notes == ["caption files without a picture: a.mask.txt"]


def row(mode, *values):
    """Make a picture that is one pixel high."""
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    return image


class TestDecoding:
    @pytest.mark.parametrize(
        ("image", "greys"),
        [
            (row("L", 0, 100, 255), [0, 100, 255]),
            (row("1", 0, 255), [0, 255]),
            (row("I;16", 0, 32768, 65535), [0, 128, 255]),
            (row("RGB", (9, 9, 9), WHITE, (255, 0, 0)), [9, 255, 76]),
            (row("RGBA", (0, 0, 0, 255), (80, 80, 80, 0), (*WHITE, 7)), [0, 80, 255]),
            (row("LA", (40, 0), (255, 255)), [40, 255]),
        ],
        ids=lambda value: getattr(value, "mode", ""),
    )
    def test_every_mode_gives_the_grey_of_its_colours(self, encode, image, greys):
        mask = decode_mask(encode(image, "PNG"))
        assert (mask.mode, list(mask.tobytes())) == ("L", greys)

    def test_a_palette_with_transparency(self, encode, recwarn):
        image = row("RGB", (0, 0, 0), WHITE).convert("P")
        transparency = bytes([0] * 256)
        assert list(decode_mask(encode(image, "PNG", transparency=transparency)).tobytes()) == [
            0,
            255,
        ]
        assert not recwarn.list

    def test_it_is_turned_upright(self, encode):
        exif = Image.Exif()
        exif[0x0112] = 6
        mask = decode_mask(encode(row("L", 10, 20, 30), "PNG", exif=exif))
        assert (mask.size, list(mask.tobytes())) == ((1, 3), [10, 20, 30])

    @pytest.mark.parametrize("data", [b"", b"hello"])
    def test_no_picture(self, data):
        with pytest.raises(BadPictureError):
            decode_mask(data)


@pytest.fixture
def scanned(folder):
    """Scan the folder with or without masks and return the pictures with the report."""

    def run(masks=True, **options):
        report = ScanReport()
        options = {"on_bad_image": "error", "masks": masks, **options}
        return list(scan(image_folder(folder), report, **options)), report

    return run


class TestScan:
    def test_pictures_load_their_masks(self, add_picture, scanned):
        add_picture("a.png", "a")
        add_picture("a.mask.png", colour=(100, 100, 100))
        add_picture("b.png", "b", size=(5, 9), colour=(1, 1, 1))
        add_picture("b-masklabel.png", size=(5, 9), colour=WHITE)
        (first, second), report = scanned()
        assert [first.load_mask().mode, first.load_mask().size] == ["L", (12, 8)]
        assert first.load_mask().getextrema() == (100, 100)
        assert second.load_mask().getextrema() == (255, 255)
        assert len({first.sha256, second.sha256, first.mask_sha256, second.mask_sha256}) == 4
        assert report.lines() == ["pictures: 2 found, 2 used, 0 skipped"]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_one_error_names_every_picture_without_a_usable_mask(
        self, folder, add_picture, encode, scanned, workers
    ):
        for name in ("black", "broken", "empty", "good", "missing", "other size", "shallow"):
            add_picture(f"{name}.png", "x")
            add_picture(f"{name}.mask.png", colour=WHITE)
        add_picture("black.mask.png", colour=(0, 0, 0))
        (folder / "broken.mask.png").write_bytes(b"not a picture")
        (folder / "empty.mask.png").write_bytes(b"")
        (folder / "missing.mask.png").unlink()
        add_picture("other size.mask.png", size=(8, 12), colour=WHITE)
        # One pixel is enough.
        grey = Image.new("L", (12, 8))
        grey.putpixel((3, 3), 1)
        (folder / "shallow.mask.png").write_bytes(encode(grey, "PNG"))
        with pytest.raises(UserError) as caught:
            scanned(workers=workers)
        assert caught.value.message.splitlines() == [
            "pictures without a usable mask: 5",
            "    black.png: its mask is entirely black, so nothing of it would be learned",
            "    broken.png: its mask cannot be read: not a picture in a known format",
            "    empty.png: its mask cannot be read: the file is empty",
            "    missing.png: it has no mask",
            "    other size.png: its mask is 8 x 12, the picture 12 x 8",
        ]
        for way in ("--masked_loss", "cat.mask.png for cat.png"):
            assert way in caught.value.hint

    def test_a_picture_without_its_mask_is_not_handed_out(self, folder, add_picture):
        add_picture("a.png", "a")
        add_picture("b.png", "b")
        add_picture("b.mask.png", colour=WHITE)
        report = ScanReport()
        pictures = scan(image_folder(folder), report, on_bad_image="error", masks=True)
        assert next(pictures).id == "b.png"
        with pytest.raises(UserError, match=r"a\.png: it has no mask"):
            next(pictures)
        assert report.used == 1

    def test_sizes_are_compared_upright(self, folder, add_picture, encode, scanned):
        exif = Image.Exif()
        exif[0x0112] = 6
        path = add_picture("a.jpg", "a")
        path.write_bytes(encode(Image.new("RGB", (12, 8)), "JPEG", exif=exif))
        add_picture("a.mask.png", size=(8, 12), colour=WHITE)
        (picture,), _ = scanned()
        assert picture.load_mask().size == picture.load().size == (8, 12)
        add_picture("a.mask.png", size=(12, 8), colour=WHITE)
        with pytest.raises(UserError, match=r"a\.jpg: its mask is 12 x 8, the picture 8 x 12"):
            scanned()
        (folder / "a.mask.png").write_bytes(encode(Image.new("L", (12, 8), 9), "PNG", exif=exif))
        (picture,), _ = scanned()
        assert picture.load_mask().size == (8, 12)

    def test_a_mask_that_vanishes_is_named(self, folder, add_picture):
        add_picture("a.png", "a")
        add_picture("a.mask.png", colour=WHITE)
        source = image_folder(folder)
        (folder / "a.mask.png").unlink()
        with pytest.raises(UserError, match=r"a\.png: its mask cannot be read: No such file"):
            list(scan(source, ScanReport(), on_bad_image="error", masks=True))

    def test_a_bad_picture_that_is_skipped_needs_no_mask(self, add_picture, scanned):
        add_picture("a.png", "a")
        add_picture("a.mask.png", colour=WHITE)
        add_picture("b.png", "b").write_bytes(b"")
        pictures, report = scanned(on_bad_image="skip")
        assert [picture.id for picture in pictures] == ["a.png"]
        assert report.skipped == 1

    def test_bad_masks_are_never_skipped(self, add_picture, scanned):
        add_picture("a.png", "a")
        with pytest.raises(UserError, match=r"a\.png: it has no mask"):
            scanned(on_bad_image="skip")

    def test_a_stream_raises_at_the_first(self, folder, add_picture):
        for name in ("a.png", "b.png"):
            add_picture(name, name)
        taken = []

        class Stream:
            name, streaming, notes = "stream", True, ()

            def __iter__(self):
                for example in image_folder(folder):
                    taken.append(example.id)
                    yield replace(example, read_mask=None)

        with pytest.raises(UserError, match="without a usable mask: 1") as caught:
            list(scan(Stream(), ScanReport(), on_bad_image="error", masks=True))
        assert taken == ["a.png"]
        assert "--train_data_dir" in caught.value.hint

    def test_masks_that_are_not_used_are_noted_and_not_looked_at(self, add_picture, scanned):
        for name in ("a", "b", "c"):
            add_picture(f"{name}.png", name, colour=(ord(name), 0, 0))
        add_picture("a.mask.png").write_bytes(b"broken")
        pictures, report = scanned(masks=False)
        assert report.lines()[1:] == ["1 mask not used: --masked_loss uses them"]
        assert {(picture.mask_sha256, picture.read_mask) for picture in pictures} == {(None, None)}
        with pytest.raises(AssertionError, match="masks=True"):
            pictures[0].load_mask()
        add_picture("b-masklabel.png")
        assert scanned(masks=False)[1].notes == ["2 masks not used: --masked_loss uses them"]

    def test_a_mask_that_changes_after_the_scan_is_an_error(self, add_picture, scanned):
        add_picture("a.png", "a")
        path = add_picture("a.mask.png", colour=WHITE)
        (picture,), _ = scanned()
        add_picture("a.mask.png", colour=(9, 9, 9))
        assert picture.load().size == (12, 8)
        with pytest.raises(UserError, match=r"the mask of a\.png has changed since the run began"):
            picture.load_mask()
        path.unlink()
        with pytest.raises(UserError, match=r"the mask of a\.png can no longer be read"):
            picture.load_mask()
