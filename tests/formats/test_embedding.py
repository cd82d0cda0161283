"""Learned tokens of every program: the right vectors under the right names."""

import pytest
import torch
from safetensors.torch import save_file

from scumble.errors import UserError
from scumble.families import FAMILIES
from scumble.formats import AdapterWeights, KeyNames, LearnedToken, read_adapter, write_adapter

NAMES = FAMILIES["stable_diffusion"].key_names
TWO_ENCODERS = KeyNames(("unet",), {}, {"text_encoder": "clip_l", "text_encoder_2": "clip_g"})
ROWS = torch.arange(24.0).reshape(3, 8)


def vectors_of(weights):
    return {
        token: {encoder: tensor.tolist() for encoder, tensor in entry.vectors.items()}
        for token, entry in weights.tokens.items()
    }


def read(path, names=NAMES):
    weights = read_adapter(path, names, allow_pickle=True)
    assert weights.components == {}
    return weights


def of_a1111(**changes):
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(ROWS)},
        "name": "my cat",
        "step": 500,
        "sd_checkpoint": "cc6cb27103",
        "sd_checkpoint_name": None,
    } | changes


@pytest.mark.parametrize("name", ["my cat", ""])
def test_a1111s_pickle_has_its_own_name_or_the_files(name, tmp_path):
    torch.save(of_a1111(name=name), tmp_path / "file.pt")
    weights = read(tmp_path / "file.pt")
    assert vectors_of(weights) == {name or "file": {"text_encoder": ROWS.tolist()}}
    assert weights.metadata == {"step": "500", "sd_checkpoint": "cc6cb27103"}


def test_a1111s_pickle_with_two_sets_of_vectors_is_refused(tmp_path):
    torch.save(of_a1111(string_to_param={"*": ROWS, "+": ROWS}), tmp_path / "a.pt")
    with pytest.raises(UserError, match="it has 2 sets of vectors and one name"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["learned_embeds.bin", "a.ti.pt"])
def test_pickled_tokens_have_the_names_of_their_keys(name, tmp_path):
    torch.save({"<s1>": ROWS[0], "<s2>": ROWS[1:]}, tmp_path / name)
    assert vectors_of(read(tmp_path / name)) == {
        "<s1>": {"text_encoder": ROWS[:1].tolist()},
        "<s2>": {"text_encoder": ROWS[1:].tolist()},
    }


def test_a_mark_of_a_token_is_no_metadata(tmp_path):
    save_file({"<s1>": ROWS[0]}, tmp_path / "a.safetensors", {"<s1>": "<embed>", "note": "x"})
    weights = read(tmp_path)
    assert list(weights.tokens) == ["<s1>"]
    assert weights.metadata == {"note": "x"}


@pytest.mark.parametrize("name", ["style_emb", "style_emb_checkpoint_500"])
def test_rows_of_the_advanced_scripts_are_numbered_tokens(name, tmp_path):
    save_file({"clip_l": ROWS}, tmp_path / f"{name}.safetensors")
    assert vectors_of(read(tmp_path)) == {
        f"<s{number}>": {"text_encoder": [row.tolist()]} for number, row in enumerate(ROWS)
    }


def test_vectors_for_an_encoder_are_one_token_of_the_files_name(tmp_path):
    save_file({"clip_l": ROWS}, tmp_path / "style.safetensors")
    assert vectors_of(read(tmp_path)) == {"style": {"text_encoder": ROWS.tolist()}}


@pytest.mark.parametrize(("name", "tokens"), [("style", ["style"]), ("a_emb", ["<s0>", "<s1>"])])
def test_each_encoder_has_a_width_of_its_own(name, tokens, tmp_path):
    small, wide = ROWS[:2], torch.ones(2, 12)
    save_file({"clip_g": wide, "clip_l": small}, tmp_path / f"{name}.safetensors")
    weights = read(tmp_path, TWO_ENCODERS)
    assert list(weights.tokens) == tokens
    for encoder, rows in (("text_encoder", small), ("text_encoder_2", wide)):
        found = [weights.tokens[token].vectors[encoder] for token in tokens]
        assert torch.equal(torch.cat(found), rows)


@pytest.mark.parametrize(
    ("names", "tensors", "message"),
    [
        (NAMES, {"clip_l": ROWS, "clip_g": torch.ones(3, 12)}, "vectors for 'clip_g', a text"),
        (TWO_ENCODERS, {"clip_l": ROWS, "clip_g": torch.ones(2, 12)}, "more tokens for one"),
    ],
)
def test_vectors_that_fit_no_encoder_are_refused(names, tensors, message, tmp_path):
    save_file(tensors, tmp_path / "a_emb.safetensors")
    with pytest.raises(UserError, match=message):
        read(tmp_path, names)


@pytest.mark.parametrize("name", ["emb_params", "clip_l", "string_to_param.*"])
def test_a_name_that_files_without_names_use_is_not_written(name, tmp_path):
    weights = AdapterWeights({}, {}, {name: LearnedToken({"text_encoder": ROWS})})
    with pytest.raises(UserError, match="a token cannot be called"):
        write_adapter(weights, tmp_path / "a.safetensors", NAMES, "embedding")


def test_what_is_written_is_one_token_to_a1111_by_the_files_name(tmp_path):
    """A1111 takes a single key whatever it is called; ours is the token's."""
    weights = AdapterWeights({}, {}, {"<cat>": LearnedToken({"text_encoder": ROWS})})
    path = write_adapter(weights, tmp_path / "a.safetensors", NAMES, "embedding")
    assert vectors_of(read(path)) == {"<cat>": {"text_encoder": ROWS.tolist()}}


@pytest.mark.parametrize("name", ["\x1b[31mevil", "a\nb", "\u202eb", "\x9bx"])
def test_a_name_that_a_terminal_would_obey_is_refused(name, tmp_path):
    said = {"string_to_param": {"*": torch.ones(2, 8)}, "name": name}
    torch.save(said, tmp_path / "a.pt")
    with pytest.raises(UserError, match="a token's name is none that can be written") as refused:
        read_adapter(tmp_path / "a.pt", NAMES, allow_pickle=True)
    assert refused.value.message.isprintable()
