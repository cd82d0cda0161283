"""Noise schedules: how much of the picture is left at each timestep.

Symbols of arXiv:2006.11239: x_t = alpha_t x_0 + sigma_t noise with alpha_t^2 + sigma_t^2 = 1.
Shape suffixes: T timesteps, B batch.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DiscreteSchedule:
    """A variance-preserving schedule of T discrete steps.

    Args:
        alphas_cumprod: alpha_t^2, from nearly 1 (clean) down to nearly 0 (noise); fp32, shape (T,).
    """

    alphas_cumprod: Tensor

    @property
    def num_timesteps(self) -> int:
        """T, the number of timesteps."""
        return len(self.alphas_cumprod)

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether the last timestep holds noise alone."""
        return bool(self.alphas_cumprod[-1] == 0)

    def to(self, device: torch.device) -> "DiscreteSchedule":
        """The same schedule on a device: a recorded step can copy nothing from the host."""
        return DiscreteSchedule(self.alphas_cumprod.to(device))

    def alpha_sigma(self, timesteps_B: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of picture and noise at each sample's timestep, both of shape (B,)."""
        alpha_bar_B = self.alphas_cumprod.to(timesteps_B.device)[timesteps_B]
        return alpha_bar_B.sqrt(), (1 - alpha_bar_B).sqrt()

    def snr(self, timesteps_B: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2 at each sample's timestep, shape (B,)."""
        alpha_B, sigma_B = self.alpha_sigma(timesteps_B)
        return (alpha_B / sigma_B) ** 2


def linear_betas(start: float, end: float, count: int) -> Tensor:
    """Betas evenly spaced (arXiv:2006.11239), shape (T,)."""
    return torch.linspace(start, end, count, dtype=torch.float32)


def scaled_linear_betas(start: float, end: float, count: int) -> Tensor:
    """Betas whose square roots are evenly spaced: Stable Diffusion's own, shape (T,)."""
    return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2


def cosine_betas(_start: float, _end: float, count: int) -> Tensor:
    """Betas of the squared-cosine schedule (arXiv:2102.09672), shape (T,).

    The curve has no free ends; betas are capped at 0.999 as in the paper.
    """

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = range(count)
    betas = [min(1 - alpha_bar((i + 1) / count) / alpha_bar(i / count), 0.999) for i in steps]
    return torch.tensor(betas, dtype=torch.float32)


BETAS = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "squaredcos_cap_v2": cosine_betas,
}
"""Name in a scheduler's configuration -> betas(start, end, count)."""


def schedule_from_betas(betas_T: Tensor, *, zero_terminal_snr: bool = False) -> DiscreteSchedule:
    """Build the schedule of given betas.

    Args:
        betas_T: noise added at each step, each in (0, 1).
        zero_terminal_snr: shift and stretch alpha_t so that the last step is pure noise
            (arXiv:2305.08891, algorithm 1).
    """
    alphas_cumprod = torch.cumprod(1 - betas_T, dim=0)
    if zero_terminal_snr:
        alpha_T = alphas_cumprod.sqrt()
        first, last = alpha_T[0].clone(), alpha_T[-1].clone()
        alphas_cumprod = ((alpha_T - last) * first / (first - last)) ** 2
    return DiscreteSchedule(alphas_cumprod)
