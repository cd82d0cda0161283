"""`scumble inspect`: show what an adapter file is and what is in it."""

import json
from collections.abc import Sequence

from scumble import console
from scumble.cli.flags import parse_flags
from scumble.config.tools import InspectFields, PickleFields
from scumble.imports import uncollected


def main(arguments: Sequence[str]) -> None:
    """Print what is known of a file.

    Raises:
        UserError: nothing in it can be read.
    """
    flags = parse_flags(
        (InspectFields, PickleFields),
        arguments,
        "scumble inspect",
        "Show what an adapter file is and what is in it. Nothing is loaded or changed.",
        positionals={"file": "FILE"},
    )
    with uncollected():
        from scumble.tools.inspect import inspect_adapter

    found = inspect_adapter(
        flags["file"],
        norms=flags["norms"],
        hashes=flags["hash"],
        allow_pickle=flags["allow_pickle"],
    )
    if flags["json"]:
        console.say(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        console.say(found.text(modules=flags["modules"]))
