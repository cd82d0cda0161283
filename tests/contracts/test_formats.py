"""What every adapter file format must keep."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from scumble.adapters import ADAPTERS, LayerSpec
from scumble.errors import UserError
from scumble.families import FAMILIES
from scumble.formats import (
    FORMATS,
    AdapterWeights,
    LearnedToken,
    ModuleWeights,
    read_adapter,
    write_adapter,
)
from scumble.formats.container import read_content
from scumble.formats.files import BUNDLE_NAME, EMBEDS_NAME, WEIGHT_NAME, Format

NAMES = FAMILIES["stable_diffusion"].key_names
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


def module(rank: int, alpha: float, *kernel: int) -> ModuleWeights:
    torch.manual_seed(rank)
    up = (10, rank, 1, 1) if kernel else (10, rank)
    tensors = {"down": torch.randn(rank, 6, *kernel), "up": torch.randn(up)}
    return ModuleWeights("lora", tensors, alpha)


def weights(**changes: ModuleWeights) -> AdapterWeights:
    unet = {ATTENTION: module(4, 4.0)} | changes
    return AdapterWeights({"unet": unet}, {"base_model": "some/base", "note": "ü"})


def token(count: int, seed: int = 0, width: int = 8) -> LearnedToken:
    torch.manual_seed(seed)
    return LearnedToken({"text_encoder": torch.randn(count, width)})


METADATA = {
    "base_model": "some/base",
    "trigger_phrase": "a photo of <thing>",
    "initializer_token": "dog",
}
TOKENS = {"<thing>": token(2), "v1-5": token(1, 1)}

CASES = {
    "attention": weights(),
    "alpha": weights(**{ATTENTION: module(4, 1.5)}),
    "mixed": weights(
        **{CONV: module(2, 2.0, 3, 3), "mid_block.attentions.0.proj_in": module(3, 9)}
    ),
    "text encoder": AdapterWeights(
        {"unet": {ATTENTION: module(4, 4.0)}, "text_encoder": {TEXT: module(2, 1.0)}}, {}
    ),
    "bundle": AdapterWeights(weights().components, METADATA, TOKENS),
    "tokens": AdapterWeights({}, METADATA, TOKENS),
}

NARROW = ("attn_procs", "cloneofsimo", "embedding")
"""Formats that hold some adapters alone; their own tests say which."""

HOLDS_LAYERS = [name for name in FORMATS if name not in NARROW]


@pytest.fixture(params=HOLDS_LAYERS)
def format_name(request):
    return request.param


@pytest.mark.parametrize(
    ("format_name", "case"),
    [(name, case) for name in HOLDS_LAYERS for case in CASES] + [("embedding", "tokens")],
)
def test_reading_gives_back_what_was_written(format_name, case, tmp_path):
    path = write_adapter(CASES[case], tmp_path / "a.safetensors", NAMES, format_name)
    back = read_adapter(path, NAMES)
    assert back.metadata.items() >= CASES[case].metadata.items()
    assert back.num_parameters == CASES[case].num_parameters
    assert back.components.keys() == CASES[case].components.keys()
    for component, modules in CASES[case].components.items():
        assert back.components[component].keys() == modules.keys()
        for name, entry in modules.items():
            got = back.components[component][name]
            assert (got.type, got.alpha, got.rank) == (entry.type, entry.alpha, entry.rank)
            assert all(torch.equal(got.tensors[key], entry.tensors[key]) for key in entry.tensors)
    assert back.tokens.keys() == CASES[case].tokens.keys()
    for name, learned in CASES[case].tokens.items():
        (vectors,) = learned.vectors.values()
        assert torch.equal(back.tokens[name].vectors["text_encoder"], vectors)


def test_vectors_count_as_parameters():
    assert CASES["tokens"].num_parameters == 3 * 8
    assert CASES["bundle"].num_parameters == weights().num_parameters + 3 * 8


@pytest.mark.parametrize("format_name", [*HOLDS_LAYERS, "embedding"])
def test_equal_tokens_give_equal_bytes(format_name, tmp_path):
    turned = AdapterWeights(
        {}, dict(reversed(METADATA.items())), dict(reversed(CASES["tokens"].tokens.items()))
    )
    contents = {
        write_adapter(which, tmp_path / f"{number}.safetensors", NAMES, format_name).read_bytes()
        for number, which in enumerate([CASES["tokens"], turned] * 2)
    }
    assert len(contents) == 1


def test_equal_content_gives_equal_bytes(format_name, tmp_path):
    turned = AdapterWeights(
        {"unet": dict(reversed(CASES["mixed"].components["unet"].items()))},
        dict(reversed(CASES["mixed"].metadata.items())),
    )
    contents = {
        write_adapter(which, tmp_path / f"{number}.safetensors", NAMES, format_name).read_bytes()
        for number, which in enumerate([CASES["mixed"], turned] * 3)
    }
    assert len(contents) == 1


def test_only_the_file_itself_is_left(format_name, tmp_path):
    write_adapter(CASES["mixed"], tmp_path / "new" / "a.safetensors", NAMES, format_name)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(format_name, bad, tmp_path):
    broken = weights()
    broken.components["unet"][ATTENTION].tensors["up"][0, 0] = bad
    with pytest.raises(UserError, match="to_q holds NaN or infinite"):
        write_adapter(broken, tmp_path / "a.safetensors", NAMES, format_name)
    assert not list(tmp_path.iterdir())


def test_an_older_file_stays_when_the_new_one_cannot_be_written(format_name, tmp_path):
    path = write_adapter(weights(), tmp_path / "a.safetensors", NAMES, format_name)
    before = path.read_bytes()
    broken = weights()
    broken.components["unet"][ATTENTION].tensors["up"][0, 0] = float("nan")
    with pytest.raises(UserError):
        write_adapter(broken, path, NAMES, format_name)
    assert path.read_bytes() == before


def test_an_unknown_format_names_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="peft"):
        write_adapter(weights(), tmp_path / "a", NAMES, "pfet")


@pytest.mark.parametrize("cut", [0, 4, 50, -1])
def test_a_cut_file_is_refused(cut, tmp_path):
    path = write_adapter(weights(), tmp_path / "a.safetensors", NAMES)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"a\.safetensors is not a readable"):
        read_adapter(path, NAMES)


def test_an_empty_adapter_is_refused(tmp_path):
    save_file({}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="holds no adapter"):
        read_adapter(tmp_path, NAMES)


SPELLINGS = {
    "diffusers": f"unet.{ATTENTION}.lora.{{}}.weight",
    "peft": f"unet.{ATTENTION}.lora_{{}}.weight",
    "peft without component": f"base_model.model.{ATTENTION}.lora_{{}}.weight",
    "text encoder": f"text_encoder.{TEXT}.lora_linear_layer.{{}}.weight",
    "text encoder, flat": f"text_encoder.{TEXT.removeprefix('text_model.')}.lora_{{}}.weight",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_read(spelling, tmp_path):
    pattern = SPELLINGS[spelling]
    sides = ("A", "B") if "lora_{}" in pattern else ("down", "up")
    entry = module(4, 4.0)
    tensors = dict(zip(sides, entry.tensors.values(), strict=True))
    save_file({pattern.format(k): t for k, t in tensors.items()}, tmp_path / "a.safetensors")
    (modules,) = read_adapter(tmp_path, NAMES).components.values()
    ((path, got),) = modules.items()
    assert path == (TEXT if "text" in spelling else ATTENTION)
    assert got.alpha == 4
    assert torch.equal(got.tensors["down"], entry.tensors["down"])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("unet.mid_block.to_q.lora.down.bias", "not a tensor of any known adapter type"),
        ("transformer.blocks.0.to_q.lora_A.weight", "names none of the components"),
        ("unet.mid_block.to_q.lora_A.weight", "lacks its lora_up.weight"),
    ],
)
def test_a_key_that_fits_nothing_is_named(key, message, tmp_path):
    save_file({key: torch.zeros(4, 6)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=message):
        read_adapter(tmp_path, NAMES)


def test_a_default_lora_is_spelled_as_diffusers_scripts_do(tmp_path):
    path = write_adapter(weights(), tmp_path / "a.safetensors", NAMES)
    assert set(load_file(path)) == {f"unet.{ATTENTION}.lora.{s}.weight" for s in ("down", "up")}
    metadata = read_content(path).metadata
    assert "lora_adapter_metadata" not in metadata


def test_alpha_travels_as_diffusers_expects_it(tmp_path):
    path = write_adapter(CASES["alpha"], tmp_path / "a.safetensors", NAMES)
    metadata = read_content(path).metadata
    config = json.loads(metadata["lora_adapter_metadata"])
    assert config["unet.r"] == 4
    assert config["unet.lora_alpha"] == 1.5
    # An unknown field would be a TypeError in the reader's PEFT.
    assert {key.removeprefix("unet.") for key in config} <= {
        "r",
        "lora_alpha",
        "target_modules",
        "rank_pattern",
        "alpha_pattern",
    }


def test_settings_describe_every_component_or_none(tmp_path):
    # diffusers would read the other component's ranks from the settings too, and find none there.
    path = write_adapter(CASES["text encoder"], tmp_path / "a.safetensors", NAMES)
    config = json.loads(read_content(path).metadata["lora_adapter_metadata"])
    assert (config["unet.r"], config["unet.lora_alpha"]) == (4, 4)
    assert (config["text_encoder.r"], config["text_encoder.lora_alpha"]) == (2, 1)
    assert config["text_encoder.target_modules"] == [TEXT.removeprefix("text_model.")]


def test_ranks_that_differ_are_written_down(tmp_path):
    # Without settings, older diffusers take the first layer's rank for everybody's alpha.
    ranks = weights(**{ATTENTION.replace("to_q", "to_k"): module(2, 2.0)})
    path = write_adapter(ranks, tmp_path / "a.safetensors", NAMES)
    config = json.loads(read_content(path).metadata["lora_adapter_metadata"])
    assert set(config["unet.rank_pattern"].values()) | {config["unet.r"]} == {2, 4}
    assert config["unet.rank_pattern"] == config["unet.alpha_pattern"]


def test_paths_of_a_live_text_encoder_are_spelled_as_files_do(format_name, tmp_path):
    live = AdapterWeights({"text_encoder": {TEXT.removeprefix("text_model."): module(2, 2.0)}})
    path = write_adapter(live, tmp_path / "a.safetensors", NAMES, format_name)
    assert list(read_adapter(path, NAMES).components["text_encoder"]) == [TEXT]


@pytest.mark.parametrize("shape", [(), (4,), (0, 6)])
def test_tensors_without_a_rank_are_refused(shape, tmp_path):
    key = f"unet.{ATTENTION}.lora.{{}}.weight"
    path = tmp_path / "a.safetensors"
    save_file({key.format(side): torch.zeros(shape) for side in ("down", "up")}, path)
    with pytest.raises(UserError, match="to_q has no rank"):
        read_adapter(path, NAMES)
    empty = ModuleWeights("lora", {s: torch.zeros(shape) for s in ("down", "up")}, 1.0)
    with pytest.raises(UserError, match="to_q has no rank"):
        write_adapter(weights(**{ATTENTION: empty}), tmp_path / "b.safetensors", NAMES)


@pytest.mark.parametrize(
    "settings",
    ["{", "[]", "3", '{"unet.lora_alpha": null}', '{"unet.alpha_pattern": {"(": 1}}'],
)
def test_damaged_settings_are_named(settings, tmp_path):
    path = write_adapter(CASES["alpha"], tmp_path / "a.safetensors", NAMES)
    tensors = load_file(path)
    save_file(tensors, path, {"lora_adapter_metadata": settings})
    with pytest.raises(UserError, match=r"a\.safetensors: the adapter settings are damaged"):
        read_adapter(path, NAMES)


PEFT_OPTIONS = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {"to_q": 2}, "alpha_pattern": {r"up_blocks\..*\.conv1": 7}},
}


@pytest.mark.parametrize("case", PEFT_OPTIONS)
def test_a_folder_of_pefts_own_gives_pefts_changes(case, tiny_unet, tmp_path):
    targets = ["to_q", "to_out.0", "conv1"]
    config = LoraConfig(r=4, lora_alpha=3, target_modules=targets, **PEFT_OPTIONS[case])
    model = get_peft_model(tiny_unet(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    wanted = {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default")
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    modules = read_adapter(tmp_path, NAMES).components["unet"]
    assert modules.keys() == wanted.keys()
    assert any("conv1" in path for path in modules)
    for path, entry in modules.items():
        layer = LayerSpec(tuple(wanted[path].shape))
        adapter = ADAPTERS[entry.type].from_tensors(layer, entry.tensors, entry.alpha)
        torch.testing.assert_close(adapter.delta(), wanted[path])


DOWN, UP = torch.ones(4, 6), torch.ones(10, 4)
WHOLE = {"unet.a.to_q.lora_A.weight": DOWN, "unet.a.to_q.lora_B.weight": UP}


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (WHOLE | {"unet.a.to_q.alpha": torch.ones(2)}, {}, "not one number"),
        (WHOLE | {"unet.a.to_q.alpha": torch.tensor(float("nan"))}, {}, "alpha of .* is nan"),
        (WHOLE | {"unet.a.to_q.lora.down.weight": DOWN.clone()}, {}, "twice"),
        (WHOLE | {"unet.a.to_k.alpha": torch.ones(())}, {}, "'a.to_k', which lacks its tensors"),
        (WHOLE, {"unet.use_dora": True, "unet.lora_alpha": 4}, "DoRA without its magnitudes"),
        ({k: t.to(torch.int8) for k, t in WHOLE.items()}, {}, "int8"),
        ({k: t[:0, :0] for k, t in WHOLE.items()}, {}, "no rank"),
    ],
)
def test_nonsense_is_refused_by_name(tensors, config, message, tmp_path):
    metadata = {"lora_adapter_metadata": json.dumps(config)} if config else None
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    with pytest.raises(UserError, match=message):
        read_adapter(tmp_path, NAMES)


def test_a_bundle_is_spelled_as_a1111_does(tmp_path):
    path = write_adapter(CASES["bundle"], tmp_path / "a.safetensors", NAMES)
    stem = f"unet.{ATTENTION}.lora"
    assert set(load_file(path)) == {
        f"{stem}.down.weight",
        f"{stem}.up.weight",
        "bundle_emb.<thing>.string_to_param.*",
        "bundle_emb.v1-5.string_to_param.*",
    }


def test_an_embedding_is_spelled_as_diffusers_does(tmp_path):
    path = write_adapter(CASES["tokens"], tmp_path / "a.safetensors", NAMES, "embedding")
    assert {key: t.shape for key, t in load_file(path).items()} == {
        "<thing>": (2, 8),
        "v1-5": (1, 8),
    }


@pytest.mark.parametrize(
    ("tensors", "name", "shape"),
    [
        ({"<cat-toy>": torch.ones(8)}, "<cat-toy>", (1, 8)),
        ({"<cat-toy>": torch.ones(3, 8)}, "<cat-toy>", (3, 8)),
        ({"emb_params": torch.ones(3, 8)}, "my-style", (3, 8)),
        ({"bundle_emb.a.b.string_to_param.*": torch.ones(3, 8)}, "a.b", (3, 8)),
    ],
)
def test_embeddings_of_others_are_read(tensors, name, shape, tmp_path):
    save_file(tensors, tmp_path / "my-style.safetensors")
    back = read_adapter(tmp_path, NAMES)
    assert back.components == {}
    assert {t: e.vectors["text_encoder"].shape for t, e in back.tokens.items()} == {name: shape}


def test_embeddings_alone_would_lose_an_adapter(tmp_path):
    with pytest.raises(UserError, match="learned tokens alone"):
        write_adapter(CASES["bundle"], tmp_path / "a.safetensors", NAMES, "embedding")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_prior_mid.lora_down.weight": torch.ones(4, 8)}, "names none of the components"),
        ({"<a>": torch.ones(2, 8), "<b>": torch.ones(2, 9)}, "'<a>' names none"),
        ({"bundle_emb.<a>.clip_l": torch.ones(2, 8)}, "is not a learned token of this family"),
        ({"bundle_emb..string_to_param.*": torch.ones(2, 8)}, "is not a learned token"),
        ({"bundle_emb.<a>.string_to_param.*": torch.ones(8)}, r"'<a>' has shape \(8,\)"),
        ({"<a>": torch.ones(0, 8)}, r"'<a>' has shape \(0, 8\)"),
        ({"<a>": torch.ones(1, 8, dtype=torch.int8)}, "'<a>' holds torch.int8"),
        ({"<a>": torch.full((1, 8), float("nan"))}, "'<a>' holds NaN"),
        ({"": torch.ones(1, 8)}, "has no name"),
    ],
)
def test_tokens_that_cannot_be_are_refused(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=message):
        read_adapter(tmp_path, NAMES)


@pytest.mark.parametrize(
    ("learned", "message"),
    [
        (
            LearnedToken({"text_encoder": torch.full((1, 8), float("inf"))}),
            "'<a>' holds NaN or inf",
        ),
        (LearnedToken({"text_encoder": torch.ones(8)}), "not that of vectors"),
        (LearnedToken({"text_encoder_2": torch.ones(1, 8)}), "which the family lacks"),
        (LearnedToken({}), "'<a>' has no vectors"),
    ],
)
@pytest.mark.parametrize("format_name", FORMATS)
def test_tokens_that_cannot_be_are_not_written(format_name, learned, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_adapter(AdapterWeights({}, {}, {"<a>": learned}), tmp_path / "a", NAMES, format_name)
    assert list(tmp_path.iterdir()) == []


def test_the_fullest_file_of_a_folder_is_read(tmp_path):
    write_adapter(CASES["tokens"], tmp_path / EMBEDS_NAME, NAMES, "embedding")
    save_file({"<other>": torch.ones(1, 8)}, tmp_path / "other.safetensors")
    assert read_adapter(tmp_path, NAMES).components == {}
    write_adapter(weights(), tmp_path / WEIGHT_NAME, NAMES)
    assert read_adapter(tmp_path, NAMES).tokens == {}
    write_adapter(CASES["bundle"], tmp_path / BUNDLE_NAME, NAMES)
    both = read_adapter(tmp_path, NAMES)
    assert list(both.components) == ["unet"]
    assert both.tokens.keys() == TOKENS.keys()


@pytest.mark.parametrize("change", ["lost", "rounded"])
def test_tokens_that_did_not_reach_the_file_are_missed(change, monkeypatch, tmp_path):
    def spoil(weights, key_names):
        tokens = {
            name: LearnedToken({e: vectors.half() for e, vectors in entry.vectors.items()})
            for name, entry in weights.tokens.items()
            if change == "rounded"
        }
        spoiled = AdapterWeights(weights.components, weights.metadata, tokens)
        return FORMATS["peft"].write(spoiled, key_names)

    entry = FORMATS["peft"]
    monkeypatch.setitem(FORMATS, "spoiling", Format(entry.recognises, entry.read, spoil))
    with pytest.raises(UserError, match="'<thing>' did not come back"):
        write_adapter(CASES["bundle"], tmp_path / "a.safetensors", NAMES, "spoiling")
    assert list(tmp_path.iterdir()) == []
