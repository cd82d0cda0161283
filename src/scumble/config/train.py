"""The configuration of a training run, checked as a whole."""

from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
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
SHARES = ("caption_dropout", "rank_dropout")


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
        self.target_modules = tuple(self.target_modules)
        _check_ranges(self)
        if (self.train_data_dir is None) == (self.dataset_name is None):
            raise UserError(
                "name the pictures: exactly one of --train_data_dir and --dataset_name",
                "For a folder of your own pictures: --train_data_dir FOLDER.",
            )
        if self.streaming and self.dataset_name is None:
            raise UserError("--streaming reads a data set", "Use it with --dataset_name.")
        steps = self.max_train_steps
        if steps is not None and self.warms_up and self.lr_warmup_steps >= steps:
            raise UserError(
                f"--lr_warmup_steps {self.lr_warmup_steps} would outlast the run of {steps} steps",
                "Make it a tenth of --max_train_steps or less.",
            )
        if self.push_to_hub:
            raise UserError(
                "--push_to_hub is not available yet",
                "Train without it; the output folder is ready for `hf upload`.",
            )

    @property
    def warms_up(self) -> bool:
        """Whether the chosen schedule has a warm-up at all."""
        return self.lr_scheduler != "constant"

    def changed(self) -> dict[str, Any]:
        """The settings that differ from the defaults, by flag name."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.default is MISSING or getattr(self, field.name) != field.default
        }

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values for JSON, the Hub token left out."""
        settings = asdict(self)
        settings["target_modules"] = list(self.target_modules)
        del settings["hub_token"]
        return settings


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
