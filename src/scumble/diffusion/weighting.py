"""How much each sample counts, and how its noise may be coloured.

Shape suffixes: B batch, C channels, H height, W width.
"""

import torch
from torch import Tensor

from scumble.diffusion.objectives import Prediction

MIN_AREA = 0.05
"""Share of the picture that a mask counts for at least."""


def min_snr_weights(snr_B: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """Down-weight easy, nearly clean timesteps so that they do not dominate the loss.

    Min-SNR weighting (arXiv:2303.09556): cap the signal-to-noise ratio at `gamma`, then divide
    by the weight that the prediction target already gives a clean-image loss.

    Args:
        snr_B: alpha^2 / sigma^2 at each sample's timestep; dimensionless, >= 0.
        gamma: the cap. 5.0 in the paper; infinity turns the cap off.
        prediction: what the denoiser predicts; decides the divisor.

    Returns:
        One weight per sample, shape (B,).
    """
    capped_B = snr_B.clamp(max=gamma)
    # A zero-terminal-SNR schedule has snr = 0: v-prediction's divisor stays above zero there.
    return capped_B / (snr_B + 1 if prediction is Prediction.V else snr_B)


def offset_noise(noise_CHW: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    """Add one random level per channel, so that a model learns very dark and very bright pictures.

    Args:
        noise_CHW: standard normal noise of one sample.
        strength: spread of the added level; about 0.1 is usual, 0 changes nothing.
        draw: the sample's own generator.

    Returns:
        The coloured noise, shape (C, H, W).
    """
    if not strength:
        return noise_CHW
    return noise_CHW + strength * torch.randn(noise_CHW.shape[0], 1, 1, generator=draw)


def masked_mean(error_BCHW: Tensor, mask_B1HW: Tensor, outside: float) -> Tensor:
    """Average an error over the part of the picture that a mask shows.

    Divided by the mask's own area: a small subject counts as much as a large one. The area has a
    floor, so that a subject which a crop has all but cut away does not count twentyfold.

    Args:
        error_BCHW: squared error.
        mask_B1HW: 1 what is to be learnt, 0 what is not.
        outside: what the 0 still counts.

    Returns:
        One mean per sample, shape (B,).
    """
    weights_B1HW = mask_B1HW + (1 - mask_B1HW) * outside
    area_B = weights_B1HW.flatten(1).mean(1).clamp(min=MIN_AREA)
    return (error_BCHW * weights_B1HW).flatten(1).mean(1) / area_B
