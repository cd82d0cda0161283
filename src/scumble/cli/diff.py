"""`scumble diff`: say whether two adapter files do the same, and where they differ."""

import json
from collections.abc import Sequence

from scumble import console
from scumble.cli.flags import parse_flags
from scumble.config.tools import DiffFields, ReadFields
from scumble.imports import uncollected

EXIT_SAME, EXIT_DIFFERENT, EXIT_TROUBLE = 0, 1, 2


def main(arguments: Sequence[str]) -> int:
    """Print what differs between two files.

    Returns:
        0 where they do the same, 1 where they differ.

    Raises:
        UserError: one of them cannot be read.
    """
    flags = parse_flags(
        (DiffFields, ReadFields),
        arguments,
        "scumble diff",
        "Say whether two adapter files do the same, and where they differ. The exit code is 0 if "
        "they do the same,\n1 if they differ, 2 if one cannot be read.",
        positionals={"first": "FIRST", "second": "SECOND"},
    )
    with uncollected():
        from scumble.tools.diff import diff_adapters

    as_json = flags.pop("json")
    found = diff_adapters(**flags)
    text = json.dumps(found.to_dict(), indent=2, ensure_ascii=False) if as_json else found.text()
    console.say(text)
    return EXIT_SAME if found.is_equal else EXIT_DIFFERENT
