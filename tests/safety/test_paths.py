"""No name in a file leads out of the folder that the file belongs to."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from scumble import TrainConfig
from scumble.data.scan import ScanReport, scan
from scumble.data.sources import huggingface_dataset, image_folder
from scumble.errors import UserError
from scumble.formats.container import is_plain_name
from scumble.hub.pull import choose, local_adapter
from scumble.runs.listing import read_run
from scumble.runs.queue import JOB, Queue
from scumble.tools.base_parts import component_names
from scumble.training.checkpoints import CheckpointWriter, open_checkpoint
from scumble.training.class_pictures import MANIFEST as CLASS_MANIFEST
from scumble.training.class_pictures import _drawn
from scumble.ui.folders import Folders
from scumble.ui.shelf import Shelf
from scumble.ui.wishes import FROM_ADAPTER, Wishes

OUT = ["../secret.png", "a/../../secret.png", "{root}/secret.png", "//etc/hostname"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a picture in it, and one beside it that is nobody's business."""
    folder = tmp_path / "set"
    folder.mkdir()
    for path in (tmp_path / "secret.png", folder / "a.png"):
        Image.new("RGB", (8, 8), "red").save(path)
    return folder


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/b", "../a", "a\0", None, 3, ["a"]])
def test_no_name_of_a_file(name: object) -> None:
    assert not is_plain_name(name)
    assert is_plain_name("a b.c..d")


@pytest.mark.parametrize("out", OUT)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_beside_pictures(kind: str, out: str, folder: Path) -> None:
    out = out.format(root=folder.parent)
    rows = {"jsonl": json.dumps({"file_name": out, "text": "x"}), "csv": f"file_name,text\n{out},x"}
    (folder / f"metadata.{kind}").write_text(rows[kind])
    with pytest.raises(UserError, match="outside of"):
        image_folder(folder)


@pytest.fixture
def table(tmp_path: Path) -> Callable[[list[str]], Path]:
    """Writes a data set whose rows name their pictures."""
    import datasets

    def write(addresses: list[str]) -> Path:
        rows = {"image": addresses, "text": ["x"] * len(addresses)}
        place = tmp_path / "set" / "train.parquet"
        datasets.Dataset.from_dict(rows).to_parquet(str(place))
        return place.parent

    return write


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_a_data_set(
    streaming: bool, folder: Path, table: Callable[[list[str]], Path], tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "secret.zip", "w") as archive:
        archive.write(tmp_path / "secret.png", "a.png")
    outside = [f"{tmp_path}/secret.png", f"{folder}/../secret.png", "/etc/hostname"]
    outside += [f"file://{tmp_path}/secret.png", f"local://{tmp_path}/secret.png"]
    outside += [f"zip://a.png::{tmp_path}/secret.zip", f"zip://a.png::file://{tmp_path}/secret.zip"]
    outside += [f"simplecache::file://{tmp_path}/secret.png", "ssh://host/a.png", "memory://a"]
    name = str(table([f"{folder}/a.png", *outside]))
    source = huggingface_dataset(name, cache_dir=str(tmp_path / "cache"), streaming=streaming)
    report = ScanReport()
    (picture,) = scan(source, report, on_bad_image="skip")
    assert picture.captions == ("x",)
    (unread,) = report.names.values()
    assert len(unread) == len(outside)
    assert all("which is outside of the data set" in line for line in unread)


def checkpoint(tmp_path: Path) -> Path:
    places = {"train_data_dir": str(tmp_path / "set"), "output_dir": str(tmp_path / "out")}
    config = TrainConfig(pretrained_model_name_or_path="scumble-tiny", **places)
    return CheckpointWriter(config, "digest").write(1, lambda _: None, {"phase": "x"})


@pytest.mark.parametrize("out", ["../secret.png", "..", "", "/etc/hostname", "a/../b"])
def test_the_list_of_a_checkpoints_files(out: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop("sha256", None)
    open_checkpoint(folder)
    path.write_text(json.dumps(manifest))
    open_checkpoint(folder)
    manifest["files"][out] = next(iter(manifest["files"].values()))
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"is no complete checkpoint \(manifest.json is damaged"):
        open_checkpoint(folder)


@pytest.mark.parametrize("out", ["../secret.png", "drawn_00001.png/../../x", "/etc/hostname"])
def test_the_list_of_class_pictures(out: str, folder: Path) -> None:
    (folder / CLASS_MANIFEST).write_text(json.dumps({"origin": {}, "pictures": {out: "0"}}))
    with pytest.raises(UserError, match="names other files than drawn pictures"):
        _drawn(folder, {})


@pytest.mark.parametrize("out", ["../unet", "/etc", "unet/../../x", "", "a b"])
def test_the_list_of_a_bases_components(out: str, tmp_path: Path) -> None:
    index = {"_class_name": "StableDiffusionPipeline", out: ["diffusers", "X"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="whose name is none"):
        component_names(tmp_path)


@pytest.mark.parametrize("out", ["..", ".", "", "a/../..", "/etc", "a\0b"])
def test_names_of_queued_runs(out: str, tmp_path: Path) -> None:
    queue = Queue(tmp_path / "page" / "queue")
    ended = {"method": "text_to_image", "output_dir": "x", "queued": 1.0}
    for place in (queue.folder / "a", queue.folder.parent, tmp_path):
        place.mkdir(parents=True, exist_ok=True)
        (place / JOB).write_text(json.dumps(ended))
        (place / "process.json").write_text("{}")
    for act in (queue.forget, queue.stop, queue.resume):
        with pytest.raises(UserError, match="no run called"):
            act(out)
    assert queue.job("a").state == "ended"


@pytest.mark.parametrize("out", ["../../secret.safetensors", "/etc/hostname", ".."])
def test_what_a_record_says_of_its_result(out: str, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    record = {"status": "finished", "settings": {}, "result": out}
    (run / "run.json").write_text(json.dumps(record))
    assert read_run(run).result is None


@pytest.mark.parametrize("name", ["a/b@../../c", "a/b:../c.safetensors", "a/b@main:x/../../c"])
def test_names_of_files_on_the_hub(name: str) -> None:
    with pytest.raises(UserError, match="leads out of 'a/b'"):
        local_adapter(name)


def test_names_that_the_hub_lists() -> None:
    listed = ["../a.safetensors", "/etc/b.safetensors", "x/../../c.safetensors"]
    assert choose([*listed, "d.safetensors"], "a/b") == "d.safetensors"
    with pytest.raises(UserError, match="has no adapter file"):
        choose(listed, "a/b")


def test_the_base_that_an_adapter_names_in_the_page(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "page")
    folders.work.mkdir()
    secret = tmp_path / "secret"
    secret.mkdir()
    rows = {"unet.a.lora.down.weight": torch.ones(1, 2), "unet.a.lora.up.weight": torch.ones(2, 1)}

    class Chooser:
        widgets = ()

        def read(self) -> list[tuple[str, float]]:
            return [(Shelf(folders).source("a"), 1.0)]

    def asked(base: str) -> Any:
        save_file(rows, folders.work / "a.safetensors", {"base_model": base})
        wishes = Wishes(Chooser(), "mode", "columns", "prompt", "base", {})
        return wishes.config({"base": FROM_ADAPTER, "prompt": "x"}, folders, None)

    for outside in (str(secret), f"{folders.work}/../secret"):
        with pytest.raises(UserError, match="outside of the folders"):
            asked(outside)
    assert asked("scumble-tiny").prompt == ("x",)
