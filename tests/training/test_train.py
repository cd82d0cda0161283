"""A run from its configuration to its results, on the built-in base."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

import scumble
from scumble.adapters import LayerSpec, LoRA
from scumble.adapters.inject import Target, adapted_layers, eject, find_targets
from scumble.data.cache import module_digest
from scumble.errors import UserError
from scumble.families import FAMILIES
from scumble.formats import AdapterWeights, ModuleWeights
from scumble.training.journal import NotFiniteError
from scumble.training.methods import METHODS
from scumble.training.opening import open_workshop
from scumble.training.runtime import prepare_runtime


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "pytorch_lora_weights.safetensors")


def test_a_run_leaves_everything_that_is_promised(make_config, tmp_path):
    config = make_config(before_after=True, num_inference_steps=2, num_validation_images=2)
    result = scumble.train(config)
    folder = tmp_path / "out"
    assert result.adapter == folder / "pytorch_lora_weights.safetensors"
    for name in ("before_after.png", "loss_curve.png", "sample_0.png", "sample_1.png"):
        with Image.open(folder / name) as image:
            image.load()
    card = ModelCard.load(folder / "README.md")
    assert card.data["base_model"] == "scumble-tiny"
    assert "lora" in card.data.tags
    assert str(tmp_path) not in card.content
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["settings"]["learning_rate"] == 1e-3
    assert len(losses(folder)) == 4


def test_the_loss_falls(make_config, tmp_path):
    config = make_config(max_train_steps=60, learning_rate=3e-3)
    scumble.train(config)
    workshop = open_workshop(config, prepare_runtime(config))
    (phase,) = METHODS["text_to_image"](workshop)

    def mean_loss() -> float:
        loss = phase.losses["pictures"]
        plans = [phase.plan.step(index) for index in range(1000, 1030)]
        with torch.no_grad():
            return torch.cat([loss(loss.samples(plan, range(2))) for plan in plans]).mean().item()

    before = mean_loss()
    trained = scumble.read_adapter(tmp_path / "out").components["unet"]
    for path, adapter in phase.taught.adapters["unet"].adapters.items():
        adapter.copy_tensors(trained[path].tensors)
    assert mean_loss() < 0.7 * before


def test_only_the_adapter_moves(make_config):
    config = make_config()
    workshop = open_workshop(config, prepare_runtime(config))
    unet = workshop.components["unet"]
    before = module_digest(unet)
    (phase,) = METHODS["text_to_image"](workshop)
    phase.begin([phase])
    trainable = {id(p) for p in unet.parameters() if p.requires_grad}
    assert trainable
    assert trainable == {id(p) for p in phase.parameters()}
    assert trainable == {id(p) for p in phase.taught.named_parameters().values()}
    loss = phase.losses["pictures"]
    loss(loss.samples(phase.plan.step(0), range(2))).sum().backward()
    frozen = [p for p in unet.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)
    eject(unet)
    assert module_digest(unet) == before


def test_encoders_are_let_go_before_the_loop(make_config):
    config = make_config()
    workshop = open_workshop(config, prepare_runtime(config))
    assert "vae" not in workshop.components
    assert "text_encoder" not in workshop.components
    assert "unet" in workshop.components


def test_the_second_run_decodes_no_picture(make_config, tmp_path, capsys, monkeypatch):
    scumble.train(make_config())
    monkeypatch.setattr("scumble.data.scan.Picture.load", None)
    scumble.train(make_config(output_dir=str(tmp_path / "again")))
    assert "6 of 6 pictures were already in the cache" in capsys.readouterr().out
    assert losses(tmp_path / "again") == losses(tmp_path / "out")


def test_accumulated_and_whole_batches_agree(make_config, tmp_path):
    whole = make_config(train_batch_size=4, output_dir=str(tmp_path / "whole"))
    parts = make_config(
        train_batch_size=1, gradient_accumulation_steps=4, output_dir=str(tmp_path / "parts")
    )
    scumble.train(whole)
    scumble.train(parts)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    ours, theirs = (
        torch.cat([tensor.flatten() for tensor in weights(tmp_path / name).values()])
        for name in ("parts", "whole")
    )
    # AdamW's first steps divide by the gradient's own size, which enlarges rounding.
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


def test_bf16_trains_fp32_masters(make_config, tmp_path):
    scumble.train(make_config(mixed_precision="bf16", max_train_steps=3, learning_rate=1e-4))
    trained = weights(tmp_path / "out")
    assert all(tensor.dtype == torch.float32 for tensor in trained.values())
    downs = [key for key in trained if key.endswith(".lora.down.weight")]
    config = make_config(mixed_precision="bf16", output_dir=str(tmp_path / "fresh"))
    workshop = open_workshop(config, prepare_runtime(config))
    assert workshop.components["unet"].dtype == torch.bfloat16
    (phase,) = METHODS["text_to_image"](workshop)
    fresh = phase.taught.adapters["unet"].adapters
    for key in downs:
        start = fresh[key.removeprefix("unet.").removesuffix(".lora.down.weight")].down
        # bf16 masters would round steps of 1e-4 away on most entries.
        assert (trained[key] != start).float().mean() > 0.99


def test_a_nan_stops_the_run_and_names_the_samples(make_config, tmp_path):
    config = make_config(learning_rate=1e18, max_grad_norm=0, max_train_steps=20)
    with pytest.raises(NotFiniteError, match=r"step \d+: .*\d\.png at timestep \d+"):
        scumble.train(config)
    assert not (tmp_path / "out" / "pytorch_lora_weights.safetensors").exists()
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    assert all(torch.isfinite(tensor).all() for tensor in weights(checkpoint).values())


def test_steps_never_overshoot(make_config, tmp_path):
    # 6 pictures in groups of 4: two steps an epoch, the second one smaller.
    config = make_config(train_batch_size=1, gradient_accumulation_steps=4, max_train_steps=5)
    scumble.train(config)
    assert len(losses(tmp_path / "out")) == 5


def test_epochs_count_where_steps_are_not_given(make_config, tmp_path):
    scumble.train(make_config(max_train_steps=None, num_train_epochs=2))
    assert len(losses(tmp_path / "out")) == 6


def test_buckets_train_every_picture(make_config, pictures, tmp_path, capsys):
    for path, size in zip(sorted(pictures.glob("*.png")), [(64, 96), (64, 64)], strict=False):
        Image.open(path).resize(size).save(path)
    scumble.train(make_config(aspect_ratio_buckets=True, max_train_steps=None, num_train_epochs=1))
    assert "6 found, 6 used" in capsys.readouterr().out
    assert len(losses(tmp_path / "out")) == 4  # buckets of 4, 1 and 1 pictures in batches of 2


def test_validation_pictures_are_what_generate_draws(make_config, tmp_path):
    prompt = "a red circle at night"
    config = make_config(
        validation_prompt=prompt,
        validation_epochs=1,
        num_validation_images=2,
        num_inference_steps=3,
        guidance_scale=3.0,
        seed=7,
        max_train_steps=3,
        before_after=True,
    )
    scumble.train(config)
    images = scumble.generate(
        prompt,
        adapter=str(tmp_path / "out"),
        num_images=2,
        seed=7,
        num_inference_steps=3,
        guidance_scale=3.0,
    )
    for number, image in enumerate(images):
        sample = Image.open(tmp_path / "out" / f"sample_{number}.png")
        assert sample.tobytes() == image.tobytes()


def test_sample_pictures_come_while_training(make_config, tmp_path):
    config = make_config(validation_prompt="a circle", num_inference_steps=2, max_train_steps=7)
    scumble.train(config)
    names = sorted(path.name for path in (tmp_path / "out" / "samples").iterdir())
    assert names[0] == "step_000003_0.png"
    assert len(names) == 8


def test_another_run_is_never_overwritten(make_config, tmp_path):
    scumble.train(make_config())
    before = weights(tmp_path / "out")
    with pytest.raises(UserError, match="already holds a run"):
        scumble.train(make_config(seed=5))
    after = weights(tmp_path / "out")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_folder_with_other_files_is_not_touched(make_config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        scumble.train(make_config())
    assert (tmp_path / "out" / "README.md").read_text() == "mine"


def test_an_output_folder_inside_a_file_is_one_clear_line(make_config, pictures):
    inside = pictures.parent / "file"
    inside.touch()
    with pytest.raises(UserError, match="cannot be written"):
        scumble.train(make_config(output_dir=str(inside / "out")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained_model_name_or_path": "no/such/folder"}, "no base model"),
        ({"train_data_dir": "no_such_folder"}, "no_such_folder"),
        ({"resolution": 60}, "multiple of 8"),
        ({"target_modules": ("to_kk",)}, "to_k"),
        ({"adapter_type": "lorra"}, "lora"),
        ({"method": "text2image"}, "text_to_image"),
    ],
)
def test_bad_input_is_one_clear_error(make_config, changes, message):
    with pytest.raises(UserError) as caught:
        scumble.train(make_config(**changes))
    assert message in str(caught.value)


def test_gradient_checkpointing_changes_no_number(make_config, tmp_path):
    scumble.train(make_config(output_dir=str(tmp_path / "plain")))
    scumble.train(make_config(output_dir=str(tmp_path / "lean"), gradient_checkpointing=True))
    assert losses(tmp_path / "lean") == pytest.approx(losses(tmp_path / "plain"), rel=1e-6)


def test_sample_pictures_are_drawn_without_rank_dropout(make_config, monkeypatch):
    from scumble.training import sitting

    masks = []

    def spy(workshop, prompts, seeds):
        layers = adapted_layers(workshop.components["unet"]).values()
        masks.extend(layer.get("trained").rank_mask for layer in layers)
        return []

    monkeypatch.setattr(sitting, "draw_samples", spy)
    scumble.train(make_config(rank_dropout=0.5, validation_prompt="a circle"))
    assert masks
    assert all(mask is None for mask in masks)


def test_a_failing_picture_costs_nothing_but_itself(make_config, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no room")

    monkeypatch.setattr("scumble.training.results.draw_before_after", broken)
    scumble.train(make_config(before_after=True))
    assert "the adapter is safe: no room" in capsys.readouterr().out
    assert (tmp_path / "out" / "README.md").exists()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "finished"


def test_a_warm_up_longer_than_the_epochs_is_refused(make_config):
    with pytest.raises(UserError, match="would outlast the 3 steps"):
        scumble.train(
            make_config(
                max_train_steps=None,
                num_train_epochs=1,
                lr_scheduler="linear",
                lr_warmup_steps=500,
            )
        )


def test_a_run_that_fails_early_leaves_no_folder(make_config, tmp_path):
    with pytest.raises(UserError):
        scumble.train(make_config(train_data_dir="nowhere"))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def full_size_adapter() -> AdapterWeights:
    """Rank 4 on Stable Diffusion 1.5's attention, without the 3.4 GB of its weights."""
    from diffusers import UNet2DConditionModel

    source = files("scumble") / "assets" / "single_file" / "sd1" / "unet.json"
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads(source.read_text()))
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    patterns = FAMILIES["stable_diffusion"].default_targets["unet"]
    modules = {}
    for path in find_targets(unet, [Target(pattern, 4, 4) for pattern in patterns]):
        adapter = LoRA(LayerSpec.of(unet.get_submodule(path)), 4, 4)
        modules[path] = ModuleWeights("lora", adapter.tensors(), 4.0)
    return AdapterWeights({"unet": modules})


def test_full_size_has_the_fields_golden_numbers(full_size_adapter):
    assert len(full_size_adapter.components["unet"]) == 128
    assert full_size_adapter.num_parameters == 797_184


def test_a_full_size_file_has_256_tensors_and_3_mb(full_size_adapter, tmp_path):
    path = scumble.write_adapter(full_size_adapter, tmp_path / "a.safetensors")
    assert len(load_file(path)) == 256
    assert 3_188_736 < path.stat().st_size < 3_260_000


@pytest.mark.parametrize("by", ["flag", "launcher"])
def test_every_weight_learns_in_fp32_or_not_at_all(make_config, tmp_path, monkeypatch, by):
    """Without masters in fp32 small updates would be rounded away, and nobody would know."""
    changes = {"mixed_precision": "bf16"} if by == "flag" else {}
    if by == "launcher":
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(UserError, match="every weight in fp32, not bf16"):
        scumble.train(make_config(method="full", **changes))
    assert not (tmp_path / "out").exists()
    scumble.train(make_config(**changes, max_train_steps=1))
