"""Make the denoiser fit: choose how lean it computes, say what it will need, name ways out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

from scumble import console
from scumble.config import TrainConfig, given
from scumble.errors import UserError, first_line
from scumble.lean.install import LeanModel, put_on
from scumble.lean.levels import LEVELS
from scumble.training.forecast import GIB, Forecast, foretell, free_bytes
from scumble.training.phase import Phase
from scumble.training.workshop import Workshop

SHARE = 0.92
"""So much of the free memory may be needed; the rest is for what nobody foretells."""
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""What errors of memory say that have no class of their own."""


def fit(workshop: Workshop, phases: Sequence[Phase]) -> tuple[str, Forecast]:
    """Put lean layers on the denoiser, at the fastest level of --memory that fits.

    Returns:
        The level, and what the run will need.
    """
    config, runtime = workshop.config, workshop.runtime
    # The same everywhere, so that all processes compute alike.
    shares = runtime.processes.together(lambda: free_bytes(runtime.device) // runtime.sharers)
    free = min(shares)
    levels = list(LEVELS) if config.memory == "auto" else [config.memory]
    if config.teaches_every_weight:
        levels = ["off"]
    for level in levels:
        forecast = foretell(workshop, phases, level)
        if forecast.more_bytes <= SHARE * free:
            break
    console.say(_line(level, forecast, free))
    if forecast.more_bytes > free:
        console.say(f"that is more than there is: {way_out(config, level)}")
    workshop.gathered.train.resident.room_bytes = max(0, (free - forecast.more_bytes) // 2)
    denoiser = workshop.components[workshop.denoiser_name]
    if level in LEVELS:
        _say_left_alone(put_on(denoiser, LEVELS[level], config.attention_kind))
    elif config.attention_kind == "xformers":
        denoiser.enable_xformers_memory_efficient_attention()
    if config.compile:
        compile_denoiser(denoiser, runtime.device)
    return level, forecast


def check_attention(config: TrainConfig) -> None:
    """Refuse an implementation of attention that is not installed.

    Raises:
        UserError: xFormers is asked for and cannot be loaded.
    """
    if config.attention_kind != "xformers":
        return
    try:
        import_module("xformers.ops")
    except Exception as error:
        raise UserError(
            f"xFormers cannot be used: {first_line(error)}",
            "Run: pip install 'scumble[xformers]', or leave --attention away: PyTorch's own "
            "attention is as lean.",
        ) from error


def compile_denoiser(denoiser: Any, device: torch.device) -> None:
    """Let torch.compile make the denoiser's kernels; where it cannot, it computes as before."""
    if device.type != "cuda":
        console.say(f"--compile is left away: on {device.type} it takes minutes and gains nothing")
        return
    import torch._dynamo

    torch._dynamo.config.suppress_errors = True
    denoiser.compile(dynamic=False)
    console.say("--compile: the first steps take a minute")


def _line(level: str, forecast: Forecast, free: int) -> str:
    return (
        f"memory: {level}, {forecast.step.saved_bytes / GIB:.2f} GiB kept for the way back; "
        f"peak foretold {forecast.peak_bytes / GIB:.2f} GiB, "
        f"{forecast.more_bytes / GIB:.2f} GiB more than now, of {free / GIB:.2f} GiB free"
    )


def _say_left_alone(lean: LeanModel) -> None:
    if lean.left_alone:
        kinds = ", ".join(f"{count} {name}" for name, count in lean.left_alone.items())
        console.say(f"blocks that compute as usual, neither faster nor leaner: {kinds}")


def way_out(config: TrainConfig, level: str) -> str:
    """The next thing to try where memory does not suffice."""
    batch = given(config.train_batch_size)
    names = list(LEVELS)
    if (config.mixed_precision or "no") == "no" and not config.teaches_every_weight:
        return "try --mixed_precision bf16 (or fp16), which halves the frozen base"
    if level in names[:-1] and not config.teaches_every_weight:
        return f"try --memory {names[names.index(level) + 1]}"
    if batch > 1:
        more = config.gradient_accumulation_steps * 2
        return (
            f"try --train_batch_size {batch // 2} --gradient_accumulation_steps {more}, "
            "which learns the same"
        )
    if config.base_precision is None and not config.teaches_every_weight:
        return "try --base_precision int8, or nf4 for less still"
    if config.base_precision in ("int8", "fp8"):
        return "try --base_precision nf4"
    if not config.gradient_checkpointing:
        return "try --gradient_checkpointing"
    return "lower --resolution, or close other programs"


@contextmanager
def memory_explained(config: TrainConfig) -> Iterator[list[str]]:
    """Turn an error of memory into one that names the next thing to try.

    Yields:
        A list for the level of --memory, once it is chosen.

    Raises:
        UserError: memory ran out.
    """
    chosen: list[str] = ["balanced" if config.memory == "auto" else config.memory]
    try:
        yield chosen
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_memory = not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError)
        if not is_memory and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        hint = way_out(config, chosen[-1])
        raise UserError(
            f"out of memory: {first_line(error)}",
            f"{hint[0].upper()}{hint[1:]}. Checkpoints so far are kept.",
        ) from error
