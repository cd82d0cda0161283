"""`scumble extract`: what fine-tuning changed of a whole model, as an adapter."""

from collections.abc import Sequence

from scumble import console
from scumble.cli.flags import parse_flags
from scumble.config.merging import ExtractFields
from scumble.config.tools import WriteFields
from scumble.imports import uncollected


def main(arguments: Sequence[str]) -> None:
    """Extract as the flags say, and say what was kept and what was not.

    Raises:
        UserError: the models cannot be read or compared, or the place cannot be written.
    """
    flags = parse_flags(
        (ExtractFields, WriteFields),
        arguments,
        "scumble extract",
        "Write a LoRA that does what fine-tuning a whole model did.",
    )
    with uncollected():
        from scumble.families import locate
        from scumble.tools.extract import extract_adapter

    options = ("revision", "variant", "prediction_type", "cache_dir")
    where = {option: flags.pop(option) for option in options}
    base, tuned = (locate(flags.pop(name), **where) for name in ("base", "tuned"))
    outcome = extract_adapter(base, tuned, flags.pop("output"), flags.pop("rank"), **flags)
    for line in (*outcome.lines, str(outcome.path)):
        console.say(line)
