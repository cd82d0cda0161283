import threading
import time
from dataclasses import replace

import pytest
from PIL import Image

from scumble.data.pictures import Finding
from scumble.data.scan import ScanReport, scan
from scumble.data.sources import huggingface_dataset, image_folder
from scumble.errors import UserError


class Stream:
    """A source that can be gone through once, as one over the network."""

    name = "stream"
    streaming = True

    def __init__(self, examples):
        self.notes = []
        self.taken = []
        self._examples = examples

    def __iter__(self):
        for example in self._examples:
            self.taken.append(example.id)
            yield example


@pytest.fixture
def look(folder):
    """Scan the folder and return the pictures with the report."""

    def run(report=None, **options):
        report = report or ScanReport()
        options = {"on_bad_image": "error", **options}
        return list(scan(image_folder(folder), report, **options)), report

    return run


def test_pictures_know_their_size_captions_and_content(add_picture, look):
    add_picture("a.png", "red", size=(12, 8), colour=(255, 0, 0))
    add_picture("b.png", "blue", size=(5, 9), colour=(0, 0, 255))
    pictures, report = look()
    assert [(p.id, p.captions, p.width_px, p.height_px) for p in pictures] == [
        ("a.png", ("red",), 12, 8),
        ("b.png", ("blue",), 5, 9),
    ]
    assert pictures[1].load().getpixel((0, 0)) == (0, 0, 255)
    assert pictures[0].sha256 != pictures[1].sha256
    assert (report.found, report.used, report.skipped) == (2, 2, 0)
    assert report.lines() == ["pictures: 2 found, 2 used, 0 skipped"]


def test_the_size_is_that_of_the_upright_picture(add_picture, encode, look):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = add_picture("a.jpg", "turned")
    path.write_bytes(encode(Image.new("RGB", (12, 8)), "JPEG", exif=exif))
    (picture,), report = look()
    assert (picture.width_px, picture.height_px) == (8, 12)
    assert picture.load().size == (8, 12)
    assert report.names == {Finding.ROTATED: ["a.jpg"]}


def test_a_picture_that_changes_after_the_scan_is_an_error(add_picture, look):
    path = add_picture("a.png", "a")
    (picture,), _ = look()
    add_picture("a.png", colour=(1, 1, 1))
    with pytest.raises(UserError, match=r"a\.png has changed"):
        picture.load()
    path.unlink()
    with pytest.raises(UserError, match=r"a\.png can no longer be read"):
        picture.load()


class TestBadPictures:
    @pytest.fixture(autouse=True)
    def _one_good_two_bad(self, add_picture):
        add_picture("bad 1.png", "x").write_bytes(b"not a picture")
        add_picture("good.png", "x")
        add_picture("bad 2.png", "x").write_bytes(b"")

    def test_one_error_names_all_of_them_with_reasons(self, look):
        with pytest.raises(UserError) as caught:
            look()
        assert "cannot be used: 2" in caught.value.message
        assert "bad 1.png: not a picture in a known format" in caught.value.message
        assert "bad 2.png: the file is empty" in caught.value.message
        assert "--on_bad_image skip" in caught.value.hint

    def test_skip_passes_over_them_and_reports(self, look):
        pictures, report = look(on_bad_image="skip")
        assert [picture.id for picture in pictures] == ["good.png"]
        assert (report.found, report.used, report.skipped) == (3, 1, 2)
        assert report.lines()[1] == (
            "2 unreadable or truncated: bad 1.png (not a picture in a known format), "
            "bad 2.png (the file is empty)"
        )

    def test_a_stream_raises_at_the_first(self, folder):
        stream = Stream(list(image_folder(folder)))
        with pytest.raises(UserError, match="cannot be used: 1"):
            list(scan(stream, ScanReport(), on_bad_image="error"))
        assert stream.taken == ["bad 1.png"]

    def test_nothing_left(self, folder, look):
        (folder / "good.png").unlink()
        with pytest.raises(UserError, match="no picture is left to train on"):
            look(on_bad_image="skip")

    def test_a_file_that_vanishes_is_a_bad_picture(self, folder):
        source = image_folder(folder)
        (folder / "good.png").unlink()
        with pytest.raises(UserError, match=r"good\.png: No such file"):
            list(scan(source, ScanReport(), on_bad_image="error"))


class TestCaptions:
    def test_no_caption_anywhere_explains_the_ways_to_give_them(self, add_picture, look):
        add_picture("a.png")
        for choice in ("error", "empty"):
            with pytest.raises(UserError, match="no picture has a caption") as caught:
                look(on_missing_caption=choice)
            for way in ("cat.txt", "metadata.jsonl", "--instance_prompt"):
                assert way in caught.value.hint

    def test_only_blank_captions_are_no_captions(self, add_picture, look):
        add_picture("a.png", " ")
        with pytest.raises(UserError, match="no picture has a caption"):
            look()

    def test_some_missing_is_an_error_with_names(self, add_picture, look):
        add_picture("a.png", "yes")
        add_picture("b.png")
        add_picture("c.png")
        with pytest.raises(UserError, match=r"2 pictures have no caption: b\.png, c\.png"):
            look()

    def test_some_missing_may_be_empty(self, add_picture, look):
        add_picture("a.png", "yes")
        add_picture("b.png")
        pictures, report = look(on_missing_caption="empty")
        assert [picture.captions for picture in pictures] == [("yes",), ("",)]
        assert report.names[Finding.NO_CAPTION] == ["b.png"]

    def test_the_default_fills_missing_and_blank_ones(self, add_picture, look):
        add_picture("a.png", "own")
        add_picture("b.png")
        add_picture("c.png", "")
        pictures, _ = look(default_captions=["a photo of sks dog"])
        default = ("a photo of sks dog",)
        assert [picture.captions for picture in pictures] == [("own",), default, default]

    def test_every_default_caption_goes_to_a_picture_without_one(self, add_picture, look):
        add_picture("a.png", "own")
        add_picture("b.png", colour=(1, 1, 1))
        pictures, report = look(default_captions=["one", "two"])
        assert [picture.captions for picture in pictures] == [("own",), ("one", "two")]
        assert report.notes == ["2 ready captions: used by 1 picture, own captions by 1"]

    def test_the_report_counts_who_uses_the_default_if_there_was_a_choice(self, add_picture, look):
        add_picture("a.png")
        assert look(default_captions=["x"])[1].notes == []
        add_picture("b.png", "own")
        add_picture("c.png", "")
        notes = look(default_captions=["x"])[1].notes
        assert notes == ["the one caption for all: used by 2 pictures, own captions by 1"]
        add_picture("a.png", "own")
        add_picture("c.png", "own")
        notes = look(default_captions=["x"])[1].notes
        assert notes == ["the one caption for all: used by 0 pictures, own captions by 3"]
        assert look()[1].notes == []

    def test_own_captions_can_be_ignored_and_the_report_says_how_many(
        self, folder, add_picture, look
    ):
        add_picture("a.png", "own", colour=(1, 1, 1))
        add_picture("b.png", " ", colour=(2, 2, 2))
        add_picture("c.png", colour=(3, 3, 3))
        add_picture("d.png")
        rows = '{"file_name": "d.png", "text": ["one", "two"]}'
        (folder / "metadata.jsonl").write_text(rows)
        pictures, report = look(default_captions=["x", "y"], own_captions=False)
        assert [picture.captions for picture in pictures] == [("x", "y")] * 4
        assert report.lines()[1:] == [
            "3 captions found but ignored: all pictures use 2 ready captions"
        ]

    def test_ignoring_all_captions_without_another_is_an_error(self, add_picture, look):
        add_picture("a.png", "own")
        with pytest.raises(UserError, match="own captions are ignored, and there is no other"):
            look(own_captions=False)

    def test_a_data_set_without_captions_gets_the_default_ones(self, tmp_path, encode):
        import datasets

        data = [encode(Image.new("RGB", (4, 4), (n, n, n)), "PNG") for n in range(2)]
        cells = [{"bytes": one, "path": None} for one in data]
        features = datasets.Features({"image": datasets.Image()})
        table = datasets.Dataset.from_dict({"image": cells}, features=features)
        (tmp_path / "set").mkdir()
        table.to_parquet(tmp_path / "set" / "train.parquet")
        for streaming in (False, True):
            source = huggingface_dataset(
                str(tmp_path / "set"),
                caption_column=None,
                cache_dir=str(tmp_path / "cache"),
                streaming=streaming,
            )
            options = {"on_bad_image": "error", "default_captions": ["one", "two"]}
            pictures = list(scan(source, ScanReport(), **options))
            assert [picture.captions for picture in pictures] == [("one", "two")] * 2
            assert pictures[1].load().getpixel((0, 0)) == (1, 1, 1)
            assert {example.read_mask for example in source} == {None}

    def test_a_blank_caption_beside_others_is_kept_and_reported(self, add_picture, look):
        add_picture("a.png", "yes")
        add_picture("b.png", "")
        pictures, report = look()
        assert [picture.captions for picture in pictures] == [("yes",), ("",)]
        assert report.names[Finding.EMPTY_CAPTION] == ["b.png"]

    def test_blanks_in_a_list_are_dropped(self, folder, add_picture):
        add_picture("a.png", "x")
        (example,) = image_folder(folder)
        source = Stream([replace(example, captions=("one", " ", "two"))])
        (picture,) = scan(source, ScanReport(), on_bad_image="error")
        assert picture.captions == ("one", "two")

    def test_a_stream_raises_at_the_first(self, folder, add_picture):
        for name in ("a.png", "b.png"):
            add_picture(name)
        stream = Stream(list(image_folder(folder)))
        with pytest.raises(UserError, match="no picture has a caption"):
            list(scan(stream, ScanReport(), on_bad_image="error"))
        assert stream.taken == ["a.png"]


class TestReport:
    def test_duplicates_name_the_first(self, add_picture, look):
        for name in ("a.png", "b.png", "c.png"):
            add_picture(name, name)
        add_picture("d.png", "d", colour=(0, 0, 0))
        pictures, report = look()
        assert len(pictures) == 4
        assert report.names == {
            Finding.DUPLICATE: ["b.png (same as a.png)", "c.png (same as a.png)"]
        }

    def test_upscaled_is_measured_against_the_pictures_own_bucket(self, add_picture, look):
        add_picture("exact.png", "x", size=(64, 64), colour=(1, 1, 1))
        add_picture("wide.png", "x", size=(80, 48), colour=(2, 2, 2))
        add_picture("small.png", "x", size=(63, 80), colour=(3, 3, 3))
        _, report = look(ScanReport(buckets=[(48, 80), (64, 64)]))
        assert report.names == {Finding.UPSCALED: ["small.png"]}

    def test_long_lists_are_cut_and_notes_follow(self, folder, add_picture, look):
        for number in range(9):
            add_picture(f"{number}.png", "", colour=(number, 0, 0))
        add_picture("z.png", "z")
        (folder / "orphan.txt").write_text("?")
        _, report = look()
        assert report.lines()[1:] == [
            "9 with an empty caption: 0.png, 1.png, 2.png, 3.png, 4.png and 4 more",
            "caption files without a picture: orphan.txt",
        ]

    def test_whoever_stops_early_gets_the_notes_too(self, folder, add_picture):
        for name in ("a.png", "b.png", "c.png"):
            add_picture(name, "x")
        add_picture("lost.mask.png")
        report = ScanReport()
        pictures = scan(image_folder(folder), report, on_bad_image="error", default_captions=["y"])
        next(pictures)
        pictures.close()
        assert report.notes == [
            "masks without a picture: lost.mask.png",
            "the one caption for all: used by 0 pictures, own captions by 1",
        ]

    def test_progress_counts_every_file(self, add_picture, look):
        for name in ("a.png", "b.png"):
            add_picture(name, "x")
        counts = []
        look(progress=counts.append)
        assert counts == [1, 2]


class TestWorkers:
    def test_threads_decode_at_the_same_time_and_keep_the_order(self, folder, add_picture):
        for number in range(12):
            add_picture(f"{number:02}.png", "x", colour=(number, 0, 0))
        together = threading.Barrier(3, timeout=5)

        def slowed(number, example):
            def read():
                together.wait()
                time.sleep(0.002 * (3 - number % 3))
                return example.read()

            return replace(example, read=read)

        source = Stream([slowed(n, example) for n, example in enumerate(image_folder(folder))])
        pictures = list(scan(source, ScanReport(), on_bad_image="error", workers=3))
        assert [picture.id for picture in pictures] == [f"{n:02}.png" for n in range(12)]

    def test_a_stream_is_read_only_a_little_ahead(self, folder, add_picture):
        for number in range(30):
            add_picture(f"{number:02}.png", "x")
        stream = Stream(list(image_folder(folder)))
        pictures = scan(stream, ScanReport(), on_bad_image="error", workers=2)
        next(pictures)
        assert len(stream.taken) <= 5
        pictures.close()
