"""Small denoisers with adapters, a step of each, and how far two steps lie apart."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scumble.adapters import LoRA
from scumble.adapters.inject import AdapterSet, Target, inject
from scumble.lean.install import put_on
from scumble.lean.levels import LEVELS

DEFAULT = ("to_q", "to_k", "to_v", "to_out.0")
EVERYWHERE = (
    *("to_q:2:3", "to_k:3", "attn1.to_v:1", "attn2.to_v:5:1", "to_out.0"),
    *("ff.net.0.proj", "ff.net.2:3:7", "proj_in", "proj_out:2", "time_emb_proj"),
    *(
        "conv1",
        "conv_shortcut:2",
        "downsamplers.*.conv",
        "upsamplers.*.conv",
        "conv_in",
        "conv_out",
    ),
)
"""Targets of different ranks and scales on layers of every kind."""

UNETS: dict[str, dict[str, Any]] = {
    "like SD 1.x": {},
    "like SD 2.x": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        "use_linear_projection": True,
        "attention_head_dim": [2, 4, 4],
    },
    "like SDXL": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "use_linear_projection": True,
        "attention_head_dim": [2, 4],
        "transformer_layers_per_block": [1, 2],
    },
}


class Step(NamedTuple):
    """What a step computed: gradients of the inputs, and of all that learns as one vector."""

    output: Tensor
    noisy: Tensor
    states: Tensor
    learnt: Tensor


def adapt(
    unet: Any, targets: Sequence[str] = DEFAULT, name: str = "a", **options: Any
) -> AdapterSet:
    """Put LoRA on, away from zero, where the gradient of `down` would vanish."""
    parsed = [Target.parse(text, options.get("rank", 4), options.get("alpha")) for text in targets]
    adapters = inject(unet, name, LoRA, parsed, seed=len(name))
    draw = torch.Generator().manual_seed(sum(map(ord, name)))
    for adapter in adapters.adapters.values():
        assert isinstance(adapter, LoRA)
        adapter.up.data.normal_(std=0.2, generator=draw)
    if unet.dtype == torch.float64:
        unet.double()  # the adapters as well, for exact comparisons
    return adapters


def inputs(unet: Any, size: tuple[int, int] = (8, 8), dtype: Any = torch.float32) -> dict[str, Any]:
    """Noisy latents, timesteps and hidden states of the text, the same each time."""
    draw = torch.Generator().manual_seed(3)
    width = unet.config.cross_attention_dim
    noisy = torch.randn(2, 4, *size, generator=draw).to(dtype).requires_grad_(True)
    states = torch.randn(2, 7, width, generator=draw).to(dtype).requires_grad_(True)
    return {"sample": noisy, "timestep": torch.tensor([3, 700]), "encoder_hidden_states": states}


def run(unet: Any, size: tuple[int, int] = (8, 8), dtype: Any = None, **more: Any) -> Step:
    """A step forward and back, leaving no gradient behind."""
    given = inputs(unet, size, dtype or unet.conv_in.weight.dtype)
    output = unet(**given, **more).sample
    output.double().square().mean().backward()
    learnt = [p for p in unet.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in learnt)
    vector = torch.cat([p.grad.flatten() for p in learnt]) if learnt else torch.zeros(0)
    for parameter in learnt:
        parameter.grad = None
    noisy, states = given["sample"].grad, given["encoder_hidden_states"].grad
    return Step(output.detach(), noisy, states, vector)


def draw(unet: Any, **more: Any) -> Tensor:
    """Only forward."""
    with torch.no_grad():
        return unet(**inputs(unet, dtype=unet.dtype), **more).sample


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Relative distance."""
    distance = (ours.double() - theirs.double()).norm() / theirs.double().norm().clamp(min=1e-30)
    return float(distance)


def assert_near(
    ours: Step, theirs: Step, most: float | None = None, inputs_most: float | None = None
) -> None:
    """Output and all gradients equal up to rounding, which is larger at the far ends.

    Args:
        ours: a lean step.
        theirs: the same as it should be.
        most: relative distance of outputs and gradients of what learns.
        inputs_most: of the gradients of the inputs; None for twice as much.
    """
    most = most or (1e-12 if theirs.output.dtype == torch.float64 else 2e-6)
    inputs_most = inputs_most or 2 * most
    assert apart(ours.output, theirs.output) < most
    assert apart(ours.noisy, theirs.noisy) < inputs_most
    assert apart(ours.states, theirs.states) < inputs_most
    if theirs.learnt.numel():
        assert apart(ours.learnt, theirs.learnt) < most


@contextmanager
def lean(unet: Any, level: str = "lowest", attention: str = "auto") -> Any:
    """Lean inside, plain again afterwards."""
    model = put_on(unet, LEVELS[level], attention)
    try:
        yield model
    finally:
        model.take_off()


def each_level(unet: Any) -> Iterator[str]:
    """Lean at one level after the other."""
    for level in LEVELS:
        with lean(unet, level):
            yield level
