"""Ranges that training and drawing share."""

from scumble.errors import UserError

MAX_INFERENCE_STEPS = 1000
"""A sampler cannot take more steps than the model has noise levels."""


def check_seed(seed: int) -> None:
    """Refuse a seed that a generator cannot take.

    Raises:
        UserError: it is negative or needs more than 63 bits.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed must be from 0 to {2**63 - 1}, not {seed}")
