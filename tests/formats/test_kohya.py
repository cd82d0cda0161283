"""Kohya's format: golden names of the full-size models, every type, what is refused by name."""

import json
from collections.abc import Iterator
from importlib.resources import files

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from scumble.adapters import ADAPTERS
from scumble.errors import UserError
from scumble.families import FAMILIES
from scumble.formats import (
    AdapterWeights,
    LearnedToken,
    ModuleWeights,
    kohya,
    read_adapter,
    write_adapter,
)
from scumble.formats.container import Content, read_content
from scumble.formats.origins import likely_origin

NAMES = FAMILIES["stable_diffusion"].key_names
TEXT_KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "down_blocks.0.resnets.0.conv1"
STEM = "lora_unet_mid_block_attentions_0_proj_in"


def lora(rank=4, alpha=2.0, dtype=torch.float32):
    torch.manual_seed(rank)
    down, up = torch.randn(rank, 768), torch.randn(10, rank)
    return ModuleWeights("lora", {"down": down.to(dtype), "up": up.to(dtype)}, alpha)


def unet(**modules):
    return AdapterWeights({"unet": {TEXT_KEY: lora()} | modules}, {"base_model": "some/base"})


def written(weights, tmp_path, name="a"):
    return read_content(write_adapter(weights, tmp_path / f"{name}.safetensors", NAMES, "kohya"))


def full_size(version: str) -> dict[str, nn.Module]:
    """The models of the real size, without weights."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = files("scumble") / "assets" / "single_file" / version
    configs = {n: json.loads((folder / f"{n}.json").read_text()) for n in NAMES.components}
    with torch.device("meta"):
        text_encoder = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
        return {"unet": UNet2DConditionModel(**configs["unet"]), "text_encoder": text_encoder}


@pytest.fixture(scope="module")
def sd1() -> dict[str, nn.Module]:
    return full_size("sd1")


def below(model: nn.Module, *classes: str) -> Iterator[tuple[str, nn.Module]]:
    """Path -> Linear or convolution under modules of some classes, each once."""
    roots = [f"{path}." for path, m in model.named_modules() if type(m).__name__ in classes]
    for path, layer in model.named_modules():
        if path.startswith(tuple(roots)) and isinstance(layer, nn.Linear | nn.Conv2d):
            yield path, layer


BLOCKS = ("Transformer2DModel",)
CONVOLUTIONS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
TEXT_BLOCKS = ("CLIPAttention", "CLIPMLP")


def of_rank_1(layers: Iterator[tuple[str, nn.Module]]) -> dict[str, ModuleWeights]:
    return {
        path: ModuleWeights(
            "lora",
            {
                "down": torch.zeros(1, *layer.weight.shape[1:]),
                "up": torch.zeros(layer.weight.shape[0], *(1,) * len(layer.weight.shape[1:])),
            },
            1.0,
        )
        for path, layer in layers
    }


@pytest.mark.parametrize(
    ("component", "classes", "count"),
    [
        ("unet", ("Attention",), 128),
        ("unet", BLOCKS, 192),
        ("unet", BLOCKS + CONVOLUTIONS, 278),
        ("text_encoder", TEXT_BLOCKS, 72),
    ],
)
def test_modules_of_the_full_size_are_as_many_as_kohya_writes(component, classes, count, sd1):
    modules = of_rank_1(below(sd1[component], *classes))
    modules = {NAMES.to_file(component, path): entry for path, entry in modules.items()}
    content = kohya.write(AdapterWeights({component: modules}), NAMES)
    stems = {key.partition(".")[0] for key in content.tensors}
    assert len(stems) == count
    assert len(content.tensors) == 3 * count
    back = kohya.read(content, NAMES)
    assert back.left_out == {}
    assert back.components[component].keys() == modules.keys()


@pytest.mark.parametrize("version", ["sd1", "sd2"])
def test_every_module_is_found_again_from_its_underscores(version):
    kinds = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.Embedding)
    for component, model in full_size(version).items():
        paths = [path for path, layer in model.named_modules() if isinstance(layer, kinds)]
        assert len(paths) > 90
        for path in paths:
            file_path = NAMES.to_file(component, path)
            flat = file_path.replace(".", "_")
            assert NAMES.from_underscores(component, flat) == file_path
            assert NAMES.may_hold(component, file_path)


GOLDEN = {
    f"unet {TEXT_KEY}": (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
    ),
    "unet up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_out.0": (
        "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn1_to_out_0.lora_down.weight"
    ),
    "unet mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": (
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj.lora_down.weight"
    ),
    "unet down_blocks.2.downsamplers.0.conv": (
        "lora_unet_down_blocks_2_downsamplers_0_conv.lora_down.weight"
    ),
    "text_encoder text_model.encoder.layers.11.self_attn.q_proj": (
        "lora_te_text_model_encoder_layers_11_self_attn_q_proj.lora_down.weight"
    ),
}


@pytest.mark.parametrize("place", GOLDEN)
def test_names_are_those_of_kohya(place):
    component, path = place.split()
    content = kohya.write(AdapterWeights({component: {path: lora()}}), NAMES)
    assert GOLDEN[place] in content.tensors


SPELLINGS = {
    "lora_unet_mid_block_attentions_0_proj_in": "unet mid_block.attentions.0.proj_in",
    "lycoris_mid_block_attentions_0_proj_in": "unet mid_block.attentions.0.proj_in",
    "lycoris_unet_mid_block_resnets_0_conv1": "unet mid_block.resnets.0.conv1",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1": (
        "text_encoder text_model.encoder.layers.0.mlp.fc1"
    ),
    "lycoris_text_model_encoder_layers_0_mlp_fc1": (
        "text_encoder text_model.encoder.layers.0.mlp.fc1"
    ),
    "lycoris_encoder_layers_0_self_attn_k_proj": (
        "text_encoder text_model.encoder.layers.0.self_attn.k_proj"
    ),
}


@pytest.mark.parametrize("stem", SPELLINGS)
def test_every_prefix_is_read(stem, tmp_path):
    sides = lora().tensors
    save_file({f"{stem}.lora_{k}.weight": t for k, t in sides.items()}, tmp_path / "a.safetensors")
    ((component, modules),) = read_adapter(tmp_path, NAMES).components.items()
    ((path, entry),) = modules.items()
    assert f"{component} {path}" == SPELLINGS[stem]
    assert entry.alpha == entry.rank == 4


ONE, CHANNELS = torch.tensor(1.5), torch.arange(10.0)
OF_LORA = {"lora_up.weight": torch.ones(10, 2), "lora_down.weight": torch.ones(2, 6), "alpha": ONE}
OF_LOHA = {f"hada_w{i}_a": torch.ones(10, 2) for i in (1, 2)}
OF_LOHA |= {f"hada_w{i}_b": torch.ones(2, 6) for i in (1, 2)} | {"alpha": ONE}
OF_LOKR = {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(5, 3), "alpha": ONE}
DORA = {"dora_scale": CHANNELS[:, None]}

TYPES = {
    "lora": OF_LORA,
    "dora": OF_LORA | DORA,
    "loha": OF_LOHA,
    "dora_loha": OF_LOHA | DORA,
    "lokr": OF_LOKR,
    "dora_lokr": OF_LOKR | DORA,
    "ia3": {"weight": CHANNELS, "on_input": torch.tensor(0)},
    "difference": {"diff": torch.ones(10, 6), "diff_b": CHANNELS},
    "norm_difference": {"w_norm": CHANNELS, "b_norm": -CHANNELS},
}
"""Adapter type -> tensors as LyCORIS writes them."""


@pytest.mark.parametrize("type_name", ADAPTERS)
def test_every_adapter_type_is_read_and_written_as_lycoris_does(type_name, tmp_path):
    tensors = {f"{STEM}.{name}": tensor for name, tensor in TYPES[type_name].items()}
    save_file(tensors, tmp_path / "a.safetensors")
    weights = read_adapter(tmp_path / "a.safetensors", NAMES)
    (entry,) = weights.components["unet"].values()
    assert entry.type == type_name
    content = written(weights, tmp_path, "b")
    assert content.tensors.keys() == tensors.keys()
    assert all(torch.equal(content.tensors[key], tensor) for key, tensor in tensors.items())
    plain = type_name == "lora"
    module = "networks.lora" if plain else "lycoris.kohya"
    assert content.metadata["ss_network_module"] == module
    assert ("ss_network_args" in content.metadata) == (not plain)


ARGUMENTS = {
    "dora": {"algo": "locon", "dora_wd": "True"},
    "loha": {"algo": "loha"},
    "dora_lokr": {"algo": "lokr", "dora_wd": "True"},
    "ia3": {"algo": "ia3"},
    "difference": {"algo": "full"},
    "norm_difference": {"algo": "full", "train_norm": "True"},
}


@pytest.mark.parametrize("type_name", ARGUMENTS)
def test_the_algorithm_is_told_in_the_words_of_lycoris(type_name):
    tensors = {f"{STEM}.{name}": tensor for name, tensor in TYPES[type_name].items()}
    metadata = kohya.write(kohya.read(Content(tensors), NAMES), NAMES).metadata
    assert json.loads(metadata["ss_network_args"]) == ARGUMENTS[type_name]
    assert (metadata["ss_network_dim"] == "None") == ("alpha" not in TYPES[type_name])


@pytest.mark.parametrize(
    ("alpha", "dtype", "wanted"),
    [
        (2.0, torch.float32, torch.float32),
        (8.0, torch.float16, torch.float16),
        (257.0, torch.bfloat16, torch.float32),
        (0.1, torch.float16, torch.float64),
    ],
)
def test_alpha_has_the_dtype_of_the_rest_if_that_holds_it(alpha, dtype, wanted, tmp_path):
    weights = unet(**{CONV: lora(alpha=alpha, dtype=dtype)})
    tensors = written(weights, tmp_path).tensors
    tensor = tensors["lora_unet_down_blocks_0_resnets_0_conv1.alpha"]
    assert (tensor.dtype, tensor.shape, float(tensor)) == (wanted, (), alpha)


def test_an_old_scalar_is_multiplied_in(tmp_path):
    sides = lora().tensors
    tensors = {f"{STEM}.lora_{k}.weight": t for k, t in sides.items()}
    save_file(tensors | {f"{STEM}.scalar": torch.tensor(0.5)}, tmp_path / "a.safetensors")
    (entry,) = read_adapter(tmp_path, NAMES).components["unet"].values()
    assert torch.equal(entry.tensors["up"], sides["up"] * 0.5)
    assert torch.equal(entry.tensors["down"], sides["down"])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_unet_input_blocks_4_1_proj_in.lora_down.weight", "adapter for Stable Diffusion XL"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "adapter for Flux"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", "Stable Diffusion 3"),
        ("lora_unet_mid_block_wheels_0.lora_down.weight", "names no module of this family"),
        (f"{STEM}.oft_blocks", "looks like an OFT adapter"),
        (f"{STEM}.a1.weight", "looks like a GLoRA adapter"),
        (f"{STEM}.lambda_layer", "looks like a T-LoRA adapter"),
        (f"{STEM}.scalar", "looks like a trained scale"),
        (f"{STEM}.lora_down.bias", "not a tensor of any known adapter type"),
        (f"{STEM}.lora_down.weight", "lacks its lora_up.weight"),
    ],
)
def test_a_key_that_fits_nothing_is_named_with_its_likely_origin(key, message, tmp_path):
    save_file({key: torch.zeros(4, 6)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        read_adapter(tmp_path, NAMES)
    assert f"'{key}'" in caught.value.message


def test_a_part_of_a_foreign_file_is_read_on_request(tmp_path):
    path = write_adapter(unet(), tmp_path / "a.safetensors", NAMES, "kohya")
    foreign = "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha"
    save_file(load_file(path) | {foreign: torch.ones(())}, path)
    weights = read_adapter(path, NAMES, partial=True)
    assert list(weights.components["unet"]) == [TEXT_KEY]
    assert list(weights.left_out) == [foreign]
    assert "Stable Diffusion XL" in weights.left_out[foreign]


@pytest.mark.parametrize(
    ("key", "origin"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "a whole model"),
        ("down_blocks.0.attn1.processor.to_k_custom_diffusion.weight", "Custom Diffusion"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "Flux"),
        ("unet.mid_block.attentions.0.proj_in.boft_R", "OFT"),
        ("base_model.model.mid_block.to_q.vera_lambda_b", "VeRA"),
        (f"{STEM}.bias_indices", "sparse difference"),
    ],
)
def test_origins_that_other_readers_ask_for(key, origin):
    assert origin in likely_origin(key)


@pytest.mark.parametrize("key", [f"{STEM}.lora_down.weight", "emb_params", "<thing>", "v1.5"])
def test_no_origin_is_made_up(key):
    assert likely_origin(key) == ""


def test_a_file_of_an_unknown_format_says_what_it_is(tmp_path):
    key = "model.diffusion_model.input_blocks.0.0.weight"
    save_file({key: torch.zeros(4, 4, 3, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="looks like a whole model in one file"):
        read_adapter(tmp_path, NAMES)


def test_a_token_with_a_dot_is_refused_with_the_way_out(tmp_path):
    token = LearnedToken({"text_encoder": torch.ones(1, 768)})
    weights = AdapterWeights(unet().components, {}, {"v1.5": token})
    with pytest.raises(UserError, match=r"'v1\.5' has a dot") as caught:
        written(weights, tmp_path)
    assert "peft" in (caught.value.hint or "")


def test_tokens_are_bundled_and_change_nothing_of_what_is_said_of_the_layers(tmp_path):
    token = LearnedToken({"text_encoder": torch.ones(2, 768)})
    content = written(AdapterWeights(unet().components, {}, {"<a>": token}), tmp_path)
    assert content.tensors["bundle_emb.<a>.string_to_param.*"].shape == (2, 768)
    assert content.metadata["ss_network_module"] == "networks.lora"
