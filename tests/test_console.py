"""What is printed shows on a terminal, and never steers it."""

import json

import pytest

from scumble import console
from scumble.cli.main import run


def test_text_from_files_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("a\x1b[2Jb\u202ec\td\ne ü")
    assert capsys.readouterr().out == "a\\u001b[2Jb\\u202ec\td\ne ü\n"


def test_json_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = {"phrase": "\x1b\x7f\x9b31m\u202e ü"}
    console.say(json.dumps(found, ensure_ascii=False))
    said = capsys.readouterr().out
    assert said.strip().isprintable()
    assert json.loads(said) == found


def test_errors_cannot_either(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "no\x1b[31m"]) == 1
    assert "no\\u001b[31m" in capsys.readouterr().err
