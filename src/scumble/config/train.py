"""The configuration of a training run, checked as a whole."""

import os
import sys
import textwrap
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from scumble.config.checks import check_method, check_ranges, check_together, fill_defaults
from scumble.config.groups import (
    AdapterFields,
    DataFields,
    ModelFields,
    OptimizerFields,
    ReportFields,
    RunFields,
    ValidationFields,
)
from scumble.config.method_groups import (
    METHOD_DEFAULTS,
    METHOD_GROUPS,
    FrozenFields,
    PivotFields,
    SubjectFields,
    TextEncoderFields,
    TokenFields,
)
from scumble.config.places import check_places
from scumble.config.sharing import SECRETS, shareable
from scumble.redaction import keep_secret, redacted

WORD_LISTS = (
    "target_modules",
    "text_encoder_target_modules",
    "layer_learning_rates",
    "report_to",
)
"""Settings of several words, which may also be parted by commas."""


@dataclass(kw_only=True)
class TrainConfig(
    ReportFields,
    ValidationFields,
    FrozenFields,
    RunFields,
    OptimizerFields,
    TextEncoderFields,
    AdapterFields,
    PivotFields,
    TokenFields,
    SubjectFields,
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
        keep_secret(self.hub_token)
        for name in WORD_LISTS:
            value = getattr(self, name) or ()
            words = value if isinstance(value, str) else " ".join(value)
            setattr(self, name, tuple(words.replace(",", " ").split()))
        self.output_dir = os.path.expanduser(self.output_dir)
        check_method(self)
        fill_defaults(self)
        check_ranges(self)
        check_places(self)
        check_together(self)

    @property
    def picture_folder(self) -> str | None:
        """The folder to learn from, by whatever name the method calls it."""
        return self.train_data_dir or self.instance_data_dir

    @property
    def teaches_adapters(self) -> bool:
        """Whether adapters are put on the model."""
        return self.rank is not None

    @property
    def teaches_every_weight(self) -> bool:
        """Whether the denoiser's own weights learn."""
        return not (self.teaches_adapters or self.learns_words)

    @property
    def learns_words(self) -> bool:
        """Whether a new word is learnt."""
        return self.placeholder_token is not None

    @property
    def encodes_in_every_step(self) -> bool:
        """Whether captions cannot be encoded once and for all."""
        return self.train_text_encoder or self.learns_words or self.shuffle_caption

    @property
    def attention_kind(self) -> str:
        """What computes attention, by whichever of the two options it was asked for."""
        wants_xformers = self.enable_xformers_memory_efficient_attention
        return "xformers" if wants_xformers else self.attention

    @property
    def cache_folder(self) -> Path | None:
        """Where encoded tensors are kept; None means in memory only."""
        if not self.cache_latents:
            return None
        if self.latent_cache_dir is not None:
            return Path(self.latent_cache_dir).expanduser()
        if sys.platform == "win32":
            root = Path(os.environ.get("LOCALAPPDATA", Path.home()))
        elif sys.platform == "darwin":
            root = Path.home() / "Library" / "Caches"
        else:
            root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        return root / "scumble"

    @property
    def holds_out(self) -> bool:
        """Whether there are pictures to measure the loss on."""
        return bool(self.validation_share) or self.validation_data_dir is not None

    def changed(self) -> dict[str, Any]:
        """The settings that differ from the method's defaults, by flag name, secrets left out."""
        defaults = {f.name: f.default for f in fields(self)} | METHOD_DEFAULTS[self.method]
        return {
            name: getattr(self, name)
            for name, default in defaults.items()
            if name not in SECRETS and (default is MISSING or getattr(self, name) != default)
        }

    def public(self) -> dict[str, Any]:
        """What of `changed` may be shared: no path of this machine is in it."""
        return shareable(self.changed())

    def to_dict(self) -> dict[str, Any]:
        """The settings that the method has, as plain values for JSON, secrets left out."""
        settings = asdict(self)
        own = {"method", *field_names(self.method)} - set(SECRETS)
        settings |= {name: list(settings[name]) for name in WORD_LISTS}
        return {
            name: redacted(value) if isinstance(value, str) else value
            for name, value in settings.items()
            if name in own
        }


def field_names(method: str) -> list[str]:
    """Names of a method's settings, which are those of the flags and of the keys in files."""
    return [field.name for group in METHOD_GROUPS[method] for field in fields(group)]


def describe(config: TrainConfig) -> list[str]:
    """The resolved settings, group by group, in lines of a terminal's width."""
    values = config.to_dict()
    lines = []
    for group in METHOD_GROUPS[config.method]:
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
