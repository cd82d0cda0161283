"""`scumble push`: put the result of a training run on the Hub."""

from collections.abc import Sequence

from scumble.cli.flags import parse_flags
from scumble.config.sharing import PushFields


def main(arguments: Sequence[str]) -> None:
    """Push a folder.

    Raises:
        UserError: there is nothing to push, or the Hub does not take it.
    """
    flags = parse_flags(
        (PushFields,),
        arguments,
        "scumble push",
        "Put adapters, card, sample pictures and settings of a folder on the Hub. Checkpoints, "
        "logs and optimizer state stay here.",
        positionals={"folder": "FOLDER", "repo": "REPO"},
    )
    from scumble.hub.push import push_folder

    push_folder(
        flags["folder"],
        flags["repo"],
        private=flags["private"],
        token=flags["hub_token"],
        message=flags["message"],
    )
