"""A lean denoiser with our adapters against diffusers' own with PEFT's."""

import pytest
import torch
from lean_steps import DEFAULT, UNETS, adapt, apart, assert_near, each_level, lean, run
from peft import LoraConfig

RANK, ALPHA = 4, 6
TARGETS = {
    "default": DEFAULT,
    "wide": (*DEFAULT, "ff.net.0.proj", "ff.net.2", "proj_in", "conv1", "conv_shortcut"),
}


def with_peft(unet, adapters, targets):
    """PEFT with the values of our adapters."""
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(targets)))
    for path, adapter in adapters.items():
        layer = unet.get_submodule(path)
        layer.lora_A["default"].weight.data.copy_(adapter.down.data)
        layer.lora_B["default"].weight.data.copy_(adapter.up.data)
    return unet


@pytest.mark.parametrize("kind", UNETS)
@pytest.mark.parametrize("targets", TARGETS)
def test_a_step_equals_peft(tiny_unet, kind, targets):
    ours = tiny_unet(**UNETS[kind])
    adapters = adapt(ours, TARGETS[targets], rank=RANK, alpha=ALPHA).adapters
    theirs = with_peft(tiny_unet(**UNETS[kind]), adapters, TARGETS[targets])
    assert len(adapters) >= 4 * len(DEFAULT)
    # In the layout that ours takes: oneDNN's convolutions of the other one round differently.
    expected = run(theirs.to(memory_format=torch.channels_last))
    for _ in each_level(ours):
        assert_near(run(ours), expected, 2e-6, 5e-6)


def test_peft_on_a_lean_denoiser_computes_as_it_did(tiny_unet):
    unet = tiny_unet()
    adapters = adapt(tiny_unet(), TARGETS["wide"]).adapters
    with lean(unet):
        with_peft(unet, adapters, TARGETS["wide"])
        ours = run(unet)
    assert_near(ours, run(unet))
    assert apart(ours.output, run(tiny_unet()).output) > 1e-2
    assert isinstance(ours.learnt, torch.Tensor)
