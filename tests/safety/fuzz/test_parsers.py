"""Whatever a file says, every parser reads it or refuses it in one clear line, soon."""

import json
import random
import resource
import time
import traceback
import warnings
from pathlib import Path

import pytest
from mutants import mutants
from targets import CARD, LAUGHS, TARGETS, TINY, Target, base_file, card, settings

from scumble import redaction
from scumble.console import plain
from scumble.data import pictures
from scumble.errors import UserError

ATTEMPTS = 40
LONG = 100
"""The long part has so many times the attempts."""
LONGEST_S = 10.0
"""Of the processor: other work on the machine does not count."""
MOST_KIB = 200 * 1024
"""By so much one input may raise the most memory that was ever in use."""

TIMES = [
    pytest.param(1, id="some"),
    pytest.param(LONG, id="many", marks=[pytest.mark.long, pytest.mark.timeout(1200)]),
]


@pytest.fixture(autouse=True)
def smaller_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture of a gigabyte, and no secret that a damaged file seems to give."""
    monkeypatch.setattr(pictures, "MAX_PIXELS", 4_000_000)
    monkeypatch.setattr(redaction, "_given", set())


def complaint(target: Target, raw: bytes, folder: Path) -> str:
    """What is wrong with how a target takes some input; empty if nothing is."""
    start, before = time.process_time(), _peak_kib()
    try:
        target.read(raw, folder)
    except UserError as error:
        if not 10 < len(plain(str(error))) < 4000:
            return f"a refusal of {len(str(error))} characters: {error.message[:200]}"
    except target.refusals:
        pass
    except Exception:
        return traceback.format_exc(limit=-4)
    spent = time.process_time() - start
    grown = _peak_kib() - before
    if spent > LONGEST_S or grown > MOST_KIB:
        return f"it took {spent:.1f} s and {grown // 1024} MiB"
    return ""


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_nothing_but_a_clear_refusal(target: Target, times: int, tmp_path: Path) -> None:
    for seed in target.seeds:
        target.read(seed, tmp_path)
    rng = random.Random(f"{target.name} {times}")
    found: dict[str, bytes] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for raw in mutants(target.seeds, rng, round(ATTEMPTS * target.share) * times):
            said = complaint(target, raw, tmp_path)
            if said:
                found.setdefault(said.strip().splitlines()[-1][:60], raw[:300])
                last = said
    assert not found, f"{last}\nfor: {found}"


@pytest.mark.parametrize("key", ["base_model", "license", "widget", "tags"])
def test_a_card_of_a_billion_words_is_read_soon(key: str, tmp_path: Path) -> None:
    target = Target("card", [], card)
    for value in ("*a9", "[*a9]", "[{text: *a9}]"):
        raw = CARD.replace(b"---\n", f"---\n{LAUGHS}{key}: {value}\n".encode(), 1)
        assert complaint(target, raw, tmp_path) == ""


@pytest.mark.parametrize("key", ["rank", "report_to", "train_data_dir", "center_crop", "x"])
def test_settings_of_a_billion_words_are_refused_soon(key: str, tmp_path: Path) -> None:
    target = Target("settings", [], settings("yaml"))
    for value in ("*a9", "[*a9]"):
        raw = LAUGHS.replace("a9: &a9", f"{key}: &a9").encode()
        assert complaint(target, raw + f"{key}: {value}\n".encode(), tmp_path) == ""
        with pytest.raises(UserError):
            settings("yaml")(raw, tmp_path)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("text_encoder", "num_hidden_layers"),
        ("unet", "layers_per_block"),
        ("vae", "norm_num_groups"),
    ],
)
def test_a_model_that_would_never_be_built_is_refused(part: str, key: str, tmp_path: Path) -> None:
    name = f"{part}/config.json"
    config = json.loads((TINY / name).read_text()) | {key: 10**12}
    with pytest.raises(UserError, match="more than any model has"):
        base_file(name, part)(json.dumps(config).encode(), tmp_path)
