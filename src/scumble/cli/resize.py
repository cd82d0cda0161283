"""`scumble resize`: an adapter of another rank."""

from collections.abc import Sequence

from scumble import console
from scumble.cli.flags import parse_flags
from scumble.config.merging import ResizeFields
from scumble.config.tools import ReadFields, WriteFields
from scumble.imports import uncollected


def main(arguments: Sequence[str]) -> None:
    """Resize as the flags say, and say what was kept.

    Raises:
        UserError: the adapter cannot be read or resized, or the place cannot be written.
    """
    flags = parse_flags(
        (ResizeFields, WriteFields, ReadFields),
        arguments,
        "scumble resize",
        "Write an adapter again with another rank.",
        positionals={"file": "FILE"},
    )
    with uncollected():
        from scumble.tools.resize import resize_adapter

    outcome = resize_adapter(flags.pop("file"), flags.pop("output"), flags.pop("rank"), **flags)
    for line in (*outcome.lines, str(outcome.path)):
        console.say(line)
