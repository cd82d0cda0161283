"""What a file in kohya's format says of itself: all that is known, and nothing else."""

import hashlib
import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from scumble.errors import UserError
from scumble.families import FAMILIES
from scumble.formats import AdapterWeights, LearnedToken, ModuleWeights, kohya, write_adapter
from scumble.formats.container import read_content

NAMES = FAMILIES["stable_diffusion"].key_names
TEXT_KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "down_blocks.0.resnets.0.conv1"


def lora(rank=4, alpha=2.0, inputs=768, kernel=()):
    torch.manual_seed(rank)
    ones = (1, 1) if kernel else ()
    tensors = {"down": torch.randn(rank, inputs, *kernel), "up": torch.randn(10, rank, *ones)}
    return ModuleWeights("lora", tensors, alpha)


def unet(**modules):
    return AdapterWeights({"unet": {TEXT_KEY: lora()} | modules}, {"base_model": "some/base"})


def written(weights, tmp_path):
    return read_content(write_adapter(weights, tmp_path / "a.safetensors", NAMES, "kohya"))


def test_metadata_that_is_known_from_the_tensors(tmp_path):
    metadata = written(unet(), tmp_path).metadata
    assert (
        metadata.items()
        >= {
            "ss_v2": "False",
            "ss_base_model_version": "sd_v1",
            "ss_network_module": "networks.lora",
            "ss_network_dim": "4",
            "ss_network_alpha": "2.0",
            "ss_sd_model_name": "some/base",
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": "stable-diffusion-v1/lora",
            "modelspec.implementation": "diffusers",
            "modelspec.title": "Adapter for some/base",
            "modelspec.resolution": "512x512",
            "base_model": "some/base",
        }.items()
    )
    unknown = {"ss_network_args", "ss_steps", "ss_resolution", "ss_clip_skip", "modelspec.date"}
    assert not unknown & metadata.keys()


TRAINING = {
    "name": "pip",
    "resolution": 640,
    "seed": 7,
    "steps": 300,
    "learning_rate": 0.0001,
    "clip_skip": None,
    "started_at": 1676000000.5,
    "finished_at": 1676000600.5,
    "prediction_type": "epsilon",
    "folders": {"pip": {"n_repeats": 1, "img_count": 5}},
    "tags": {"pip": {"a dog": 5, "sun": 2}},
    "buckets": [[640, 640, 5]],
}


def test_what_is_known_of_the_training_is_told_in_the_words_of_others(tmp_path):
    own = {"training": json.dumps(TRAINING), "trigger_phrase": "a photo of <pip>"}
    weights = AdapterWeights(unet().components, own)
    metadata = written(weights, tmp_path).metadata
    assert (
        metadata.items()
        >= {
            "ss_output_name": "pip",
            "ss_resolution": "(640, 640)",
            "ss_seed": "7",
            "ss_steps": "300",
            "ss_learning_rate": "0.0001",
            "ss_clip_skip": "None",
            "ss_training_started_at": "1676000000.5",
            "ss_dataset_dirs": '{"pip": {"n_repeats": 1, "img_count": 5}}',
            "ss_tag_frequency": '{"pip": {"a dog": 5, "sun": 2}}',
            "ss_bucket_info": '{"buckets": {"0": {"resolution": [640, 640], "count": 5}}}',
            "modelspec.title": "pip",
            "modelspec.date": "2023-02-10T03:43:20Z",
            "modelspec.resolution": "640x640",
            "modelspec.prediction_type": "epsilon",
            "modelspec.trigger_phrase": "a photo of <pip>",
        }.items()
    )
    assert "modelspec.encoder_layer" not in metadata


@pytest.mark.parametrize("damage", ["{", "3", '{"buckets": [[1, 2]]}', '{"started_at": "noon"}'])
def test_damaged_facts_are_named(damage, tmp_path):
    weights = AdapterWeights(unet().components, {"training": damage})
    with pytest.raises(UserError, match="the metadata 'training' is damaged"):
        written(weights, tmp_path)


VERSIONS = {
    (768, ""): ("sd_v1", "False", "stable-diffusion-v1/lora"),
    (768, "v_prediction"): ("sd_v1_v", "False", "stable-diffusion-v1/lora"),
    (1024, "epsilon"): ("sd_v2", "True", "stable-diffusion-v2-512/lora"),
    (1024, "v_prediction"): ("sd_v2_v", "True", "stable-diffusion-v2-768-v/lora"),
    (1024, ""): ("sd_v2", "True", None),
    (555, "epsilon"): (None, None, None),
}


@pytest.mark.parametrize(("width", "prediction"), VERSIONS)
@pytest.mark.parametrize("shown_by", ["denoiser", "text encoder", "token", "facts"])
def test_the_version_of_the_base_is_read_off_the_width_of_its_text(
    shown_by, width, prediction, tmp_path
):
    wide, blind = lora(inputs=width), {CONV: lora(inputs=3, kernel=(3, 3))}
    text_path = "text_model.encoder.layers.0.self_attn.q_proj"
    token = LearnedToken({"text_encoder": torch.ones(1, width)})
    facts = {"prediction_type": prediction} if prediction else {}
    components, tokens = {
        "denoiser": ({"unet": {TEXT_KEY: wide}}, {}),
        "text encoder": ({"unet": blind, "text_encoder": {text_path: wide}}, {}),
        "token": ({"unet": blind}, {"<a>": token}),
        "facts": ({"unet": blind}, {}),
    }[shown_by]
    facts |= {"text_width": width} if shown_by == "facts" else {}
    weights = AdapterWeights(components, {"training": json.dumps(facts)}, tokens)
    metadata = written(weights, tmp_path).metadata
    keys = ("ss_base_model_version", "ss_v2", "modelspec.architecture")
    assert tuple(metadata.get(key) for key in keys) == VERSIONS[width, prediction]


@pytest.mark.parametrize(
    ("modules", "wanted"),
    [
        ({"mid_block.a.to_q": lora(2)}, ("networks.lora", "Dynamic", "2.0", None)),
        (
            {CONV: lora(3, 1.5, 5, (3, 3))},
            ("networks.lora", "4", "2.0", {"conv_dim": "3", "conv_alpha": "1.5"}),
        ),
        (
            {
                CONV: ModuleWeights(
                    "lora", lora(3, 1.5, 5, (1, 1)).tensors | {"mid": torch.ones(3, 3, 3, 3)}, 1.5
                )
            },
            (
                "lycoris.kohya",
                "4",
                "2.0",
                {"algo": "locon", "use_tucker": "True", "conv_dim": "3", "conv_alpha": "1.5"},
            ),
        ),
    ],
)
def test_ranks_and_kinds_are_described(modules, wanted):
    metadata = kohya.write(unet(**modules), NAMES).metadata
    keys = ("ss_network_module", "ss_network_dim", "ss_network_alpha")
    arguments = metadata.get("ss_network_args")
    assert tuple(metadata[key] for key in keys) == wanted[:3]
    assert (None if arguments is None else json.loads(arguments)) == wanted[3]


def test_what_a_file_said_stays_unless_it_describes_the_tensors(tmp_path):
    said = {
        "ss_steps": "1234",
        "ss_base_model_version": "sd_v1_v",
        "ss_network_dim": "128",
        "ss_network_args": '{"preset": "full", "conv_dim": "64"}',
        "sshs_model_hash": "0",
        "modelspec.title": "theirs",
        "modelspec.hash_sha256": "0x0",
    }
    metadata = written(AdapterWeights(unet().components, said), tmp_path).metadata
    for key in ("ss_steps", "ss_base_model_version", "modelspec.title"):
        assert metadata[key] == said[key]
    assert metadata["ss_network_dim"] == "4"
    assert json.loads(metadata["ss_network_args"]) == {"preset": "full"}
    assert len(metadata["sshs_model_hash"]) == 64
    assert metadata["modelspec.hash_sha256"] == "0x" + metadata["sshs_model_hash"]


@pytest.mark.parametrize("damaged", ['{"preset": "full"', "[1]", '[["a", 1]]', "None"])
@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_arguments_that_are_no_object_stay_as_they_are(damaged, kernel, tmp_path):
    weights = unet(**{CONV: lora(kernel=kernel)})
    weights.metadata["ss_network_args"] = damaged
    assert written(weights, tmp_path).metadata["ss_network_args"] == damaged


@pytest.mark.parametrize("rank", [4, 400])
def test_hashes_are_those_that_others_compute(rank, tmp_path):
    weights = unet(**{CONV: lora(rank, 1.0, 800)})
    path = write_adapter(weights, tmp_path / "a.safetensors", NAMES, "kohya")
    data, metadata = path.read_bytes(), read_content(path).metadata
    (length,) = struct.unpack("<Q", data[:8])
    assert metadata["sshs_model_hash"] == hashlib.sha256(data[8 + length :]).hexdigest()
    # The older hash is of a file that tells ss_* alone, and of its second MiB.
    lasting = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    save_file(load_file(path), tmp_path / "bare.safetensors", lasting)
    part = (tmp_path / "bare.safetensors").read_bytes()[0x100000:0x110000]
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(part).hexdigest()[:8]
    assert (metadata["sshs_legacy_hash"] == "e3b0c442") == (rank == 4)


def test_a_header_beyond_the_older_hash_leaves_it_away():
    facts = {"tags": {"pip": {f"tag {number:060}": 1 for number in range(16000)}}}
    said = {"training": json.dumps(facts), "sshs_legacy_hash": "01234567"}
    weights = AdapterWeights(unet().components, said)
    metadata = kohya.write(weights, NAMES).metadata
    assert "sshs_legacy_hash" not in metadata
    assert "sshs_model_hash" in metadata
