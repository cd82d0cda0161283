"""`scumble space`: a folder that is a demo page of an adapter."""

from collections.abc import Sequence

from scumble import console
from scumble.cli.flags import parse_flags
from scumble.config.space import SpaceFields


def main(arguments: Sequence[str]) -> None:
    """Make the folder, and say how to try and to publish it.

    Raises:
        UserError: the adapter cannot be read, its base cannot be reached from elsewhere, or the
            folder cannot be written.
    """
    flags = parse_flags(
        (SpaceFields,),
        arguments,
        "scumble space",
        "Make a folder that is a Space of the Hub: a page where anyone tries an adapter.",
        positionals={"adapter": "ADAPTER", "output": "OUT"},
    )
    from scumble.ui.space_folder import make_space

    space = make_space(**flags)
    console.say(f"{space}: shows the adapter and nothing else")
    console.say(f"try it:     python {space / 'app.py'}")
    console.say(f"publish it: hf upload --repo-type space USER/NAME {space}")
