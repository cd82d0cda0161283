"""The contract of a model family: everything that training and inference must know of it.

Shape suffixes: B batch, C channels, H height, W width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from scumble.diffusion.objectives import DiscreteObjective
from scumble.families.locate import BaseModel
from scumble.formats.key_names import KeyNames

Conditioning = dict[str, Tensor]
"""What the denoiser is told besides the noisy latents: name -> tensor with a batch dimension."""


class Posterior(NamedTuple):
    """The VAE's answer for pictures: latents are drawn from N(mean, std^2), already scaled."""

    mean: Tensor
    std: Tensor


class Geometry(NamedTuple):
    """Picture sizes a base can work with.

    Args:
        native_px: edge of the square pictures that it was trained on.
        step_px: edges of training pictures are multiples of this, so that every level of the
            denoiser halves evenly.
        size_multiple_px: edges of drawn pictures must be multiples of this.
    """

    native_px: int
    step_px: int
    size_multiple_px: int


@dataclass
class Components:
    """The built parts of a base model that are in memory now.

    Args:
        base: where they come from.
        parts: component name -> module, tokenizer or scheduler.
        denoiser_format: how the denoiser's convolutions are to lie in memory.
    """

    base: BaseModel
    parts: dict[str, Any] = field(default_factory=dict)
    denoiser_format: torch.memory_format = torch.contiguous_format

    def __getitem__(self, name: str) -> Any:
        return self.parts[name]

    def __contains__(self, name: str) -> bool:
        return name in self.parts

    def release(self, *names: str) -> None:
        """Let go of parts, so that their memory can be used for others."""
        for name in names:
            self.parts.pop(name, None)


class Family(Protocol):
    """One kind of base model. Stateless: whatever it needs comes in with the call."""

    name: str
    pipeline_classes: tuple[str, ...]
    """diffusers pipeline classes whose bases belong to this family."""
    components: tuple[str, ...]
    """Names of the neural components: denoiser first, then text encoders, then VAE."""
    default_targets: Mapping[str, tuple[str, ...]]
    """Component -> patterns of its layers that LoRA adapts unless told otherwise."""
    key_names: KeyNames

    def load(self, components: Components, names: Sequence[str], dtype: torch.dtype) -> None:
        """Load the named components straight into `dtype`, in evaluation mode and frozen."""

    def geometry(self, base: BaseModel) -> Geometry:
        """Read picture sizes off the configuration, without loading weights."""

    def objective(self, base: BaseModel) -> DiscreteObjective:
        """What the denoiser predicts and on which schedule, from the scheduler's configuration."""

    def encode_prompts(self, components: Components, prompts: Sequence[str]) -> Conditioning:
        """Run tokenizer and text encoder exactly as at inference; what trains there learns."""

    def encode_pixels(self, components: Components, pixels_BCHW: Tensor) -> Posterior:
        """Run the VAE's encoder on pictures in [-1, 1]."""

    def decode_latents(self, components: Components, latents_BCHW: Tensor) -> Tensor:
        """Run the VAE's decoder: pictures in about [-1, 1], of scaled latents."""

    def predict(
        self,
        components: Components,
        noisy_latents_BCHW: Tensor,
        timesteps_B: Tensor,
        conditioning: Conditioning,
    ) -> Tensor:
        """Run the denoiser."""

    def pipeline(self, components: Components) -> Any:
        """Assemble an unmodified diffusers pipeline from the loaded components."""


def text_encoders(family: Family) -> dict[str, str]:
    """The family's text encoders, each with its tokenizer, named as diffusers names them."""
    names = family.components[1:-1]
    return {name: name.replace("text_encoder", "tokenizer") for name in names}
