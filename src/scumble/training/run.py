"""READ ME FIRST: a training run from its configuration to its results.

config -> base and output folder -> pictures -> encoded data -> denoiser with adapters -> phases ->
loop -> adapter, pictures, card.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from scumble import console
from scumble.config import TrainConfig
from scumble.config.train import describe
from scumble.data.cache import TensorStore
from scumble.errors import UserError
from scumble.families import Components, Family, family_of, locate, text_encoders
from scumble.lean.quantise import quantise
from scumble.training import results
from scumble.training.average import copy_into
from scumble.training.checkpoints import Checkpoint, find_checkpoint
from scumble.training.encoders import Encoders, encoders_of
from scumble.training.fit import check_attention, fit, memory_explained
from scumble.training.gather import Gathered, gather_data
from scumble.training.methods import METHODS
from scumble.training.phase import Phase, phase_name
from scumble.training.rates import ParameterGroup
from scumble.training.record import Record, claim_output, is_finished, result_of
from scumble.training.resident import Resident
from scumble.training.results import TrainResult
from scumble.training.runtime import Runtime, prepare_runtime
from scumble.training.sharing import check_destination, push_result
from scumble.training.sitting import Sitting
from scumble.training.taught import together
from scumble.training.texts import EncodedTexts, LiveTexts, Texts, report_long
from scumble.training.words import check_words, new_words
from scumble.training.workshop import Workshop, adapter_maker, targets


def train(config: TrainConfig) -> TrainResult:
    """Teach a base model from pictures, as configured.

    Args:
        config: everything about the run.

    Returns:
        Where the results are.

    Raises:
        UserError: something about the input is wrong; nothing that existed is changed. Or the run
            is finished and its results are in place, but they could not be pushed to the Hub.
        Stopped: the user interrupted; a checkpoint to go on from is written.
    """
    with memory_explained(config) as levels:
        runtime = prepare_runtime(config)
        with closing(runtime.trackers):
            result = _train(config, runtime, levels)
    if runtime.is_main:
        push_result(config)
    return result


def _train(config: TrainConfig, runtime: Runtime, levels: list[str]) -> TrainResult:
    folder = Path(config.output_dir)
    checkpoint, notes = find_checkpoint(config)
    if runtime.is_main:
        claim_output(config, checkpoint)
        check_destination(config)
    runtime.accelerator.wait_for_everyone()
    for note in notes:
        console.say(note)
    if checkpoint is not None and is_finished(config):
        console.say(f"the run in {folder} is already finished after {checkpoint.step} steps")
        return TrainResult(folder, result_of(folder), checkpoint.step)
    workshop = open_workshop(config, runtime)
    phases = METHODS[config.method](workshop)
    _check_warmup(config, phases)
    _say_prompt_without_word(config)
    runtime.trackers.start(runtime.accelerator, config, checkpoint.step if checkpoint else 0)
    base = workshop.components.base
    facts = {
        "base": base.reference,
        "examples": len(workshop.gathered.train.examples),
        "total_steps": sum(phase.max_steps for phase in phases),
    }
    record = Record(config, facts)
    state = _continue_from(checkpoint, workshop, phases) if checkpoint is not None else None
    for line in describe(config):
        console.say(line)
    if runtime.is_main:
        record.save("running")
    _report_start(workshop, phases)
    level, forecast = fit(workshop, phases)
    levels.append(level)
    record.facts["foretold_peak_mib"] = round(forecast.peak_bytes / 2**20, 1)
    sitting = Sitting(workshop, phases, record, checkpoint, state)
    try:
        sitting.train()
        return _finish(workshop, sitting)
    except BaseException as error:
        if runtime.is_main:
            record.save_end(error)
        raise


def open_workshop(config: TrainConfig, runtime: Runtime) -> Workshop:
    """Find the base, encode the data, and load what trains once the rest is let go."""
    base = locate(
        config.pretrained_model_name_or_path,
        revision=config.revision,
        variant=config.variant,
        prediction_type=config.prediction_type,
        cache_dir=config.cache_dir,
    )
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
    gathered = gather_data(config, encoders, resident)
    texts = _texts(config, encoders, gathered)
    denoiser = family.components[0]
    _load_denoiser(config, family, components, runtime)
    if config.gradient_checkpointing:
        components[denoiser].enable_gradient_checkpointing()
    return Workshop(config, runtime, family, components, objective, gathered, texts)


def _check_warmup(config: TrainConfig, phases: Sequence[Phase]) -> None:
    """Each phase has a warm-up of its own, which must end before it does.

    Raises:
        UserError: one would not.
    """
    if config.lr_scheduler == "constant" and config.lr_warmup_steps:
        console.say(
            "--lr_warmup_steps has no effect with --lr_scheduler constant; "
            "constant_with_warmup has one"
        )
        return
    for phase in phases:
        if config.lr_warmup_steps >= phase.max_steps:
            raise UserError(
                f"--lr_warmup_steps {config.lr_warmup_steps} would outlast the "
                f"{phase.max_steps} steps of '{phase.name}'",
                "Make it a tenth of the steps or less.",
            )


def _say_prompt_without_word(config: TrainConfig) -> None:
    prompt, word = config.validation_prompt, config.placeholder_token
    if word is not None and prompt is not None and word not in prompt:
        console.say(f"--validation_prompt does not contain {word}: what is learnt will not show")


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


def _load_denoiser(
    config: TrainConfig, family: Family, components: Components, runtime: Runtime
) -> None:
    """Load what trains, quantised on its way to the device where that is asked for."""
    name = family.components[0]
    family.load(components, [name], runtime.dtype)
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


def _continue_from(
    checkpoint: Checkpoint, workshop: Workshop, phases: Sequence[Phase]
) -> dict[str, Any]:
    """Put a checkpoint's parameters into the model; returns everything that it holds."""
    total = sum(phase.max_steps for phase in phases)
    if checkpoint.step > total:
        raise UserError(
            f"{checkpoint.folder} has {checkpoint.step} steps behind it, more than the {total} "
            "that are asked for",
            "Raise --max_train_steps, or resume from an earlier checkpoint.",
        )
    console.say(f"going on from {checkpoint.folder}, step {checkpoint.step}")
    for difference in checkpoint.differences(workshop.config):
        console.say(f"not as before: {difference}")
    if checkpoint.data_digest != workshop.gathered.digest():
        console.say("not as before: the pictures or captions have changed since the checkpoint")
    state = checkpoint.training_state()
    learnt = together(phase.taught for phase in phases).named_state()
    saved = {name: tensor.shape for name, tensor in state["parameters"].items()}
    if saved != {name: tensor.shape for name, tensor in learnt.items()}:
        raise UserError(
            f"{checkpoint.folder} adapts other layers, at other ranks or from another start, than "
            "are asked for now",
            "Within a run the method, --rank, --target_modules, --adapter_init pissa, "
            "--placeholder_token, --num_vectors and the base stay; for others start a new "
            "--output_dir.",
        )
    if state["phase"] != phase_name(phases, checkpoint.step):
        raise UserError(
            f"{checkpoint.folder} was written in the phase '{state['phase']}', and step "
            f"{checkpoint.step} belongs to '{phase_name(phases, checkpoint.step)}' now",
            "Within a run the pivot stays where it is: leave --pivot and --max_train_steps as they "
            "were, or start a new --output_dir.",
        )
    copy_into(learnt, state["parameters"])
    return state


def _report_start(workshop: Workshop, phases: Sequence[Phase]) -> None:
    for phase in phases:
        parameters = phase.parameters()
        console.say(
            f"{phase.name}: {len(workshop.gathered.train.examples)} pictures, {phase.max_steps} "
            f"steps of {workshop.batch_size} ({phase.plan.steps_per_epoch} per epoch); "
            f"{sum(p.numel() for p in parameters):,} parameters in {len(parameters)} tensors; "
            f"{workshop.runtime.device.type}, frozen weights in "
            f"{str(workshop.runtime.dtype).removeprefix('torch.')}"
        )
        if len(phase.groups) > 1 or len(phases) > 1:
            console.say("  " + ", ".join(_rate(group) for group in phase.groups))


def _rate(group: ParameterGroup) -> str:
    named = " at " in group.name
    return group.name if named else f"{group.name} at {group.learning_rate:g}"


def _finish(workshop: Workshop, sitting: Sitting) -> TrainResult:
    """Write the results, the adapter first: nothing that fails later can cost it."""
    folder, taught, record = sitting.folder, sitting.taught, sitting.record
    last = sitting.losses[-20:] or [float("nan")]
    result = folder
    if workshop.runtime.is_main:
        result = results.save_learnt(workshop, taught, sitting.done, folder) or results.save_model(
            workshop, folder
        )
        record.facts |= {
            "steps": sitting.done,
            "loss": sum(last) / len(last),
            "peak_memory_mib": round(workshop.runtime.peak_memory_mib(), 1),
        }
        results.write_curve(sitting.losses, folder)
        samples = results.write_pictures(workshop, taught, sitting.done, folder)
        scores = {"mean loss of the last steps": record.facts["loss"], **sitting.measured}
        results.write_card(workshop, taught, sitting.kept_step, folder, samples, scores)
        # Last: a run that was cut off in here is finished by resuming it.
        record.save("finished")
        results.report_files(workshop, result, folder)
    workshop.runtime.accelerator.end_training()
    return TrainResult(folder, result, sitting.done)
