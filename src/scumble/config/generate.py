"""The options of `scumble generate`; the docstring under a field is its help text everywhere."""

import math
import os
from dataclasses import dataclass, fields
from typing import Literal

from scumble.config.ranges import check_seed, check_value
from scumble.errors import UserError


@dataclass(kw_only=True)
class GenerateConfig:
    """What to draw, and with what"""

    prompt: tuple[str, ...]
    """What to draw; several prompts draw one row each."""
    negative_prompt: str = ""
    """What to steer away from."""
    adapter: tuple[str, ...] = ()
    """Adapter file, the output folder of a training run, or a Hub id (user/name, with @revision or
    :file behind it where needed), with :strength behind it if it should not act at 1.0, as in
    pokemon:0.7. Several blend."""
    allow_pickle: bool = False
    """Read adapters in pickled files too (.bin, .pt), taking tensors alone from them. For files of
    a source that you trust."""
    partial: bool = False
    """Load what fits of an adapter and list the rest, instead of refusing it."""
    pretrained_model_name_or_path: str | None = None
    """The base model: a folder, a checkpoint file, a Hub id (user/name@revision) or scumble-tiny;
    the one that the first adapter was trained on if not given."""
    revision: str | None = None
    """Branch, tag or commit of the base on the Hub."""
    variant: str | None = None
    """Weight variant of the base, such as fp16."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the base predicts, where its own setting is wrong or missing."""
    cache_dir: str | None = None
    """Where downloaded models are kept."""
    output: str = "generated"
    """Folder for the pictures; existing files are kept, new ones get the next numbers."""
    num_images: int = 1
    """Pictures per prompt; their seeds are seed, seed + 1, ..."""
    seed: int = 0
    """The same seed draws the same picture."""
    num_inference_steps: int = 25
    """Denoising steps of DPM-Solver++; more than 30 rarely shows."""
    guidance_scale: float = 7.5
    """How closely to follow the prompt; 1 turns guidance off."""
    height: int | None = None
    """Height in pixels; the base's own size if not given."""
    width: int | None = None
    """Width in pixels; the base's own size if not given."""
    compare: bool = False
    """Draw each picture without the adapters too, side by side."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Number format of the base; fp16 on CUDA and fp32 elsewhere if not given."""

    def __post_init__(self) -> None:
        self.prompt, self.adapter = tuple(self.prompt), tuple(self.adapter)
        self.output = os.path.expanduser(self.output)
        if not self.prompt:
            raise UserError("there is no prompt", "Say what to draw: --prompt 'a red fox'.")
        for name in ("num_images", "num_inference_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")
        for item in fields(self):
            check_value(item.name, getattr(self, item.name))
        check_seed(self.seed)
        if not math.isfinite(self.guidance_scale):
            raise UserError(f"--guidance_scale must be a finite number, not {self.guidance_scale}")
        if self.compare and not self.adapter:
            raise UserError("--compare needs an adapter to compare with the base", "Add --adapter.")
        if self.pretrained_model_name_or_path is None and not self.adapter:
            raise UserError(
                "neither a base model nor an adapter is named",
                "Give --adapter FOLDER, or --pretrained_model_name_or_path scumble-tiny.",
            )
