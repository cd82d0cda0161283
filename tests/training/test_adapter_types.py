"""Every adapter type that can be trained: from the command line to the picture."""

import hashlib
import json
import re

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from PIL import Image
from torch import nn

import scumble
from scumble.adapters import ADAPTERS
from scumble.adapters.inject import adapted_layers
from scumble.adapters.pissa import PiSSA
from scumble.cli.main import run
from scumble.errors import Stopped, UserError
from scumble.training import sitting
from scumble.training.methods import METHODS
from scumble.training.opening import open_workshop
from scumble.training.runtime import prepare_runtime

WEIGHTS = "pytorch_lora_weights.safetensors"
KINDS = {
    "dora": {"adapter_type": "dora"},
    "loha": {"adapter_type": "loha"},
    "lokr of large factors": {"adapter_type": "lokr", "decompose_factor": 4},
    "pissa": {"adapter_init": "pissa"},
    "rslora": {"use_rslora": True, "alpha": 2.0},
}
NEW = ("dora", "loha", "pissa")
"""One of each way to compute: beside the layer's output, by a whole change, from a start. The
contract tests run over all types."""
LARGE = {"lr_scheduler": "constant", "learning_rate": 5e-3}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture(params=NEW)
def new_kind(request):
    return KINDS[request.param]


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def digest(folder):
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def picture(**options):
    (image,) = scumble.generate("a red circle", num_inference_steps=2, **options)
    return np.asarray(image).astype(int)


def test_it_trains_from_the_command_line_and_draws(kind, pictures, tmp_path):
    out = tmp_path / "out"
    words = ["--pretrained_model_name_or_path", "scumble-tiny", "--train_data_dir", str(pictures)]
    words += ["--output_dir", str(out), "--max_train_steps", "3", "--train_batch_size", "2"]
    words += ["--learning_rate", "0.01", "--no_before_after", "--rank", "3"]
    for name, value in kind.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    assert run(["train", "text_to_image", *words]) == 0
    folder = tmp_path / "drawn"
    draw = ["generate", "--prompt", "a red circle", "--num_inference_steps", "2", "--seed", "0"]
    assert run([*draw, "--adapter", str(out), "--output", str(folder)]) == 0
    (drawn,) = folder.glob("*.png")
    plain = picture(pretrained_model_name_or_path="scumble-tiny", seed=0)
    assert (np.asarray(Image.open(drawn)) != plain).any()


def test_the_file_holds_what_was_trained(kind, make_config, tmp_path, monkeypatch):
    learnt = {}
    save = sitting.results.save_learnt

    def spy(workshop, *others):
        layers = adapted_layers(workshop.components["unet"])
        learnt.update({path: layer.get("trained") for path, layer in layers.items()})
        return save(workshop, *others)

    monkeypatch.setattr(sitting.results, "save_learnt", spy)
    file = scumble.train(make_config(**kind, **LARGE)).adapter
    modules = scumble.read_adapter(file).components["unet"]
    assert modules.keys() == learnt.keys()
    assert {entry.type for entry in modules.values()} == {kind.get("adapter_type", "lora")}
    for path, entry in modules.items():
        trained = learnt[path]
        again = ADAPTERS[entry.type].from_tensors(trained.layer, entry.tensors, entry.alpha)
        assert again.scale == trained.scale
        weight = torch.randn(trained.layer.weight_shape)
        with torch.no_grad():
            assert torch.equal(again.delta(weight), trained.delta(weight))
            assert trained.delta(weight).any()


@pytest.mark.long
def test_the_leanest_level_changes_no_number(new_kind, make_config, tmp_path):
    options = {**new_kind, **LARGE, "max_train_steps": 3}
    scumble.train(make_config(**options, memory="off", output_dir=str(tmp_path / "plain")))
    scumble.train(make_config(**options, memory="lowest", output_dir=str(tmp_path / "lean")))
    assert losses(tmp_path / "lean") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


@pytest.mark.long
def test_over_a_quantised_base_it_starts_from_the_same_loss(new_kind, make_config, tmp_path):
    options = {"base_precision": "int8", "learning_rate": 5e-3, "max_train_steps": 3}
    scumble.train(make_config(**options, output_dir=str(tmp_path / "lora")))
    scumble.train(make_config(**options, **new_kind, output_dir=str(tmp_path / "other")))
    ours, plain = losses(tmp_path / "other"), losses(tmp_path / "lora")
    assert ours[0] == plain[0]
    assert ours == pytest.approx(plain, rel=0.3)


def stop_after(monkeypatch, step):
    between = sitting.Sitting._between_steps

    def stopping(self, result, update, average, stop):
        stop.requested = self.done == step
        between(self, result, update, average, stop)

    monkeypatch.setattr(sitting.Sitting, "_between_steps", stopping)


@pytest.mark.parametrize(
    ("name", "base"),
    [*((name, {}) for name in NEW), ("pissa", {"base_precision": "int8"})],
)
def test_going_on_is_bit_exact(name, base, make_config, tmp_path, monkeypatch):
    """PiSSA finds its start anew; DoRA and it depend on the numbers of the frozen weight."""
    options = {**KINDS[name], **base, **LARGE, "max_train_steps": 3, "ema_decay": 0.9}
    scumble.train(make_config(**options, output_dir=str(tmp_path / "whole")))
    config = make_config(**options)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            scumble.train(config)
    config.resume_from_checkpoint = "latest"
    scumble.train(config)
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def begin(config):
    (phase,) = METHODS[config.method](open_workshop(config, prepare_runtime(config)))
    return phase


@pytest.mark.parametrize("name", [name for name, kind in ADAPTERS.items() if kind.is_trainable])
def test_lora_plus_speeds_up_what_starts_from_zero(name, make_config):
    phase = begin(make_config(adapter_type=name, lora_plus_ratio=16.0))
    parameters = phase.taught.named_parameters()
    for group in phase.groups:
        for path in group.parameters:
            ratio = 1 if parameters[path].any() else 16
            assert group.learning_rate == pytest.approx(1e-3 * ratio)


@pytest.mark.parametrize(
    ("options", "undecayed"),
    [
        ({}, ()),
        ({"adapter_type": "dora"}, ("magnitude",)),
        ({"adapter_init": "pissa"}, ("down", "up")),
    ],
)
def test_weight_decay_leaves_what_comes_from_the_frozen_weight(options, undecayed, make_config):
    for group in begin(make_config(**options)).groups:
        for path in group.parameters:
            is_free = path.rpartition(".")[2] in undecayed
            assert group.weight_decay == (0 if is_free else 1e-2)


@pytest.mark.parametrize("rank", [3, 5, 16])
def test_rslora_scales_by_the_root_of_the_rank_as_peft_does(rank, make_config):
    options = {
        "rank": rank,
        "alpha": 2.0,
        "use_rslora": True,
        "target_modules": ("to_q", "to_k:2:7"),
    }
    adapters = begin(make_config(**options)).taught.adapters["unet"].adapters
    for path, adapter in adapters.items():
        alpha, width = (7.0, 2) if path.endswith("to_k") else (2.0, rank)
        theirs = PeftLinear(
            nn.Linear(4, 4),
            "a",
            LoraConfig(r=width, lora_alpha=alpha, use_rslora=True),
            r=width,
            lora_alpha=alpha,
        ).scaling["a"]
        assert adapter.scale == pytest.approx(theirs, rel=1e-7)
        assert adapter.scale == pytest.approx(alpha / width**0.5, rel=1e-7)
        assert float(torch.tensor(adapter.alpha)) == adapter.alpha


def test_pissa_starts_from_the_base(make_config):
    adapters = begin(make_config(adapter_init="pissa")).taught.adapters["unet"].adapters
    assert all(type(adapter) is PiSSA for adapter in adapters.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter_type": "ia3"}, "--adapter_type ia3: .* not trained"),
        ({"adapter_type": "dora_loha"}, "These can be trained: lora, dora, loha, lokr"),
        ({"adapter_type": "loha", "rank_dropout": 0.1}, "--rank_dropout has no meaning .* loha"),
        ({"adapter_type": "lokr", "lora_dropout": 0.1}, "It belongs to: lora, dora"),
        ({"adapter_type": "lokr", "adapter_init": "kaiming"}, "--adapter_init has no meaning"),
        ({"adapter_type": "dora", "decompose_factor": 8}, "It belongs to: lokr"),
    ],
)
def test_what_a_type_cannot_do_is_said_before_the_long_work(
    options, message, make_config, tmp_path
):
    with pytest.raises(UserError) as refusal:
        scumble.train(make_config(**options))
    assert re.search(message, str(refusal.value))
    assert not (tmp_path / "out" / "log.jsonl").exists()


@pytest.mark.long
def test_text_encoders_carry_every_type(new_kind, make_config):
    options = {"train_text_encoder": True, "max_train_steps": 2, "text_encoder_lr": 1e-2}
    file = scumble.train(make_config(**new_kind, **options)).adapter
    components = scumble.read_adapter(file).components
    assert components.keys() == {"unet", "text_encoder"}
    types = {entry.type for modules in components.values() for entry in modules.values()}
    assert types == {new_kind.get("adapter_type", "lora")}
    assert picture(adapter=str(file.parent)).shape == (64, 64, 3)


def parameters_at(folder, step):
    file = folder / f"checkpoint-{step}" / "training_state.pt"
    return torch.load(file, weights_only=True)["parameters"]


def test_pissa_goes_on_from_the_start_it_had(make_config, tmp_path):
    options = {"adapter_init": "pissa", **LARGE, "checkpointing_steps": 1}
    scumble.train(make_config(**options, max_train_steps=1))
    options |= {"base_precision": "int8", "resume_from_checkpoint": "latest"}
    scumble.train(make_config(**options, max_train_steps=2))
    first, second = (parameters_at(tmp_path / "out", step) for step in (1, 2))
    starts = [name for name in first if name.endswith(("down_0", "up_0"))]
    assert len(starts) * 2 == len(first)
    assert all(torch.equal(first[name], second[name]) for name in starts)
    assert not any(torch.equal(first[name], second[name.removesuffix("_0")]) for name in starts)


@pytest.mark.parametrize("before", ["pissa", "gaussian"])
def test_a_run_does_not_go_on_from_another_kind_of_start(before, make_config):
    after = {"pissa": "kaiming", "gaussian": "pissa"}[before]
    scumble.train(make_config(adapter_init=before, max_train_steps=1, checkpointing_steps=1))
    changed = make_config(adapter_init=after, max_train_steps=2, resume_from_checkpoint="latest")
    with pytest.raises(UserError, match="from another start") as refused:
        scumble.train(changed)
    assert "--adapter_init" in refused.value.hint
