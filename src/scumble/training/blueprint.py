"""What a run can be built from again: its settings, and marks of all that it was made of.

Adapter files carry it in their metadata, run.json in the run's folder. It has no path of the
machine, no secret and nothing of the clock: equal trainings write equal bytes.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import PureWindowsPath
from typing import Any

import torch

from scumble.config import TrainConfig
from scumble.config.sharing import LOCAL_PATHS, REPORTING, SECRETS, is_local, shareable
from scumble.training.checkpoints import MAY_DIFFER
from scumble.training.gather import Gathered
from scumble.training.picture_list import PictureSets, digests, listed_entries
from scumble.training.record import versions
from scumble.training.runtime import Runtime
from scumble.training.workshop import Workshop

BLUEPRINT = "blueprint"
"""Metadata key of adapter files, and key of run.json. A JSON object:

- `settings`: every option that decides what is learnt, by the names of the flags; what is not set
  is left out. `lacking`: flag -> last part of a path that only the machine knows.
- `changes`: settings that were others in earlier sittings, worded.
- `pictures`: what they are for -> {"count", "pictures", "captions"}, the last two are hashes.
- `base`: component -> mark of its weights. `name` is what the base is called.
- `versions`: of Python and the libraries.
- `machine`: device, its kind, number format, threads, processes.
"""

TEACHES_NOTHING = (
    MAY_DIFFER
    | {*SECRETS, *REPORTING}
    | {"cache_dir", "latent_cache_dir", "cache_latents", "dataloader_num_workers", "local_rank"}
    | {"validation_prompt", "num_validation_images", "before_after"}
    | {"num_inference_steps", "guidance_scale", "memory"}
)
"""Settings without which a run teaches the same."""


def blueprint(workshop: Workshop) -> dict[str, Any]:
    """What the run of a workshop can be built from again, as `BLUEPRINT` describes it."""
    config = workshop.config
    base = {"name": workshop.components.base.public_name, **workshop.marks}
    return {
        "settings": shareable(deciding(config.to_dict())),
        "lacking": lacking(config),
        "changes": workshop.changes,
        "pictures": digests(picture_sets(workshop.gathered)),
        "base": base,
        "versions": versions(),
        "machine": machine(workshop.runtime),
    }


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that decide what is learnt, paths of the machine among them."""
    return {
        name: value
        for name, value in sorted(settings.items())
        if name not in TEACHES_NOTHING and value is not None and value != []
    }


def lacking(config: TrainConfig) -> dict[str, str]:
    """Flags whose value is a path of this machine -> the last part of that path."""
    found = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if item.name in TEACHES_NOTHING or not isinstance(value, str):
            continue
        if item.name in LOCAL_PATHS or (item.name in HUB_OR_PATH and is_local(value)):
            found[item.name] = PureWindowsPath(value).name
    return found


HUB_OR_PATH = ("pretrained_model_name_or_path", "dataset_name")
"""Settings that name something of the Hub, or a path."""


def picture_sets(gathered: Gathered) -> PictureSets:
    """The pictures of a run, by what they are for."""
    parts = {
        "pictures": gathered.train,
        "held-out pictures": gathered.held_out,
        "class pictures": gathered.class_pictures,
    }
    return {name: listed_entries(data.examples) for name, data in parts.items() if data is not None}


def machine(runtime: Runtime) -> dict[str, Any]:
    """What of the machine decides the last digits of the numbers."""
    facts: dict[str, Any] = {
        "device": runtime.device.type,
        "dtype": str(runtime.dtype).removeprefix("torch."),
        "processes": runtime.num_processes,
    }
    if runtime.device.type == "cuda":
        return facts | {"gpu": torch.cuda.get_device_name(runtime.device)}
    capability = torch.backends.cpu.get_cpu_capability()
    return facts | {"instructions": capability, "threads": torch.get_num_threads()}
