"""What a base says of itself beside its weights, and how much of that one file can say."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from scumble.errors import UserError
from scumble.families import BaseModel, single_file
from scumble.families.original_names import Version
from scumble.formats.training_facts import PREDICTIONS
from scumble.tools.base_parts import component_names
from scumble.tools.base_weights import BaseWeights

PREDICTION = "modelspec.prediction_type"
"""Metadata key of what a base predicts, as the ModelSpec spells it."""

SCHEDULER = "scheduler_config.json"

USUAL = {"rescale_betas_zero_snr": False, "timestep_spacing": "leading", "thresholding": False}
"""Settings of a scheduler that are not in the shipped ones, as they are taken to be."""

CARRIED = ("tokenizer", "scheduler", "feature_extractor")
"""Components without weights: what is lost of the first two is named by itself."""

CLIPS_OWN = ("<|startoftext|>", "<|endoftext|>", "!")


def prediction_of_base(base: BaseModel) -> str:
    """What a base predicts, "epsilon" or "v_prediction"; empty where nothing says it."""
    if base.prediction_type is not None:
        return base.prediction_type
    if base.is_checkpoint:
        return single_file.prediction_type(base.location)
    try:
        return str(base.config("scheduler", SCHEDULER).get("prediction_type", "epsilon"))
    except UserError:
        return ""


def prediction_metadata(base: BaseModel) -> dict[str, str]:
    """The same in the words of the ModelSpec, for metadata; empty where nothing says it."""
    spelled = PREDICTIONS.get(prediction_of_base(base))
    return {} if spelled is None else {PREDICTION: spelled}


def spec_metadata(weights: BaseWeights) -> dict[str, str]:
    """What one file made of a base's folder says of the base, in the words of the ModelSpec."""
    base, family = weights.base, weights.family
    native_px = family.geometry(base).native_px
    told = prediction_metadata(base) | {"modelspec.resolution": f"{native_px}x{native_px}"}
    versions = family.key_names.versions.get(_text_width(weights), {})
    version = versions.get(prediction_of_base(base)) or versions.get("")
    if version is not None and version.architecture:
        told |= {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": version.architecture,
            "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
            "modelspec.title": f"Merged from {base.public_name}",
        }
    return told


def not_in_one_file(weights: BaseWeights, root: Path, version: Version) -> list[str]:
    """A line that names what of a base's folder one file cannot hold; none where that is nothing.

    Args:
        weights: of the base.
        root: its folder.
        version: whose shipped settings are taken for the file's.
    """
    lost = [
        part
        for part in component_names(root)
        if part not in (*weights.places, *CARRIED) and (root / part).is_dir()
    ]
    if words := sorted(set(_added_words(root / "tokenizer"))):
        more = f" and {len(words) - 3} more" if words[3:] else ""
        lost.append(f"words added to the tokenizer ({', '.join(words[:3])}{more})")
    usual = USUAL | single_file.shipped(version, "scheduler")
    usual.pop("prediction_type")
    own = _read(root / "scheduler" / SCHEDULER)
    if settings := [name for name, value in usual.items() if own.get(name, value) != value]:
        lost.append(f"settings of the scheduler ({', '.join(settings)})")
    return [f"one file cannot hold: {', '.join(lost)}"] if lost else []


def _added_words(folder: Path) -> Iterator[str]:
    """Words that a tokenizer was taught, in the spellings of three generations of transformers."""
    yield from _words(_read(folder / "added_tokens.json"))
    for listed in (
        _read(folder / "tokenizer.json").get("added_tokens"),
        _read(folder / "tokenizer_config.json").get("added_tokens_decoder"),
    ):
        items = listed.values() if isinstance(listed, dict) else listed
        for item in items if isinstance(items, Iterable) else ():
            yield from _words(
                [item["content"]] if isinstance(item, dict) and "content" in item else []
            )


def _words(found: Any) -> Iterator[str]:
    yield from (str(word) for word in found if word not in CLIPS_OWN)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _text_width(weights: BaseWeights) -> int:
    """How many numbers a piece of text is to the denoiser."""
    component = weights.family.components[0]
    ends = tuple(f"{end}.weight" for end in weights.family.key_names.text_layers[component])
    for name, location in weights.places[component].items():
        if name.endswith(ends):
            return location.entry.shape[1]
    return 0
