"""Text-to-image: adapters taught by captioned pictures. One phase."""

from scumble.training.phase import Phase
from scumble.training.rates import adapter_groups
from scumble.training.taught import Taught
from scumble.training.workshop import Workshop, fresh_adapters, plan_batches, training_steps


def phases(workshop: Workshop) -> list[Phase]:
    """One phase: every captioned picture, the same weight for each."""
    plan = plan_batches(workshop)
    taught = Taught(adapters=fresh_adapters(workshop))
    return [
        Phase(
            name="text_to_image",
            first_step=0,
            max_steps=training_steps(workshop, plan),
            plan=plan,
            taught=taught,
            groups=adapter_groups(taught.adapters, workshop.config, workshop.denoiser_name),
            losses={"pictures": workshop.picture_loss()},
            dropouts=workshop.dropouts(),
        )
    ]
