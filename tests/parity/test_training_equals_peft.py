"""Our training step against PEFT's on the same numbers: loss, gradients, ten AdamW steps."""

import pytest
import torch
from peft import LoraConfig

import scumble
from scumble.training.methods import METHODS
from scumble.training.opening import open_workshop
from scumble.training.optimizers import Update
from scumble.training.runtime import prepare_runtime

STEPS, RATE = 10, 1e-3
EPSILON = 1e-6
"""AdamW divides by the size of the gradient; with 1e-8 it enlarges the rounding of tiny ones."""


@pytest.fixture
def config(tmp_path):
    from PIL import Image

    for number in range(4):
        Image.radial_gradient("L").resize((64 + number, 64)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"noise number {number}")
    return scumble.TrainConfig(
        pretrained_model_name_or_path="scumble-tiny",
        train_data_dir=str(tmp_path),
        output_dir=f"{tmp_path}-out",
        train_batch_size=2,
        learning_rate=RATE,
        max_train_steps=STEPS,
        rank=4,
        alpha=8,
        adam_epsilon=EPSILON,
        memory="off",  # both in one layout of convolutions: another rounds otherwise
    )


class Recorder:
    """Passes a family's `predict` on and keeps what it was asked."""

    def __init__(self, family):
        self.family, self.asked = family, []

    def __getattr__(self, name):
        return getattr(self.family, name)

    def predict(self, components, noisy, timesteps, conditioning):
        self.asked.append((noisy, timesteps, conditioning["states"]))
        return self.family.predict(components, noisy, timesteps, conditioning)


def peft_unet(workshop, adapters):
    """PEFT on a second copy of the base, starting from our initial values."""
    from diffusers import UNet2DConditionModel

    location = workshop.components.base.location
    unet = UNet2DConditionModel.from_pretrained(
        location, subfolder="unet", torch_dtype=torch.float32
    )
    unet.requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    for path, adapter in adapters.items():
        layer = unet.get_submodule(path)
        layer.lora_A["default"].weight.data.copy_(adapter.down.data)
        layer.lora_B["default"].weight.data.copy_(adapter.up.data)
    return unet


def gradient(parameters):
    """All gradients in one vector, down before up, layer by layer."""
    return torch.cat([p.grad.flatten() for p in parameters])


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))


def test_ten_steps_equal_peft(config):
    workshop = open_workshop(config, prepare_runtime(config))
    recorder = Recorder(workshop.family)
    object.__setattr__(workshop, "family", recorder)
    (phase,) = METHODS["text_to_image"](workshop)
    adapters = phase.taught.adapters["unet"].adapters
    assert len(adapters) > 10
    torch.manual_seed(0)
    for adapter in adapters.values():  # away from zero, where the gradient of `down` would vanish
        torch.nn.init.normal_(adapter.up, std=0.02)
    theirs = peft_unet(workshop, adapters)
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=RATE, weight_decay=config.adam_weight_decay, eps=EPSILON
    )
    update = Update(phase.groups, config, STEPS, 2, torch.float32, torch.device("cpu"))
    for index in range(STEPS):
        plan = phase.plan.step(index)
        pictures = phase.losses["pictures"]
        loss = pictures(pictures.samples(plan, range(2))).mean()
        noisy, timesteps, states = recorder.asked[-1]
        target = target_of(workshop, noisy, timesteps, plan, phase)
        prediction = theirs(noisy, timesteps, states).sample
        their_loss = torch.nn.functional.mse_loss(prediction, target)
        assert loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
        update.backward(loss)
        their_loss.backward()
        if index == 0:
            assert relative(gradient(phase.parameters()), gradient(parameters)) < 1e-5
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        update.step(index, loss)
        optimizer.step()
        optimizer.zero_grad()
    ours = torch.cat([p.detach().flatten() for p in phase.parameters()])
    reference = torch.cat([p.detach().flatten() for p in parameters])
    assert relative(ours, reference) < 1e-5
    assert (ours - reference).abs().max() < 1e-2 * RATE


def target_of(workshop, noisy, timesteps, plan, phase):
    """The velocity that diffusers computes from the same latents and noise."""
    from diffusers import DDPMScheduler

    location = workshop.components.base.location
    scheduler = DDPMScheduler.from_pretrained(location, subfolder="scheduler")
    samples = phase.losses["pictures"].draws.samples(plan, range(2))
    torch.testing.assert_close(samples.timesteps, timesteps)
    noised = scheduler.add_noise(samples.latents, samples.noise, timesteps)
    torch.testing.assert_close(noised, noisy)
    return scheduler.get_velocity(samples.latents, samples.noise, timesteps)
