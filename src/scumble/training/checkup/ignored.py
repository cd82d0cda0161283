"""Checks of the options: those that were given and will do nothing, and why.

What contradicts itself is refused when the configuration is made; this is what merely idles.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from scumble.config import TrainConfig
from scumble.training.checkup.facts import Facts
from scumble.training.checkup.finding import Finding

TOPIC = "options"


def _draws(config: TrainConfig) -> bool:
    return config.validation_prompt is not None or config.before_after


def _validates(config: TrainConfig) -> bool:
    return config.validation_prompt is not None or config.holds_out


def _is_local(config: TrainConfig) -> bool:
    return Path(config.pretrained_model_name_or_path).expanduser().exists()


IDLE: tuple[tuple[tuple[str, ...], Callable[[TrainConfig], bool], str], ...] = (
    (("num_train_epochs", "repeats"), lambda c: c.max_train_steps is not None, "--max_train_steps"),
    (("lr_num_cycles",), lambda c: c.lr_scheduler != "cosine_with_restarts", "the --lr_scheduler"),
    (("lr_power",), lambda c: c.lr_scheduler != "polynomial", "the --lr_scheduler"),
    (("lr_warmup_steps",), lambda c: c.lr_scheduler == "constant", "--lr_scheduler constant"),
    (("validation_epochs",), lambda c: c.validation_steps is not None, "--validation_steps"),
    (
        ("validation_epochs",),
        lambda c: not _validates(c),
        "the lack of a --validation_prompt and of held-out pictures",
    ),
    (
        ("num_validation_images", "num_inference_steps", "guidance_scale"),
        lambda c: not _draws(c),
        "the lack of a --validation_prompt",
    ),
    (("image_column", "dataset_config_name"), lambda c: c.dataset_name is None, "the folder"),
    (("latent_cache_dir",), lambda c: not c.cache_latents, "--no_cache_latents"),
    (("revision",), _is_local, "a base that is on this machine"),
    (
        ("alpha",),
        lambda c: bool(c.target_modules) and all(text.count(":") == 2 for text in c.target_modules),
        "the alphas in --target_modules",
    ),
)
"""(options, when they do nothing, because of what)."""


def idle(facts: Facts) -> Iterator[Finding]:
    """Options without any effect here."""
    given = facts.config.changed()
    reasons: dict[str, str] = {}
    for names, does_nothing, because in IDLE:
        for name in names:
            if name in given and name not in reasons and does_nothing(facts.config):
                reasons[name] = because
    for name, because in reasons.items():
        yield Finding(
            "note",
            TOPIC,
            f"--{name} {_value(given[name])} has no effect, because of {because}",
            "Leave one of them away.",
        )


def idle_here(facts: Facts) -> Iterator[Finding]:
    """Options that this machine has nothing for."""
    given, machine = facts.config.changed(), facts.machine
    if machine.device == "cuda":
        return
    for name in ("allow_tf32", "cuda_graph", "compile"):
        if name in given:
            yield Finding(
                "note",
                TOPIC,
                f"--{name} has no effect on {machine.name}: it is for NVIDIA cards",
                "Leave it away.",
            )


def _value(value: object) -> str:
    return "" if isinstance(value, bool) else f"{value}"
