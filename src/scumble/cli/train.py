"""`scumble train METHOD`: teach a base model."""

import difflib
import textwrap
from collections.abc import Sequence
from dataclasses import fields

from scumble import console
from scumble.cli.flags import parse_flags
from scumble.config import GROUPS, TrainConfig
from scumble.errors import UserError

METHODS = {"text_to_image": "adapters taught by captioned pictures"}
"""Method -> what it is for."""


def main(arguments: Sequence[str]) -> None:
    """Train as the flags say.

    Raises:
        UserError: an unknown method, bad settings, bad input.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:16} {purpose}" for name, purpose in METHODS.items())
        console.say(f"usage: scumble train METHOD ...\n\n{lines}\n")
        console.say("scumble train METHOD --help explains every option.")
        if not arguments:
            raise UserError("name a method", "For example: scumble train text_to_image --help")
        return
    method = arguments[0]
    if method not in METHODS:
        close = difflib.get_close_matches(method, METHODS, n=1)
        hint = f"Did you mean '{close[0]}'?" if close else f"Methods: {', '.join(METHODS)}."
        raise UserError(f"there is no training method '{method}'", hint)
    program = f"scumble train {method}"
    settings = parse_flags(GROUPS, arguments[1:], program, METHODS[method])
    config = TrainConfig(method=method, **settings)
    for line in describe(config):
        console.say(line)
    from scumble.training.run import train

    train(config)


def describe(config: TrainConfig) -> list[str]:
    """The resolved settings, group by group, in lines of a terminal's width."""
    values = config.to_dict()
    lines = []
    for group in GROUPS:
        names = [item.name for item in fields(group) if item.name in values]
        pairs = " ".join(f"{name}={_word(values[name])}" for name in names)
        lines += textwrap.wrap(
            f"{group.__doc__}: {pairs}", 100, subsequent_indent="  ", break_on_hyphens=False
        )
    return lines


def _word(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "-"
    return "-" if value is None else str(value).replace(" ", "\u00a0")
