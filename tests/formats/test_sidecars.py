"""Sidecars of an adapter: what A1111's editor would show, and no user's note lost."""

import json

import pytest
import torch
from PIL import Image

from scumble.errors import UserError
from scumble.families import FAMILIES
from scumble.formats import AdapterWeights, LearnedToken, ModuleWeights
from scumble.formats.sidecars import write_sidecars

NAMES = FAMILIES["stable_diffusion"].key_names
PATH = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"


def weights(width=768, tokens=(), **metadata):
    lora = ModuleWeights("lora", {"down": torch.ones(1, width), "up": torch.ones(4, 1)}, 1.0)
    learned = {token: LearnedToken({"text_encoder": torch.ones(1, width)}) for token in tokens}
    return AdapterWeights({"unet": {PATH: lora}}, metadata, learned)


def described(folder):
    return json.loads((folder / "my.v1.json").read_text("utf-8"))


def test_all_that_is_known_is_told(tmp_path):
    facts = json.dumps({"description": "A dog in glass."})
    known = weights(base_model="some/base", trigger_phrase="a <pip> ü", training=facts)
    write_sidecars(tmp_path / "my.v1.safetensors", known, NAMES, strength=0.8)
    assert described(tmp_path) == {
        "description": "A dog in glass.",
        "sd version": "SD1",
        "activation text": "a <pip> ü",
        "preferred weight": 0.8,
        "notes": "Trained on some/base.",
    }


def test_what_is_not_known_is_left_away(tmp_path):
    write_sidecars(tmp_path / "my.v1.safetensors", weights(333), NAMES)
    assert described(tmp_path) == {}


def test_files_of_other_trainers_are_understood(tmp_path):
    said = {"modelspec.trigger_phrase": "sks", "ss_sd_model_name": "x.safetensors"}
    write_sidecars(tmp_path / "my.v1.safetensors", weights(1024, **said), NAMES)
    assert described(tmp_path) == {
        "sd version": "SD2",
        "activation text": "sks",
        "notes": "Trained on x.safetensors.",
    }


def test_learned_words_are_what_to_write_where_nothing_else_is(tmp_path):
    write_sidecars(tmp_path / "my.v1.safetensors", weights(tokens=("<b>", "<a>")), NAMES)
    assert described(tmp_path)["activation text"] == "<a>, <b>"


def test_the_preview_is_the_picture_and_equal_pictures_give_equal_bytes(tmp_path):
    picture = Image.effect_noise((16, 8), 50).convert("RGB")
    contents = set()
    for _ in range(2):
        files = write_sidecars(tmp_path / "my.v1.safetensors", weights(), NAMES, picture)
        assert [file.name for file in files] == ["my.v1.json", "my.v1.preview.png"]
        contents.add(files[1].read_bytes())
    assert len(contents) == 1
    with Image.open(tmp_path / "my.v1.preview.png") as saved:
        assert saved.tobytes() == picture.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.v1.json", "my.v1.preview.png"]


def test_notes_under_other_words_stay(tmp_path):
    noted = {"negative text": "blurry", "sd version": "Unknown", "notes": "Trained on x."}
    noted |= {"description": "of another", "activation text": "sks", "preferred weight": 0.3}
    (tmp_path / "my.v1.json").write_text(json.dumps(noted))
    write_sidecars(tmp_path / "my.v1.safetensors", weights(), NAMES)
    assert described(tmp_path) == {"negative text": "blurry", "sd version": "SD1"}


@pytest.mark.parametrize("content", ["{", "[1]", "3"])
def test_a_file_of_another_kind_is_not_replaced(content, tmp_path):
    (tmp_path / "my.v1.json").write_text(content)
    with pytest.raises(UserError, match=r"my\.v1\.json is in the place"):
        write_sidecars(tmp_path / "my.v1.safetensors", weights(), NAMES)
    assert (tmp_path / "my.v1.json").read_text() == content
