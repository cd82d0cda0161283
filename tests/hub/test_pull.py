"""Adapters and bases by their ids: found, chosen, cached, and refused in one line."""

import json
import shutil

import pytest

WEIGHTS = "pytorch_lora_weights.safetensors"
NOWHERE = "http://127.0.0.1:9"

PULLS = """
import json, sys
from pathlib import Path
from scumble.errors import UserError
from scumble.hub.pull import local_adapter
for source, options in json.loads(sys.argv[1]):
    try:
        path = local_adapter(source, **options)
        print(path.name, path.parent.parent.name, sorted(p.name for p in path.parent.iterdir()))
    except UserError as error:
        print("refused:", *str(error).split())
"""

COMMIT = """
import sys
from huggingface_hub import CommitOperationAdd, HfApi
api, (name, *files) = HfApi(), sys.argv[1:]
api.create_repo(name, exist_ok=True)
added = [CommitOperationAdd(path, source) for path, source in zip(files[::2], files[1::2])]
print(api.create_commit(name, added, commit_message="files").oid)
"""


def pulls(place, *wanted, **variables):
    wanted = [item if isinstance(item, list) else [item, {}] for item in wanted]
    return place.python(PULLS, json.dumps(wanted), **variables).splitlines()


@pytest.fixture(scope="module")
def fetched(place, trained):
    """What came of an id, into an empty cache."""
    (line,) = pulls(place, trained.name, home="fetched")
    return line


def test_an_id_brings_the_file_and_its_card(fetched):
    assert fetched == f"{WEIGHTS} snapshots {['README.md', WEIGHTS]}"


@pytest.mark.parametrize("how", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": NOWHERE}])
def test_what_was_fetched_once_is_there_without_a_network(place, trained, fetched, how):
    said = pulls(place, trained.name, "some/other", home="fetched", **how)
    assert said[0] == f"the Hub is out of reach: {trained.name} comes from this machine's cache"
    assert said[1] == fetched
    assert "'some/other' is not on this machine, and the Hub cannot be reached" in said[2]


def test_a_path_comes_before_an_id(place, trained):
    there = place.folder / trained.name
    there.mkdir(parents=True)
    try:
        (line,) = pulls(place, trained.name)
    finally:
        shutil.rmtree(there.parent)
    assert "snapshots" not in line


def test_of_several_files_one_is_named(place, trained):
    name, file = place.new_name(), str(trained.folder / WEIGHTS)
    place.python(COMMIT, name, "a.safetensors", file, "b.safetensors", file)
    said = pulls(
        place,
        name,
        f"{name}:b.safetensors",
        [name, {"weight_name": "a.safetensors"}],
        f"{name}:c.safetensors",
    )
    assert f"'{name}' has several files that may be meant: a.safetensors, b.safetensors" in said[0]
    assert f"Name one: {name}:a.safetensors" in said[0]
    assert [line.split()[0] for line in said[1:3]] == ["b.safetensors", "a.safetensors"]
    assert f"there is no c.safetensors of '{name}'" in said[3]


def test_a_revision_is_taken_as_it_was(place, trained, tmp_path):
    name, file = place.new_name(), str(trained.folder / WEIGHTS)
    card = tmp_path / "card"
    card.write_text("old")
    first = place.python(COMMIT, name, WEIGHTS, file, "README.md", str(card)).strip()
    card.write_text("new")
    place.python(COMMIT, name, "README.md", str(card))
    code = """
import sys
from huggingface_hub import HfApi
from scumble.hub.pull import local_adapter
name, first = sys.argv[1:]
HfApi().create_tag(name, tag="v1", revision=first)
for source, revision in ((name, None), (f"{name}@v1", None), (name, first), (name, "v1")):
    print(local_adapter(source, revision=revision).with_name("README.md").read_text())
"""
    assert place.python(code, name, first).split() == ["new", "old", "old", "old"]


def test_what_the_hub_does_not_give_is_refused_in_one_line(place, hub, trained):
    gated, secret = "bob/gated", "bob/secret"
    for name, token in ((gated, "hf_bob_writes"), (secret, "hf_bob_writes")):
        place.python(COMMIT, name, WEIGHTS, str(trained.folder / WEIGHTS), HF_TOKEN=token)
    hub.repositories[gated].gated = hub.repositories[secret].private = True
    said = pulls(
        place,
        "alice/nothing",
        secret,
        gated,
        f"{trained.name}@v9",
        [trained.name, {"token": "hf_nobody"}],
        home="stranger",
    )
    expected = (
        "there is no 'alice/nothing' on the Hub, nor at this path",
        f"there is no '{secret}' on the Hub, nor at this path",
        f"'{gated}' is gated",
        f"'{trained.name}' has no such revision: v9",
        "the Hub does not know the token",
    )
    assert len(said) == len(expected)
    for line, words in zip(said, expected, strict=True):
        assert line.startswith(f"refused: {words}")


FULL = """
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
def disk_holds(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
"""
"""No file may grow beyond a size: what a full disk comes to."""


@pytest.mark.parametrize("way", [{}, {"HF_HUB_DISABLE_XET": "1"}], ids=["xet", "lfs"])
def test_a_full_disk_is_said_and_leaves_nothing_half_fetched(place, trained, way):
    code = f"{FULL}disk_holds(30_000)\n{PULLS}\ndisk_holds(soft)\n{PULLS}"
    said = place.python(code, json.dumps([[trained.name, {}]]), home=f"full{len(way)}", **way)
    first, second = said.splitlines()
    assert first.startswith(f"refused: cannot keep '{trained.name}' in ")
    assert first.endswith("Make room there, or name another place with HF_HOME.")
    assert second.startswith(WEIGHTS)


BASE = f"""{FULL}
import sys
import torch
from scumble.errors import UserError
from scumble.families import Components, family_of, locate
from scumble.hub.licence import licence_of
base = locate(sys.argv[1])
family, components = family_of(base), Components(base)
if "full" in sys.argv[2:]:
    disk_holds(500_000)
    try:
        family.load(components, ["unet"], torch.float32)
    except UserError as error:
        print(error.message)
    disk_holds(soft)
family.load(components, family.components, torch.float32)
print(type(components["unet"]).__name__, base.revision, base.reference, base.public_name)
print(licence_of(base))
for wrong in sys.argv[3:]:
    try:
        locate(wrong)
    except UserError as error:
        print(error.message)
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_base_of_the_hub_is_fetched_whole_with_its_revision_and_kept(
    place, tiny_folder, tmp_path
):
    name = place.new_name()
    shutil.copytree(tiny_folder, tmp_path / "tuned" / "model")
    push = "import sys; from scumble.hub.push import push_folder; push_folder(*sys.argv[1:])"
    assert "14 files" in place.python(push, str(tmp_path / "tuned"), name)
    wrong = ("full", f"{name}@v9", "alice/nothing")
    full, *said = place.python(BASE, f"{name}@main", *wrong).splitlines()
    assert full.startswith(f"cannot keep the unet of '{name}' in ")
    assert said[0] == f"UNet2DConditionModel main {name}@main {name}"
    assert said[1] == "{'license': 'cc0-1.0'}"
    assert said[2] == f"'{name}' has no such revision: v9"
    assert said[3].startswith("there is no 'alice/nothing' on the Hub")
    offline = place.python(BASE, name, HF_HUB_OFFLINE="1").splitlines()
    assert offline[0] == f"UNet2DConditionModel None {name} {name}"
