"""What is refused before the first step."""

from collections.abc import Sequence

from scumble.config import TrainConfig
from scumble.errors import UserError
from scumble.training.phase import Phase


def check_warmup(config: TrainConfig, phases: Sequence[Phase]) -> None:
    """Each phase has a warm-up of its own, which must end before it does.

    Raises:
        UserError: one would not.
    """
    if config.lr_scheduler == "constant":
        return
    for phase in phases:
        if config.lr_warmup_steps >= phase.max_steps:
            raise UserError(
                f"--lr_warmup_steps {config.lr_warmup_steps} would outlast the "
                f"{phase.max_steps} steps of '{phase.name}'",
                "Make it a tenth of the steps or less.",
            )
