"""Weights read tensor by tensor equal those that the library loads, or are left to it."""

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from scumble.families import weight_file
from scumble.families.streamed import WEIGHTS_NAME, load_streamed


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


def test_a_weight_that_is_replaced_is_let_go(unet_folder: Path) -> None:
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
