"""The architecture's own test: an adapter type and a family from outside, and nothing in src knows.

Both are defined here, added to the registries, and taken from training over a saved file to a
picture. What that took is what an extension costs.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

import scumble
from scumble.adapters import ADAPTERS, Adapter, blend
from scumble.adapters.inject import Target, inject
from scumble.families import FAMILIES, Components
from scumble.families.stable_diffusion import StableDiffusion

PICTURES = Path(__file__).parents[1] / "examples" / "data" / "creature_pip"
PROMPT = "a red circle"


class ChannelGain(Adapter):
    """Scales each output channel of a layer: no low-rank product, and no cheaper branch."""

    gain: Tensor
    file_names: ClassVar[Mapping[str, str]] = {"gain": "channel_gain"}
    needs_weight = True

    def shapes(self, like: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:  # noqa: ARG002
        return {"gain": (self.rank, self.layer.weight_shape[0])}

    @torch.no_grad()
    def initialise(self, init: str, generator: torch.Generator, weight: torch.Tensor) -> None:  # noqa: ARG002
        self.gain.zero_()

    def delta(self, weight: Tensor | None = None) -> Tensor:
        gain_O = self.scale * self.gain.sum(0)
        return weight * gain_O.view(-1, *[1] * (weight.ndim - 1))

    @classmethod
    def rank_of(cls, tensors: Mapping[str, Tensor]) -> int:
        return int(tensors["gain"].shape[0])


class ToyPipeline(StableDiffusionPipeline):
    """A pipeline class that scumble has never heard of."""


class ToyFamily(StableDiffusion):
    """Stable Diffusion under another name, which teaches its cross-attention values."""

    name = "toy"
    pipeline_classes = ("ToyPipeline",)
    default_targets: ClassVar = {"unet": ("attn2.to_v",)}

    def pipeline(self, components: Components) -> Any:
        parts = super().pipeline(components).components
        return ToyPipeline(**parts, requires_safety_checker=False)


@pytest.fixture
def toy_base(tmp_path: Path) -> Path:
    """Copy the built-in base, as a base of the toy family."""
    folder = tmp_path / "toy base"
    shutil.copytree(str(files("scumble") / "assets" / "tiny"), folder)
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index["_class_name"] = "ToyPipeline"
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return folder


def teach(base: str, output: Path, **options: Any) -> Path:
    config = scumble.TrainConfig(
        pretrained_model_name_or_path=base,
        train_data_dir=str(PICTURES),
        output_dir=str(output),
        latent_cache_dir=str(output.with_name("latents")),
        train_batch_size=2,
        max_train_steps=3,
        learning_rate=0.02,
        before_after=False,
        **options,
    )
    return scumble.train(config).adapter


def draw(base: str | None = None, adapter: str | Sequence[str] = ()) -> np.ndarray:
    options = {"pretrained_model_name_or_path": base, "adapter": adapter}
    (image,) = scumble.generate(PROMPT, num_inference_steps=2, **options)
    return np.asarray(image).astype(int)


def test_an_adapter_type_from_outside_trains_saves_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ADAPTERS, "channel_gain", ChannelGain)
    file = teach("scumble-tiny", tmp_path / "run", adapter_type="channel_gain", alpha=2.0)

    weights = scumble.read_adapter(file)
    entries = list(weights.components["unet"].values())
    assert {entry.type for entry in entries} == {"channel_gain"}
    assert {(entry.rank, entry.alpha) for entry in entries} == {(4, 2.0)}
    assert any(entry.tensors["gain"].any() for entry in entries)

    before = draw("scumble-tiny")
    assert (draw(adapter=f"{file.parent}:0") == before).all()
    assert (draw(adapter=str(file.parent)) != before).any()


def test_a_family_from_outside_trains_saves_and_draws(
    tmp_path: Path, toy_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(scumble.UserError, match="ToyPipeline"):
        draw(str(toy_base))

    monkeypatch.setitem(FAMILIES, "toy", ToyFamily())
    file = teach(str(toy_base), tmp_path / "run")

    modules = scumble.read_adapter(file, family="toy").components["unet"]
    assert modules
    assert all(path.endswith("attn2.to_v") for path in modules)

    assert (draw(adapter=str(file.parent)) != draw(str(toy_base))).any()


def test_both_from_outside_compose(
    tmp_path: Path, toy_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ADAPTERS, "channel_gain", ChannelGain)
    monkeypatch.setitem(FAMILIES, "toy", ToyFamily())
    gain = teach(str(toy_base), tmp_path / "gain", adapter_type="channel_gain")
    lora = teach(str(toy_base), tmp_path / "lora")

    alone = draw(adapter=str(gain.parent))
    assert (draw(adapter=[f"{gain.parent}", f"{lora.parent}:0.5"]) != alone).any()


def test_an_adapter_type_without_a_branch_keeps_the_contract() -> None:
    torch.manual_seed(0)
    for layer in (nn.Linear(3, 5), nn.Conv2d(3, 5, 3, padding=1)):
        model = nn.Sequential(layer)
        x = torch.randn(2, 3) if isinstance(layer, nn.Linear) else torch.randn(2, 3, 4, 4)
        untouched = model(x)
        adapters = inject(model, "toy", ChannelGain, [Target("0", rank=2, alpha=1.0)])
        assert torch.equal(model(x), untouched)

        (gain,) = adapters.parameters()
        nn.init.normal_(gain)
        attached = model(x)
        assert not torch.allclose(attached, untouched)
        blend.merge(model)
        torch.testing.assert_close(model(x), attached)
        adapters.eject()
        assert torch.equal(model(x), untouched)
