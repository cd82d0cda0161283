"""Weights read tensor by tensor equal those that the library loads, or are left to it."""

import gc
import json
import mmap
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from scumble.families import weight_file
from scumble.families.streamed import WEIGHTS_NAME, load_streamed
from scumble.families.weight_file import WeightFile
from scumble.lean.install import put_on
from scumble.lean.levels import LEVELS


@pytest.fixture
def unet_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder / "unet", tmp_path / "unet"))


def streamed(folder: Path, variant: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return load_streamed(lambda: UNet2DConditionModel, files, variant, dtype)


def same_as_the_library(folder: Path, dtype: torch.dtype, variant: str | None = None) -> bool:
    ours = streamed(folder, variant, dtype).state_dict()
    theirs = UNet2DConditionModel.from_pretrained(folder, torch_dtype=dtype, variant=variant)
    expected = theirs.state_dict()
    assert ours.keys() == expected.keys()
    assert {tensor.dtype for tensor in ours.values()} == {dtype}
    return all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_weight_is_the_librarys(unet_folder: Path, dtype: torch.dtype) -> None:
    assert same_as_the_library(unet_folder, dtype)


@pytest.mark.parametrize(("window", "huge"), [(1, 1), (50_000, 10_000), (1 << 26, 1 << 21)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_are_laid_out_as_asked(
    unet_folder: Path,
    dtype: torch.dtype,
    window: int,
    huge: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weight_file, "WINDOW_BYTES", window)
    monkeypatch.setattr(weight_file, "HUGE_BYTES", huge)
    files = sorted(path for path in unet_folder.iterdir() if path.is_file())
    wanted = streamed(unet_folder, None, dtype).state_dict()
    settings = files, None, dtype, torch.channels_last
    turned: Any = load_streamed(lambda: UNet2DConditionModel, *settings)
    for name, tensor in turned.state_dict().items():
        assert torch.equal(tensor, wanted[name])
        is_map = tensor.ndim == 4
        assert tensor.is_contiguous(memory_format=torch.channels_last) or not is_map
        assert tensor.is_contiguous() or is_map


def test_a_layout_is_the_one_that_lean_layers_would_give(unet_folder: Path) -> None:
    files = sorted(path for path in unet_folder.iterdir() if path.is_file())
    settings = files, None, torch.float32, torch.channels_last
    turned: Any = load_streamed(lambda: UNet2DConditionModel, *settings)
    plain = streamed(unet_folder).requires_grad_(False)
    put_on(plain, LEVELS["balanced"])
    for conv, other in zip(turned.modules(), plain.modules(), strict=True):
        if isinstance(conv, torch.nn.Conv2d):
            assert conv.weight.stride() == other.weight.stride()


def test_advice_that_a_system_does_not_take_changes_nothing(
    unet_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 9999)
    monkeypatch.setattr(weight_file, "HUGE_BYTES", 1)
    assert same_as_the_library(unet_folder, torch.float32)


def test_without_huge_pages(unet_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    monkeypatch.setattr(weight_file, "HUGE_BYTES", 1)
    assert same_as_the_library(unet_folder, torch.float32)


def test_a_caller_may_only_infer(unet_folder: Path) -> None:
    with torch.inference_mode():
        assert streamed(unet_folder) is not None


def test_a_file_that_has_been_read_holds_no_memory(unet_folder: Path) -> None:
    path = unet_folder / f"{WEIGHTS_NAME}.safetensors"
    opened = WeightFile(path, torch.bfloat16, torch.contiguous_format)
    tensors = dict(opened.tensors)
    opened.tensors.clear()
    opened.read()
    held = {id(found) for found in gc.get_referents(*vars(opened).values())}
    assert not any(type(found) is torch.Tensor for found in vars(opened).values())
    assert not held & {id(tensor) for tensor in tensors.values()}


def test_a_file_that_is_cut_while_it_is_read_is_no_weights(unet_folder: Path) -> None:
    path = unet_folder / f"{WEIGHTS_NAME}.safetensors"
    opened = WeightFile(path, torch.float32, torch.contiguous_format)
    cut_short(path)
    with pytest.raises(ValueError, match="changed"):
        opened.read()


def test_a_file_that_is_replaced_while_it_is_read_is_no_weights(unet_folder: Path) -> None:
    path = unet_folder / f"{WEIGHTS_NAME}.safetensors"
    opened = WeightFile(path, torch.float32, torch.contiguous_format)
    shutil.copy2(path, unet_folder / "other")
    (unet_folder / "other").rename(path)
    with pytest.raises(ValueError, match="replaced"):
        opened.read()


def test_numbers_that_begin_anywhere_are_left_to_the_library(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "odd").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert len(header) % 4
    with pytest.raises(ValueError, match="whole numbers"):
        WeightFile(tmp_path / "odd", torch.float32, torch.contiguous_format)


@pytest.mark.parametrize("huge", [1, 1 << 21])
def test_a_weight_that_is_replaced_is_let_go(
    unet_folder: Path, huge: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_file, "HUGE_BYTES", huge)
    kept = []

    def find_class() -> Any:
        try:
            raise ImportError  # as libraries do that look for one another, and remember it
        except ImportError as error:
            kept.append(error)
        return UNet2DConditionModel

    files = sorted(path for path in unet_folder.iterdir() if path.is_file())
    model: Any = load_streamed(find_class, files, None, torch.float32)
    weight = model.conv_in.weight
    place = weight.untyped_storage().data_ptr()
    weight.data = weight.detach().clone()
    tensors = [found for found in gc.get_objects() if type(found) is torch.Tensor]
    assert not any(tensor.untyped_storage().data_ptr() == place for tensor in tensors)
    assert kept


def test_several_files_and_variants(unet_folder: Path) -> None:
    model = UNet2DConditionModel.from_pretrained(unet_folder, torch_dtype=torch.float16)
    (unet_folder / f"{WEIGHTS_NAME}.safetensors").unlink()
    model.save_pretrained(unet_folder, max_shard_size="300KB", variant="fp16")
    assert len(list(unet_folder.glob("*-of-*.safetensors"))) > 1
    assert same_as_the_library(unet_folder, torch.float32, "fp16")
    assert streamed(unet_folder) is None


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def with_a_long_header(path: Path) -> None:
    path.write_bytes((1 << 60).to_bytes(8, "little") + path.read_bytes()[8:])


def change(path: Path, **tensors: torch.Tensor) -> None:
    save_file(load_file(path) | tensors, path)


def with_one_too_many(path: Path) -> None:
    change(path, more=torch.zeros(2))


def with_another_shape(path: Path) -> None:
    change(path, **{"conv_in.bias": torch.zeros(5)})


def with_integers(path: Path) -> None:
    change(path, **{"conv_in.bias": torch.zeros(32, dtype=torch.int32)})


def without_one(path: Path) -> None:
    tensors = load_file(path)
    del tensors["conv_in.bias"]
    save_file(tensors, path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "spoil",
    [
        cut_short,
        with_a_long_header,
        with_one_too_many,
        with_another_shape,
        with_integers,
        without_one,
        empty,
    ],
)
def test_what_does_not_fit_exactly_is_left_to_the_library(unet_folder: Path, spoil: Any) -> None:
    spoil(unet_folder / f"{WEIGHTS_NAME}.safetensors")
    assert streamed(unet_folder) is None


def test_a_configuration_that_cannot_be_read_is_left_to_the_library(unet_folder: Path) -> None:
    config = json.loads((unet_folder / "config.json").read_text())
    (unet_folder / "config.json").write_text(json.dumps(config | {"block_out_channels": [7]}))
    assert streamed(unet_folder) is None
