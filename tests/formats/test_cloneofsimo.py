"""Files whose layers have numbers and no names: the right tensors come to the right layers."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

import scumble
from scumble.errors import UserError
from scumble.families import FAMILIES
from scumble.formats import (
    AdapterWeights,
    LearnedToken,
    ModuleWeights,
    read_adapter,
    write_adapter,
)

NAMES = FAMILIES["stable_diffusion"].key_names
ATTENTION = ("CrossAttention", "Attention")
DEFAULT = (*ATTENTION, "GEGLU")
EXTENDED = (*DEFAULT, "ResnetBlock2D")


def walk(model, classes):
    """Path -> layer in diffusers 0.11's order: down, up, middle; attention, then the rest."""
    paths = {module: path for path, module in model.named_modules()}
    found = {}
    for block in (*model.down_blocks, *model.up_blocks, model.mid_block):
        owners = []
        for attention in getattr(block, "attentions", ()):
            (inner,) = attention.transformer_blocks
            owners += [inner.attn1, inner.ff.net[0], inner.attn2]
        for owner in (*owners, *block.resnets):
            if type(owner).__name__ in classes:
                layers = [m for m in owner.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
                found |= {paths[layer]: layer for layer in layers}
    return found


@pytest.fixture(scope="module", params=[768, 1024], ids=["1.x", "2.x"])
def unet(request):
    """The denoiser of Stable Diffusion 1.x or 2.x in full size, without memory."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            cross_attention_dim=request.param, use_linear_projection=request.param == 1024
        )


def text_encoder(layers):
    sizes = {"hidden_size": 12, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 9}
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(num_hidden_layers=layers, **sizes))
    return {
        NAMES.to_file("text_encoder", path): layer
        for path, layer in model.named_modules()
        if ".self_attn." in path and isinstance(layer, nn.Linear)
    }


def pairs(layers):
    """(up, down) of every layer, at rank 1 and filled with the layer's number."""
    made = []
    for number, layer in enumerate(layers.values()):
        outputs, *rest = layer.weight.shape
        up = torch.full((outputs, 1) + (1, 1) * (len(rest) > 1), number + 0.5).half()
        made.append((up, torch.full((1, *rest), number + 0.25).half()))
    return made


def file_of(component, layers, classes):
    tensors = {
        f"{component}:{number}:{side}": tensor
        for number, pair in enumerate(pairs(layers))
        for side, tensor in zip(("up", "down"), pair, strict=True)
    }
    ranks = {f"{component}:{number}:rank": "1" for number in range(len(layers))}
    return tensors, {component: json.dumps(sorted(classes)), **ranks}


def listed(layers):
    return [tensor for pair in pairs(layers) for tensor in pair]


def assert_in_order(weights, component, layers):
    got = weights.components[component]
    assert list(got) == list(layers)
    for (path, layer), pair in zip(layers.items(), pairs(layers), strict=True):
        entry = got[path]
        assert (entry.type, entry.alpha, entry.rank) == ("lora", 1, 1)
        assert all(
            torch.equal(entry.tensors[s], t) for s, t in zip(("up", "down"), pair, strict=True)
        )
        shapes = entry.tensors["up"].shape[:1] + entry.tensors["down"].shape[1:]
        assert shapes == layer.weight.shape
    assert set(weights.components) == {component}


@pytest.mark.parametrize(("classes", "count"), [(ATTENTION, 128), (DEFAULT, 144), (EXTENDED, 224)])
def test_numbers_mean_the_layers_of_the_first_diffusers(classes, count, unet, tmp_path):
    layers = walk(unet, classes)
    assert len(layers) == count
    tensors, metadata = file_of("unet", layers, classes)
    save_file(tensors, tmp_path / "a.safetensors", metadata | {"note": "x"})
    weights = read_adapter(tmp_path, NAMES)
    assert_in_order(weights, "unet", layers)
    assert weights.metadata == {"note": "x"}
    torch.save(listed(layers), tmp_path / "a.pt")
    assert_in_order(read_adapter(tmp_path / "a.pt", NAMES, allow_pickle=True), "unet", layers)


@pytest.mark.parametrize("length", [2, 12, 23])
def test_a_text_encoder_of_any_length_is_read(length, tmp_path):
    layers = text_encoder(length)
    assert len(layers) == 4 * length
    tensors, metadata = file_of("text_encoder", layers, ["CLIPAttention"])
    tensors["<s1>"], metadata["<s1>"] = torch.ones(12), "<embed>"
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    weights = read_adapter(tmp_path, NAMES)
    assert_in_order(weights, "text_encoder", layers)
    assert torch.equal(weights.tokens["<s1>"].vectors["text_encoder"], torch.ones(1, 12))
    assert weights.metadata == {}
    torch.save(listed(layers), tmp_path / "a.text_encoder.pt")
    back = read_adapter(tmp_path / "a.text_encoder.pt", NAMES, allow_pickle=True)
    assert_in_order(back, "text_encoder", layers)


def test_a_file_that_says_no_classes_is_told_by_its_count(tmp_path):
    tensors, _ = file_of("text_encoder", text_encoder(3), [])
    save_file(tensors, tmp_path / "a.safetensors")
    assert len(read_adapter(tmp_path, NAMES).components["text_encoder"]) == 12


def square(count):
    return {
        f"text_encoder:{number}:{side}": torch.ones(shape)
        for number in range(count)
        for side, shape in (("up", (12, 2)), ("down", (2, 12)))
    }


TEXT = {"text_encoder": '["CLIPAttention"]'}
WRONG = {
    "a number is missing": (
        {k: t for k, t in square(4).items() if k != "text_encoder:2:down"},
        TEXT,
        "the layer number 2 of 4 lacks its up or its down",
    ),
    "cut inside a layer": (square(6), TEXT, "has 6 layers of the text_encoder, .* have 92"),
    "not that many": (
        {k.replace("text_encoder", "unet"): t for k, t in square(90).items()},
        {"unet": '["CrossAttention", "Attention", "GEGLU"]'},
        "has 90 layers of the unet, .* have 144",
    ),
    "shape": (
        square(4) | {"text_encoder:3:up": torch.ones(14, 2)},
        TEXT,
        r"would be '.*layers\.0\.self_attn\.out_proj' has the shapes \(14, 2\) and \(2, 12\)",
    ),
    "unknown class": (square(4), {"text_encoder": '["CLIPMLP"]'}, "the layers of 'CLIPMLP'"),
    "damaged": (square(4), {"text_encoder": "3"}, "its list of adapted classes is damaged"),
    "a key beside": (square(4) | {"x": torch.ones(3)}, TEXT, "'x' is neither a numbered layer"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_numbers_cannot_mean_is_refused(case, tmp_path):
    tensors, metadata, message = WRONG[case]
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    with pytest.raises(UserError, match=message):
        read_adapter(tmp_path, NAMES)


def test_layers_in_todays_order_are_found_out(unet, tmp_path):
    # Today's diffusers has both attentions of a block before its feed-forward layer.
    layers = walk(unet, DEFAULT)
    today = {path: layers[path] for path, _ in unet.named_modules() if path in layers}
    assert list(today) != list(layers)
    tensors, metadata = file_of("unet", today, DEFAULT)
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    with pytest.raises(UserError, match=r"would be 'down_blocks\.0\..*ff\.net\.0\.proj' has the"):
        read_adapter(tmp_path, NAMES)


def test_a_list_of_no_known_length_is_refused(tmp_path):
    torch.save([torch.ones(3, 2), torch.ones(2, 3)] * 9, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"it has 9 layers, .* have 144 or 128 or 224 or 92"):
        read_adapter(tmp_path / "a.pt", NAMES, allow_pickle=True)


def adapter(layers, component, rank=2):
    modules = {}
    for number, (path, layer) in enumerate(layers.items()):
        outputs, *rest = layer.weight.shape
        up = torch.full((outputs, rank) + (1, 1) * (len(rest) > 1), float(number))
        modules[path] = ModuleWeights("lora", {"down": torch.ones(rank, *rest), "up": up}, rank)
    return AdapterWeights({component: modules}, {"base_model": "x"})


@pytest.mark.parametrize("classes", [ATTENTION, DEFAULT, EXTENDED])
def test_what_is_written_has_their_keys_and_reads_back(classes, unet, tmp_path):
    layers = walk(unet, classes)
    shuffled = dict(sorted(layers.items()))
    weights = adapter(shuffled, "unet", rank=1)
    path = write_adapter(weights, tmp_path / "a.safetensors", NAMES, "cloneofsimo")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert set(json.loads(metadata["unet"])) == set(classes)
    tensors = load_file(path)
    assert len(tensors) == 2 * len(layers)
    for number, name in enumerate(layers):
        assert torch.equal(
            tensors[f"unet:{number}:up"], weights.components["unet"][name].tensors["up"]
        )
        assert metadata[f"unet:{number}:rank"] == "1"
    back = read_adapter(path, NAMES)
    assert back.metadata == {"base_model": "x"}
    assert list(back.components["unet"]) == list(layers)


def test_learned_tokens_are_written_as_theirs(tmp_path):
    weights = adapter(text_encoder(2), "text_encoder")
    tokens = {"<s1>": LearnedToken({"text_encoder": torch.ones(1, 12)})}
    both = AdapterWeights(weights.components, {}, tokens)
    path = write_adapter(both, tmp_path / "a.safetensors", NAMES, "cloneofsimo")
    assert load_file(path)["<s1>"].shape == (12,)
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["<s1>"] == "<embed>"
    assert read_adapter(path, NAMES).tokens.keys() == {"<s1>"}


def lacking(layers):
    return dict(list(layers.items())[1:])


def test_what_the_format_cannot_hold_is_not_written(tmp_path):
    layers = text_encoder(2)
    whole = adapter(layers, "text_encoder").components["text_encoder"]
    first = next(iter(whole))
    beside = {"text_model.encoder.layers.0.mlp.fc1": whole[first]}
    alpha = {first: ModuleWeights("lora", whole[first].tensors, 1.0)}
    for modules, message in (
        (lacking(whole), "this adapter has no 'text_encoder.*k_proj'"),
        (whole | beside, r"has no number for '.*fc1'"),
        (whole | alpha, "is 1, not its rank 2"),
    ):
        with pytest.raises(UserError, match=message):
            write_adapter(
                AdapterWeights({"text_encoder": modules}),
                tmp_path / "a.safetensors",
                NAMES,
                "cloneofsimo",
            )
    tokens = {"<a>": LearnedToken({"text_encoder": torch.ones(2, 12)})}
    with pytest.raises(UserError, match="one vector a token, not '<a>'"):
        write_adapter(
            AdapterWeights({}, {}, tokens), tmp_path / "a.safetensors", NAMES, "cloneofsimo"
        )
    assert list(tmp_path.iterdir()) == []


def draw(pipeline):
    generator = torch.Generator().manual_seed(3)
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"}
    return pipeline("a red circle", generator=generator, **options).images[0]


def test_a_pickled_list_draws_what_the_named_layers_draw(tiny_folder, tiny_pipeline, tmp_path):
    layers = {
        NAMES.to_file("text_encoder", path): layer
        for path, layer in tiny_pipeline.text_encoder.named_modules()
        if ".self_attn." in f".{path}" and isinstance(layer, nn.Linear)
    }
    torch.manual_seed(0)
    modules, numbered = {}, []
    for path, layer in layers.items():
        up, down = torch.randn(layer.out_features, 2), torch.randn(2, layer.in_features)
        modules[path] = ModuleWeights("lora", {"down": down, "up": up}, 2.0)
        numbered += [nn.Parameter(up), nn.Parameter(down)]
    torch.save(numbered, tmp_path / "a.text_encoder.pt")
    plain = draw(tiny_pipeline)
    scumble.load_adapter(tiny_pipeline, tmp_path / "a.text_encoder.pt", allow_pickle=True)
    other = StableDiffusionPipeline.from_pretrained(tiny_folder)
    scumble.load_adapter(other, AdapterWeights({"text_encoder": modules}))
    assert np.array_equal(draw(other), draw(tiny_pipeline))
    assert np.abs(draw(tiny_pipeline) - plain).max() > 0.01
