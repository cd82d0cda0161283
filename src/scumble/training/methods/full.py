"""Full fine-tuning: every weight of the denoiser learns. What adapters are compared with."""

from scumble.training.phase import Phase
from scumble.training.rates import model_group
from scumble.training.taught import Taught
from scumble.training.workshop import Workshop, plan_batches, training_steps


def phases(workshop: Workshop) -> list[Phase]:
    """One phase: every captioned picture, the whole denoiser."""
    plan = plan_batches(workshop)
    name = workshop.denoiser_name
    model = workshop.components[name]
    return [
        Phase(
            name="full",
            first_step=0,
            max_steps=training_steps(workshop, plan),
            plan=plan,
            taught=Taught(models={name: model}),
            groups=[model_group(name, model, workshop.config)],
            losses={"pictures": workshop.picture_loss()},
        )
    ]
