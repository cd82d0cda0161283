"""Which caption a picture is shown with at one step."""

from collections.abc import Sequence

import torch


def caption_for(captions: Sequence[str], generator: torch.Generator, dropout: float) -> str:
    """Choose one caption, and now and then none, which teaches classifier-free guidance.

    Both draws are always made, so turning dropout on changes no choice of caption.

    Args:
        captions: one or more; each is equally likely.
        generator: of this step and position in the batch.
        dropout: probability of the empty caption, in [0, 1].
    """
    choice = int(torch.randint(len(captions), (), generator=generator))
    dropped = float(torch.rand((), generator=generator)) < dropout
    return "" if dropped else captions[choice]
