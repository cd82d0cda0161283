"""From a training to the Hub and from the Hub to a picture, with the unmodified client."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open

WEIGHTS = "pytorch_lora_weights.safetensors"
PUSHED = {
    "README.md",
    "before_after.png",
    "loss_curve.png",
    WEIGHTS,
    "sample_0.png",
    "settings.yaml",
}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def cloned(clone, trained, tmp_path_factory):
    return clone(trained.name, tmp_path_factory.mktemp("clone") / "repository")


def test_git_clones_what_the_run_wrote_and_nothing_else(cloned, trained):
    names = {path.name for path in cloned.iterdir()} - {".git", ".gitattributes"}
    assert names == PUSHED
    assert {"checkpoint-2", "best", "log.jsonl", "run.json"} <= {
        path.name for path in trained.folder.iterdir()
    }
    for name in PUSHED - {"README.md", "settings.yaml"}:
        assert digest(cloned / name) == digest(trained.folder / name), name


def test_nothing_of_this_machine_is_pushed(cloned, place, trained, pictures):
    with safe_open(cloned / WEIGHTS, "pt") as file:
        texts = [json.dumps(file.metadata())]
    texts += [(cloned / name).read_text("utf-8") for name in ("README.md", "settings.yaml")]
    for text in (*texts, trained.said.replace(str(trained.folder), "")):
        assert place.token not in text
    for text in texts:
        for folder in (place.folder, pictures):
            assert str(folder) not in text
            assert str(folder.parent) not in text


def test_the_card_is_of_this_run_and_takes_its_files_from_the_hub(cloned, trained):
    card = ModelCard.load(cloned / "README.md")
    assert card.data.base_model == "scumble-tiny"
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert card.data.license == "cc0-1.0"
    assert card.data.widget[0]["output"]["url"] == "sample_0.png"
    assert f'--adapter {trained.name} --prompt "a red circle' in card.text
    assert f'load_lora_weights("{trained.name}", weight_name="{WEIGHTS}")' in card.text
    assert f"scumble convert {trained.name}:{WEIGHTS} --format kohya" in card.text
    for row in ("| `learning_rate` | `0.01` |", "| `seed` | `0` |", "torch 2."):
        assert row in card.text
    assert "oss on held-out pictures: 0." in card.text


def test_the_settings_are_a_configuration_file(cloned):
    from scumble.config.files import read_config_file
    from scumble.config.train import field_names

    settings = read_config_file(cloned / "settings.yaml", field_names("text_to_image"))
    assert settings["learning_rate"] == 0.01
    assert not {"train_data_dir", "output_dir", "push_to_hub"} & settings.keys()
    assert yaml.safe_load((cloned / "settings.yaml").read_text()) == settings


def test_the_articles_way_finds_the_base(place, trained):
    code = """
import sys
from huggingface_hub import model_info
info = model_info(sys.argv[1])
print(info.cardData["base_model"])
"""
    assert place.python(code, trained.name) == "scumble-tiny\n"


GENERATE = """
import sys
from scumble.cli.main import run
options = ["--prompt", "a red circle", "--num_inference_steps", "1"]
for number, source in enumerate(sys.argv[1:]):
    words = ["--adapter", f"{source}:0.5", "--output", f"drawn{number}", *options]
    assert run(["generate", *words]) == 0
"""


def test_generate_finds_the_base_by_itself_and_says_which(place, trained):
    said = place.python(GENERATE, trained.name, str(trained.folder))
    assert "base model: scumble-tiny (what the adapter was trained on)" in said
    drawn = [place.folder / f"drawn{number}" / "00001_seed0.png" for number in range(2)]
    assert digest(drawn[0]) == digest(drawn[1])
