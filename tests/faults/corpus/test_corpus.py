"""Bad input of every kind: one clear line that names the culprit, and nothing left behind."""

import inspect
import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from importlib import import_module
from pathlib import Path

import bad_captions
import bad_images
import pytest
from corpus import Case, Place

from scumble.cli.main import run

KINDS = (
    *("images", "captions", "configs", "config_files", "bases", "base_files", "adapters"),
    *("datasets", "paths"),
)
CASES: list[Case] = [case for kind in KINDS for case in import_module(f"bad_{kind}").CASES]

LONGEST_LINES = 12
"""Of what is said of one fault; usage errors quote the flag's own help."""


@pytest.fixture(scope="module", autouse=True)
def sources_read_once() -> Iterator[None]:
    """Half of the time of a case is that the parser of flags reads the options' source anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "getsource", cache(inspect.getsource))
        yield


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    (tmp_path / "place").mkdir()
    place = Place(tmp_path / "place")
    monkeypatch.chdir(place.here)
    return place


def content(place: Place) -> dict[str, tuple[int, int]]:
    """Everything in a place but what the libraries cache: name -> size and time."""
    found = {}
    for path in place.root.rglob("*"):
        if not path.is_relative_to(place.cache):
            facts = path.lstat()
            found[str(path)] = (facts.st_size, facts.st_mtime_ns) if not path.is_dir() else (0, 0)
    return found


def check(case: Case, code: object, out: str, err: str) -> None:
    """What is said of a fault is short, names it, and is no traceback."""
    assert code == case.code, err[-600:]
    assert "Traceback" not in out + err
    if case.code == 1:
        head, found, said = err.partition("scumble: ")
        assert found, err
        assert not head or head.endswith("\n")
        assert len(said.splitlines()) <= LONGEST_LINES
    else:
        said = " ".join(err.split())
    assert all(character.isprintable() or character in "\n\t" for character in said)
    for words in case.says:
        assert words in said


def test_there_are_enough_different_cases():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    assert len(CASES) >= 600


def parameter(case: Case) -> object:
    marks = [pytest.mark.long] if case.dear else []
    return pytest.param(case, id=case.name, marks=marks)


@pytest.mark.parametrize("case", map(parameter, CASES))
def test_bad_input_is_named_and_nothing_is_left_behind(case, place, capsys):
    words = case.make(place)
    before = content(place)
    try:
        code = run(words)
    except SystemExit as error:  # of the parser of flags
        code = error.code
    said = capsys.readouterr()
    check(case, code, said.out, said.err)
    assert content(place) == before


IN_A_PROCESS = (
    "config file: misspelt.toml",
    "config: --rank 0",
    "path: output inside the picture folder",
    pytest.param("adapter: inspect pointer.safetensors", marks=pytest.mark.long),
    pytest.param("image: cut at 60%.png", marks=pytest.mark.long),
)
"""Cases that a process of its own shall meet too: with its own exit code, and no exception that
a test would have caught."""


@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_a_process_ends_as_the_command_does(name, place):
    case = next(case for case in CASES if case.name == name)
    command = [sys.executable, "-m", "scumble", *case.make(place)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place.here)
    check(case, done.returncode, done.stdout, done.stderr)


def trained(place: Place, *words: str) -> str:
    """What a run says that must come to its end."""
    out, err = io.StringIO(), io.StringIO()
    before = content(place)
    with redirect_stdout(out), redirect_stderr(err):
        code = run(place.train("--center_crop", *words, latent_cache_dir=place.cache))
    assert code == 0, err.getvalue()
    made = {name: facts for name, facts in content(place).items() if Path(name) != place.out}
    mine = {name: facts for name, facts in made.items() if place.out not in Path(name).parents}
    assert mine == before
    return out.getvalue()


@pytest.fixture(scope="module")
def skipping(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run on every picture that cannot be used, and a good one."""
    place = Place(tmp_path_factory.mktemp("skipping"))
    for name in bad_images.UNUSABLE:
        bad_images.put(place, name)
    return trained(place, "--on_bad_image", "skip")


def test_what_is_skipped_is_counted(skipping):
    count = len(bad_images.UNUSABLE)
    assert f"pictures: {count + 1} found, 1 used, {count} skipped" in skipping


@pytest.mark.parametrize("name", bad_images.UNUSABLE)
def test_what_is_skipped_is_named(name, skipping):
    assert f"{name} (" in skipping


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run on pictures and captions that are odd and can be used, by a name that is odd."""
    place = Place(tmp_path_factory.mktemp("größe 大 🎨 in my pictures"))
    for name, (make, _) in bad_images.ODD.items():
        place.add(name, make(), "an odd picture")
    bad_captions.odd(place)
    return trained(place)


def test_odd_pictures_are_all_used(odd):
    count = len(bad_images.ODD) + bad_captions.ODD_PICTURES + 1
    assert f"pictures: {count} found, {count} used, 0 skipped" in odd


@pytest.mark.parametrize("name", [name for name, (_, note) in bad_images.ODD.items() if note])
def test_what_is_odd_of_a_picture_is_said(name, odd):
    _, note = bad_images.ODD[name]
    assert any(name in line for line in odd.splitlines() if note in line)


@pytest.mark.parametrize("what", bad_captions.ODD_NOTES)
def test_an_odd_caption_is_said(what, odd):
    assert bad_captions.ODD_NOTES[what] in odd
