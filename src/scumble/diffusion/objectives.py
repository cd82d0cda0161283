"""What the denoiser is asked to predict, and the noisy latents it is asked about.

Shape suffixes: B batch, C channels, H height, W width.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from scumble.diffusion.schedules import DiscreteSchedule
from scumble.errors import UserError


class Prediction(StrEnum):
    """What a denoiser predicts, spelled as in a scheduler's configuration."""

    EPSILON = "epsilon"
    V = "v_prediction"


@dataclass(frozen=True)
class DiscreteObjective:
    """Denoising on a discrete schedule.

    Args:
        schedule: how much noise each timestep has.
        prediction: the noise (arXiv:2006.11239) or the velocity (arXiv:2202.00512).

    Raises:
        UserError: noise prediction on a schedule that ends in pure noise, where the noise says
            nothing about the picture.
    """

    schedule: DiscreteSchedule
    prediction: Prediction

    def __post_init__(self) -> None:
        if self.prediction is Prediction.EPSILON and self.schedule.has_zero_terminal_snr:
            raise UserError(
                "this base's schedule ends in pure noise (rescale_betas_zero_snr), "
                "which epsilon prediction cannot learn from",
                "Train with --prediction_type v_prediction, or use a base without that setting.",
            )

    def to(self, device: torch.device) -> "DiscreteObjective":
        """The same objective, with its schedule on a device."""
        return replace(self, schedule=self.schedule.to(device))

    def noised(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Mix picture and noise as the schedule says, shape (B, C, H, W)."""
        alpha_B, sigma_B = self.schedule.alpha_sigma(timesteps_B)
        return _spread(alpha_B) * latents_BCHW + _spread(sigma_B) * noise_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """What the denoiser should answer, shape (B, C, H, W)."""
        if self.prediction is Prediction.EPSILON:
            return noise_BCHW
        alpha_B, sigma_B = self.schedule.alpha_sigma(timesteps_B)
        return _spread(alpha_B) * noise_BCHW - _spread(sigma_B) * latents_BCHW


def _spread(factors_B: Tensor) -> Tensor:
    return factors_B.view(-1, 1, 1, 1)
