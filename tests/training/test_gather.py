"""Data sets, streams and bad pictures, on the way from the user's folder into training."""

import json
import shutil

import pytest
from PIL import Image

import scumble
from scumble.data.cache import TensorStore
from scumble.errors import UserError
from scumble.families import Components, family_of, locate
from scumble.training.encoders import encoders_of
from scumble.training.find import training_sizes
from scumble.training.gather import gather_data
from scumble.training.opening import open_workshop
from scumble.training.resident import Resident
from scumble.training.runtime import prepare_runtime


@pytest.fixture
def dataset(pictures, tmp_path):
    """The pictures as a local data set with several captions for one of them."""
    folder = tmp_path / "dataset"
    shutil.copytree(pictures, folder, ignore=shutil.ignore_patterns("*.txt"))
    rows = [
        {"file_name": path.name, "text": [f"caption {path.stem}", "another"]}
        for path in sorted(folder.glob("*.png"))
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def gather(config):
    base = locate(config.pretrained_model_name_or_path)
    family = family_of(base)
    runtime = prepare_runtime(config)
    resident = Resident(TensorStore(config.cache_folder), runtime.device)
    encoders = encoders_of(config, family, Components(base), runtime)
    gathered = gather_data(config, encoders, resident)
    assert gathered.held_out is None
    assert gathered.class_pictures is None
    return gathered.train


def prepare(config):
    """Pictures and captions, both encoded."""
    return open_workshop(config, prepare_runtime(config))


def test_a_stream_encodes_what_a_data_set_encodes(make_config, dataset):
    settings = {"train_data_dir": None, "dataset_name": str(dataset), "center_crop": True}
    whole = gather(make_config(**settings))
    stream = gather(make_config(**settings, streaming=True))
    assert len(whole.examples) == 6
    assert whole.examples[0].captions == ("caption 0", "another")
    assert [e.latent_keys for e in stream.examples] == [e.latent_keys for e in whole.examples]


def test_a_stream_trains(make_config, dataset, tmp_path):
    config = make_config(
        train_data_dir=None, dataset_name=str(dataset), streaming=True, max_train_samples=3
    )
    scumble.train(config)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["examples"] == 3


def test_every_crop_and_flip_is_encoded(make_config):
    data = gather(make_config(random_flip=True))
    assert all(len(example.latent_keys) == 6 for example in data.examples)  # 3 places x 2 flips
    fixed = gather(make_config(center_crop=True))
    assert all(len(example.latent_keys) == 1 for example in fixed.examples)


def test_max_train_samples_depends_on_the_seed_alone(make_config):
    ids = [
        [example.id for example in gather(make_config(max_train_samples=3, seed=seed)).examples]
        for seed in (0, 0, 1)
    ]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]
    assert len(ids[0]) == 3


def test_sizes_come_from_the_bases_own_downsampling(make_config):
    components = Components(locate("scumble-tiny"))
    family = family_of(components.base)
    assert training_sizes(make_config(), family, components) == [(64, 64)]
    assert training_sizes(make_config(resolution=32), family, components) == [(32, 32)]
    sizes = training_sizes(make_config(aspect_ratio_buckets=True), family, components)
    assert len(sizes) > 1
    assert all(height % 16 == 0 and width % 16 == 0 for height, width in sizes)


def test_bad_pictures_are_all_named_before_anything_is_encoded(make_config, pictures, tmp_path):
    (pictures / "1.png").write_bytes(b"")
    (pictures / "3.png").write_bytes((pictures / "3.png").read_bytes()[:60])
    with pytest.raises(UserError) as caught:
        scumble.train(make_config())
    assert "1.png" in str(caught.value)
    assert "3.png" in str(caught.value)
    scumble.train(make_config(on_bad_image="skip", output_dir=str(tmp_path / "skipped")))
    assert json.loads((tmp_path / "skipped" / "run.json").read_text())["examples"] == 4


def test_a_missing_caption_is_named(make_config, pictures):
    (pictures / "2.txt").unlink()
    with pytest.raises(UserError, match=r"2\.png"):
        scumble.train(make_config())


def test_no_captions_at_all_says_how_to_give_them(make_config, pictures):
    for path in pictures.glob("*.txt"):
        path.unlink()
    with pytest.raises(UserError, match="--instance_prompt"):
        scumble.train(make_config())
    data = gather(make_config(instance_prompt="a sks circle"))
    assert {example.captions for example in data.examples} == {("a sks circle",)}


def test_an_empty_folder_is_one_clear_error(make_config, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        scumble.train(make_config(train_data_dir=str(tmp_path / "empty")))


def test_a_long_caption_is_reported_with_its_words(make_config, pictures, capsys):
    (pictures / "0.txt").write_text("a red circle " + "and a blue star " * 40)
    prepare(make_config())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "caption cut" in line]
    assert "a red circle and a blue star" in line


def test_the_cache_follows_the_picture_not_its_name(make_config, pictures):
    before = gather(make_config()).examples[0].latent_keys
    Image.new("RGB", (96, 64), "white").save(pictures / "0.png")
    assert gather(make_config()).examples[0].latent_keys != before


def test_without_a_cache_nothing_is_written(make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare(make_config(cache_latents=False))
    assert not (tmp_path / "cache").exists()
    workshop = prepare(make_config())
    views = sum(len(example.latent_keys) for example in workshop.gathered.train.examples)
    captions = {"", *workshop.gathered.captions()}
    kept = list((tmp_path / "cache" / "scumble").rglob("*.safetensors"))
    assert len(kept) == views + len(captions)
