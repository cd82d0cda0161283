"""What learned tokens must keep, on the text encoder of the built-in base."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from scumble.adapters.tokens import (
    TokenRows,
    attach_tokens,
    detach_tokens,
    expand,
    token_strings,
)
from scumble.errors import UserError

WIDTH = 128


def vectors(count: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(count, WIDTH)


def ids_of(tokenizer: Any, *prompts: str) -> Tensor:
    options = {"padding": "max_length", "max_length": 20, "return_tensors": "pt"}
    return tokenizer(list(prompts), **options).input_ids


@pytest.fixture
def encoder(tiny_pipeline: Any) -> Any:
    return tiny_pipeline.text_encoder.eval().requires_grad_(False)


@pytest.fixture
def tokenizer(tiny_pipeline: Any) -> Any:
    return tiny_pipeline.tokenizer


def test_rows_act_as_a_resized_table_would(encoder: Any, tokenizer: Any) -> None:
    dense = copy.deepcopy(encoder)
    table = encoder.get_input_embeddings()
    plain = ids_of(tokenizer, "a red circle")
    before = encoder(plain)[0]
    rows = attach_tokens(encoder, tokenizer, "a", {"<x>": vectors(2), "<y>": vectors(1, 1)})
    assert {token: tuple(r.shape) for token, r in rows.items()} == {
        "<x>": (2, WIDTH),
        "<y>": (1, WIDTH),
    }
    ids = ids_of(tokenizer, "a <y> and <x> <x>_1", "a blue <y>")
    assert set(ids.flatten().tolist()) > {699, 700, 701}
    dense.resize_token_embeddings(len(tokenizer))
    dense.get_input_embeddings().weight.data[-3:] = torch.cat(list(rows.values())).detach()
    assert torch.equal(encoder(ids)[0], dense(ids)[0])
    assert torch.equal(encoder(plain)[0], before)
    assert encoder.get_input_embeddings().weight is table.weight


def test_ids_within_the_table_are_taken_over(encoder: Any) -> None:
    # Some tables are longer than their tokenizers: the new ids then fall inside.
    table = encoder.get_input_embeddings()
    wrapped = TokenRows(table)
    rows = wrapped.add("a", "<x>", [5], vectors(1))
    looked_up = wrapped(torch.tensor([[4, 5]]))
    assert torch.equal(looked_up[0, 1], rows[0])
    assert torch.equal(looked_up[0, 0], table.weight[4])


def test_the_gradient_reaches_the_rows_alone(encoder: Any, tokenizer: Any) -> None:
    rows = attach_tokens(encoder, tokenizer, "a", {"<x>": vectors(2), "<y>": vectors(1)})
    encoder(ids_of(tokenizer, "a <x> in the sun"))[0].sum().backward()
    assert rows["<x>"].grad is not None
    assert rows["<x>"].grad[0].abs().sum() > 0
    assert rows["<x>"].grad[1].abs().sum() == 0
    assert rows["<y>"].grad is None or rows["<y>"].grad.abs().sum() == 0
    others = [p for p in encoder.parameters() if not any(p is row for row in rows.values())]
    assert all(p.grad is None for p in others)


def test_rows_are_trained_apart_from_the_vectors_they_came_from(
    encoder: Any, tokenizer: Any
) -> None:
    source = vectors(1)
    (rows,) = attach_tokens(encoder, tokenizer, "a", {"<x>": source}).values()
    with torch.no_grad():
        rows += 1
    assert torch.equal(source, vectors(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_the_encoder_leaves_the_rows_exact(
    dtype: torch.dtype, encoder: Any, tokenizer: Any
) -> None:
    (rows,) = attach_tokens(encoder, tokenizer, "a", {"<x>": vectors(1)}).values()
    encoder.to(dtype)
    assert encoder.dtype == dtype
    assert encoder.get_input_embeddings().weight.dtype == dtype
    assert torch.equal(rows, vectors(1))
    looked_up = encoder.get_input_embeddings()(torch.tensor([[3, 699]]))
    assert looked_up.dtype == dtype
    assert torch.equal(looked_up[0, 1], vectors(1)[0].to(dtype))
    encoder.float()
    assert torch.equal(rows, vectors(1))


def test_the_wrapper_does_not_show_on_disk(encoder: Any, tokenizer: Any, tmp_path: Any) -> None:
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    (rows,) = attach_tokens(encoder, tokenizer, "a", {"<x>": vectors(1)}).values()
    state = encoder.state_dict()
    assert state.keys() == before.keys()
    encoder.load_state_dict({key: tensor + 1 for key, tensor in before.items()})
    assert all(torch.equal(t, before[key] + 1) for key, t in encoder.state_dict().items())
    assert torch.equal(rows, vectors(1))
    encoder.save_pretrained(tmp_path)
    saved = type(encoder).from_pretrained(tmp_path)
    assert all(torch.equal(tensor, before[key] + 1) for key, tensor in saved.state_dict().items())


def test_detaching_puts_the_very_table_back(encoder: Any, tokenizer: Any) -> None:
    table = encoder.get_input_embeddings()
    attach_tokens(encoder, tokenizer, "a", {"<x>": vectors(2)})
    (kept,) = attach_tokens(encoder, tokenizer, "b", {"<y>": vectors(1, 1)}).values()
    detach_tokens(encoder, "a")
    detach_tokens(encoder, "never there")
    wrapped = encoder.get_input_embeddings()
    assert wrapped.names == ["b"]
    assert torch.equal(wrapped(torch.tensor([701]))[0], kept[0])
    detach_tokens(encoder, "b")
    assert encoder.get_input_embeddings() is table
    detach_tokens(encoder, "b")


REFUSED = {
    "another base": ({"<x>": torch.ones(1, 7)}, r"'<x>' has vectors of shape \(1, 7\)"),
    "one row alone": ({"<x>": torch.ones(WIDTH)}, r"needs \(any, 128\)"),
    "no rows": ({"<x>": torch.ones(0, WIDTH)}, r"\(0, 128\)"),
    "a word": ({"red": vectors(1)}, "knows 'red' already"),
    "a word in capitals": ({"Red": vectors(1)}, "knows 'Red' already"),
    "a special token": ({"<|endoftext|>": vectors(1)}, "knows '<|endoftext|>' already"),
    "in another group": ({"<old>": vectors(1)}, "'<old>' comes with both 'first' and 'second'"),
    "only capitals differ": ({"<OLD>": vectors(1)}, "knows '<OLD>' already"),
    "a number too many": ({"<old>_2": vectors(1)}, "'<old>_2' would count as a vector of '<old>'"),
    "a number of the other": ({"<old>_1": vectors(1)}, "knows '<old>_1' already"),
    "numbers within": ({"<x>": vectors(2), "<x>_1": vectors(1)}, "'<x>_1'"),
    "no string": ({"": vectors(1)}, "is no token"),
    "blanks": ({"<x> ": vectors(1)}, "blanks at an end"),
    "capitals, several": ({"<X>": vectors(2)}, "'<X>' has several vectors and capital letters"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_attached_changes_nothing(case: str, encoder: Any, tokenizer: Any) -> None:
    attach_tokens(encoder, tokenizer, "first", {"<old>": vectors(2)})
    tokens, message = REFUSED[case]
    known = len(tokenizer)
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        attach_tokens(encoder, tokenizer, "second", {"<fine>": vectors(1)} | tokens)
    assert len(tokenizer) == known
    assert encoder.get_input_embeddings().names == ["first"]
    with pytest.raises(UserError, match="'first' are already loaded"):
        attach_tokens(encoder, tokenizer, "first", {"<fine>": vectors(1)})


def test_a_refused_first_token_leaves_the_encoder_unwrapped(encoder: Any, tokenizer: Any) -> None:
    table = encoder.get_input_embeddings()
    with pytest.raises(UserError):
        attach_tokens(encoder, tokenizer, "a", {"red": vectors(1)})
    assert encoder.get_input_embeddings() is table


def test_the_vectors_of_a_token_are_numbered_as_diffusers_does() -> None:
    assert token_strings("<x>", 1) == ["<x>"]
    assert token_strings("<x>", 3) == ["<x>", "<x>_1", "<x>_2"]


PROMPTS = [
    "a red circle",
    "a <x> on a beach",
    "<x><y><z>",
    "a <x>, a <y> and a <x> again",
    "a <z> is one vector",
    "written out: <x> <x>_1",
    "only the third: <x>_2",
    "A <X> in capitals",
    "",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_grow_as_in_diffusers(prompt: str, tiny_pipeline: Any) -> None:
    counts = {"<x>": 3, "<y>": 2, "<z>": 1}
    tokens = {token: vectors(count) for token, count in counts.items()}
    attach_tokens(tiny_pipeline.text_encoder, tiny_pipeline.tokenizer, "a", tokens)
    wanted = tiny_pipeline.maybe_convert_prompt(prompt, tiny_pipeline.tokenizer)
    assert expand(prompt, counts) == wanted
    assert expand(prompt, {}) == prompt
