"""Stable Diffusion from a folder in diffusers' layout: loading, sizes, objective, encoding."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from scumble.diffusion.objectives import Prediction
from scumble.errors import UserError
from scumble.families import FAMILIES, Components, Geometry, family_of, locate

SD = FAMILIES["stable_diffusion"]
PROMPTS = ["a red circle", "", "a very long sentence about " + "circles and " * 60]
WEIGHT_FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.fixture
def base_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the built-in base that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "my base"))


@pytest.fixture
def change_json(base_folder: Path) -> Callable[..., None]:
    """Changes entries of one JSON file of the copy; None takes an entry out."""

    def change(file: str, **entries: Any) -> None:
        path = base_folder / file
        content = json.loads(path.read_text("utf-8")) | entries
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), "utf-8")

    return change


def loaded(name: str | Path, *components: str, dtype: torch.dtype = torch.float32) -> Components:
    built = Components(locate(str(name)))
    SD.load(built, components, dtype)
    return built


def test_only_what_was_asked_for_is_in_memory() -> None:
    components = loaded("scumble-tiny", "vae")
    assert set(components.parts) == {"vae"}
    SD.load(components, ["text_encoder"], torch.float32)
    assert set(components.parts) == {"vae", "text_encoder", "tokenizer"}
    vae = components["vae"]
    SD.load(components, ["vae", "unet"], torch.float32)
    assert components["vae"] is vae
    components.release("vae", "text_encoder", "tokenizer")
    assert set(components.parts) == {"unet"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SD.components)
def test_weights_arrive_frozen_in_the_asked_dtype(name: str, dtype: torch.dtype) -> None:
    module = loaded("scumble-tiny", name, dtype=dtype)[name]
    assert {p.dtype for p in module.parameters()} == {dtype}
    assert not any(p.requires_grad for p in module.parameters())
    assert not any(p.is_meta for p in module.parameters())
    assert not any(part.training for part in module.modules())


def test_the_weights_are_those_of_the_files(tiny_pipeline: Any) -> None:
    components = loaded("scumble-tiny", *SD.components)
    for name in SD.components:
        wanted = getattr(tiny_pipeline, name).state_dict()
        got = components[name].state_dict()
        assert got.keys() == wanted.keys()
        assert all(torch.equal(got[key], wanted[key]) for key in wanted)


def test_sizes_of_the_built_in_base() -> None:
    assert SD.geometry(locate("scumble-tiny")) == Geometry(64, 16, 8)


def test_sizes_follow_the_configuration(base_folder: Path, change_json: Any) -> None:
    change_json("unet/config.json", sample_size=64, block_out_channels=[320, 640, 1280, 1280])
    change_json("vae/config.json", block_out_channels=[128, 256, 512, 512])
    shutil.rmtree(base_folder / "text_encoder")
    assert SD.geometry(locate(str(base_folder))) == Geometry(512, 64, 8)


def test_the_objective_is_the_schedulers_own(change_json: Any, base_folder: Path) -> None:
    objective = SD.objective(locate("scumble-tiny"))
    assert objective.prediction is Prediction.V
    assert objective.schedule.has_zero_terminal_snr
    change_json(
        "scheduler/scheduler_config.json", prediction_type="epsilon", rescale_betas_zero_snr=False
    )
    objective = SD.objective(locate(str(base_folder)))
    assert objective.prediction is Prediction.EPSILON
    assert not objective.schedule.has_zero_terminal_snr
    # A scheduler saved before there was the setting predicts noise.
    change_json("scheduler/scheduler_config.json", prediction_type=None)
    assert SD.objective(locate(str(base_folder))).prediction is Prediction.EPSILON


def test_the_user_may_say_what_the_base_predicts(base_folder: Path, change_json: Any) -> None:
    change_json(
        "scheduler/scheduler_config.json", prediction_type="epsilon", rescale_betas_zero_snr=False
    )
    base = locate(str(base_folder), prediction_type="v_prediction")
    assert SD.objective(base).prediction is Prediction.V
    components = Components(base)
    SD.load(components, SD.components, torch.float32)
    assert SD.pipeline(components).scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"prediction_type": "sample"}, "predicts 'sample'"),
        ({"beta_schedule": "sigmoid"}, "schedule 'sigmoid' is not known"),
        ({"prediction_type": "epsilon"}, "ends in pure noise"),
    ],
)
def test_an_objective_that_cannot_be_trained_is_refused(
    entries: dict[str, Any], message: str, base_folder: Path, change_json: Any
) -> None:
    change_json("scheduler/scheduler_config.json", **entries)
    with pytest.raises(UserError, match=message):
        SD.objective(locate(str(base_folder)))


def test_prompts_are_encoded_as_the_pipeline_does(tiny_pipeline: Any) -> None:
    components = loaded("scumble-tiny", "text_encoder")
    got = SD.encode_prompts(components, PROMPTS)["states"]
    wanted, _ = tiny_pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
    assert got.shape[:2] == (3, components["tokenizer"].model_max_length)
    assert torch.equal(got, wanted)
    assert not torch.equal(got[0], got[1])


def test_pixels_are_encoded_as_the_vae_does(tiny_pipeline: Any) -> None:
    components = loaded("scumble-tiny", "vae")
    pixels = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = SD.encode_pixels(components, pixels)
    with torch.no_grad():
        wanted = tiny_pipeline.vae.encode(pixels).latent_dist
    scaling = tiny_pipeline.vae.config.scaling_factor
    assert scaling != 1
    assert mean.shape == (2, 4, 16, 8)
    assert torch.equal(mean, wanted.mean * scaling)
    assert torch.equal(std, wanted.std * scaling)
    assert not mean.requires_grad


def test_the_prediction_is_the_unets_own(tiny_pipeline: Any) -> None:
    components = loaded("scumble-tiny", "unet")
    torch.manual_seed(0)
    width = components["unet"].config.cross_attention_dim
    noisy, states = torch.randn(2, 4, 16, 8), torch.randn(2, 9, width)
    timesteps = torch.tensor([10, 900])
    got = SD.predict(components, noisy, timesteps, {"states": states})
    with torch.no_grad():
        wanted = tiny_pipeline.unet(noisy, timesteps, encoder_hidden_states=states).sample
    assert got.shape == (2, 4, 16, 8)
    assert torch.equal(got, wanted)


def test_the_pipeline_is_diffusers_own_with_our_parts(tiny_pipeline: Any) -> None:
    components = loaded("scumble-tiny", *SD.components)
    pipeline = SD.pipeline(components)
    assert type(pipeline) is type(tiny_pipeline)
    assert pipeline.unet is components["unet"]
    assert dict(pipeline.scheduler.config) == dict(tiny_pipeline.scheduler.config)
    assert pipeline.safety_checker is None


def test_another_familys_folder_is_refused_by_name(base_folder: Path, change_json: Any) -> None:
    change_json("model_index.json", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(UserError, match="my base is a StableDiffusionXLPipeline"):
        family_of(locate(str(base_folder)))


@pytest.mark.parametrize("name", [*SD.components, "tokenizer"])
def test_a_missing_component_is_refused(name: str, base_folder: Path) -> None:
    shutil.rmtree(base_folder / name)
    with pytest.raises(UserError, match=rf"the {name} of .*my base|my base lacks {name}/"):
        loaded(base_folder, "text_encoder" if name == "tokenizer" else name)


@pytest.mark.parametrize("name", SD.components)
def test_cut_weights_are_refused(name: str, base_folder: Path) -> None:
    file = base_folder / name / WEIGHT_FILES[name]
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(UserError, match=f"cannot load the {name} of .*my base"):
        loaded(base_folder, name)


@pytest.mark.parametrize("name", SD.components)
def test_weights_that_lack_a_tensor_are_refused(name: str, base_folder: Path) -> None:
    # The libraries would fill in random numbers, or nothing at all, and only warn.
    file = base_folder / name / WEIGHT_FILES[name]
    tensors = load_file(file)
    key = next(key for key in sorted(tensors) if key.endswith(".weight"))
    del tensors[key]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match=f"the {name} of .*my base is incomplete: it lacks"):
        loaded(base_folder, name)


def test_a_text_encoder_saved_by_older_transformers_loads(base_folder: Path) -> None:
    file = base_folder / "text_encoder" / WEIGHT_FILES["text_encoder"]
    tensors = load_file(file)
    old = {f"text_model.{key.removeprefix('text_model.')}": t for key, t in tensors.items()}
    old["text_model.embeddings.position_ids"] = torch.arange(32)[None]
    save_file(old, file, {"format": "pt"})
    encoder = loaded(base_folder, "text_encoder", dtype=torch.float16)["text_encoder"]
    assert isinstance(encoder, CLIPTextModel)
    key = "encoder.layers.0.mlp.fc1.weight"
    (got,) = [t for name, t in encoder.state_dict().items() if name.endswith(key)]
    (wanted,) = [t for name, t in old.items() if name.endswith(key)]
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff\xfe"])
def test_a_damaged_index_is_refused(content: bytes, base_folder: Path) -> None:
    (base_folder / "model_index.json").write_bytes(content)
    with pytest.raises(UserError, match=r"model_index\.json is damaged"):
        locate(str(base_folder))


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_a_damaged_configuration_is_refused(file: str, base_folder: Path) -> None:
    (base_folder / file).write_text("{")
    base = locate(str(base_folder))
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        SD.geometry(base) if "unet" in file else SD.objective(base)
    (base_folder / file).unlink()
    with pytest.raises(UserError, match=f"lacks {file}"):
        SD.geometry(base) if "unet" in file else SD.objective(base)


@pytest.mark.parametrize("name", ["no/such/folder", "nowhere", "./nowhere"])
def test_a_base_that_is_nowhere_names_the_choices(name: str) -> None:
    with pytest.raises(UserError, match="scumble-tiny"):
        locate(name)


def test_a_folder_without_an_index_is_no_base(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no model_index\.json"):
        locate(str(tmp_path))


def test_a_hub_id_without_network_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model_index\.json of 'some/model' is not on this"):
        locate("some/model", cache_dir=str(tmp_path))
