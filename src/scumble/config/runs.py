"""The options of `scumble runs`; a docstring below is a field's help text."""

from dataclasses import dataclass

from scumble.errors import UserError


@dataclass(kw_only=True)
class RunsFields:
    """Which runs"""

    folders: tuple[str, ...] = (".",)
    """Folders that hold runs, up to three folders deep, or the output folders of runs; the current
    folder if none is given."""
    json: bool = False
    """Print a JSON list with everything that is known of each run, instead of a table."""
    watch: bool = False
    """Show the table anew every two seconds, until no run is running any more or Ctrl-C."""

    def __post_init__(self) -> None:
        if self.json and self.watch:
            raise UserError("--json and --watch do not go together", "Give one of them.")
