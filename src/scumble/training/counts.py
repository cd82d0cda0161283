"""What steps were counted to cost, remembered: counting anew takes a second of every start."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path

from torch import nn

from scumble.config import TrainConfig
from scumble.config.sharing import SECRETS
from scumble.data.cache import content_key
from scumble.errors import UserError
from scumble.formats.container import write_atomically
from scumble.lean.count import Count
from scumble.training.denoising import Samples
from scumble.training.sealed import read_sealed, sealed

UNIMPORTANT = (
    *("pretrained_model_name_or_path", "revision", "variant", "cache_dir"),
    *("train_data_dir", "instance_data_dir", "class_data_dir", "validation_data_dir"),
    *("dataset_name", "max_train_samples", "latent_cache_dir", "dataloader_num_workers"),
    *("instance_prompt", "class_prompt", "num_class_images", "caption_dropout", "random_flip"),
    *("learning_rate", "text_encoder_lr", "lr_scheduler", "lr_warmup_steps", "seed"),
    *("max_train_steps", "num_train_epochs", "checkpointing_steps", "checkpoints_total_limit"),
    *("validation_prompt", "num_validation_images", "validation_epochs", "validation_steps"),
    *("validation_share", "early_stop", "before_after", "num_inference_steps", "guidance_scale"),
    *("output_dir", "logging_dir", "resume_from_checkpoint", "report_to", "debug_batches"),
    *("push_to_hub", "hub_model_id", "hub_private", *SECRETS),
)
"""Options that change no step's cost and are often changed."""


def key_of(
    config: TrainConfig, what: str, modules: Iterable[tuple[str, nn.Module]], samples: Samples
) -> str:
    """Everything that the cost of a step depends on, down to the files of this package.

    Args:
        config: of the run.
        what: the level of --memory, the phase and the loss.
        modules: the model's parts by name, adapters attached, with what learns marked.
        samples: that go in; only their shapes count.
    """
    options = {n: v for n, v in vars(config).items() if n not in UNIMPORTANT}
    parts = [what, repr(sorted(options.items())), _software()]
    for name, module in modules:
        parts.append(f"{name} {type(module).__name__} {getattr(module, 'config', None)}")
        tensors = [*module.named_parameters(), *module.named_buffers()]
        parts += [f"{n} {t.dtype} {tuple(t.shape)} {t.requires_grad}" for n, t in tensors]
    conditioning = samples.conditioning or {}
    inputs = {"latents": samples.latents, "mask": samples.mask, **conditioning}
    parts += [f"{n} {t.dtype} {tuple(t.shape)}" for n, t in inputs.items() if t is not None]
    return content_key(*parts, len(samples.captions))


@cache
def _software() -> str:
    package = Path(__file__).parents[1]
    files = [(p.relative_to(package), p.stat()) for p in sorted(package.rglob("*.py"))]
    own = "".join(f"{path} {facts.st_size} {facts.st_mtime_ns}\n" for path, facts in files)
    return own + " ".join(version(name) for name in ("torch", "diffusers", "transformers"))


def remembered(folder: Path | None, key: str) -> Count | None:
    """The count under a key, where there is one that can be read."""
    if folder is None:
        return None
    content = read_sealed(_path(folder, key))
    try:
        return None if content is None else Count(**content)
    except TypeError:  # another version's
        return None


def remember(folder: Path | None, key: str, count: Count) -> None:
    """Keep a count for the next run, where the folder can be written."""
    if folder is not None:
        with suppress(UserError, OSError):
            write_atomically(_path(folder, key), json.dumps(sealed(asdict(count))).encode())


def _path(folder: Path, key: str) -> Path:
    return folder / "counts" / f"{key[:32]}.json"
