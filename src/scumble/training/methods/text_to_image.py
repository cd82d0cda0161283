"""Text-to-image: adapters on the denoiser, taught by captioned pictures. One phase."""

from scumble.training.denoising import DenoisingLoss
from scumble.training.phase import Phase
from scumble.training.workshop import (
    Workshop,
    denoiser_adapters,
    plan_batches,
    training_steps,
)


def phases(workshop: Workshop) -> list[Phase]:
    """One phase: every captioned picture, the same weight for each."""
    config = workshop.config
    plan = plan_batches(workshop)
    loss = DenoisingLoss(
        config,
        workshop.family,
        workshop.components,
        workshop.objective,
        workshop.data,
        workshop.runtime,
    )
    return [
        Phase(
            name="text_to_image",
            max_steps=training_steps(config, plan),
            plan=plan,
            adapters=denoiser_adapters(workshop),
            loss=loss,
            rank_dropout=config.rank_dropout,
            seed=config.seed,
        )
    ]
