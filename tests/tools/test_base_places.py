"""What a new base may replace, what may not lead out of an old one, and what failure leaves."""

import json
import shutil
from pathlib import Path
from typing import Any

import made
import pytest
import torch
from safetensors.torch import load_file, save_file

import scumble
from scumble.errors import UserError
from scumble.families import locate
from scumble.formats.streaming import Entry
from scumble.tools.base_files import require_written
from scumble.tools.replaced import new_parents, replaced


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "merged"


@pytest.fixture
def base(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "base"))


def everything(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def old_folder(path: Path) -> Path:
    path.mkdir()
    (path / "a").write_text("old")
    return path


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError(28, "No space left")])
def test_the_old_folder_is_back_when_the_new_one_cannot_take_its_place(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = old_folder(tmp_path / "base")

    def interrupted(source: Path, target: Path) -> None:
        raise kind

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises((KeyboardInterrupt, UserError)), replaced(path) as new:
        new.mkdir()
    assert everything(tmp_path) == {"base/a": b"old"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_folder_or_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = old_folder(tmp_path / "base")
    with replaced(path) as new:
        new.mkdir()
        (new / "b").write_text("new")
        assert (path / "a").exists()
    with replaced(path / "b") as new:
        new.write_text("newer")
    assert everything(tmp_path) == {"base/b": b"newer"}


def test_folders_made_for_a_merge_that_fails_go_again(tiny_pipeline: Any, tmp_path: Path) -> None:
    adapter = made.weights(tiny_pipeline)
    for output in ("a/b/folder", "a/b/file.safetensors"):
        with pytest.raises(UserError):
            scumble.merge_files([(adapter, 1e38)], tmp_path / output, base=made.BASE, dtype="fp16")
        assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyboardInterrupt), new_parents(tmp_path / "a" / "b" / "c"):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_what_a_merge_reads_is_never_in_the_folder_it_replaces(
    tiny_pipeline: Any, base: Path, out: Path, tmp_path: Path
) -> None:
    adapter = made.weights(tiny_pipeline)
    scumble.merge_files([adapter], out, base=made.BASE)
    inside = scumble.write_adapter(adapter, out / "style.safetensors")
    before = everything(out)
    with pytest.raises(UserError, match=r"style\.safetensors is read, and lies in the output"):
        scumble.merge_files([inside], out, base=made.BASE, force=True)
    shutil.move(base, out / "base")
    with pytest.raises(UserError, match="base is read, and lies in the output"):
        scumble.merge_files([adapter], out, base=out / "base", force=True)
    (tmp_path / "linked").symlink_to(out / "base")
    with pytest.raises(UserError, match="base is read, and lies in the output"):
        scumble.merge_files([adapter], out, base=tmp_path / "linked", force=True)
    shutil.move(out / "base", base)
    source = shutil.copy(inside, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="is read, too"):
        scumble.merge_files([source], source, base=made.BASE, force=True)
    assert everything(out) == before


def test_files_that_no_base_has_are_named_and_kept(
    tiny_pipeline: Any, base: Path, out: Path
) -> None:
    adapter = made.weights(tiny_pipeline)
    (base / "notes.txt").write_text("of the base")
    scumble.merge_files([adapter], out, base=base)
    scumble.merge_files([adapter], out, base=base, force=True)
    assert (out / "notes.txt").read_text() == "of the base"
    (out / "notes.txt").write_text("mine")
    (out / "pictures").mkdir()
    (out / "pictures" / "a.png").touch()
    (out / "unet" / "style.safetensors").touch()
    before = everything(out)
    named = "no part of a base model: notes.txt, pictures/a.png, unet/style.safetensors"
    with pytest.raises(UserError, match=named):
        scumble.merge_files([adapter], out, base=made.BASE, force=True)
    assert everything(out) == before


@pytest.mark.parametrize("name", ["../secret", "/etc", "a/../../secret", "", "."])
def test_a_component_whose_name_is_a_path_is_refused(
    name: str, tiny_pipeline: Any, base: Path, out: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.json").write_text("{}")
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {name: ["a", "b"], "none": []}))
    with pytest.raises(UserError, match="lists a component whose name is none"):
        scumble.merge_files([made.weights(tiny_pipeline)], out, base=base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "secret"]


def test_a_list_of_components_that_is_none_is_refused(
    tiny_pipeline: Any, base: Path, out: Path
) -> None:
    found = locate(str(base))
    for text in ("[]", "{", "["):
        (base / "model_index.json").write_text(text)
        with pytest.raises(UserError, match=r"model_index\.json is damaged"):
            scumble.merge_files([made.weights(tiny_pipeline)], out, base=found)


def test_links_lead_nowhere_but_to_the_hubs_own_blobs(
    tiny_pipeline: Any, tiny_folder: Path, tmp_path: Path, out: Path
) -> None:
    repository = tmp_path / "models--ann--tiny"
    snapshot = Path(shutil.copytree(tiny_folder, repository / "snapshots" / ("0" * 40)))
    (repository / "blobs").mkdir()
    for number, path in enumerate(p for p in sorted(snapshot.rglob("*")) if p.is_file()):
        blob = path.rename(repository / "blobs" / f"{number}")
        path.symlink_to(blob)
    adapter = made.weights(tiny_pipeline)
    scumble.merge_files([adapter], out, base=snapshot)
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert everything(out).keys() == everything(tiny_folder).keys()
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (snapshot / "unet" / "more.json").symlink_to(secret)
    with pytest.raises(UserError, match=r"more\.json is a link that leads out"):
        scumble.merge_files([adapter], out, base=snapshot, force=True)
    assert "unet/more.json" not in everything(out)


def test_values_that_are_no_numbers_are_found_before_the_base_is_in_place(
    tiny_pipeline: Any, base: Path, out: Path
) -> None:
    path = base / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["quant_conv.bias"][0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"'quant_conv\.bias' holds NaN"):
        scumble.merge_files([made.weights(tiny_pipeline)], out, base=base)
    assert [path.name for path in out.parent.iterdir()] == ["base"]


def test_a_file_that_is_not_what_was_planned_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, path := tmp_path / "x.safetensors")
    whole = {"a": Entry(torch.float32, (2,)), "b": Entry(torch.float32, (3,))}
    require_written(path, whole, print)
    changes = [{"b": Entry(torch.float32, (4,))}, {"b": Entry(torch.float16, (3,))}]
    for change in (*changes, {"c": whole["b"]}):
        with pytest.raises(UserError, match=r"'[bc]' was not written as it should be"):
            require_written(path, whole | change, print)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_kind_of_number_hides_what_is_none(
    value: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    tensors = {"a": torch.ones(5, 5, dtype=dtype), "nothing": torch.empty(0, dtype=dtype)}
    entries = {key: Entry(dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
    save_file(tensors, path := tmp_path / "x.safetensors")
    require_written(path, entries, print)
    tensors["a"][2, 3] = float(value)
    save_file(tensors, path)
    with pytest.raises(UserError, match="'a' holds NaN or infinite"):
        require_written(path, entries, print)
