"""Learned tokens on an unmodified pipeline and in `scumble generate`."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

import scumble
from scumble.adapters.inject import adapted_layers
from scumble.cli.main import run
from scumble.config import GenerateConfig
from scumble.errors import UserError
from scumble.families import FAMILIES
from scumble.formats import AdapterWeights, LearnedToken
from scumble.formats.files import BUNDLE_NAME, EMBEDS_NAME
from scumble.inference.base_of import base_of
from scumble.inference.generator import generate_pictures
from scumble.inference.tokens import (
    describe,
    load_tokens,
    loaded_tokens,
    unload_tokens,
    without_tokens,
)

WIDTH = 128
METADATA = {
    "base_model": "scumble-tiny",
    "initializer_token": "circle",
    "trigger_phrase": "a red <thing>",
}


def token(count: int = 1, seed: int = 0, width: int = WIDTH) -> LearnedToken:
    torch.manual_seed(seed)
    return LearnedToken({"text_encoder": torch.randn(count, width)})


def only(**tokens: LearnedToken) -> AdapterWeights:
    """Weights of tokens alone; `thing` is called "<thing>"."""
    named = {f"<{name}>": learned for name, learned in tokens.items()}
    return AdapterWeights({}, METADATA, named)


@pytest.fixture
def draw() -> Callable[..., np.ndarray]:
    """Draws one picture in two steps, as an array in [0, 1]."""

    def draw_with(pipeline: Any, prompt: str = "a red <thing>") -> np.ndarray:
        options = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"}
        generator = torch.Generator().manual_seed(3)
        return pipeline(prompt, generator=generator, **options).images[0]

    return draw_with


def test_loading_and_unloading_leave_no_trace(
    tiny_pipeline: Any, make_weights: Any, draw: Any
) -> None:
    tokenizer, table = tiny_pipeline.tokenizer, tiny_pipeline.text_encoder.get_input_embeddings()
    known, before = len(tokenizer), draw(tiny_pipeline)
    weights = AdapterWeights(make_weights("unet").components, {}, {"<thing>": token(2)})
    scumble.load_adapter(tiny_pipeline, weights, name="a")
    with_both = draw(tiny_pipeline)
    scumble.set_strengths(tiny_pipeline, {"a": 0.0})
    with_token = draw(tiny_pipeline)
    assert np.abs(with_both - with_token).max() > 0.01
    assert np.abs(with_token - before).max() > 0.01
    assert len(tokenizer) == known
    scumble.unload_adapters(tiny_pipeline, "a")
    assert tiny_pipeline.tokenizer is tokenizer
    assert tiny_pipeline.text_encoder.get_input_embeddings() is table
    assert adapted_layers(tiny_pipeline.unet) == {}
    assert np.array_equal(draw(tiny_pipeline), before)


def test_a_prompt_without_the_token_is_drawn_as_before(tiny_pipeline: Any, draw: Any) -> None:
    before = draw(tiny_pipeline, "a red circle")
    scumble.load_adapter(tiny_pipeline, only(thing=token(3)))
    assert np.array_equal(draw(tiny_pipeline, "a red circle"), before)


def test_every_vector_of_a_token_acts(tiny_pipeline: Any, draw: Any) -> None:
    whole = token(3)
    first = LearnedToken({"text_encoder": whole.vectors["text_encoder"][:1]})
    drawn = []
    for learned in (whole, first):
        scumble.load_adapter(tiny_pipeline, only(thing=learned), name="a")
        drawn.append(draw(tiny_pipeline))
        scumble.unload_adapters(tiny_pipeline)
    assert np.abs(drawn[0] - drawn[1]).max() > 0.01


@pytest.mark.parametrize("gone", ["a", "b", "c"])
def test_adapters_go_in_any_order(gone: str, tiny_pipeline: Any, draw: Any) -> None:
    tokenizer, table = tiny_pipeline.tokenizer, tiny_pipeline.text_encoder.get_input_embeddings()
    prompt = "<a> with <b> and <c>"
    plain = draw(tiny_pipeline, prompt)
    tokens = {"a": token(2), "b": token(1, 1), "c": token(3, 2)}
    for name in tokens:
        scumble.load_adapter(tiny_pipeline, only(**{name: tokens[name]}), name=name)
    scumble.unload_adapters(tiny_pipeline, gone)
    left = draw(tiny_pipeline, prompt)
    scumble.unload_adapters(tiny_pipeline)
    assert tiny_pipeline.tokenizer is tokenizer
    assert tiny_pipeline.text_encoder.get_input_embeddings() is table
    assert np.array_equal(draw(tiny_pipeline, prompt), plain)
    rest = {name: learned for name, learned in tokens.items() if name != gone}
    scumble.load_adapter(tiny_pipeline, only(**rest))
    assert np.array_equal(draw(tiny_pipeline, prompt), left)


def test_merging_leaves_tokens_where_they_are(
    tiny_pipeline: Any, make_weights: Any, draw: Any
) -> None:
    weights = AdapterWeights(make_weights("text_encoder").components, {}, {"<thing>": token(2)})
    scumble.load_adapter(tiny_pipeline, weights)
    apart = draw(tiny_pipeline)
    scumble.merge_adapters(tiny_pipeline)
    assert np.abs(draw(tiny_pipeline) - apart).max() < 1e-4
    scumble.unmerge_adapters(tiny_pipeline)
    assert np.array_equal(draw(tiny_pipeline), apart)


def test_half_precision_keeps_the_rows(tiny_pipeline: Any, draw: Any) -> None:
    before = draw(tiny_pipeline.to(torch.bfloat16))
    learned = token(2)
    scumble.load_adapter(tiny_pipeline, only(thing=learned), name="a")
    drawn = draw(tiny_pipeline)
    assert np.abs(drawn - before).max() > 0.01
    rows = tiny_pipeline.text_encoder.get_input_embeddings().group("a")["<thing>"]
    assert torch.equal(rows, learned.vectors["text_encoder"])
    scumble.unload_adapters(tiny_pipeline)
    tiny_pipeline.to(torch.float32)
    scumble.load_adapter(tiny_pipeline, only(thing=learned), name="a")
    tiny_pipeline.to(torch.bfloat16)
    assert np.array_equal(draw(tiny_pipeline), drawn)


REFUSED = {
    "taken": ({"<thing>": token()}, "'<thing>' comes with both 'first' and 'second'"),
    "another base": ({"<new>": token(width=9)}, r"'<new>' has vectors of shape \(1, 9\)"),
    "a known word": ({"red": token()}, "knows 'red' already"),
    "another encoder": (
        {"<new>": LearnedToken({"text_encoder_2": torch.ones(1, WIDTH)})},
        "text_encoder_2, which this pipeline lacks",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_leaves_nothing_attached(
    case: str, tiny_pipeline: Any, make_weights: Any, draw: Any
) -> None:
    scumble.load_adapter(tiny_pipeline, only(thing=token(2)), name="first")
    before, tokenizer = draw(tiny_pipeline), tiny_pipeline.tokenizer
    tokens, message = REFUSED[case]
    weights = AdapterWeights(make_weights("unet").components, {}, {"<fine>": token()} | tokens)
    with pytest.raises(UserError, match=message):
        scumble.load_adapter(tiny_pipeline, weights, name="second")
    assert adapted_layers(tiny_pipeline.unet) == {}
    assert tiny_pipeline.tokenizer is tokenizer
    assert np.array_equal(draw(tiny_pipeline), before)
    with pytest.raises(UserError, match="Loaded: first"):
        scumble.unload_adapters(tiny_pipeline, "second")


class TwoEncoders(type(FAMILIES["stable_diffusion"])):
    components = ("unet", "text_encoder", "text_encoder_2", "vae")


def test_of_two_encoders_both_learn_or_none(tiny_pipeline: Any) -> None:
    encoder, tokenizer = tiny_pipeline.text_encoder, tiny_pipeline.tokenizer
    pipeline = SimpleNamespace(
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_encoder_2=copy.deepcopy(encoder),
        tokenizer_2=copy.deepcopy(tokenizer),
    )
    tables = [e.get_input_embeddings() for e in (encoder, pipeline.text_encoder_2)]
    vectors = {"text_encoder": torch.ones(1, WIDTH), "text_encoder_2": torch.ones(1, 7)}
    with pytest.raises(UserError, match=r"'<new>' has vectors of shape \(1, 7\)"):
        load_tokens(pipeline, TwoEncoders(), "a", {"<new>": LearnedToken(vectors)})
    assert pipeline.tokenizer is tokenizer
    assert loaded_tokens(pipeline, TwoEncoders()) == []
    vectors["text_encoder_2"] = torch.zeros(1, WIDTH)
    load_tokens(pipeline, TwoEncoders(), "a", {"<new>": LearnedToken(vectors)})
    for component, value in (("text_encoder", 1.0), ("text_encoder_2", 0.0)):
        rows = getattr(pipeline, component).get_input_embeddings().group("a")["<new>"]
        assert rows.unique().tolist() == [value]
    unload_tokens(pipeline, TwoEncoders(), ["a"])
    assert [e.get_input_embeddings() for e in (encoder, pipeline.text_encoder_2)] == tables


def test_a_name_belongs_to_one_adapter_with_tokens_or_without(
    tiny_pipeline: Any, make_weights: Any
) -> None:
    scumble.load_adapter(tiny_pipeline, only(thing=token()), name="a")
    with pytest.raises(UserError, match="'a' is already loaded"):
        scumble.load_adapter(tiny_pipeline, make_weights(), name="a")


def test_other_forms_of_the_pipeline_unload_what_they_share(tiny_pipeline: Any) -> None:
    tokenizer = tiny_pipeline.tokenizer
    scumble.load_adapter(tiny_pipeline, only(thing=token()), name="a")
    other = StableDiffusionImg2ImgPipeline(**tiny_pipeline.components)
    scumble.unload_adapters(other, "a")
    assert other.tokenizer is tokenizer


@pytest.mark.parametrize(("name", "kind"), [(BUNDLE_NAME, "peft"), (EMBEDS_NAME, "embedding")])
def test_the_base_is_found_in_every_kind_of_file(name: str, kind: str, tmp_path: Path) -> None:
    scumble.write_adapter(only(thing=token()), tmp_path / name, kind)
    assert base_of(tmp_path) == base_of(tmp_path / name) == "scumble-tiny"


def test_a_prompt_for_the_base_has_the_initializer() -> None:
    weights = only(thing=token(2), thing_2=token())
    assert without_tokens("a <thing> and <THING>", weights) == "a circle and circle"
    silent = AdapterWeights({}, {}, weights.tokens)
    assert without_tokens("a <thing>", silent) == "a <thing>"
    assert without_tokens("a dog", AdapterWeights({}, METADATA)) == "a dog"


def test_what_is_said_of_an_adapters_words() -> None:
    weights = only(thing=token(2))
    lines = ['"<thing>" is a learned token (2 vectors)', 'trigger phrase: "a red <thing>"']
    assert describe(weights, ["a <Thing> on a beach"]) == lines
    assert describe(weights, ["a dog"])[2].startswith('No prompt contains "<thing>"')
    single = AdapterWeights({}, {}, {"<a>": token()})
    assert describe(single, ["<a>"]) == ['"<a>" is a learned token (1 vector)']
    assert describe(AdapterWeights({}, {"base_model": "x"}), ["a dog"]) == []


@pytest.fixture
def bundle(make_weights: Any, tmp_path: Path) -> Path:
    weights = AdapterWeights(make_weights("unet").components, METADATA, {"<thing>": token(2)})
    return scumble.write_adapter(weights, tmp_path / "run" / BUNDLE_NAME).parent


def test_the_command_needs_no_more_than_the_folder(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "pictures"
    options = ["--num_inference_steps", "1", "--output", str(output)]
    words = ["generate", "--adapter", str(bundle), *options]
    assert run([*words, "--prompt", "a red <thing>", "--compare"]) == 0
    said = capsys.readouterr()
    text = said.out + said.err
    assert '"<thing>" is a learned token (2 vectors)' in text
    assert 'trigger phrase: "a red <thing>"' in text
    assert "No prompt contains" not in text
    assert sorted(p.name for p in output.iterdir()) == ["00001_grid.png", "00001_seed0.png"]
    assert run([*words, "--prompt", "a red circle"]) == 0
    said = capsys.readouterr()
    assert 'No prompt contains "<thing>"' in said.out + said.err
    assert run([*words, "--prompt", "a <thing>", "--adapter", f"{bundle}:0.5"]) == 1
    both = f"'<thing>' comes with both '1: {bundle}' and '2: {bundle}'"
    assert both in capsys.readouterr().err


def pixels(image: Image.Image | None) -> np.ndarray:
    assert image is not None
    return np.asarray(image)


def test_the_base_is_compared_with_the_word_that_learning_started_from(bundle: Path) -> None:
    options = {"adapter": (str(bundle),), "num_inference_steps": 1}
    config = GenerateConfig(prompt=("a red <thing>",), compare=True, **options)
    (picture,) = generate_pictures(config)
    base = {"pretrained_model_name_or_path": "scumble-tiny", "num_inference_steps": 1}
    (plain,) = scumble.generate("a red circle", **base)
    assert np.array_equal(pixels(picture.before), pixels(plain))
    assert not np.array_equal(pixels(picture.image), pixels(plain))


def test_without_an_initializer_the_base_reads_the_token_as_text(
    bundle: Path, make_weights: Any
) -> None:
    silent = {"base_model": "scumble-tiny"}
    weights = AdapterWeights(make_weights("unet").components, silent, {"<thing>": token(2)})
    scumble.write_adapter(weights, bundle / BUNDLE_NAME)
    options = {"adapter": (str(bundle),), "num_inference_steps": 1}
    config = GenerateConfig(prompt=("a red <thing>",), compare=True, **options)
    (picture,) = generate_pictures(config)
    base = {"pretrained_model_name_or_path": "scumble-tiny", "num_inference_steps": 1}
    (plain,) = scumble.generate("a red <thing>", **base)
    assert np.array_equal(pixels(picture.before), pixels(plain))
