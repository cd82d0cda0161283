"""What is looked at before the first step, so that no run ends otherwise than was meant."""

from collections.abc import Sequence

from scumble import console
from scumble.config import TrainConfig
from scumble.errors import UserError
from scumble.training.phase import Phase


def check_warmup(config: TrainConfig, phases: Sequence[Phase]) -> None:
    """Each phase has a warm-up of its own, which must end before it does.

    Raises:
        UserError: one would not.
    """
    if config.lr_scheduler == "constant" and config.lr_warmup_steps:
        console.say(
            "--lr_warmup_steps has no effect with --lr_scheduler constant; "
            "constant_with_warmup has one"
        )
        return
    for phase in phases:
        if config.lr_warmup_steps >= phase.max_steps:
            raise UserError(
                f"--lr_warmup_steps {config.lr_warmup_steps} would outlast the "
                f"{phase.max_steps} steps of '{phase.name}'",
                "Make it a tenth of the steps or less.",
            )


def say_prompt_without_word(config: TrainConfig) -> None:
    """Say that pictures drawn on the way will not show the new word."""
    prompt, word = config.validation_prompt, config.placeholder_token
    if word is not None and prompt is not None and word not in prompt:
        console.say(f"--validation_prompt does not contain {word}: what is learnt will not show")
