"""`scumble reproduce`: train again as an adapter or a run says that it was trained."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scumble.cli.flags import parse_flags
from scumble.config import METHOD_GROUPS, TrainConfig
from scumble.config.reproduce import ReproduceFields
from scumble.errors import UserError
from scumble.imports import uncollected

if TYPE_CHECKING:
    from scumble.training.original import Original

EXIT_SAME, EXIT_DIFFERENT = 0, 3

DESCRIPTION = (
    "Train again as an adapter's file or a run's folder says that it was trained, and compare the "
    "results.\nEvery option of scumble train may stand behind SOURCE and replaces what is said "
    "there.\nThe exit code is 0 if the results are the same, 3 if they differ."
)


def main(arguments: Sequence[str]) -> int:
    """Reproduce a run.

    Returns:
        0 where the results are the same, 3 where they differ.

    Raises:
        UserError: the source says too little, or its run cannot be repeated here.
    """
    if not arguments or arguments[0].startswith("-"):
        if not {"-h", "--help"}.intersection(arguments):
            raise UserError(
                "name the adapter or run first, then other options",
                "For example: scumble reproduce runs/neon --check",
            )
        _parse((ReproduceFields,), arguments, {})
    with uncollected():
        from scumble.training.original import open_original
        from scumble.training.reproduce import reproduce

    original = open_original(arguments[0])
    _require_lacking(original, arguments)
    groups = (ReproduceFields, *METHOD_GROUPS[original.method])
    settings = _parse(groups, arguments, original.defaults)
    check, tolerance = settings.pop("check"), settings.pop("tolerance")
    settings.pop("source")
    config = TrainConfig(method=original.method, **settings)
    is_same = reproduce(original, config, check=check, tolerance=tolerance)
    return EXIT_SAME if is_same else EXIT_DIFFERENT


def _parse(
    groups: Sequence[type], arguments: Sequence[str], defaults: dict[str, Any]
) -> dict[str, Any]:
    positionals = {"source": "SOURCE"}
    return parse_flags(
        groups, arguments, "scumble reproduce", DESCRIPTION, defaults, positionals=positionals
    )


def _require_lacking(original: "Original", arguments: Sequence[str]) -> None:
    """Ask for paths that only the first machine knew.

    Raises:
        UserError: naming the first of them that is not given.
    """
    given = {word.partition("=")[0].replace("-", "_") for word in arguments}
    if {"__config", "__help", "_h"} & given:
        return  # they may stand in the file
    for name, called in original.lacking.items():
        if f"__{name}" not in given:
            raise UserError(
                f"--{name} is not in the file: it was called '{called}' where this was trained",
                f"Say where it is here: --{name} PATH.",
            )
