"""What `scumble doctor` says of the form as it stands, before a run is started."""

import html
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scumble.config import TrainConfig
from scumble.runs.process import QUIET
from scumble.runs.queue import settings_text
from scumble.ui.answers import plain
from scumble.ui.folders import Folders
from scumble.ui.forms import in_words

MOST_S = 1200
"""A check that takes longer is given up: the machine is too busy for it."""
VERDICTS = {
    "ok": "All is well.",
    "note": "Nothing stands in the way; the notes say what could be better.",
    "danger": "Do not start it yet.",
}


def examined(config: TrainConfig) -> dict[str, Any]:
    """Examine a run in a process of its own, whose memory is free again behind it."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "settings.yaml"
        settings.write_text(settings_text(config), "utf-8")
        words = ["-P", "-m", "scumble", "doctor", config.method, "--config", str(settings)]
        try:
            done = subprocess.run(
                [sys.executable, *words, "--json"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                env=os.environ | QUIET,
                timeout=MOST_S,
            )
            answer: dict[str, Any] = json.loads(done.stdout)
            return answer
        except subprocess.TimeoutExpired:
            said = f"the check took more than {MOST_S // 60} minutes"
        except ValueError:
            said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no answer"
    return failed(said)


def failed(text: str, hint: str = "") -> dict[str, Any]:
    """The answer of a check that could not be made."""
    finding = {"level": "danger", "topic": "check", "text": text, "hint": hint}
    return {"verdict": "danger", "findings": [finding]}


def check_html(answer: Mapping[str, Any], folders: Folders) -> str:
    """The findings as a table: how bad, what about, what to do."""
    rows, topic = [], ""
    for finding in answer["findings"]:
        level, text, hint = (str(finding[key]) for key in ("level", "text", "hint"))
        name = "" if finding["topic"] == topic else finding["topic"]
        topic = finding["topic"]
        todo = f"<em>{_shown(hint, folders)}</em>" if hint else ""
        rows.append(
            f'<tr class="{html.escape(level)}"><th scope="row">{html.escape(level)}</th>'
            f"<td>{html.escape(name)}</td><td>{_shown(text, folders)} {todo}</td></tr>"
        )
    verdict = answer["verdict"]
    return (
        f'<div class="check {html.escape(verdict)}" role="status">'
        f"<strong>{VERDICTS[verdict]}</strong><table>{''.join(rows)}</table></div>"
    )


def _shown(text: str, folders: Folders) -> str:
    return html.escape(in_words(plain(text, folders)))
