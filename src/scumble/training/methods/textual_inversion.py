"""Textual inversion: a new word, whose vectors alone are learnt (arXiv:2208.01618)."""

from scumble.config import given
from scumble.training.phase import Phase
from scumble.training.rates import row_groups
from scumble.training.taught import Taught
from scumble.training.words import fresh_rows, table_norms
from scumble.training.workshop import Workshop, plan_batches, training_steps


def phases(workshop: Workshop) -> list[Phase]:
    """One phase: the rows of the new word, the model frozen around them."""
    config = workshop.config
    plan = plan_batches(workshop)
    taught = Taught(rows=fresh_rows(workshop))
    rate, norms = given(config.learning_rate), table_norms(workshop)
    return [
        Phase(
            name="textual_inversion",
            first_step=0,
            max_steps=training_steps(workshop, plan),
            plan=plan,
            taught=taught,
            groups=row_groups(taught.rows, rate, config, norms),
            losses={"pictures": workshop.picture_loss()},
        )
    ]
