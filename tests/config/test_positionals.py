"""Words of a verb that need no flag: the files that it works on."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from scumble.cli.flags import parse_flags
from scumble.config.tools import DiffFields, ReadFields, WriteFields

NAMES = {"first": "FIRST", "second": "SECOND", "files": "FILE"}


@dataclass(kw_only=True)
class ManyFields:
    """Several files"""

    files: tuple[str, ...]
    """Files."""


def parse(*words: str, group: type = DiffFields) -> dict:
    return parse_flags((group, ReadFields), words, "scumble diff", "test", positionals=NAMES)


@pytest.mark.parametrize(
    "words", [("a", "b", "--partial"), ("--partial", "a", "b"), ("a", "--partial", "b")]
)
def test_files_need_no_flag_wherever_they_stand(words: tuple[str, ...]) -> None:
    settings = parse(*words)
    assert (settings["first"], settings["second"], settings["partial"]) == ("a", "b", True)


def test_several_files_are_one_option(tmp_path: Path) -> None:
    assert parse("a:0.5", "b:-1", "--partial", group=ManyFields)["files"] == ("a:0.5", "b:-1")


def test_a_file_of_settings_can_name_them(tmp_path: Path) -> None:
    file = tmp_path / "diff.toml"
    file.write_text('first = "a"\nsecond = "b"\ntolerance = 1e-3\n')
    settings = parse("--config", str(file), "c")
    assert (settings["first"], settings["second"]) == ("c", "b")
    assert settings["tolerance"] == 1e-3


def test_a_missing_file_is_bad_usage_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("a")
    assert stop.value.code == 2
    assert "SECOND" in capsys.readouterr().err


def test_the_help_shows_them_as_words_and_the_rest_as_flags(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    assert "[OPTIONS] FIRST SECOND" in " ".join(text.split())
    assert "The one to compare it with." in text
    assert "--first" not in text


def test_what_is_written_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_flags((WriteFields,), [], "scumble convert", "test")
    assert "--output" in capsys.readouterr().err
