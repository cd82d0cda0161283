"""`scumble convert`: write an adapter file in the format of another program."""

from collections.abc import Sequence

from scumble import console
from scumble.cli.flags import parse_flags
from scumble.config.tools import ConvertFields, ReadFields, WriteFields
from scumble.imports import uncollected


def main(arguments: Sequence[str]) -> None:
    """Convert a file and say what was read and written.

    Raises:
        UserError: it cannot be read, or not be written in that format.
    """
    flags = parse_flags(
        (ConvertFields, WriteFields, ReadFields),
        arguments,
        "scumble convert",
        "Write an adapter file in the format of another program. What it does stays the same.",
        positionals={"file": "FILE"},
    )
    with uncollected():
        from scumble.tools.convert import convert_adapter

    outcome = convert_adapter(flags.pop("file"), **flags)
    for line in outcome.lines:
        console.say(line)
