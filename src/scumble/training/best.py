"""The checkpoint that did best on held-out pictures: which one it is, and taking it at the end."""

import math
from pathlib import Path

from torch import Tensor

from scumble import console
from scumble.errors import UserError
from scumble.training.average import copy_into
from scumble.training.checkpoints import BEST, Checkpoint, open_checkpoint
from scumble.training.held_out import Choice
from scumble.training.processes import Processes
from scumble.training.taught import Taught


def remembered_choice(choice: Choice, folder: Path) -> Choice:
    """The choice itself, or a new one where the checkpoint that it made is not there any more."""
    if choice.best_step == 0:
        return choice
    kept = _open(folder)
    if isinstance(kept, Checkpoint) and kept.step == choice.best_step:
        return choice
    console.say(
        f"the best checkpoint, of step {choice.best_step}, has gone from {folder}: the next "
        "measurement counts as the best"
    )
    return Choice(choice.patience)


def take_best(
    choice: Choice, done: int, folder: Path, taught: Taught, processes: Processes
) -> dict[str, float]:
    """Put the best checkpoint into the model, if it is not the last step's; facts of the record."""
    if choice.best_step in (0, done):
        return {}
    best = processes.from_main(lambda: _best_state(folder))
    if best is None:
        return {}
    copy_into(taught.named_state(), best)
    console.say(
        f"the result is that of step {choice.best_step}, the best on held-out pictures "
        f"({choice.best_loss:.5f})"
    )
    return {"best_step": choice.best_step, "held_out_loss": choice.best_loss}


def measured(choice: Choice) -> dict[str, float]:
    """The best loss on held-out pictures, if there are such."""
    best = choice.best_loss
    return {"loss on held-out pictures": best} if math.isfinite(best) else {}


def _best_state(folder: Path) -> dict[str, Tensor] | None:
    best = _open(folder)
    if isinstance(best, UserError):
        console.say(f"the best checkpoint cannot be used, the last one is: {best.message}")
        return None
    state = best.training_state()
    return dict(state["parameters"] | state["average"])


def _open(folder: Path) -> Checkpoint | UserError:
    try:
        return open_checkpoint(folder / BEST)
    except UserError as error:
        return error
