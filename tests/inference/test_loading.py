"""Adapters on an unmodified pipeline: on, dialled, merged, off; and finding their base."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, StableDiffusionImg2ImgPipeline, UNet2DModel
from torch import nn

import scumble
from scumble.adapters.inject import adapted_layers
from scumble.adapters.layer import AdaptedLayer
from scumble.errors import UserError
from scumble.families import locate
from scumble.families.fingerprint import fingerprint
from scumble.formats import AdapterWeights, ModuleWeights
from scumble.inference.base_of import base_of

BOTH = ("unet", "text_encoder")
LOUD = 0.01
"""A change of a picture that is far from rounding."""


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).max())


def modules_of(pipeline: Any) -> dict[str, nn.Module]:
    """Every module object of the parts that adapters may change, by path."""
    parts = {name: getattr(pipeline, name) for name in BOTH}
    return {
        f"{name}.{path}": module
        for name, part in parts.items()
        for path, module in part.named_modules()
    }


def states(pipeline: Any) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": tensor.clone()
        for name in BOTH
        for key, tensor in getattr(pipeline, name).state_dict().items()
    }


def assert_untouched(pipeline: Any) -> None:
    for name in BOTH:
        assert adapted_layers(getattr(pipeline, name)) == {}


@pytest.mark.parametrize("components", [("unet",), ("text_encoder",), BOTH])
def test_unloading_restores_the_very_pipeline(
    components: tuple[str, ...], tiny_pipeline: Any, make_weights: Any, draw: Any
) -> None:
    before, modules, weights = draw(tiny_pipeline), modules_of(tiny_pipeline), states(tiny_pipeline)
    name = scumble.load_adapter(tiny_pipeline, make_weights(*components))
    assert difference(draw(tiny_pipeline), before) > LOUD
    scumble.unload_adapters(tiny_pipeline, name)
    assert np.array_equal(draw(tiny_pipeline), before)
    after = modules_of(tiny_pipeline)
    assert after.keys() == modules.keys()
    assert all(after[path] is module for path, module in modules.items())
    assert all(torch.equal(tensor, weights[key]) for key, tensor in states(tiny_pipeline).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_and_unmerging(
    dtype: torch.dtype, tiny_pipeline: Any, make_weights: Any, draw: Any
) -> None:
    before = states(tiny_pipeline.to(dtype))
    scumble.load_adapter(tiny_pipeline, make_weights(*BOTH), name="a", strength=0.6)
    scumble.load_adapter(tiny_pipeline, make_weights(seed=1), name="b", strength=-0.3)
    apart = draw(tiny_pipeline)
    scumble.merge_adapters(tiny_pipeline)
    if dtype == torch.float32:
        assert difference(draw(tiny_pipeline), apart) < 1e-4
    layers = adapted_layers(tiny_pipeline.unet)
    assert all(layer.is_merged for layer in layers.values())
    path = next(iter(layers))
    assert not torch.equal(layers[path].base.weight, before[f"unet.{path}.weight"])
    scumble.unmerge_adapters(tiny_pipeline)
    assert np.array_equal(draw(tiny_pipeline), apart)
    scumble.merge_adapters(tiny_pipeline)
    scumble.unload_adapters(tiny_pipeline)
    assert_untouched(tiny_pipeline)
    assert all(torch.equal(tensor, before[key]) for key, tensor in states(tiny_pipeline).items())


def test_what_is_set_is_drawn_even_while_merged(
    tiny_pipeline: Any, make_weights: Any, draw: Any
) -> None:
    before = draw(tiny_pipeline)
    for name, strength in (("a", 1.0), ("b", 0.0)):
        scumble.load_adapter(
            tiny_pipeline, make_weights(seed=ord(name)), name=name, strength=strength
        )
    scumble.set_strengths(tiny_pipeline, {"a": 0.2, "b": 0.9})
    wanted = draw(tiny_pipeline)
    scumble.set_strengths(tiny_pipeline, {"a": 1.0, "b": 0.0})
    scumble.merge_adapters(tiny_pipeline)
    scumble.set_strengths(tiny_pipeline, {"a": 0.2, "b": 0.9})
    assert difference(draw(tiny_pipeline), wanted) < 1e-4
    scumble.set_strengths(tiny_pipeline, {"a": 0.0, "b": 0.0})
    assert np.array_equal(draw(tiny_pipeline), before)


def test_loading_onto_merged_adapters_draws_both(
    tiny_pipeline: Any, make_weights: Any, draw: Any
) -> None:
    first, second = make_weights(), make_weights(*BOTH, seed=1)
    scumble.load_adapter(tiny_pipeline, first, name="a")
    scumble.load_adapter(tiny_pipeline, second, name="b")
    wanted = draw(tiny_pipeline)
    scumble.unload_adapters(tiny_pipeline, "b")
    scumble.merge_adapters(tiny_pipeline)
    scumble.load_adapter(tiny_pipeline, second, name="b")
    assert difference(draw(tiny_pipeline), wanted) < 1e-4
    scumble.unload_adapters(tiny_pipeline, "a")
    scumble.unload_adapters(tiny_pipeline, "b")
    assert_untouched(tiny_pipeline)


def test_an_adapter_is_called_after_its_file_or_folder(
    tiny_pipeline: Any, adapter_file: Path
) -> None:
    assert scumble.load_adapter(tiny_pipeline, adapter_file) == "adapter"
    assert scumble.load_adapter(tiny_pipeline, str(adapter_file.parent)) == "run"
    for source in (adapter_file, adapter_file.parent):
        with pytest.raises(UserError, match="is already loaded"):
            scumble.load_adapter(tiny_pipeline, source)


def test_a_name_is_taken_even_on_another_component(tiny_pipeline: Any, make_weights: Any) -> None:
    scumble.load_adapter(tiny_pipeline, make_weights("text_encoder"), name="a")
    with pytest.raises(UserError, match="'a' is already loaded"):
        scumble.load_adapter(tiny_pipeline, make_weights("unet"), name="a")
    assert adapted_layers(tiny_pipeline.unet) == {}


def test_names_that_are_not_loaded_are_refused(tiny_pipeline: Any, make_weights: Any) -> None:
    calls: list[Callable[[], None]] = [
        lambda: scumble.set_strengths(tiny_pipeline, {"b": 1.0}),
        lambda: scumble.unload_adapters(tiny_pipeline, "a", "b"),
    ]
    for call in calls:
        with pytest.raises(UserError, match="Loaded: none"):
            call()
    scumble.load_adapter(tiny_pipeline, make_weights(*BOTH), name="a", strength=0.5)
    for call in calls:
        with pytest.raises(UserError, match=r"no adapter named 'b' is loaded\n  Loaded: a\."):
            call()
    layer = next(iter(adapted_layers(tiny_pipeline.unet).values()))
    assert layer.strengths == {"a": 0.5}


def spoiled(weights: AdapterWeights, component: str, change: str) -> AdapterWeights:
    """The same weights with the last layer of one component changed so that it cannot fit."""
    modules = dict(weights.components[component])
    path, entry = modules.popitem()
    tensors = dict(entry.tensors)
    if change == "another layer":
        path = f"extra.{path}"
    elif change == "wider":
        tensors["down"] = torch.zeros(entry.rank, 7)
    elif change == "higher":
        tensors["up"] = torch.zeros(7, entry.rank)
    elif change == "two ranks":
        tensors["up"] = tensors["up"][:, :1]
    else:
        tensors = {"down": tensors["down"][:0], "up": tensors["up"][:, :0]}
    modules[path] = ModuleWeights(entry.type, tensors, entry.alpha)
    return AdapterWeights(weights.components | {component: modules}, {})


@pytest.mark.parametrize("change", ["another layer", "wider", "higher", "two ranks", "no rank"])
@pytest.mark.parametrize("component", BOTH)
def test_what_does_not_fit_leaves_nothing_attached(
    component: str, change: str, tiny_pipeline: Any, make_weights: Any
) -> None:
    modules = modules_of(tiny_pipeline)
    weights = spoiled(make_weights(*BOTH), component, change)
    with pytest.raises(UserError, match=list(weights.components[component])[-1]):
        scumble.load_adapter(tiny_pipeline, weights)
    assert modules_of(tiny_pipeline) == modules


def test_components_that_the_pipeline_lacks_are_named(
    tiny_pipeline: Any, make_weights: Any
) -> None:
    weights = make_weights(*BOTH)
    tiny_pipeline.text_encoder = None
    with pytest.raises(UserError, match="'text_encoder' is changed by it"):
        scumble.load_adapter(tiny_pipeline, weights)
    assert adapted_layers(tiny_pipeline.unet) == {}


def test_an_adapter_without_tensors_is_refused(tiny_pipeline: Any) -> None:
    for nothing in ({}, {"unet": {}}):
        with pytest.raises(UserError, match="has no tensors"):
            scumble.load_adapter(tiny_pipeline, AdapterWeights(nothing))


def test_other_forms_of_the_pipeline_carry_adapters_too(
    tiny_pipeline: Any, make_weights: Any
) -> None:
    other = StableDiffusionImg2ImgPipeline(**tiny_pipeline.components)
    scumble.load_adapter(other, make_weights())
    assert adapted_layers(other.unet)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    with pytest.raises(UserError, match="cannot be loaded on a DDPMPipeline"):
        scumble.load_adapter(DDPMPipeline(unet, DDPMScheduler()), make_weights())


def write_card(folder: Path, header: str) -> None:
    (folder / "README.md").write_text(f"---\n{header}\n---\n\n# card\n", "utf-8")


def test_the_base_is_found_in_the_record_then_the_file_then_the_card(
    make_weights: Any, tmp_path: Path
) -> None:
    silent = AdapterWeights(make_weights().components)
    file = scumble.write_adapter(silent, tmp_path / "run" / "pytorch_lora_weights.safetensors")
    assert base_of(file) is None
    write_card(file.parent, "base_model: card/base")
    assert base_of(file) == base_of(file.parent) == "card/base"
    write_card(file.parent, "base_model:\n- first/base\n- second/base")
    assert base_of(file) == "first/base"
    scumble.write_adapter(make_weights(), file)
    assert base_of(file) == "scumble-tiny"
    local = tmp_path / "my base"
    (file.parent / "run.json").write_text(json.dumps({"base": str(local)}), "utf-8")
    # A record that came from another machine names a folder that is not here.
    assert base_of(file) == "scumble-tiny"
    local.mkdir()
    assert base_of(file) == str(local)


@pytest.mark.parametrize(
    "header", ["[", "[" * 1500, "just text", "base_model:", "base_model: []", "tags: a"]
)
@pytest.mark.parametrize("record", ["[", "[" * 100_000, '{"base": "%s"}' % ("a" * 5000)])
def test_a_card_that_names_no_base(
    header: str, record: str, make_weights: Any, tmp_path: Path
) -> None:
    file = scumble.write_adapter(
        AdapterWeights(make_weights().components), tmp_path / "a.safetensors"
    )
    write_card(tmp_path, header)
    (tmp_path / "run.json").write_text(record, "utf-8")
    assert base_of(file) is None
    (tmp_path / "README.md").write_text("base_model: x/y, without a header", "utf-8")
    assert base_of(file) is None


def test_a_folder_of_several_adapters_asks_which(make_weights: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.safetensors file"):
        scumble.read_adapter(tmp_path)
    for name in ("a", "b"):
        scumble.write_adapter(make_weights(), tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"several \.safetensors files"):
        scumble.read_adapter(tmp_path)
    main = AdapterWeights(make_weights().components, {"note": "main"})
    scumble.write_adapter(main, tmp_path / "pytorch_lora_weights.safetensors")
    assert scumble.read_adapter(tmp_path).metadata == {"note": "main"}
    with pytest.raises(UserError, match="there is no adapter at"):
        scumble.read_adapter(tmp_path / "c.safetensors")


def test_a_part_of_an_adapter_is_loaded_where_that_is_asked_for(
    tiny_pipeline: Any, make_weights: Any, capsys: pytest.CaptureFixture[str], draw: Any
) -> None:
    whole = make_weights("unet")
    (first, entry), *rest = whole.components["unet"].items()
    both = AdapterWeights({"unet": {"mid_block.away": entry, **dict(rest)}}, {}, {}, {"x.y": "no"})
    with pytest.raises(UserError, match=r"'x\.y' no, and 1 more\n.*--partial"):
        scumble.load_adapter(tiny_pipeline, both)
    assert_untouched(tiny_pipeline)
    scumble.load_adapter(tiny_pipeline, both, name="a", partial=True)
    said = capsys.readouterr().out
    assert "a: left out: 'x.y' no" in said
    assert "a: left out: 'unet.mid_block.away' is a layer that this base lacks" in said
    assert first not in adapted_layers(tiny_pipeline.unet)
    assert len(adapted_layers(tiny_pipeline.unet)) == len(rest)


def test_an_adapter_of_which_nothing_fits_is_refused_even_in_part(
    tiny_pipeline: Any, make_weights: Any
) -> None:
    entry = next(iter(make_weights("unet").components["unet"].values()))
    away = AdapterWeights({"unet": {"mid_block.away": entry}})
    with pytest.raises(UserError, match=r"'unet\.mid_block\.away' is a layer that this base lacks"):
        scumble.load_adapter(tiny_pipeline, away, partial=True)


def test_other_weights_than_the_adapter_was_trained_on_are_pointed_out(
    tiny_pipeline: Any, tiny_folder: Path, make_weights: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = fingerprint(locate("scumble-tiny"), "unet")
    weights = make_weights("unet")
    weights = AdapterWeights(weights.components, {"base_fingerprint": mark, "base_model": "b/c"})
    scumble.load_adapter(tiny_pipeline, weights, name="same")
    assert capsys.readouterr().out == ""
    tiny_pipeline.unet.half()
    scumble.load_adapter(tiny_pipeline, weights, name="same in fp16")
    assert capsys.readouterr().out == ""
    middle = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    entry = ModuleWeights("lora", {"down": torch.ones(1, 128), "up": torch.zeros(128, 1)}, 1.0)
    scumble.load_adapter(tiny_pipeline, AdapterWeights({"unet": {middle: entry}}), name="wrapper")
    assert isinstance(tiny_pipeline.unet.get_submodule(middle), AdaptedLayer)
    scumble.load_adapter(tiny_pipeline, weights, name="same below another")
    assert capsys.readouterr().out == ""
    tiny_pipeline.unet.get_submodule(middle).base.weight.data[0, 0] += 1
    scumble.load_adapter(tiny_pipeline, weights, name="other")
    assert "other: trained on b/c, whose weights are not those" in capsys.readouterr().out
    tiny_pipeline.unet.bfloat16()
    scumble.load_adapter(tiny_pipeline, weights, name="unknown")
    assert capsys.readouterr().out == ""
