"""What is printed shows on a terminal, and never steers it."""

import pytest

from scumble import console
from scumble.cli.main import run


def test_text_from_files_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("a\x1b[2Jb\u202ec\td\ne ü")
    assert capsys.readouterr().out == "a\\x1b[2Jb\\u202ec\td\ne ü\n"


def test_errors_cannot_either(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "no\x1b[31m"]) == 1
    assert "no\\x1b[31m" in capsys.readouterr().err
