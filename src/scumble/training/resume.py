"""Go on from a checkpoint: is it one of this very run, and what is not as it was?"""

from collections.abc import Mapping, Sequence
from typing import Any

from scumble import console
from scumble.data.wording import counted
from scumble.errors import UserError
from scumble.training.average import copy_into
from scumble.training.blueprint import TEACHES_NOTHING, picture_sets
from scumble.training.checkpoints import Checkpoint
from scumble.training.phase import Phase, phase_name
from scumble.training.picture_list import named_differences, read_list
from scumble.training.taught import together
from scumble.training.workshop import Workshop


def continue_from(
    checkpoint: Checkpoint, workshop: Workshop, phases: Sequence[Phase]
) -> dict[str, Any]:
    """Put a checkpoint's parameters into the model; returns everything that it holds.

    Raises:
        UserError: it belongs to another run, or is further than the run is to go.
    """
    console.say(f"going on from {checkpoint.folder}, step {checkpoint.step}")
    differences = checkpoint.differences(workshop.config)
    if checkpoint.data_digest != workshop.gathered.digest():
        differences += _changed_pictures(checkpoint, workshop)
    state = workshop.runtime.processes.from_main(checkpoint.training_state)
    others = _other_processes(state, workshop)
    differences += others
    for difference in differences:
        console.say(f"not as before: {difference}")
    workshop.runtime.events.note("resumed", step=checkpoint.step, changes=differences)
    require_fit(checkpoint, state, phases)
    learnt = together(phase.taught for phase in phases).named_state()
    copy_into(learnt, state["parameters"])
    taught_otherwise = [
        *state.get("changes", []),
        *others,
        *_of_what_was_learnt(checkpoint, workshop),
    ]
    workshop.changes.extend(dict.fromkeys(taught_otherwise))
    return state


def require_fit(checkpoint: Checkpoint, state: Mapping[str, Any], phases: Sequence[Phase]) -> None:
    """Make sure that a checkpoint can be gone on from with what is asked for now.

    Raises:
        UserError: it belongs to another run, or is further than the run is to go.
    """
    total = sum(phase.max_steps for phase in phases)
    if checkpoint.step > total:
        raise UserError(
            f"{checkpoint.folder} has {checkpoint.step} steps behind it, more than the {total} "
            "that are asked for",
            "Raise --max_train_steps, or resume from an earlier checkpoint.",
        )
    learnt = together(phase.taught for phase in phases).named_state()
    saved = {name: tensor.shape for name, tensor in state["parameters"].items()}
    if saved != {name: tensor.shape for name, tensor in learnt.items()}:
        raise UserError(
            f"{checkpoint.folder} adapts other layers, at other ranks or from another start, than "
            "are asked for now",
            "Within a run the method, --rank, --target_modules, --adapter_init pissa, "
            "--placeholder_token, --num_vectors and the base stay; for others start a new "
            "--output_dir.",
        )
    if state["phase"] != phase_name(phases, checkpoint.step):
        raise UserError(
            f"{checkpoint.folder} was written in the phase '{state['phase']}', and step "
            f"{checkpoint.step} belongs to '{phase_name(phases, checkpoint.step)}' now",
            "Within a run the pivot stays where it is: leave --pivot and --max_train_steps as they "
            "were, or start a new --output_dir.",
        )


def _changed_pictures(checkpoint: Checkpoint, workshop: Workshop) -> list[str]:
    """Which pictures and captions are not as they were, as far as the run's list tells."""
    try:
        then = read_list(checkpoint.folder.parent)
    except UserError as error:
        then = None
        console.say(error.message)
    named = then and named_differences(then, picture_sets(workshop.gathered))
    return named or ["the pictures, captions or crops have changed since the checkpoint"]


def _other_processes(state: Mapping[str, Any], workshop: Workshop) -> list[str]:
    """Whether a step sees another number of pictures than before, because others share it."""
    before, now = state.get("processes"), workshop.runtime.num_processes
    if before in (None, now):
        return []
    return [
        f"the number of processes was {before} and is {now} now: a step sees up to "
        f"{counted(workshop.batch_size, 'picture')}"
    ]


def _of_what_was_learnt(checkpoint: Checkpoint, workshop: Workshop) -> list[str]:
    """What makes the run another than one that has had its present settings from the start."""
    config = workshop.config
    # Only where nothing hangs on how long the run is to be.
    is_even = config.lr_scheduler.startswith("constant") and not config.learns_words
    lengths = {"max_train_steps", "num_train_epochs"} if is_even else set()
    found = checkpoint.differences(config, TEACHES_NOTHING | lengths)
    if checkpoint.data_digest != workshop.gathered.digest():
        found.append("the pictures or captions were others")
    return found
