"""READ ME FIRST: a training run from its configuration to its results.

config -> base and output folder -> pictures -> encoded data -> denoiser with adapters -> phases ->
loop -> adapter, pictures, card.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from scumble import console
from scumble.config import TrainConfig
from scumble.config.train import describe
from scumble.errors import Stopped, UserError, first_line
from scumble.families import Components, family_of, locate
from scumble.formats import ModuleWeights, read_adapter
from scumble.formats.files import WEIGHT_NAME
from scumble.training import results
from scumble.training.checkpoints import Checkpoint, find_checkpoint
from scumble.training.gather import gather_data
from scumble.training.journal import NotFiniteError
from scumble.training.methods import METHODS
from scumble.training.phase import Phase
from scumble.training.record import Record, claim_output, is_finished
from scumble.training.results import TrainResult
from scumble.training.runtime import Runtime, prepare_runtime
from scumble.training.sitting import Sitting
from scumble.training.trackers import start_trackers
from scumble.training.workshop import Workshop, targets


def train(config: TrainConfig) -> TrainResult:
    """Teach a base model from pictures, as configured.

    Args:
        config: everything about the run.

    Returns:
        Where the results are.

    Raises:
        UserError: something about the input is wrong; nothing that existed is changed.
        Stopped: the user interrupted; a checkpoint to go on from is written.
    """
    if config.method not in METHODS:
        raise UserError(f"unknown method '{config.method}'", f"Known: {', '.join(METHODS)}.")
    runtime = prepare_runtime(config)
    folder = Path(config.output_dir)
    checkpoint, notes = find_checkpoint(config)
    if runtime.is_main:
        claim_output(config, checkpoint)
    runtime.accelerator.wait_for_everyone()
    for note in notes:
        console.say(note)
    if checkpoint is not None and is_finished(config):
        console.say(f"the run in {folder} is already finished after {checkpoint.step} steps")
        return TrainResult(folder, folder / WEIGHT_NAME, checkpoint.step)
    workshop = open_workshop(config, runtime)
    phases = METHODS[config.method](workshop)
    start_trackers(runtime.accelerator, config)
    base = workshop.components.base
    record = Record(config, {"base": base.reference, "examples": len(workshop.data.examples)})
    if checkpoint is not None:
        _continue_from(checkpoint, workshop, phases)
    for line in describe(config):
        console.say(line)
    if runtime.is_main:
        record.save("running")
    _report_start(workshop, phases)
    sitting = Sitting(workshop, phases, record, checkpoint)
    try:
        sitting.train()
    except (Stopped, NotFiniteError) as error:
        if runtime.is_main:
            record.save("stopped" if isinstance(error, Stopped) else "failed")
        raise
    return _finish(workshop, phases, record, sitting.losses, folder)


def open_workshop(config: TrainConfig, runtime: Runtime) -> Workshop:
    """Find the base, encode the data, and load the denoiser once the encoders are let go."""
    base = locate(
        config.pretrained_model_name_or_path,
        revision=config.revision,
        variant=config.variant,
        prediction_type=config.prediction_type,
        cache_dir=config.cache_dir,
    )
    family = family_of(base)
    objective = family.objective(base)
    targets(config, family)  # a malformed one is said before the long work
    components = Components(base)
    data = gather_data(config, family, components, runtime)
    denoiser = family.components[0]
    family.load(components, [denoiser], runtime.dtype)
    components[denoiser].to(runtime.device)
    if config.gradient_checkpointing:
        components[denoiser].enable_gradient_checkpointing()
    if config.enable_xformers_memory_efficient_attention:
        _enable_xformers(components, denoiser)
    return Workshop(config, runtime, family, components, objective, data)


def _enable_xformers(components: Components, denoiser: str) -> None:
    try:
        components[denoiser].enable_xformers_memory_efficient_attention()
    except Exception as error:
        raise UserError(
            f"xFormers cannot be used: {first_line(error)}",
            "Leave --enable_xformers_memory_efficient_attention away: PyTorch's own attention is "
            "as lean.",
        ) from error


def _continue_from(checkpoint: Checkpoint, workshop: Workshop, phases: Sequence[Phase]) -> None:
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
    if checkpoint.data_digest != workshop.data.digest():
        console.say("not as before: the pictures or captions have changed since the checkpoint")
    saved = read_adapter(checkpoint.weights_path, workshop.family.key_names).components
    fresh = results.adapter_weights(workshop, phases).components
    if _layout(saved) != _layout(fresh):
        raise UserError(
            f"{checkpoint.folder} adapts other layers, or at other ranks, than are asked for now",
            "Within a run --rank, --target_modules and the base stay; for others start a new "
            "--output_dir.",
        )
    names = workshop.family.key_names
    for phase in phases:
        for component, adapters in phase.adapters.items():
            for path, adapter in adapters.adapters.items():
                adapter.copy_tensors(saved[component][names.to_file(component, path)].tensors)


def _layout(components: Mapping[str, Mapping[str, ModuleWeights]]) -> dict[str, int]:
    """Which layers an adapter changes, and how wide it is there."""
    return {
        f"{component}.{path}": entry.rank
        for component, modules in components.items()
        for path, entry in modules.items()
    }


def _report_start(workshop: Workshop, phases: Sequence[Phase]) -> None:
    config = workshop.config
    batch = (
        config.train_batch_size
        * config.gradient_accumulation_steps
        * workshop.runtime.num_processes
    )
    for phase in phases:
        parameters = phase.parameters()
        console.say(
            f"{phase.name}: {len(workshop.data.examples)} pictures, {phase.max_steps} steps of "
            f"{batch} ({phase.plan.steps_per_epoch} per epoch); "
            f"{sum(p.numel() for p in parameters):,} parameters in {len(parameters)} tensors; "
            f"{workshop.runtime.device.type}, frozen weights in "
            f"{str(workshop.runtime.dtype).removeprefix('torch.')}"
        )


def _finish(
    workshop: Workshop,
    phases: Sequence[Phase],
    record: Record,
    losses: Sequence[float],
    folder: Path,
) -> TrainResult:
    """Write the results, the adapter first: nothing that fails later can cost it."""
    steps = sum(phase.max_steps for phase in phases)
    last = losses[-20:] or [float("nan")]
    path = folder / WEIGHT_NAME
    if workshop.runtime.is_main:
        results.save_adapter(workshop, phases, path)
        record.facts |= {
            "steps": steps,
            "loss": sum(last) / len(last),
            "peak_memory_mib": round(workshop.runtime.peak_memory_mib(), 1),
        }
        results.write_curve(losses, folder)
        samples = results.write_pictures(workshop, folder)
        results.write_card(workshop, phases, folder, samples)
        # Last: a run that was cut off in here is finished by resuming it.
        record.save("finished")
        results.report_files(folder)
    workshop.runtime.accelerator.end_training()
    return TrainResult(folder, path, steps)
