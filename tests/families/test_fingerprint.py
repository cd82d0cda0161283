"""The mark of a base: the same for the same weights in every form, another for other weights."""

import shutil
from pathlib import Path

import ldm_layout
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

import scumble
from scumble.families import BaseModel, locate
from scumble.families.fingerprint import MARKS, fingerprint, live_fingerprint
from scumble.formats import AdapterWeights, ModuleWeights


@pytest.fixture
def base(tiny_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    return folder


def rewrite(
    folder: Path, dtype: torch.dtype, change: float = 0.0, name: str = MARKS[0]
) -> str | None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    unet.get_parameter(name).data.view(-1)[0] += change
    unet.to(dtype).save_pretrained(folder / "unet")
    return fingerprint(locate(str(folder)), "unet")


def test_the_same_weights_have_one_mark_in_fp32_and_fp16(base: Path) -> None:
    first = rewrite(base, torch.float32)
    assert first is not None
    assert len(first) == 16
    assert rewrite(base, torch.float16) == first
    marks = {rewrite(base, torch.float16, change=0.5, name=name) for name in MARKS}
    assert first not in marks
    assert len(marks) == len(MARKS)


def test_weights_that_were_rounded_coarsely_have_none(base: Path) -> None:
    assert rewrite(base, torch.bfloat16) is None


def test_a_live_denoiser_has_the_mark_of_its_files(base: Path) -> None:
    mark = rewrite(base, torch.float32)
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    assert live_fingerprint(unet) == live_fingerprint(unet.half()) == mark


def test_a_base_that_an_adapter_was_merged_into_has_another(tmp_path: Path) -> None:
    base, module = locate("scumble-tiny"), MARKS[-1].removesuffix(".weight")
    unet = UNet2DConditionModel.from_pretrained(base.location, subfolder="unet")
    high, wide = unet.get_submodule(module).weight.shape
    entry = ModuleWeights("lora", {"down": torch.ones(1, wide), "up": torch.ones(high, 1)}, 1.0)
    adapter = AdapterWeights({"unet": {module: entry}})
    scumble.merge_files([adapter], tmp_path / "merged", base=base)
    mark = fingerprint(base, "unet")
    assert mark is not None
    assert fingerprint(locate(str(tmp_path / "merged")), "unet") not in (None, mark)


def test_one_file_has_the_mark_of_its_folder(tmp_path: Path) -> None:
    parts = {name: ldm_layout.build("sd1", name) for name in ("unet", "vae", "text_encoder")}
    path = tmp_path / "one.safetensors"
    save_file(ldm_layout.checkpoint("sd1", parts), path)
    base = BaseModel(str(path), str(path), "StableDiffusionPipeline")
    assert fingerprint(base, "unet") == live_fingerprint(parts["unet"])
    assert fingerprint(base, "unet") is not None


def test_a_base_that_is_not_at_hand_has_none(tmp_path: Path) -> None:
    assert fingerprint(BaseModel("a/b", "a/b", "StableDiffusionPipeline"), "unet") is None
    (tmp_path / "cut.safetensors").write_bytes(b"12345678")
    cut = str(tmp_path / "cut.safetensors")
    assert fingerprint(BaseModel(cut, cut, "StableDiffusionPipeline"), "unet") is None
