"""The configurations that an original checkpoint lacks and a folder in diffusers' layout needs."""

import json
from pathlib import Path
from typing import Any

from scumble.errors import UserError
from scumble.families import single_file, text_encoders
from scumble.tools.base_weights import BaseWeights

INDEX = "model_index.json"
"""The list of components, by which diffusers knows a folder."""

CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "DDIMScheduler"),
}
"""What an original checkpoint consists of -> the classes that read it."""


def write_configurations(weights: BaseWeights, folder: Path) -> None:
    """Write what a single file lacks: configurations, scheduler, tokenizer, list of components.

    Args:
        weights: of an original checkpoint.
        folder: that exists.

    Raises:
        UserError: its tokenizer is nowhere on this machine, or it is no plain base.
    """
    base = weights.base
    tokenizer = single_file.load_tokenizer(base.location)
    for encoder_tokenizer in text_encoders(weights.family).values():
        tokenizer.save_pretrained(folder / encoder_tokenizer)
    configs = {part: single_file.config(base.location, part) for part in weights.places}
    _require_inputs(weights, configs)
    scheduler = {"_class_name": CLASSES["scheduler"][1]}
    scheduler |= single_file.config(base.location, "scheduler")
    if base.prediction_type is not None:
        scheduler["prediction_type"] = base.prediction_type
    for part, config in configs.items():
        library, kind = CLASSES[part]
        named: dict[str, Any] = {"_class_name": kind}
        if library == "transformers":
            named = {"architectures": [kind], "model_type": "clip_text_model"}
        _write_json(folder / part / "config.json", named | config)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index: dict[str, Any] = {"_class_name": base.pipeline_class}
    index |= {name: list(value) for name, value in CLASSES.items()}
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    _write_json(folder / INDEX, index | {"requires_safety_checker": False})


def _require_inputs(weights: BaseWeights, configs: dict[str, dict[str, Any]]) -> None:
    """Refuse a denoiser that sees more than noisy latents, such as one for inpainting."""
    part = weights.family.components[0]
    shape = weights.shape(part, "conv_in.weight")
    wanted = configs[part]["in_channels"]
    if shape is None or shape[1] != wanted:
        raise UserError(
            f"the {part} of {weights.base.name} takes {shape and shape[1]} channels, not {wanted}",
            "It is one for inpainting or another special purpose, whose folder needs more: write "
            "one file instead (--output model.safetensors).",
        )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
