import csv
import errno
import json
import os
import re
import unicodedata
import zipfile

import pytest
from PIL import Image

from scumble.data.sources import huggingface_dataset, image_folder
from scumble.errors import UserError


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def captions_of(source):
    return {example.id: example.captions for example in source}


class TestSidecars:
    def test_recursive_sorted_and_hidden_files_passed_over(self, folder, add_picture):
        for name in ("b.png", "a ü.JPG", "sub/c.png", ".hidden.png", ".git/d.png"):
            add_picture(name, "caption of " + name)
        assert captions_of(image_folder(folder)) == {
            "a ü.JPG": ("caption of a ü.JPG",),
            "b.png": ("caption of b.png",),
            "sub/c.png": ("caption of sub/c.png",),
        }
        assert [example.id for example in image_folder(folder)] == ["a ü.JPG", "b.png", "sub/c.png"]

    def test_the_whole_stripped_file_is_one_caption_without_byte_order_mark(
        self, folder, add_picture
    ):
        add_picture("a.png")
        (folder / "a.txt").write_bytes(b"\xef\xbb\xbf  one\ntwo \n")
        assert captions_of(image_folder(folder)) == {"a.png": ("one\ntwo",)}

    def test_txt_wins_over_caption_and_a_note_says_so(self, folder, add_picture):
        for name in "abc":
            add_picture(f"{name}.png")
        (folder / "a.txt").write_text("from txt")
        (folder / "c.TXT").write_text("from TXT")
        for name in "abc":
            (folder / f"{name}.caption").write_text("from caption")
        source = image_folder(folder)
        assert captions_of(source) == {
            "a.png": ("from txt",),
            "b.png": ("from caption",),
            "c.png": ("from TXT",),
        }
        assert source.notes == [
            "caption files unused because another one has the same name: a.caption, c.caption"
        ]

    def test_blank_files_and_absent_files_differ(self, folder, add_picture):
        add_picture("blank.png", " \n")
        add_picture("none.png")
        assert captions_of(image_folder(folder)) == {"blank.png": ("",), "none.png": ()}

    def test_notes_name_orphans_shared_stems_and_other_types(self, folder, add_picture):
        add_picture("a.png", "shared")
        add_picture("a.jpg")
        (folder / "lost.txt").write_text("whose?")
        for name in ("x.heic", "y.HEIC", "z.mp4"):
            (folder / name).write_bytes(b"?")
        notes = "\n".join(image_folder(folder).notes)
        assert "caption files without a picture: lost.txt" in notes
        assert "shared by pictures of the same name: a.txt" in notes
        assert "files of other types are ignored: 2 x .heic, 1 x .mp4" in notes
        assert captions_of(image_folder(folder)) == {"a.jpg": ("shared",), "a.png": ("shared",)}

    def test_a_tidy_folder_has_no_notes(self, folder, add_picture):
        add_picture("a.png", "a")
        assert image_folder(folder).notes == []

    def test_bytes_are_read_when_asked_for(self, folder, add_picture):
        path = add_picture("a.png", "a")
        (example,) = image_folder(folder)
        path.write_bytes(b"changed later")
        assert example.read() == b"changed later"

    def test_captions_in_another_encoding_are_named(self, folder, add_picture):
        add_picture("a.png")
        (folder / "a.txt").write_bytes("café".encode("latin-1"))
        with pytest.raises(UserError, match=r"a\.txt is not valid UTF-8"):
            image_folder(folder)


class TestMetadata:
    def test_jsonl_with_lists_in_a_subfolder(self, folder, add_picture):
        add_picture("a.png")
        add_picture("sub/b.png")
        write_rows(folder / "metadata.jsonl", [{"file_name": "a.png", "text": ["one", " two "]}])
        write_rows(folder / "sub/metadata.jsonl", [{"file_name": "b.png", "text": "three"}])
        assert captions_of(image_folder(folder)) == {
            "a.png": ("one", "two"),
            "sub/b.png": ("three",),
        }

    def test_csv_with_a_column_of_another_name(self, folder, add_picture):
        add_picture("a.png")
        with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["file_name", "label"], ["a.png", 'says "hi",\nthen goes']])
        source = image_folder(folder, caption_column="label")
        assert captions_of(source) == {"a.png": ('says "hi",\nthen goes',)}

    def test_metadata_wins_over_a_text_file_and_a_note_says_so(self, folder, add_picture):
        add_picture("a.png", "from the text file")
        add_picture("b.png", "kept")
        rows = [{"file_name": "a.png", "text": "from metadata"}, {"file_name": "b.png"}]
        write_rows(folder / "metadata.jsonl", rows)
        source = image_folder(folder)
        assert captions_of(source) == {"a.png": ("from metadata",), "b.png": ("kept",)}
        assert source.notes == ["captions in metadata and in text files, metadata is used: a.png"]

    def test_rows_without_a_picture_are_noted_by_name(self, folder, add_picture):
        add_picture("a.png")
        write_rows(
            folder / "metadata.jsonl",
            [{"file_name": "a.png", "text": "a"}, {"file_name": "gone.png", "text": "b"}],
        )
        assert image_folder(folder).notes == ["metadata rows without a picture: gone.png"]

    @pytest.mark.parametrize(("on_disk", "typed"), [("NFD", "NFC"), ("NFC", "NFD")])
    def test_composed_and_decomposed_names_are_the_same(self, folder, add_picture, on_disk, typed):
        add_picture(unicodedata.normalize(on_disk, "é.png"))
        name = unicodedata.normalize(typed, "é.png")
        write_rows(folder / "metadata.jsonl", [{"file_name": name, "text": "accent"}])
        assert list(captions_of(image_folder(folder)).values()) == [("accent",)]

    def test_several_rows_give_a_picture_several_captions(self, folder, add_picture):
        add_picture("a.png")
        rows = [{"file_name": "a.png", "text": text} for text in ("one", "two")]
        write_rows(folder / "metadata.jsonl", rows)
        assert captions_of(image_folder(folder)) == {"a.png": ("one", "two")}

    @pytest.mark.parametrize("name", ["../outside.png", "sub/../../outside.png", "/etc/passwd"])
    def test_names_outside_of_the_folder_are_refused(self, folder, add_picture, name):
        add_picture("a.png")
        (folder.parent / "outside.png").write_bytes(b"")
        write_rows(folder / "metadata.jsonl", [{"file_name": name, "text": "x"}])
        with pytest.raises(UserError, match=f"'{name}', which is outside"):
            image_folder(folder)

    def test_dots_that_stay_inside_are_fine(self, folder, add_picture):
        add_picture("sub/a.png")
        write_rows(folder / "metadata.jsonl", [{"file_name": "./x/../sub/a.png", "text": "in"}])
        assert captions_of(image_folder(folder)) == {"sub/a.png": ("in",)}

    def test_a_missing_column_names_those_found_and_the_nearest(self, folder, add_picture):
        add_picture("a.png")
        write_rows(folder / "metadata.jsonl", [{"file_name": "a.png", "texts": "x", "tag": 1}])
        with pytest.raises(UserError, match="file_name, texts, tag") as caught:
            image_folder(folder)
        assert caught.value.hint == "Did you mean --caption_column texts?"

    @pytest.mark.parametrize(
        ("line", "complaint"),
        [
            ('{"file_name": "a.png", "text":', "line 2 is not JSON"),
            ('["a.png", "x"]', "line 2 is not a JSON object"),
            ('{"text": "x"}', "line 2 has no file_name"),
            ('{"file_name": "a.png", "text": 5}', "line 2: the caption is not text: 5"),
        ],
    )
    def test_a_bad_row_is_named(self, folder, add_picture, line, complaint):
        add_picture("a.png")
        good = '{"file_name": "a.png", "text": "x"}\n'
        (folder / "metadata.jsonl").write_text(good + line)
        with pytest.raises(UserError, match=complaint):
            image_folder(folder)

    def test_metadata_that_names_no_file_at_all(self, folder, add_picture):
        add_picture("a.png")
        (folder / "metadata.csv").write_text("text\nx\n")
        with pytest.raises(UserError, match="names no picture"):
            image_folder(folder)


class TestWrongFolder:
    def test_missing(self, tmp_path):
        with pytest.raises(UserError, match="there is no folder"):
            image_folder(tmp_path / "nope")

    def test_a_file(self, add_picture):
        with pytest.raises(UserError, match="is a file, not a folder"):
            image_folder(add_picture("a.png"))

    def test_a_part_that_cannot_be_read(self, folder, add_picture, monkeypatch):
        add_picture("a.png")
        add_picture("closed/b.png")
        scandir = os.scandir

        def guarded(path):
            if str(path).endswith("closed"):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", guarded)
        with pytest.raises(UserError, match="closed cannot be read: Permission denied"):
            image_folder(folder)

    def test_empty_says_what_else_is_there(self, folder):
        (folder / "a.heic").write_bytes(b"?")
        with pytest.raises(UserError, match=r"no pictures in .*1 x \.heic"):
            image_folder(folder)


@pytest.fixture(params=[False, True], ids=["downloaded", "streaming"])
def streaming(request):
    return request.param


@pytest.fixture
def parquet(tmp_path, encode):
    """Write a Parquet data set with lists of captions; return its folder and its pictures.

    Its third picture is absent, and another picture column holds what cannot be decoded.
    """
    import datasets

    pictures = [encode(Image.new("RGB", (4, 4), (n, n, n)), "PNG") for n in range(2)]
    table = datasets.Dataset.from_dict(
        {
            "picture": [{"bytes": data, "path": None} for data in pictures] + [None],
            "mask": [{"bytes": b"broken", "path": None}] * 3,
            "captions": [["a", "b"], ["c"], None],
            "number": [1, 2, 3],
        },
        features=datasets.Features(
            {
                "picture": datasets.Image(),
                "mask": datasets.Image(),
                "captions": datasets.List(datasets.Value("string")),
                "number": datasets.Value("int64"),
            }
        ),
    )
    (tmp_path / "table").mkdir()
    table.to_parquet(tmp_path / "table" / "train.parquet")
    return str(tmp_path / "table"), pictures


@pytest.fixture
def open_dataset(tmp_path, streaming):
    def open_it(name, **options):
        cache_dir = str(tmp_path / "cache")
        return huggingface_dataset(name, cache_dir=cache_dir, streaming=streaming, **options)

    return open_it


class TestHuggingFace:
    def test_a_local_folder_gives_the_files_own_bytes(
        self, folder, add_picture, open_dataset, streaming
    ):
        path = add_picture("a.png")
        write_rows(folder / "metadata.jsonl", [{"file_name": "a.png", "text": "hello"}])
        source = open_dataset(str(folder))
        (example,) = source
        assert (example.id, example.captions) == (f"{folder}[0]", ("hello",))
        assert example.read() == path.read_bytes()
        assert source.streaming is streaming

    def test_pictures_inside_an_archive(self, folder, encode, open_dataset):
        data = encode(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG")
        with zipfile.ZipFile(folder / "train.zip", "w") as archive:
            archive.writestr("a.png", data)
            archive.writestr("metadata.jsonl", '{"file_name": "a.png", "text": "zipped"}')
        (example,) = open_dataset(str(folder))
        assert (example.captions, example.read()) == (("zipped",), data)

    def test_parquet_with_lists_of_captions(self, parquet, open_dataset):
        name, pictures = parquet
        source = open_dataset(name, image_column="picture", caption_column="captions")
        assert [example.captions for example in source] == [("a", "b"), ("c",), ()]
        first, second, absent = source
        assert [first.read(), second.read()] == pictures
        with pytest.raises(ValueError, match="the row holds no picture"):
            absent.read()

    def test_no_caption_column(self, parquet, open_dataset):
        name, pictures = parquet
        source = open_dataset(name, image_column="picture", caption_column=None)
        assert [example.captions for example in source] == [()] * 3
        assert [example.read() for example in list(source)[:2]] == pictures

    def test_a_missing_caption_column_is_no_matter_where_none_is_needed(
        self, parquet, open_dataset
    ):
        name, _ = parquet
        with pytest.raises(UserError, match="--caption_column"):
            open_dataset(name, image_column="picture")
        source = open_dataset(name, image_column="picture", needs_captions=False)
        assert [example.captions for example in source] == [()] * 3
        options = {"image_column": "picture", "caption_column": "captions"}
        source = open_dataset(name, **options, needs_captions=False)
        assert [example.captions for example in source] == [("a", "b"), ("c",), ()]

    def test_a_split_can_be_cut(self, parquet, tmp_path):
        columns = {"image_column": "picture", "caption_column": "captions"}
        cache_dir = str(tmp_path / "cache")
        source = huggingface_dataset(parquet[0], split="train[1:]", cache_dir=cache_dir, **columns)
        assert [example.captions for example in source] == [("c",), ()]

    @pytest.mark.parametrize(
        ("columns", "flag", "close"),
        [
            ({"image_column": "pictures"}, "image_column", "picture"),
            (
                {"image_column": "picture", "caption_column": "caption"},
                "caption_column",
                "captions",
            ),
        ],
    )
    def test_a_wrong_column(self, parquet, open_dataset, columns, flag, close):
        with pytest.raises(UserError, match="picture, mask, captions, number") as caught:
            open_dataset(parquet[0], **columns)
        assert caught.value.hint == f"Did you mean --{flag} {close}?"

    @pytest.mark.parametrize("column", ["number", "captions"])
    def test_a_column_that_holds_no_pictures(self, parquet, open_dataset, column):
        with pytest.raises(UserError, match=f"'{column}' of the data set .* no pictures"):
            open_dataset(parquet[0], image_column=column, caption_column="captions")

    def test_captions_that_are_not_text(self, parquet, open_dataset):
        source = open_dataset(parquet[0], image_column="picture", caption_column="number")
        with pytest.raises(UserError, match=re.escape("[0]: the caption is not text: 1")):
            list(source)

    def test_an_unknown_name(self, open_dataset, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match="no-such-folder cannot be found or reached"):
            open_dataset("no-such-folder")

    def test_an_unknown_split(self, parquet, open_dataset):
        with pytest.raises(UserError, match=r"cannot be loaded: .*trian"):
            open_dataset(parquet[0], split="trian")
