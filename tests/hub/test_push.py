"""`scumble push` and `--push_to_hub`: what is refused, what is sent again, what survives."""

import json

from short_training import training

WEIGHTS = "pytorch_lora_weights.safetensors"
NOWHERE = "http://127.0.0.1:9"

PUSHES = """
import json, sys
from scumble.errors import UserError
from scumble.hub.push import push_folder
for words in json.loads(sys.argv[1]):
    try:
        push_folder(*words.pop("to"), **words)
    except UserError as error:
        print("refused:", *str(error).split())
"""


def pushes(place, *wanted, **variables):
    return place.python(PUSHES, json.dumps(wanted), **variables)


def test_a_push_may_be_repeated_and_sends_what_has_changed(place, adapter_folder):
    name = place.new_name()
    first = pushes(place, {"to": [str(adapter_folder), name]})
    assert "2 files" in first
    card = adapter_folder / "README.md"
    card.write_text(card.read_text("utf-8") + "\nMore.\n", "utf-8")
    once, twice = {"to": [str(adapter_folder), name]}, {"to": [str(adapter_folder), name]}
    asked = len(place.hub.requests) if place.hub else 0
    said = pushes(place, once, twice)
    assert "1 file, " in said
    assert "1 had not changed" in said
    assert "has all of it already" in said
    if place.hub:
        sent = [r for r in place.hub.requests[asked:] if "/v1/xorbs/" in r or "/commit/" in r]
        assert sent == [f"POST /api/models/{name}/commit/main"]


def test_what_cannot_be_pushed_is_said_before_anything_is_sent(
    place, hub, trained, adapter_folder, tmp_path_factory
):
    folder, empty = str(adapter_folder), tmp_path_factory.mktemp("empty")
    cut = tmp_path_factory.mktemp("cut")
    (cut / WEIGHTS).write_bytes((adapter_folder / WEIGHTS).read_bytes()[:-100])
    before = {name: repo.resolve("main") for name, repo in hub.repositories.items()}
    said = pushes(
        place,
        {"to": [folder, "alice/x"], "token": "hf_nobody"},
        {"to": [folder, "alice/x"], "token": "hf_alice_reads"},
        {"to": [folder, "bob/x"]},
        {"to": [folder, "alice/x y"]},
        {"to": [str(empty), "alice/x"]},
        {"to": [str(empty / "none"), "alice/x"]},
        {"to": [str(cut), "alice/x"]},
        {"to": [folder, trained.name], "private": True},
    ).splitlines()
    expected = (
        "the Hub does not know the token",
        "the token of the Hub may only read",
        "the token may not push to 'bob/x' Yours are: alice/x",
        "no repository can be called 'alice/x y'",
        "holds nothing to push",
        "there is no folder",
        WEIGHTS,
        "is public already",
    )
    refused = [line for line in said if line.startswith("refused:")]
    assert len(refused) == len(expected)
    for line, words in zip(refused, expected, strict=True):
        assert words in line
        assert "hf_" not in line.replace("HF_", "")
    assert {name: repo.resolve("main") for name, repo in hub.repositories.items()} == before


def test_nobody_logged_in_is_told_how_to(place, adapter_folder):
    said = pushes(place, {"to": [str(adapter_folder), "x"]}, HF_TOKEN="", home="nobody")
    assert "nobody is logged in to the Hub" in said
    assert "hf auth login" in said


def arrived(hub, name, weights):
    repository = hub.repositories[name]
    entry = next(e for e in repository.entries("main") if e.path == weights.name)
    return repository.large_file(entry.sha256).read_bytes() == weights.read_bytes()


def test_an_upload_that_breaks_off_is_gone_on_with(place, hub, adapter_folder):
    name, push = place.new_name(), {"to": [str(adapter_folder)]}
    push["to"].append(name)
    # A home of its own: the client remembers what it has sent. And no patience.
    variables = {"home": "cut", "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1"}
    hub.cuts = 99
    try:
        said = pushes(place, push, **variables)
    finally:
        hub.cuts = 0
    assert f"refused: the upload to '{name}' broke off" in said
    assert f"Go on with: scumble push {adapter_folder} {name}" in said
    assert [e.path for e in hub.repositories[name].entries("main")] == [".gitattributes"]
    assert "2 files" in pushes(place, push, **variables)
    assert arrived(hub, name, adapter_folder / WEIGHTS)


def test_without_xet_a_broken_connection_is_mended_within_the_push(place, hub, adapter_folder):
    name = place.new_name()
    hub.cuts = 1
    said = pushes(place, {"to": [str(adapter_folder), name]}, HF_HUB_DISABLE_XET="1")
    assert hub.cuts == 0
    assert "2 files" in said
    assert arrived(hub, name, adapter_folder / WEIGHTS)


def test_a_private_repository_is_seen_by_its_owner_alone(place, adapter_folder):
    name = place.new_name()
    pushes(place, {"to": [str(adapter_folder), name], "private": True})
    code = """
import sys
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
print(HfApi().model_info(sys.argv[1]).private)
try:
    HfApi(token=False).model_info(sys.argv[1])
except RepositoryNotFoundError:
    print("hidden")
"""
    assert place.python(code, name) == "True\nhidden\n"


def test_a_run_starts_without_a_network_and_says_at_its_end_how_to_push(place, pictures):
    folder = place.folder / "offline"
    words = ["--no_before_after", "--push_to_hub", "--hub_model_id", "fox", "--hub_private"]
    run = place.scumble(*training(pictures, folder, *words), HF_ENDPOINT=NOWHERE)
    assert run.returncode == 1
    assert "the Hub is out of reach: training starts" in run.stdout
    assert f"the run is finished and safe in {folder}, but not pushed" in run.stderr
    assert f"scumble push {folder} fox --private" in run.stderr
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert (folder / WEIGHTS).is_file()


def test_a_wrong_token_is_said_before_the_training(place, hub, pictures):
    folder = place.folder / "never"
    words = ["--push_to_hub", "--hub_token", "hf_nobody"]
    run = place.scumble(*training(pictures, folder, *words))
    assert run.returncode == 1
    assert "the Hub does not know the token" in run.stderr
    assert "hf_nobody" not in run.stdout + run.stderr
    assert not folder.exists()
