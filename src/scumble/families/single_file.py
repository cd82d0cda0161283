"""Stable Diffusion in one file: the original checkpoint layout, read part by part, offline.

The file holds weights alone. Configurations of versions 1 and 2 ship with this package; the
tokenizer's vocabulary, which the file lacks, is looked for in the places a user may have it.
"""

import gzip
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from scumble.errors import UserError
from scumble.formats.imposters import unmasked
from scumble.formats.pickled import MAX_BYTES, check_program, is_pickled, restricted
from scumble.formats.training_facts import prediction_of

PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.",),
}
"""Component -> beginnings of its keys in the original layout."""

VERSION_KEYS = {
    "sd1": "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    "sd2": "cond_stage_model.model.token_embedding.weight",
}
"""Version -> a key that only its checkpoints have."""

RESOLUTION = "modelspec.resolution"
EDGES = {"512x512": 512, "768x768": 768}
"""Sizes that the versions were trained at, as metadata spells them -> edge in pixels."""

TOKENIZER_REPO = "openai/clip-vit-large-patch14"
VOCABULARY_PACKAGE = "openai-clip"


def config(path: str, component: str) -> dict[str, Any]:
    """The configuration of one component, for the version that the file holds.

    What the file says of itself in the words of the ModelSpec counts.
    """
    settings = shipped(_version(path), component)
    if component == "scheduler" and (prediction := prediction_type(path)):
        settings["prediction_type"] = prediction
    if component == "unet" and (edge_px := EDGES.get(_metadata(path).get(RESOLUTION, ""))):
        settings["sample_size"] = edge_px // 8
    return settings


def shipped(version: str, component: str) -> dict[str, Any]:
    """The configuration of one component as it is for most models of a version."""
    source = files("scumble") / "assets" / "single_file" / version / f"{component}.json"
    return cast(dict[str, Any], json.loads(source.read_text("utf-8")))


def prediction_type(path: str) -> str:
    """What a checkpoint says that it predicts; empty where it does not say it."""
    return prediction_of(_metadata(path))


def assumption(path: str) -> str:
    """What is taken for granted of a checkpoint; empty where the file itself says it."""
    if prediction_type(path):
        return ""
    if _version(path) == "sd1":
        return f"{path}: Stable Diffusion 1.x, taken to predict epsilon (--prediction_type)"
    return (
        f"{path}: Stable Diffusion 2.x, taken to be a 768-pixel model that predicts v; for the "
        "512-pixel base model: --prediction_type epsilon --resolution 512"
    )


def load_component(path: str, component: str, dtype: torch.dtype) -> torch.nn.Module:
    """Build one component and fill it from the file, straight into `dtype`.

    Args:
        path: a `.safetensors` or `.ckpt` checkpoint.
        component: "unet", "vae" or "text_encoder".
        dtype: of the weights.

    Raises:
        UserError: the file cannot be read or does not fit.
    """
    from accelerate import init_empty_weights

    settings = config(path, component)
    tensors = _read(path, PREFIXES[component])
    with init_empty_weights():
        module = _build(component, settings)
    converted = _convert(component, tensors, settings, module)
    converted = {key: tensor.to(dtype) for key, tensor in converted.items()}
    misfit = _misfit(module.state_dict(), converted)
    if misfit:
        raise UserError(
            f"the {component} in {path} does not fit Stable Diffusion {_version(path)[2:]}: "
            f"{misfit}",
            "It may be a pruned checkpoint, or one for inpainting or another special purpose.",
        )
    module.load_state_dict(converted, assign=True)
    return module


def load_tokenizer(path: str) -> Any:
    """Find CLIP's tokenizer: beside the file, in the Hub's cache, or in an installed package.

    Raises:
        UserError: it is nowhere, with the ways to get it.
    """
    pad = "!" if _version(path) == "sd2" else "<|endoftext|>"
    beside = Path(path).with_name("tokenizer")
    if beside.is_dir():
        tokenizer = _saved_tokenizer(str(beside))
    else:
        tokenizer = (
            _saved_tokenizer(TOKENIZER_REPO, pad_token=pad, local_files_only=True)
            or packaged_tokenizer(pad)
            or _saved_tokenizer(TOKENIZER_REPO, pad_token=pad)
        )
    if tokenizer is None:
        raise UserError(
            f"{path} holds no tokenizer, and CLIP's vocabulary is not on this machine",
            "Run: pip install 'scumble[single_file]', or put the base's tokenizer folder beside "
            "the file.",
        )
    return tokenizer


def has_vocabulary(tokenizer: Any) -> bool:
    """Whether it knows words: transformers builds an empty one where it finds no files."""
    return len(tokenizer) > len(tokenizer.all_special_ids)


def _saved_tokenizer(source: str, **options: Any) -> Any | None:
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(source, **options)
    except Exception:
        return None
    return tokenizer if has_vocabulary(tokenizer) else None


def packaged_tokenizer(pad_token: str) -> Any | None:
    """CLIP's tokenizer from an installed distribution that carries its vocabulary as data."""
    from transformers import CLIPTokenizer

    try:
        source = distribution(VOCABULARY_PACKAGE).locate_file("clip/bpe_simple_vocab_16e6.txt.gz")
        text = gzip.decompress(Path(str(source)).read_bytes()).decode("utf-8")
    except (PackageNotFoundError, OSError):
        return None
    # CLIP uses the first 48,894 merge rules after the header line: 49,408 tokens in all.
    lines = text.split("\n")[1 : 49408 - 512 - 2 + 1]
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    return CLIPTokenizer(
        vocab=_vocabulary(merges), merges=merges, model_max_length=77, pad_token=pad_token
    )


@cache
def _version(path: str) -> str:
    keys = _keys(path)
    for version, key in VERSION_KEYS.items():
        if key in keys:
            return version
    raise UserError(
        f"{path} is no Stable Diffusion 1.x or 2.x checkpoint",
        "Give the whole base model; a LoRA, a VAE or another family's file cannot be the base.",
    )


def _keys(path: str) -> set[str]:
    if path.endswith(".ckpt"):
        return set(_load_pickle(path))
    with _opened(path) as file:
        return set(file.keys())


def _metadata(path: str) -> dict[str, str]:
    if path.endswith(".ckpt"):
        return {}
    with _opened(path) as file:
        return dict(file.metadata() or {})


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        hint = unmasked(Path(path)) or "It may be cut short: fetch it again."
        raise UserError(f"{path} is not a readable checkpoint ({error})", hint) from error


def _read(path: str, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    if path.endswith(".ckpt"):
        content = _load_pickle(path)
        return {key: content[key] for key in content if key.startswith(prefixes)}
    with _opened(path) as file:
        names = [key for key in file.keys() if key.startswith(prefixes)]  # noqa: SIM118
        return {key: file.get_tensor(key) for key in names}


def _load_pickle(path: str) -> dict[str, Tensor]:
    # Mapped: parts come in as they are read. But torch before 1.6 wrote no zip files, which alone
    # can be.
    mapped = zipfile.is_zipfile(path)
    if is_pickled(Path(path)):
        check_program(Path(path), unzipped=MAX_BYTES)
    try:
        content = restricted(Path(path), mapped=mapped)
        return cast(dict[str, Tensor], content.get("state_dict", content))
    except Exception as error:
        raise UserError(
            # Not torch's own text, which advises to switch the protection off.
            f"{path} cannot be read as plain weights ({type(error).__name__})",
            unmasked(Path(path))
            or "A checkpoint that holds anything but tensors is refused, because it could run "
            "code. Use the .safetensors form of the model.",
        ) from error


def _misfit(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> str:
    """What is wrong with the first tensor that does not fit; empty where all do."""
    for key, tensor in wanted.items():
        if key not in given:
            return f"lacks '{key}'"
        if given[key].shape != tensor.shape:
            return f"'{key}' has shape {tuple(given[key].shape)}, not {tuple(tensor.shape)}"
    extra = given.keys() - wanted.keys()
    return f"has no place for '{min(extra)}'" if extra else ""


def _build(component: str, settings: dict[str, Any]) -> torch.nn.Module:
    if component == "text_encoder":
        from transformers import CLIPTextConfig, CLIPTextModel

        return cast(torch.nn.Module, CLIPTextModel(CLIPTextConfig(**settings)))
    from diffusers import AutoencoderKL, UNet2DConditionModel

    cls = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[component]
    return cast(torch.nn.Module, cls.from_config(settings))


def _convert(
    component: str, tensors: dict[str, Tensor], settings: dict[str, Any], module: torch.nn.Module
) -> dict[str, Tensor]:
    """Rename original keys to diffusers', by diffusers' own converters."""
    from diffusers.loaders import single_file_utils as converters

    converted: dict[str, Tensor]
    if component == "unet":
        converted = converters.convert_ldm_unet_checkpoint(tensors, dict(settings))
    elif component == "vae":
        converted = converters.convert_ldm_vae_checkpoint(tensors, dict(settings))
    else:
        if VERSION_KEYS["sd2"] in tensors:
            converted = converters.convert_open_clip_checkpoint(module, tensors)
        else:
            converted = converters.convert_ldm_clip_checkpoint(tensors)
        expected = set(module.state_dict())
        converted = {
            key if key in expected else key.removeprefix("text_model."): tensor
            for key, tensor in converted.items()
            if not key.endswith("position_ids")
        }
    return converted


def _vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    characters = [chr(byte) for byte in printable]
    characters += [chr(256 + position) for position in range(len(hidden))]
    tokens = characters + [character + "</w>" for character in characters]
    tokens += ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}
