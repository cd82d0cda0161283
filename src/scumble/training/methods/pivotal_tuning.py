"""Pivotal tuning: first a new word, then adapters on top of it (arXiv:2106.05744, for LoRA)."""

from scumble.errors import UserError
from scumble.training.phase import Phase
from scumble.training.rates import adapter_groups, row_groups
from scumble.training.taught import Taught
from scumble.training.words import fresh_rows, table_norms
from scumble.training.workshop import Workshop, fresh_adapters, plan_batches, training_steps


def phases(workshop: Workshop) -> list[Phase]:
    """Two phases: the word alone; then the adapters, with the word frozen or nearly so.

    Raises:
        UserError: the run is too short to have both.
    """
    config = workshop.config
    plan = plan_batches(workshop)
    steps = training_steps(workshop, plan)
    pivot = round(steps * config.pivot)
    if not 0 < pivot < steps:
        raise UserError(
            f"--pivot {config.pivot} leaves no step for one of the two phases of {steps} steps",
            "Raise --max_train_steps, or move the pivot towards 0.5.",
        )
    word = Taught(rows=fresh_rows(workshop))
    adapters = Taught(adapters=fresh_adapters(workshop))
    norms, losses = table_norms(workshop), {"pictures": workshop.picture_loss()}
    groups = adapter_groups(adapters.adapters, config, workshop.denoiser_name)
    second = adapters
    if config.row_learning_rate_after:
        second = adapters | word
        groups += row_groups(word.rows, config.row_learning_rate_after, config, norms)
    return [
        Phase(
            name="word",
            first_step=0,
            max_steps=pivot,
            plan=plan,
            taught=word,
            groups=row_groups(word.rows, config.row_learning_rate, config, norms),
            losses=losses,
        ),
        Phase(
            name="adapters",
            first_step=pivot,
            max_steps=steps - pivot,
            plan=plan,
            taught=second,
            groups=groups,
            losses=losses,
            dropouts=workshop.dropouts(),
        ),
    ]
