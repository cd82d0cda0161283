"""`scumble train METHOD`: teach a base model."""

import difflib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from scumble import console
from scumble.cli.flags import parse_flags
from scumble.config import METHOD_GROUPS, TrainConfig
from scumble.config.method_groups import METHOD_DEFAULTS
from scumble.config.train import field_names
from scumble.errors import UserError
from scumble.imports import uncollected
from scumble.training.interrupts import sigterm_interrupts

METHODS = {
    "text_to_image": "adapters taught by captioned pictures",
    "dreambooth": "adapters for one subject, taught by a few pictures of it",
    "textual_inversion": "a new word, taught by a few pictures; the model stays as it is",
    "pivotal_tuning": "a new word first, then adapters on top of it",
    "full": "the whole denoiser: for comparison, at a thousand times the size",
}
"""Method -> what it is for."""

ELSEWHERE = {
    "pre_compute_text_embeddings": (False, "captions are always encoded once where they can be"),
    "save_steps": (True, "every checkpoint holds the learnt rows: --checkpointing_steps"),
    "save_as_full_pipeline": (False, "the result is loaded on top of the unmodified base"),
}
"""Flags of diffusers' scripts that need no counterpart -> (takes a value, why)."""

REFUSED = {
    "tokenizer_name": "the tokenizer is the base's own",
    "tokenizer_max_length": "the tokenizer's own length is used",
    "text_encoder_use_attention_mask": "the base's own setting is used",
    "validation_images": "the bases that are taught start from text alone",
    "class_labels_conditioning": "the bases that are taught have no class labels",
    "no_safe_serialization": "only safetensors files are written",
}
"""Flags of diffusers' scripts that change the result there and are not possible here -> why."""


def main(arguments: Sequence[str]) -> None:
    """Train as the flags say.

    Raises:
        UserError: an unknown method, bad settings, bad input.
    """
    with sigterm_interrupts():
        config, _ = read_run("train", arguments)
        if config is None:
            return
        with uncollected():
            from scumble.training.run import train

        train(config)


def read_run(
    verb: str, arguments: Sequence[str], *further: type
) -> tuple[TrainConfig | None, dict[str, Any]]:
    """Read a method and its flags.

    Args:
        verb: that they stand behind.
        arguments: the words behind it.
        further: groups of flags that are the verb's own.

    Returns:
        The settings of the run, None where help was asked for and shown; and the verb's own flags.

    Raises:
        UserError: an unknown method, or bad settings.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:18} {purpose}" for name, purpose in METHODS.items())
        console.say(f"usage: scumble {verb} METHOD ...\n\n{lines}\n")
        console.say(f"scumble {verb} METHOD --help explains every option.")
        if not arguments:
            raise UserError("name a method", f"For example: scumble {verb} text_to_image --help")
        return None, {}
    method = arguments[0]
    if method not in METHODS:
        close = difflib.get_close_matches(method, METHODS, n=1)
        hint = f"Did you mean '{close[0]}'?" if close else f"Methods: {', '.join(METHODS)}."
        raise UserError(f"there is no training method '{method}'", hint)
    settings = parse_flags(
        (*METHOD_GROUPS[method], *further),
        _without_foreign(method, arguments[1:]),
        f"scumble {verb} {method}",
        METHODS[method],
        METHOD_DEFAULTS[method],
    )
    own = {item.name: settings.pop(item.name) for group in further for item in fields(group)}
    return TrainConfig(method=method, **settings), own


def _without_foreign(method: str, arguments: Sequence[str]) -> list[str]:
    """Leave out flags of diffusers' scripts that have no counterpart here, saying why.

    Raises:
        UserError: one that would change the result, or that another method has.
    """
    own = field_names(method)
    kept = []
    words = iter(arguments)
    for word in words:
        flag, equals, _ = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_") if flag.startswith("--") else ""
        having = [other for other in METHODS if name in field_names(other)]
        if having and name not in own:
            raise UserError(
                f"--{name} has no meaning for {method}", f"It belongs to: {', '.join(having)}."
            )
        if name in REFUSED:
            raise UserError(f"--{name} is not available: {REFUSED[name]}", "Leave it away.")
        if name not in ELSEWHERE:
            kept.append(word)
            continue
        takes_value, reason = ELSEWHERE[name]
        console.say(f"--{name} is not needed: {reason}")
        if takes_value and not equals:
            next(words, None)
    return kept
