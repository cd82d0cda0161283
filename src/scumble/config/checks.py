"""What no configuration may say: values out of range, and settings that contradict each other."""

import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING

from scumble.config.method_groups import METHOD_DEFAULTS, METHOD_GROUPS
from scumble.config.ranges import check_seed, check_value
from scumble.errors import UserError

if TYPE_CHECKING:
    from scumble.config.train import TrainConfig

AT_LEAST_ONE = (
    "rank",
    "text_encoder_rank",
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
    "validation_steps",
    "early_stop",
    "num_inference_steps",
    "lr_num_cycles",
    "num_class_images",
    "sample_batch_size",
    "num_vectors",
    "repeats",
)
NOT_NEGATIVE = (
    "lr_warmup_steps",
    "max_grad_norm",
    "adam_weight_decay",
    "noise_offset",
    "dataloader_num_workers",
    "keep_tokens",
    "row_init_noise",
    "row_norm_pull",
    "row_learning_rate_after",
    "prior_loss_weight",
    "debug_batches",
)
POSITIVE = (
    "learning_rate",
    "alpha",
    "snr_gamma",
    "adam_epsilon",
    "lora_plus_ratio",
    "text_encoder_lr",
    "row_learning_rate",
    "pivot",
)
SHARES = (
    "caption_dropout",
    "rank_dropout",
    "lora_dropout",
    "adam_beta1",
    "adam_beta2",
    "unmasked_weight",
    "validation_share",
    "ema_decay",
    "pivot",
)


def check_method(config: "TrainConfig") -> None:
    """Refuse an unknown method, and options that its method does not have.

    Raises:
        UserError: naming the option and the methods that have it.
    """
    if config.method not in METHOD_GROUPS:
        raise UserError(f"unknown method '{config.method}'", f"Known: {', '.join(METHOD_GROUPS)}.")
    own = {item.name for group in METHOD_GROUPS[config.method] for item in fields(group)}
    for item in fields(config):
        if item.name in own or item.name == "method":
            continue
        if item.default is not MISSING and getattr(config, item.name) != item.default:
            having = [
                method
                for method, groups in METHOD_GROUPS.items()
                if any(item.name == other.name for group in groups for other in fields(group))
            ]
            raise UserError(
                f"--{item.name} has no meaning for {config.method}",
                f"It belongs to: {', '.join(having)}.",
            )


def check_ranges(config: "TrainConfig") -> None:
    """Refuse numbers that cannot be meant.

    Raises:
        UserError: naming the flag and what it may be.
    """
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
        check_value(item.name, value)
    check_seed(config.seed)


def check_together(config: "TrainConfig") -> None:
    """Refuse settings that contradict each other, lack something, or would do nothing.

    Raises:
        UserError: the first of them.
    """
    for message, hint in _contradictions(config):
        raise UserError(message, hint)


def _contradictions(config: "TrainConfig") -> Iterator[tuple[str, str]]:
    yield from _sources(config)
    yield from _idle(config)
    yield from _adapters(config)
    if "class_prompt" in _own(config):
        yield from _prior(config)
    if config.placeholder_token is None and "placeholder_token" in _own(config):
        yield "there is no new word to learn", 'Name one: --placeholder_token "<pip>".'
    if config.initializer_token is None and "initializer_token" in _own(config):
        yield (
            "the new word needs a word to start from",
            "Name one that the model knows and that comes near: --initializer_token dog.",
        )
    if config.learnable_property is not None and config.instance_prompt is not None:
        yield (
            "--learnable_property and --instance_prompt both say how pictures are captioned",
            "Give one of them.",
        )


def _sources(config: "TrainConfig") -> Iterator[tuple[str, str]]:
    folders = ["train_data_dir", "dataset_name"]
    folders += ["instance_data_dir"] if "instance_data_dir" in _own(config) else []
    given = [name for name in folders if getattr(config, name) is not None]
    if len(given) != 1:
        names = " and ".join(f"--{name}" for name in folders)
        best = next(name for name in reversed(folders) if name.endswith("_dir"))
        yield (
            f"name the pictures: exactly one of {names}",
            f"For a folder of your own pictures: --{best} FOLDER.",
        )
    if config.streaming and config.dataset_name is None:
        yield "--streaming reads a data set", "Use it with --dataset_name."
    if config.masked_loss and config.dataset_name is not None:
        yield "--masked_loss needs masks beside pictures", "Use it with a folder of pictures."
    if config.validation_share and config.streaming:
        yield (
            "--validation_share needs to know all pictures, which --streaming does not",
            "Name a folder to measure on: --validation_data_dir.",
        )
    if config.validation_share and config.validation_data_dir is not None:
        yield (
            "--validation_share and --validation_data_dir both name pictures to measure on",
            "Give one of them.",
        )


NEEDS = (
    ("unmasked_weight", "masked_loss"),
    ("keep_tokens", "shuffle_caption"),
    ("text_encoder_lr", "train_text_encoder"),
    ("text_encoder_rank", "train_text_encoder"),
    ("text_encoder_target_modules", "train_text_encoder"),
    ("hub_model_id", "push_to_hub"),
    ("hub_private", "push_to_hub"),
)
"""(option, the option without which it does nothing)."""


def _adapters(config: "TrainConfig") -> Iterator[tuple[str, str]]:
    if config.decompose_factor != -1 and config.decompose_factor < 1:
        yield f"--decompose_factor must be -1 or at least 1, not {config.decompose_factor}", ""
    if config.adapter_init == "pissa" and config.adapter_type != "lora":
        yield (
            f"--adapter_init pissa has no meaning for --adapter_type {config.adapter_type}",
            "It belongs to: lora.",
        )
    if config.adapter_init == "pissa" and config.lora_plus_ratio != 1:
        yield (
            "--lora_plus_ratio has no effect with --adapter_init pissa: nothing starts from zero",
            "Leave one of them away.",
        )


def _idle(config: "TrainConfig") -> Iterator[tuple[str, str]]:
    for name, needed in NEEDS:
        if getattr(config, name) and not getattr(config, needed):
            yield f"--{name} has no effect without --{needed}", f"Add --{needed}."
    decay = config.adam_weight_decay != _default(config, "adam_weight_decay")
    rows_alone = config.learns_words and not config.teaches_adapters
    if rows_alone and config.row_norm_pull and decay:
        yield (
            "--adam_weight_decay has no effect with --row_norm_pull, which takes its place",
            "Leave it away, or say --row_norm_pull 0.",
        )
    if config.enable_xformers_memory_efficient_attention and config.attention == "sdpa":
        yield (
            "--attention sdpa and --enable_xformers_memory_efficient_attention exclude each other",
            "Give one of them.",
        )
    if config.deterministic and config.attention_kind == "xformers":
        yield (
            "xFormers' attention does not give the same bits twice, as --deterministic asks for",
            "Leave --attention to PyTorch, or leave --deterministic away.",
        )
    if config.deterministic and config.compile:
        yield (
            "--compile chooses kernels by their speed, which --deterministic forbids",
            "Leave one of them away.",
        )
    if config.early_stop is not None and not config.holds_out:
        yield (
            "--early_stop has nothing to decide by",
            "Hold pictures back with --validation_share 0.1, or name --validation_data_dir.",
        )
    if config.validation_steps and not (config.holds_out or config.validation_prompt):
        yield (
            "--validation_steps has no effect without anything to validate",
            "Give a --validation_prompt, or hold pictures back with --validation_share.",
        )


PICTURE_OPTIONS = (
    "class_data_dir",
    "num_class_images",
    "sample_batch_size",
    "prior_generation_precision",
)
PRIOR_OPTIONS = ("class_prompt", "prior_from", "prior_loss_weight", *PICTURE_OPTIONS)


def _default(config: "TrainConfig", name: str) -> object:
    return next(item.default for item in fields(config) if item.name == name)


def _prior(config: "TrainConfig") -> Iterator[tuple[str, str]]:
    if not config.with_prior_preservation:
        for name in PRIOR_OPTIONS:
            if getattr(config, name) != _default(config, name):
                yield (
                    f"--{name} has no effect without --with_prior_preservation",
                    "Add --with_prior_preservation.",
                )
        return
    if config.class_prompt is None:
        yield (
            "--with_prior_preservation needs the class in words",
            'Add --class_prompt, such as "a photo of a dog".',
        )
    elif config.class_prompt == config.instance_prompt:
        yield (
            "--class_prompt and --instance_prompt are the same: the class would become the subject",
            "Give the subject a rare word of its own: a photo of sks dog.",
        )
    if config.prior_from == "images" and config.class_data_dir is None:
        yield (
            "--with_prior_preservation needs a folder for the class pictures",
            "Add --class_data_dir FOLDER (they are drawn into it), or do without them: "
            "--prior_from base.",
        )
    for name in PICTURE_OPTIONS:
        if config.prior_from == "base" and getattr(config, name) != _default(config, name):
            yield (
                f"--{name} has no effect with --prior_from base, which needs no pictures",
                "Leave one of them away.",
            )


def _own(config: "TrainConfig") -> set[str]:
    return {item.name for group in METHOD_GROUPS[config.method] for item in fields(group)}


def fill_defaults(config: "TrainConfig") -> None:
    """Give the options that depend on the method their values."""
    for name, value in METHOD_DEFAULTS[config.method].items():
        if getattr(config, name) is None:
            setattr(config, name, value)
