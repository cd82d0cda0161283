"""`scumble train METHOD`: teach a base model."""

import difflib
from collections.abc import Sequence

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
    from scumble.training.run import train

    train(config)
