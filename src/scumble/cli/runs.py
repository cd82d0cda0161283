"""`scumble runs`: list the runs on disk, and how far each of them is."""

import json
import sys
import time
from collections.abc import Sequence

from scumble import console
from scumble.cli.flags import parse_flags
from scumble.config.runs import RunsFields

CLEAR = "\x1b[H\x1b[2J"
"""Makes a terminal empty, so that the next table stands where the last one stood."""
PAUSE_S = 2.0


def main(arguments: Sequence[str]) -> None:
    """Print the runs, the one started last first.

    Raises:
        UserError: a folder is not there.
    """
    flags = parse_flags(
        (RunsFields,),
        arguments,
        "scumble runs",
        "List the runs on disk: which are running, and how far each of them is.",
        positionals={"folders": "FOLDER"},
    )
    try:
        while _show(flags["folders"], as_json=flags["json"], anew=flags["watch"]):
            time.sleep(PAUSE_S)
    except KeyboardInterrupt:
        if not flags["watch"]:
            raise


def _show(folders: Sequence[str], *, as_json: bool, anew: bool) -> bool:
    """Print the runs as they are now; whether to do so again in a while."""
    from scumble.runs.listing import find_runs
    from scumble.runs.listing_text import runs_text

    runs = find_runs(folders)
    if anew and sys.stdout.isatty():
        sys.stdout.write(CLEAR)
    if as_json:
        console.say(json.dumps([run.to_dict() for run in runs], indent=2, ensure_ascii=False))
    elif runs:
        console.say(runs_text(runs, time.time()))
    else:
        console.say(f"no runs in {', '.join(folders)}")
    return anew and any(run.status == "running" for run in runs)
