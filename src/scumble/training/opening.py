"""Open a workshop: find the base, encode the data, load what trains."""

from collections.abc import Callable, Sequence

import torch

from scumble import console
from scumble.config import TrainConfig
from scumble.data.cache import TensorStore
from scumble.families import (
    BaseModel,
    Components,
    Family,
    family_of,
    locate,
    text_encoders,
)
from scumble.families.fingerprint import fingerprint
from scumble.lean.quantise import quantise
from scumble.training.encoders import Encoders, encoders_of
from scumble.training.find import Found
from scumble.training.fit import check_attention
from scumble.training.gather import Gathered, gather_data
from scumble.training.resident import Resident
from scumble.training.runtime import Runtime
from scumble.training.texts import EncodedTexts, LiveTexts, Texts, report_long
from scumble.training.words import check_words, new_words
from scumble.training.workshop import Workshop, adapter_maker, targets


def base_of_run(config: TrainConfig) -> BaseModel:
    """Find the base that a run is to teach.

    Raises:
        UserError: it is not there, or cannot be used.
    """
    return locate(
        config.pretrained_model_name_or_path,
        revision=config.revision,
        variant=config.variant,
        prediction_type=config.prediction_type,
        cache_dir=config.cache_dir,
    )


def open_workshop(
    config: TrainConfig,
    runtime: Runtime,
    choose: Callable[[Found], Found] = lambda found: found,
) -> Workshop:
    """Find the base, encode the data, and load what trains once the rest is let go.

    Args:
        config: of the run.
        runtime: device and processes.
        choose: leaves out pictures that were found, to look at a few of them.
    """
    base = base_of_run(config)
    family = family_of(base)
    objective = family.objective(base).to(runtime.device)
    check_attention(config)
    if config.teaches_adapters:
        adapter_maker(config)  # what is wrong with these is said before the long work
        targets(config, family)
    components = Components(base)
    if config.encodes_in_every_step:
        _load(family, components, list(text_encoders(family)), runtime, runtime.dtype)
    if config.learns_words:
        check_words(config, components, family)
    resident = Resident(TensorStore(config.cache_folder), runtime.device)
    encoders = encoders_of(config, family, components, runtime)
    for name in text_encoders(family) if config.encodes_in_every_step else ():
        encoders.key(name, runtime.dtype)  # before anything is taught there
    with runtime.stage("encoding"):
        gathered = gather_data(config, encoders, resident, choose)
        texts = _texts(config, encoders, gathered)
    denoiser = family.components[0]
    with runtime.stage("loading"):
        _load_denoiser(config, encoders)
    if config.gradient_checkpointing:
        components[denoiser].enable_gradient_checkpointing()
    marks = encoders.marks()
    return Workshop(config, runtime, family, components, objective, gathered, texts, marks)


def _load(
    family: Family,
    components: Components,
    names: Sequence[str],
    runtime: Runtime,
    dtype: torch.dtype,
) -> None:
    family.load(components, names, dtype)
    for name in names:
        components[name].to(runtime.device)


def _load_denoiser(config: TrainConfig, encoders: Encoders) -> None:
    """Load what trains, quantised on its way to the device where that is asked for."""
    family, components, runtime = encoders.family, encoders.components, encoders.runtime
    name = family.components[0]
    if config.memory != "off" and not config.teaches_every_weight:
        # As lean layers would turn them round later. Reading waits for imports; that would not.
        components.denoiser_format = torch.channels_last
    family.load(components, [name], runtime.dtype)
    mark = fingerprint(components.base, name) if runtime.num_processes > 1 else None
    runtime.processes.agree({f"the base's {name}": mark})
    if runtime.is_main:
        encoders.key(name, runtime.dtype)
    if config.base_precision is not None:
        done = quantise(components[name], config.base_precision, device=runtime.device)
        console.say(
            f"frozen weights stored as {done.scheme}: {done.bytes_after / 2**20:.0f} MiB instead "
            f"of {done.bytes_before / 2**20:.0f} MiB"
        )
    components[name].to(runtime.device)


def _texts(
    config: TrainConfig,
    encoders: Encoders,
    gathered: Gathered,
) -> Texts:
    """Encode every caption and let the text encoders go, or keep them where they are needed."""
    captions = {"", *gathered.captions()}
    if config.class_prompt is not None:
        captions.add(config.class_prompt)
    family, components = encoders.family, encoders.components
    if config.encodes_in_every_step:
        if not config.learns_words:  # the tokenizer does not know them yet
            report_long(captions, family, components, {})
        return LiveTexts(family, components, new_words(config))
    texts = EncodedTexts(gathered.train.resident, encoders.runtime.dtype)
    texts.encode(captions, encoders)
    encoders.release(*text_encoders(family))
    return texts
