"""What the file of an adapter says of its training is what was trained."""

import json
from pathlib import Path
from typing import Any

import pytest

import scumble
from scumble.formats.container import read_content


def test_a_file_says_how_it_was_trained(make_config: Any, tmp_path: Path) -> None:
    config = make_config(max_train_steps=2, seed=7)
    result = scumble.train(config)
    metadata = scumble.read_adapter(result.adapter).metadata
    facts = json.loads(metadata["training"])
    pictures = sorted(Path(config.train_data_dir).glob("*.png"))
    folder = Path(config.train_data_dir).name
    assert facts["steps"] == 2
    assert facts["seed"] == 7
    assert facts["pictures"] == len(pictures)
    assert facts["folders"] == {folder: {"img_count": len(pictures), "n_repeats": 1}}
    assert sum(count for *_, count in facts["buckets"]) == len(pictures)
    captions = [path.with_suffix(".txt").read_text().strip() for path in pictures]
    parts = [part.strip() for caption in captions for part in caption.split(",")]
    assert facts["tags"] == {folder: {part: parts.count(part) for part in set(parts)}}
    assert facts["prediction_type"] in ("epsilon", "v_prediction")
    assert str(tmp_path) not in metadata["training"]


def test_kohyas_file_says_it_in_its_words(make_config: Any, tmp_path: Path) -> None:
    result = scumble.train(make_config(max_train_steps=2, rank=3, alpha=1.5))
    path = tmp_path / "k.safetensors"
    scumble.write_adapter(scumble.read_adapter(result.adapter), path, "kohya")
    said = read_content(path).metadata
    assert said["ss_steps"] == "2"
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("3", "1.5")
    assert json.loads(said["ss_tag_frequency"])
    assert json.loads(said["ss_bucket_info"])["buckets"]["0"]["count"] > 0
    assert said["ss_sd_model_name"] == "scumble-tiny"
    assert said["ss_clip_skip"] == "None"


@pytest.mark.parametrize(
    ("length", "told"),
    [
        ({"max_train_steps": 1, "num_train_epochs": 9}, {"max_train_steps": 1}),
        ({"max_train_steps": None, "num_train_epochs": 1}, {"num_train_epochs": 1}),
    ],
)
def test_only_what_decides_the_length_is_told(length: Any, told: Any, make_config: Any) -> None:
    result = scumble.train(make_config(**length, train_batch_size=6))
    facts = json.loads(scumble.read_adapter(result.adapter).metadata["training"])
    assert {name: facts[name] for name in length if name in facts} == told
