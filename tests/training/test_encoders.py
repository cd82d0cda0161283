"""Encoders are loaded when something is not encoded yet, and what they give never goes stale."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scumble.errors import UserError
from scumble.families import FAMILIES, Components, family_of, locate
from scumble.training import counts, forecast
from scumble.training import encoders as encoders_module
from scumble.training.encoders import encoders_of, model_key
from scumble.training.methods import METHODS
from scumble.training.opening import open_workshop
from scumble.training.runtime import prepare_runtime


@pytest.fixture
def base_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A base of the test's own: others link the built-in one, which changes its files' stamps."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "base"))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all components that are loaded."""
    family, names = FAMILIES["stable_diffusion"], []
    load = type(family).load

    def noted(self: Any, components: Any, wanted: Any, dtype: Any) -> None:
        names.extend(name for name in wanted if name not in components)
        load(self, components, wanted, dtype)

    monkeypatch.setattr(type(family), "load", noted)
    return names


def opened(config: Any) -> Any:
    return open_workshop(config, prepare_runtime(config))


def test_a_second_run_loads_the_denoiser_alone(
    make_config: Any, base_folder: Path, loaded: list[str]
) -> None:
    first = opened(make_config(pretrained_model_name_or_path=str(base_folder)))
    assert sorted(loaded) == ["text_encoder", "unet", "vae"]
    loaded.clear()
    second = opened(make_config(pretrained_model_name_or_path=str(base_folder)))
    assert loaded == ["unet"]
    keys = [[e.latent_keys for e in w.gathered.train.examples] for w in (first, second)]
    assert keys[0] == keys[1]
    caption = next(iter(first.gathered.captions()))
    states = [workshop.texts([caption])["states"] for workshop in (first, second)]
    assert torch.equal(*states)


def test_a_new_caption_loads_the_text_encoder(
    make_config: Any, base_folder: Path, pictures: Path, loaded: list[str]
) -> None:
    opened(make_config(pretrained_model_name_or_path=str(base_folder)))
    loaded.clear()
    (pictures / "0.txt").write_text("a caption never seen before")
    opened(make_config(pretrained_model_name_or_path=str(base_folder)))
    assert sorted(loaded) == ["text_encoder", "unet"]


def test_a_new_picture_loads_the_vae(
    make_config: Any, base_folder: Path, pictures: Path, loaded: list[str]
) -> None:
    opened(make_config(pretrained_model_name_or_path=str(base_folder)))
    loaded.clear()
    for suffix in ("png", "txt"):
        shutil.copy(pictures / f"0.{suffix}", pictures / f"again.{suffix}")
    from PIL import Image

    Image.new("RGB", (64, 64), "orange").save(pictures / "again.png")
    opened(make_config(pretrained_model_name_or_path=str(base_folder)))
    assert sorted(loaded) == ["unet", "vae"]


def test_another_precision_is_encoded_anew(make_config: Any, loaded: list[str]) -> None:
    opened(make_config())
    loaded.clear()
    opened(make_config(mixed_precision="bf16"))
    assert sorted(loaded) == ["text_encoder", "unet", "vae"]


@pytest.mark.parametrize("name", ["vae", "text_encoder"])
def test_what_is_remembered_is_forgotten_with_the_file(
    make_config: Any, base_folder: Path, name: str, loaded: list[str]
) -> None:
    config = make_config(pretrained_model_name_or_path=str(base_folder))

    def key() -> str:
        base = locate(str(base_folder))
        components = Components(base)
        found = encoders_of(config, family_of(base), components, prepare_runtime(config))
        return found.key(name)

    before = key()
    assert loaded == [name]
    assert key() == before
    assert loaded == [name]
    (path,) = (base_folder / name).glob("*.safetensors")
    tensors = load_file(path)
    first = sorted(tensors)[0]
    save_file(tensors | {first: tensors[first] + 1}, path, {"format": "pt"})
    assert key() != before
    assert loaded == [name, name]


def test_the_key_is_that_of_the_weights(make_config: Any, tiny_folder: Path) -> None:
    config, base = make_config(), locate(str(tiny_folder))
    encoders = encoders_of(config, family_of(base), Components(base), prepare_runtime(config))
    for _ in range(2):
        assert encoders.key("vae") == model_key(tiny_vae(tiny_folder))


def tiny_vae(folder: Path) -> torch.nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)


def test_a_cache_that_cannot_be_written_serves_as_well(
    make_config: Any, monkeypatch: pytest.MonkeyPatch, loaded: list[str]
) -> None:
    opened(make_config())

    def full(*_: Any) -> None:
        raise UserError("the disk is full", "Make room.")

    monkeypatch.setattr(encoders_module, "write_atomically", full)
    monkeypatch.setattr(counts, "write_atomically", full)
    config = make_config(rank=37)  # counted by no other test
    workshop = opened(config)
    loaded.clear()
    assert forecast.foretell(workshop, METHODS[config.method](workshop), "low").step.saved_bytes
    base = locate(config.pretrained_model_name_or_path)
    runtime = prepare_runtime(make_config(mixed_precision="bf16"))
    encoders = encoders_of(config, family_of(base), Components(base), runtime)
    assert encoders.key("vae")
    assert loaded == ["vae"]


def test_nothing_is_remembered_where_nothing_is_cached(make_config: Any, loaded: list[str]) -> None:
    for _ in range(2):
        loaded.clear()
        opened(make_config(cache_latents=False))
        assert sorted(loaded) == ["text_encoder", "unet", "vae"]
