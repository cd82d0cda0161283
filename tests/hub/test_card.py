"""The model card: what its header says, and what it leaves unsaid."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from scumble.config.sharing import shareable
from scumble.families import BaseModel
from scumble.hub.card import CardFacts, card_for_hub, render_card
from scumble.hub.licence import licence_of


def facts(**changes) -> CardFacts:
    settings = {
        "name": "fox",
        "base_model": "someone/base",
        "prompts": ["a fox | at night", "a red fox"],
        "images": ["sample_0.png", "sample_1.png"],
        "settings": {"rank": 8, "target_modules": ("to_q", "to_k"), "seed": 3},
        "parameters": 1234567,
        "steps": 20,
        "pictures": 12,
        "versions": {"scumble": "1", "torch": "2"},
        "adapter": "pytorch_lora_weights.safetensors",
    }
    return CardFacts(**(settings | changes))


def test_the_header_says_what_the_hub_looks_for():
    text = render_card(
        facts(
            instance_prompt="a sks fox",
            licence={"license": "creativeml-openrail-m"},
            dataset="someone/foxes",
        )
    )
    data = ModelCard(text).data.to_dict()
    assert data["base_model"] == "someone/base"
    assert data["base_model_relation"] == "adapter"
    assert data["library_name"] == "diffusers"
    assert {"lora", "text-to-image", "template:sd-lora"} <= set(data["tags"])
    assert data["instance_prompt"] == "a sks fox"
    assert data["license"] == "creativeml-openrail-m"
    assert data["datasets"] == ["someone/foxes"]
    assert data["widget"][1] == {"text": "a red fox", "output": {"url": "sample_1.png"}}


@pytest.mark.parametrize(("kind", "name"), [("loha", "LoHa"), ("lokr", "LoKr")])
def test_what_diffusers_does_not_load_is_not_loaded_by_it(kind, name):
    text = render_card(facts(adapter_type=kind))
    assert f"A {name} adapter for" in text
    assert "load_lora_weights" not in text
    assert 'scumble.load_adapter(pipe, ".")' in text
    assert 'scumble.load_adapter(pipe, "me/fox")' in card_for_hub(text, "me/fox")
    assert "lora" not in ModelCard(text).data.tags


def test_dora_is_loaded_by_diffusers():
    text = render_card(facts(adapter_type="dora"))
    assert "A DoRA adapter for" in text
    assert "pipe.load_lora_weights(" in text
    assert "import scumble" not in text


def test_a_caption_stands_for_a_prompt_that_lacks():
    text = render_card(facts(prompts=[], images=[], example="a fox in snow"))
    assert '--prompt "a fox in snow"' in text
    assert "a picture" not in text


def test_what_is_not_known_is_not_said():
    data = ModelCard(render_card(facts(prompts=[], images=[]))).data.to_dict()
    assert not {"license", "datasets", "instance_prompt", "widget"} & data.keys()


def test_the_body_has_settings_scores_and_snippets():
    text = render_card(facts(scores={"mean loss of the last steps": 0.12345678}))
    assert "1,234,567 parameters,\ntrained for 20 steps on 12 pictures." in text
    assert "| `target_modules` | `to_q to_k` |" in text
    assert "Mean loss of the last steps: 0.12346." in text
    for snippet in ("scumble generate --adapter . ", "pipe.load_lora_weights", "<lora:fox:1>"):
        assert snippet in text


@pytest.mark.parametrize(
    ("changes", "snippets"),
    [
        (
            {},
            [
                "generate --adapter ann/fox --prompt",
                'load_lora_weights("ann/fox", weight_name=',
                "convert ann/fox:pytorch_lora_weights.safetensors --format kohya",
            ],
        ),
        (
            {"adapter": None, "words": "learned_embeds.safetensors"},
            ['load_textual_inversion("ann/fox", weight_name="learned_embeds.safetensors")'],
        ),
        (
            {"adapter": None, "model": "model"},
            [
                "generate --pretrained_model_name_or_path ann/fox --prompt",
                'from_pretrained("ann/fox"',
            ],
        ),
    ],
)
def test_on_the_hub_every_snippet_takes_the_files_from_there(changes, snippets):
    text = card_for_hub(render_card(facts(**changes)), "ann/fox")
    for snippet in snippets:
        assert snippet in text
    assert '"."' not in text
    assert "--adapter ." not in text


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"license": "mit"}, {"license": "mit"}),
        (
            {"license": "other", "license_name": "x", "license_link": "LICENSE.md"},
            {"license": "other", "license_name": "x"},
        ),
        ({"tags": ["lora"]}, {}),
        (None, {}),
    ],
)
def test_the_licence_is_what_the_bases_card_says(tmp_path, header, said):
    text = "no header" if header is None else f"---\n{yaml.safe_dump(header)}---\n\n# base\n"
    (tmp_path / "README.md").write_text(text, "utf-8")
    base = BaseModel("base", str(tmp_path), "StableDiffusionPipeline")
    assert licence_of(base) == said


def test_a_base_without_a_card_leaves_the_licence_unsaid(tmp_path):
    for location in (str(tmp_path), "someone/not-here"):
        assert licence_of(BaseModel(location, location, "StableDiffusionPipeline")) == {}


@pytest.mark.parametrize(
    ("value", "shared"),
    [
        ("someone/base", "someone/base"),
        ("/data/models/base", "base"),
        (r"D:\models\base.safetensors", "base.safetensors"),
        ("~/base", "base"),
        ("../base", "base"),
        (7, 7),
    ],
)
def test_a_setting_is_shared_without_its_folder(value, shared):
    settings = {"pretrained_model_name_or_path": value, "hub_token": "hf_x", "output_dir": "out"}
    assert shareable(settings) == {"pretrained_model_name_or_path": shared}


def test_a_path_below_this_folder_is_known_as_one(tmp_path, monkeypatch):
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    name = str(Path("models") / "base")
    assert shareable({"dataset_name": name}) == {"dataset_name": "base"}
