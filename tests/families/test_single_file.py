"""Stable Diffusion in one file: the original layout, its tokenizer, and what is refused."""

import importlib.util
import pickle
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import ldm_layout
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from scumble.errors import UserError
from scumble.families import FAMILIES, Components, Geometry, locate, single_file
from scumble.families.single_file import VOCABULARY_PACKAGE, packaged_tokenizer

SD = FAMILIES["stable_diffusion"]
VERSIONS = ("sd1", "sd2")
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"

TENSORS = {"model.diffusion_model.": 686, "first_stage_model.": 248}
"""Beginning of the keys -> how many of them the released checkpoints have."""

GOLDEN = {
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    "model.diffusion_model.input_blocks.4.0.skip_connection.weight",
    "model.diffusion_model.input_blocks.9.0.op.bias",
    "model.diffusion_model.middle_block.1.proj_in.weight",
    "model.diffusion_model.output_blocks.2.1.conv.weight",
    "model.diffusion_model.output_blocks.8.2.conv.weight",
    "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight",
    "model.diffusion_model.out.2.weight",
    "first_stage_model.encoder.mid.attn_1.q.weight",
    "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight",
    "first_stage_model.decoder.up.3.upsample.conv.weight",
    "first_stage_model.decoder.norm_out.bias",
    "first_stage_model.post_quant_conv.weight",
}
"""Some of their names, written down from the released checkpoints."""

GOLDEN_TEXT = {
    "sd1": "cond_stage_model.transformer.text_model.encoder.layers.11.self_attn.out_proj.weight",
    "sd2": "cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight",
}

TOKENS = {
    "": [],
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "A  Photo\nof a CAT": [320, 1125, 539, 320, 2368],
    "hello world!": [3306, 1002, 256],
}
"""Text -> CLIP's token ids between start and end."""


@pytest.fixture(scope="module")
def originals() -> dict[str, dict[str, nn.Module]]:
    """Version -> its components, small, with random weights."""
    return {v: {c: ldm_layout.build(v, c) for c in SD.components} for v in VERSIONS}


@pytest.fixture(scope="module")
def checkpoints(originals: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Version -> a checkpoint of its components in the original layout."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for version in VERSIONS:
        tensors = ldm_layout.checkpoint(version, originals[version])
        save_file(tensors, folder / f"{version}.safetensors")
    return {version: folder / f"{version}.safetensors" for version in VERSIONS}


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One version, whose shipped configuration is made narrow."""

    def narrow(path: str, component: str) -> dict[str, Any]:
        return ldm_layout.settings(single_file._version(path), component)

    monkeypatch.setattr(single_file, "config", narrow)
    return request.param


def loaded(path: Path, *names: str, dtype: torch.dtype = torch.float32) -> Components:
    components = Components(locate(str(path)))
    SD.load(components, names or SD.components, dtype)
    return components


def assert_equal(components: Components, wanted: dict[str, nn.Module]) -> None:
    for name, module in wanted.items():
        got, state = components[name].state_dict(), module.state_dict()
        assert got.keys() == state.keys()
        assert all(torch.equal(got[key], state[key]) for key in state), name


def test_the_layout_is_that_of_the_released_files(checkpoints: Any) -> None:
    for version, path in checkpoints.items():
        keys = set(load_file(path))
        assert keys >= GOLDEN
        assert GOLDEN_TEXT[version] in keys
        for prefix, count in TENSORS.items():
            assert sum(key.startswith(prefix) for key in keys) == count


def test_a_checkpoint_gives_back_its_components(
    version: str, originals: Any, checkpoints: Any
) -> None:
    assert_equal(loaded(checkpoints[version]), originals[version])


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_pickled_checkpoint_gives_back_the_same(
    version: str, options: Any, originals: Any, checkpoints: Any, tmp_path: Path
) -> None:
    content = {"state_dict": load_file(checkpoints[version]), "global_step": 470000}
    torch.save(content, tmp_path / "model.ckpt", **options)
    assert_equal(loaded(tmp_path / "model.ckpt"), originals[version])


def test_weights_arrive_frozen_in_the_asked_dtype(version: str, checkpoints: Any) -> None:
    components = loaded(checkpoints[version], "unet", dtype=torch.bfloat16)
    assert set(components.parts) == {"unet"}
    unet = components["unet"]
    assert {p.dtype for p in unet.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad or p.is_meta for p in unet.parameters())
    assert not unet.training


def test_a_pipeline_from_one_file_draws_as_its_components_do(
    version: str, originals: Any, checkpoints: Any
) -> None:
    components = loaded(checkpoints[version])
    pipeline = SD.pipeline(components)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 1, "height": 64, "width": 64, "output_type": "np"}

    def draw() -> Any:
        return pipeline("a cat", generator=torch.Generator().manual_seed(0), **options).images

    ours = draw()
    for name, module in originals[version].items():
        setattr(pipeline, name, module)
    # Mapped from the file, tensors lie unaligned, which moves the last digit of some products.
    assert abs(draw() - ours).max() <= 1e-5


def test_sizes_and_objective_of_the_real_versions(checkpoints: Any) -> None:
    bases = {version: locate(str(path)) for version, path in checkpoints.items()}
    assert SD.geometry(bases["sd1"]) == Geometry(512, 64, 8)
    assert SD.geometry(bases["sd2"]) == Geometry(768, 64, 8)
    assert SD.objective(bases["sd1"]).prediction == "epsilon"
    assert SD.objective(bases["sd2"]).prediction == "v_prediction"
    base = locate(str(checkpoints["sd2"]), prediction_type="epsilon")
    assert SD.objective(base).prediction == "epsilon"


class Harmful:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    pickle.loads(pickle.dumps(Harmful(trace)))
    assert trace.exists(), "the trap itself does not work"
    trace.unlink()
    torch.save({"state_dict": {"a": torch.zeros(1)}, "x": Harmful(trace)}, tmp_path / "m.ckpt")
    with pytest.raises(UserError, match="it could run code"):
        loaded(tmp_path / "m.ckpt")
    assert not trace.exists()


def changed(tensors: dict[str, Tensor], change: str) -> dict[str, Tensor]:
    if change == "inpainting":
        return tensors | {CONV_IN: torch.zeros(4, 9, 3, 3)}
    if change == "no VAE":
        return {k: t for k, t in tensors.items() if not k.startswith("first_stage_model.")}
    key = {"one lacks": CONV_IN, "text lacks": next(k for k in tensors if "layers.3." in k)}[change]
    return {k: t for k, t in tensors.items() if k != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("inpainting", r"unet in .*'conv_in\.weight' has shape \(4, 9, 3, 3\), not \(4, 4, 3, 3\)"),
        ("no VAE", "vae in .*lacks 'encoder"),
        ("one lacks", r"unet in .*lacks 'conv_in\.weight'"),
        ("text lacks", r"text_encoder in .*lacks 'encoder\.layers\.3"),
    ],
)
@pytest.mark.parametrize("version", ["sd1"], indirect=True)
def test_weights_that_do_not_fit_are_named(
    version: str, change: str, message: str, checkpoints: Any, tmp_path: Path
) -> None:
    save_file(changed(load_file(checkpoints[version]), change), tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=message):
        loaded(tmp_path / "m.safetensors")


LORA = {"lora_unet_mid_block_attn.lora_down.weight": torch.zeros(4, 8)}
FILES: dict[str, Callable[[Path], Any]] = {
    "lora.safetensors": lambda path: save_file(LORA, path),
    "lora.ckpt": lambda path: torch.save(LORA, path),
    "list.ckpt": lambda path: torch.save([torch.zeros(2)], path),
    "empty.safetensors": lambda path: path.write_bytes(b""),
    "noise.safetensors": lambda path: path.write_bytes(bytes(range(256))),
    "noise.ckpt": lambda path: path.write_bytes(bytes(range(256))),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_base_is_refused(name: str, tmp_path: Path) -> None:
    FILES[name](tmp_path / name)
    base = locate(str(tmp_path / name))
    for call in (lambda: SD.geometry(base), lambda: loaded(tmp_path / name)):
        with pytest.raises(UserError, match=name) as caught:
            call()
        if name.startswith("lora"):
            assert "a LoRA" in caught.value.hint


@pytest.fixture(scope="module")
def reference() -> Any:
    """OpenAI's own tokenizer, from the installed distribution, without importing all of CLIP."""
    path = distribution(VOCABULARY_PACKAGE).locate_file("clip/simple_tokenizer.py")
    spec = importlib.util.spec_from_file_location("simple_tokenizer", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


@pytest.mark.parametrize("text", TOKENS)
def test_the_packaged_tokenizer_gives_clips_ids(text: str) -> None:
    tokenizer = packaged_tokenizer("<|endoftext|>")
    assert tokenizer is not None
    assert tokenizer(text).input_ids == [49406, *TOKENS[text], 49407]
    assert tokenizer.model_max_length == 77
    assert len(tokenizer) == 49408


@pytest.mark.parametrize(
    "text",
    [
        "a cozy cottage, by the lake -- 35mm f/1.8, octane render (masterpiece:1.3)",
        "café naïve façade Ünïcode ß 東京 🎨 №5",
        "it's we're they'll 1234567 3x3 e=mc^2 #tag @you $5.00 50%",
        "   tabs\tand   spaces ",
    ],
)
def test_the_packaged_tokenizer_equals_openais(text: str, reference: Any) -> None:
    tokenizer = packaged_tokenizer("<|endoftext|>")
    assert tokenizer(text).input_ids == [49406, *reference.encode(text), 49407]


def test_each_version_pads_as_it_was_trained(checkpoints: Any) -> None:
    for version, pad_id in {"sd1": 49407, "sd2": 0}.items():
        tokenizer = single_file.load_tokenizer(str(checkpoints[version]))
        ids = tokenizer("a cat", padding="max_length").input_ids
        assert ids == [49406, 320, 2368, 49407] + [pad_id] * 73


def test_a_tokenizer_beside_the_file_comes_first(
    checkpoints: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.symlink_to(checkpoints["sd1"])
    (tmp_path / "tokenizer").symlink_to(tiny_folder / "tokenizer")
    tokenizer = single_file.load_tokenizer(str(path))
    assert len(tokenizer) == len(CLIPTokenizer.from_pretrained(tiny_folder / "tokenizer")) < 49408


def test_an_empty_tokenizer_folder_beside_the_file_is_refused(
    checkpoints: Any, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.symlink_to(checkpoints["sd1"])
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(UserError, match="holds no tokenizer"):
        single_file.load_tokenizer(str(path))


def test_without_any_vocabulary_the_ways_to_get_it_are_named(
    checkpoints: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_file, "VOCABULARY_PACKAGE", "not-installed-anywhere")
    monkeypatch.setattr(single_file, "TOKENIZER_REPO", "nobody/has-this")
    with pytest.raises(UserError, match=r"scumble\[single_file\]"):
        single_file.load_tokenizer(str(checkpoints["sd1"]))
