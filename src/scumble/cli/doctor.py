"""`scumble doctor METHOD`: check a training run before it begins."""

import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from scumble import console
from scumble.cli.train import read_run
from scumble.config.doctor import DoctorFields
from scumble.imports import uncollected

if TYPE_CHECKING:
    from scumble.training.checkup.finding import Finding
    from scumble.training.doctor import Diagnosis

EXIT_DANGER = 1
"""The run would fail, be lost, or bring nothing."""
WIDTH = 100
VERDICTS = {
    "ok": "all is well",
    "note": "nothing stands in the way; the notes say what could be better",
    "danger": "do not start this run yet: see what is called danger",
}


def main(arguments: Sequence[str]) -> int:
    """Examine the run that the flags describe; 0, or `EXIT_DANGER`.

    Raises:
        UserError: an unknown method, or bad settings.
    """
    config, flags = read_run("doctor", arguments, DoctorFields)
    if config is None:
        return 0
    with uncollected():
        from scumble.training.doctor import examine

    diagnosis = examine(config)
    if flags["json"]:
        console.say(json.dumps(diagnosis.to_dict(), indent=2, ensure_ascii=False))
    else:
        console.say("\n".join(screen(diagnosis)))
    return EXIT_DANGER if diagnosis.verdict == "danger" else 0


def screen(diagnosis: "Diagnosis") -> Iterator[str]:
    """What was found, in lines of a terminal's width."""
    topic = ""
    for finding in diagnosis.findings:
        yield from _lines(finding, "" if finding.topic == topic else finding.topic)
        topic = finding.topic
    yield f"{diagnosis.verdict.upper()}: {VERDICTS[diagnosis.verdict]}"


def _lines(finding: "Finding", topic: str) -> list[str]:
    hint = f" -> {finding.hint}" if finding.hint else ""
    return textwrap.wrap(
        f"{finding.text}{hint}",
        WIDTH,
        initial_indent=f"{finding.level:7}{topic:10}",
        subsequent_indent=" " * 17,
        break_on_hyphens=False,
    )
