"""A run's way to the Hub: asked for before the first step, taken after the last."""

from pathlib import Path

from scumble import console
from scumble.config import TrainConfig
from scumble.errors import UserError
from scumble.hub.push import check_access, command, default_name, push_folder


def check_destination(config: TrainConfig) -> None:
    """Make sure, where the Hub can be reached, that the result may be pushed to it.

    Raises:
        UserError: it may not; hours later it would be no different.
    """
    if not config.push_to_hub:
        return
    target = check_access(_name(config), config.hub_token)
    if target is None:
        console.say("the Hub is out of reach: training starts, and the push is tried at the end")
    else:
        console.say(f"the result will be pushed to {target}")


def push_result(config: TrainConfig) -> None:
    """Push a finished run.

    Raises:
        UserError: that failed; it says that the run is safe, and how to push it later.
    """
    if not config.push_to_hub:
        return
    folder, name = Path(config.output_dir), _name(config)
    try:
        push_folder(
            folder,
            name,
            private=config.hub_private,
            token=config.hub_token,
            message="End of training",
        )
    except UserError as error:
        again = command(folder, name, config.hub_private)
        raise UserError(
            f"the run is finished and safe in {folder}, but not pushed: {error.message}",
            error.hint if "scumble push" in error.hint else f"Push it later: {again}",
        ) from error


def _name(config: TrainConfig) -> str:
    return config.hub_model_id or default_name(Path(config.output_dir))
