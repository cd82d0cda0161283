"""What every test may use: the built-in base as diffusers opens it, a small UNet, no network."""

import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

# Before torch and the Hub's client are imported: both read these only once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
for library in ("DATASETS", "DIFFUSERS", "TRANSFORMERS"):
    os.environ.setdefault(f"{library}_VERBOSITY", "critical")

SMALL_UNET = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no worker waits for another at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def shared_counts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What steps were counted to cost: the same in every test, and dear to count."""
    return tmp_path_factory.mktemp("counts")


@pytest.fixture(autouse=True)
def own_cache(
    tmp_path_factory: pytest.TempPathFactory, shared_counts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give each test a cache folder of its own, away from the user's, with nothing but counts."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "scumble").mkdir()
    (folder / "scumble" / "counts").symlink_to(shared_counts)
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(folder))


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    """The built-in base's folder, in diffusers' layout."""
    return Path(str(files("scumble") / "assets" / "tiny"))


@pytest.fixture
def tiny_pipeline(tiny_folder: Path) -> Any:
    """A fresh pipeline of the built-in base, opened by diffusers alone, in fp32."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def tiny_unet() -> Callable[..., Any]:
    """Builder of fresh small denoisers with the same random weights; options change the widths."""
    import torch
    from diffusers import UNet2DConditionModel

    def build(**changes: Any) -> Any:
        torch.manual_seed(0)
        return UNet2DConditionModel.from_config(SMALL_UNET | changes).eval().requires_grad_(False)

    return build
