"""No secret is ever said: by us, by a library, by a warning or by a traceback."""

import json
import logging
import sys
import traceback
import warnings
from pathlib import Path

import pytest
import yaml

from scumble import TrainConfig, console, redaction
from scumble.cli.main import main, run
from scumble.config.sharing import PushFields, shareable
from scumble.config.ui import UiConfig
from scumble.errors import UserError, first_line
from scumble.redaction import keep_secret, keep_secrets_of, redacted
from scumble.runs.queue import Queue

TOKEN = "hf_" + "aBcDeFgHiJ" * 3 + "KlMn"
BASE = "scumble-tiny"
PLAIN = "correct-horse-battery"
"""A secret that does not look like one."""


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_given", set())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"401 for {TOKEN}: no", "401 for ***: no"),
        (f"{{'Authorization': 'Bearer {PLAIN}'}}", "{'Authorization': 'Bearer ***'}"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic ***"),
        ("got bearer abc_12345-x", "got bearer ***"),
        ("https://ann:pass@host/x.git", "https://***@host/x.git"),
        (f"https://{PLAIN}@host/x", "https://***@host/x"),
        ("https://h/f?a=1&X-Amz-Signature=0ab&b=2", "https://h/f?a=1&X-Amz-Signature=***&b=2"),
        ("https://h/f?token=abc", "https://h/f?token=***"),
        ("hub_token: correct-horse", "hub_token: ***"),
        ('{"api_key": "correct-horse"}', '{"api_key": "***"}'),
        ("wandb_v1_" + "aB3" * 10, "***"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "hf_hub_download failed in hf_transfer and hf_xet",
        "https://huggingface.co/user/name@main is a revision, and user/name@v1.0 too",
        "placeholder_token=<cat> initializer_token=circle",
        "basic training, the bearer arrived; a password: no",
        "zip://a.png::hf://datasets/user/name@main/a.zip",
        "0123456789abcdef0123456789abcdef01234567",
        "--auth must be USER:PASSWORD",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD"]
)
def test_what_the_environment_holds_is_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, f"{PLAIN}\n")
    assert redacted(f"x{PLAIN}x") == "x***x"


def test_short_words_and_places_of_secrets_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "true")
    monkeypatch.setenv("SOME_API_KEY", "/run/secrets/key")
    assert redacted("true: /run/secrets/key") == "true: /run/secrets/key"


def test_what_is_given_is_hidden_wherever_it_is_given(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({"hub_token": [PLAIN]}))
    assert run(["push", "x", "--config", str(file)]) == 1
    keep_secrets_of(["--hub-token", "first-secret", "--hub_token=second-secret"], ["hub_token"])
    UiConfig(auth="ann:third-secret")
    keep_secret(None)
    said = redacted(f"{PLAIN} first-secret second-secret third-secret")
    assert said == "*** *** *** ***"


def test_errors_hold_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", PLAIN)
    error = UserError(f"no {PLAIN}", f"use {TOKEN}")
    assert [error.message, error.hint, str(error)] == ["no ***", "use ***", "no ***\n  use ***"]
    assert str(UserError(f"no '{'x' * 5000}' here", "y")) == f"no '{'x' * 199}... here\n  y"
    assert first_line(ValueError(f"bad {PLAIN}\nmore")) == "bad ***"


def test_settings_show_no_secret() -> None:
    named = {"dataset_name": "a/b", "dataset_config_name": f"https://ann:{TOKEN}@host/x"}
    config = TrainConfig(pretrained_model_name_or_path=BASE, hub_token=PLAIN, **named)
    push = PushFields(folder="x", hub_token=PLAIN)
    shown = [repr(config), repr(push), repr(UiConfig(auth=f"ann:{PLAIN}"))]
    shown += [json.dumps(settings) for settings in (config.to_dict(), shareable(vars(config)))]
    assert not [text for text in shown if PLAIN in text]
    assert "https://***@host/x" in config.to_dict()["dataset_config_name"]


def test_a_queued_run_gets_no_token_on_its_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Queue, "wake", lambda _: None)
    places = {"train_data_dir": str(tmp_path / "set"), "output_dir": str(tmp_path / "a")}
    config = TrainConfig(pretrained_model_name_or_path=BASE, hub_token=PLAIN, **places)
    job = Queue(tmp_path / "queue").add(config)
    assert PLAIN not in " ".join(job.arguments())
    assert not [path for path in job.folder.iterdir() if PLAIN in path.read_text()]


def given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """See to it that this process gets its streams and command line back."""
    for name in ("stdout", "stderr", "argv"):
        monkeypatch.setattr(sys, name, getattr(sys, name))


def test_the_command_line_hides_a_token_before_anybody_can_print_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back(monkeypatch)
    words = ["push", "x", "--hub_token", PLAIN, "--no_such_flag", PLAIN]
    monkeypatch.setattr(sys, "argv", ["scumble", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    shown = "".join(capsys.readouterr())
    assert "no_such_flag" in shown
    assert PLAIN not in shown
    assert sys.argv == ["scumble", *(word.replace(PLAIN, "***") for word in words)]


def test_whatever_else_prints_hides_it_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back(monkeypatch)
    keep_secret(PLAIN)
    console.guard_output()
    sys.stdout.write(f"{PLAIN} {TOKEN}")
    console.say(f"a {PLAIN}")
    warnings.showwarning(UserWarning(PLAIN), UserWarning, "a.py", 1)
    logging.StreamHandler().handle(logging.makeLogRecord({"msg": f"sent {PLAIN}"}))
    sys.stderr.writelines([PLAIN, "\n"])
    with console.progress(1, PLAIN) as bar:
        bar.update()
    try:
        raise RuntimeError(f"a bug with {PLAIN}")
    except RuntimeError:
        traceback.print_exc()
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    shown = "".join(capsys.readouterr())
    assert shown.count("a bug with ***") == 2
    assert shown.count("***") >= 8
    assert PLAIN not in shown
    assert TOKEN not in shown
