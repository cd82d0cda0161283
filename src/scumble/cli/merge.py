"""`scumble merge`: several adapters into one, or into a base model."""

from collections.abc import Sequence

from scumble import console
from scumble.cli.flags import parse_flags
from scumble.config.merging import BaseFields, MergeFields
from scumble.config.tools import ReadFields
from scumble.errors import UserError
from scumble.imports import uncollected

OPTIONS = ("revision", "variant", "prediction_type", "cache_dir")
"""What else is said of the base."""


def main(arguments: Sequence[str]) -> None:
    """Merge as the flags say, and say what was kept.

    Raises:
        UserError: an adapter cannot be read or does not fit, or the place cannot be written.
    """
    flags = parse_flags(
        (MergeFields, BaseFields, ReadFields),
        arguments,
        "scumble merge",
        "Merge adapters into one adapter, or with --base into a base model.",
        positionals={"sources": "ADAPTER[:STRENGTH]"},
    )
    with uncollected():
        from scumble.families import locate
        from scumble.tools.merge import merge_files
        from scumble.tools.sources import Source, parse_factors

    name = flags.pop("base")
    where = {option: flags.pop(option) for option in OPTIONS}
    if name is None and (idle := [option for option, value in where.items() if value is not None]):
        raise UserError(f"--{idle[0]} has no meaning without --base", "Leave it away.")
    sources = [Source.parse(text) for text in flags.pop("sources")]
    factors = parse_factors(flags.pop("block_weights"))
    base = None if name is None else locate(name, **where)
    outcome = merge_files(sources, flags.pop("output"), base=base, factors=factors, **flags)
    for line in (*outcome.lines, str(outcome.path)):
        console.say(line)
