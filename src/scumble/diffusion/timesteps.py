"""Which noise levels are trained on: one timestep per sample, from the sample's own generator."""

from collections.abc import Callable

import torch


def uniform(num_timesteps: int, draw: torch.Generator) -> int:
    """Every timestep equally often: the choice of arXiv:2006.11239 and of diffusers' scripts."""
    return int(torch.randint(0, num_timesteps, (), generator=draw))


def logit_normal(num_timesteps: int, draw: torch.Generator) -> int:
    """Middle noise levels more often (arXiv:2403.03206, equation 19, location 0 and scale 1)."""
    share = torch.sigmoid(torch.randn((), generator=draw)).item()
    return min(int(share * num_timesteps), num_timesteps - 1)


TIMESTEP_SAMPLERS: dict[str, Callable[[int, torch.Generator], int]] = {
    "uniform": uniform,
    "logit_normal": logit_normal,
}
"""Name in the configuration -> sampler(number of timesteps, generator)."""
