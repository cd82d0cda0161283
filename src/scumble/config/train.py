"""The configuration of a training run, checked as a whole."""

import math
import textwrap
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from scumble.config.groups import (
    AdapterFields,
    DataFields,
    ModelFields,
    OptimizerFields,
    ReportFields,
    RunFields,
    ValidationFields,
)
from scumble.config.ranges import MAX_INFERENCE_STEPS, check_seed
from scumble.errors import UserError

GROUPS: tuple[type, ...] = (
    ModelFields,
    DataFields,
    AdapterFields,
    OptimizerFields,
    RunFields,
    ValidationFields,
    ReportFields,
)
"""The groups in the order that help shows them."""

AT_LEAST_ONE = (
    "rank",
    "resolution",
    "train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_train_steps",
    "max_train_samples",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "num_validation_images",
    "validation_epochs",
    "num_inference_steps",
    "lr_num_cycles",
)
NOT_NEGATIVE = (
    "lr_warmup_steps",
    "max_grad_norm",
    "adam_weight_decay",
    "noise_offset",
    "dataloader_num_workers",
)
POSITIVE = ("learning_rate", "alpha", "snr_gamma", "adam_epsilon")
SHARES = ("caption_dropout", "rank_dropout", "adam_beta1", "adam_beta2")

SECRETS = ("hub_token",)
"""Settings that are written nowhere."""
LOCAL_PATHS = (
    "output_dir",
    "train_data_dir",
    "cache_dir",
    "latent_cache_dir",
    "logging_dir",
    "resume_from_checkpoint",
)
"""Settings that are paths of this machine."""


@dataclass(kw_only=True)
class TrainConfig(
    ReportFields,
    ValidationFields,
    RunFields,
    OptimizerFields,
    AdapterFields,
    DataFields,
    ModelFields,
):
    """Everything a training run needs to know; every field has the name of its flag.

    Raises:
        UserError: a value that cannot be meant, naming the flag.
    """

    method: str = "text_to_image"
    """What is taught, and how: the word after `scumble train`."""

    def __post_init__(self) -> None:
        words = " ".join(self.target_modules).replace(",", " ")
        self.target_modules = tuple(words.split())
        _check_ranges(self)
        check_seed(self.seed)
        if (self.train_data_dir is None) == (self.dataset_name is None):
            raise UserError(
                "name the pictures: exactly one of --train_data_dir and --dataset_name",
                "For a folder of your own pictures: --train_data_dir FOLDER.",
            )
        if self.streaming and self.dataset_name is None:
            raise UserError("--streaming reads a data set", "Use it with --dataset_name.")
        if self.hub_model_id is not None and not self.push_to_hub:
            raise UserError("--hub_model_id has no effect without --push_to_hub")
        if self.push_to_hub:
            raise UserError(
                "--push_to_hub is not available yet",
                "Train without it; the output folder is ready for `hf upload`.",
            )

    def changed(self) -> dict[str, Any]:
        """The settings that differ from the defaults, by flag name, secrets left out."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in SECRETS
            and (field.default is MISSING or getattr(self, field.name) != field.default)
        }

    def public(self) -> dict[str, Any]:
        """What of `changed` may be shared: no path of this machine is in it."""
        shared = {name: value for name, value in self.changed().items() if name not in LOCAL_PATHS}
        if self.dataset_name is not None and Path(self.dataset_name).exists():
            shared["dataset_name"] = Path(self.dataset_name).name
        return shared

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values for JSON, the Hub token left out."""
        settings = asdict(self)
        settings["target_modules"] = list(self.target_modules)
        return {name: value for name, value in settings.items() if name not in SECRETS}


def field_names() -> list[str]:
    """Names of all settings, which are those of the flags and of the keys in files."""
    return [field.name for group in GROUPS for field in fields(group)]


def _check_ranges(config: TrainConfig) -> None:
    ranges: list[tuple[tuple[str, ...], Callable[[float], bool], str]] = [
        (AT_LEAST_ONE, lambda v: v >= 1, "at least 1"),
        (NOT_NEGATIVE, lambda v: v >= 0, "0 or more"),
        (POSITIVE, lambda v: v > 0, "above 0"),
        (SHARES, lambda v: 0 <= v < 1, "from 0 to below 1"),
    ]
    for names, fits, range_text in ranges:
        for name in names:
            value = getattr(config, name)
            if value is not None and not fits(value):
                raise UserError(f"--{name} must be {range_text}, not {value}")
    for item in fields(config):
        value = getattr(config, item.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{item.name} must be a finite number, not {value}")
    if config.num_inference_steps > MAX_INFERENCE_STEPS:
        raise UserError(f"--num_inference_steps must be at most {MAX_INFERENCE_STEPS}")


def describe(config: TrainConfig) -> list[str]:
    """The resolved settings, group by group, in lines of a terminal's width."""
    values = config.to_dict()
    lines = []
    for group in GROUPS:
        names = [item.name for item in fields(group) if item.name in values]
        pairs = " ".join(f"{name}={_word(values[name])}" for name in names)
        lines += textwrap.wrap(
            f"{group.__doc__}: {pairs}", 100, subsequent_indent="  ", break_on_hyphens=False
        )
    return lines


def _word(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "-"
    return "-" if value is None else str(value).replace(" ", "\u00a0")
