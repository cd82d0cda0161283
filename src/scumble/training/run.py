"""READ ME FIRST: a training run from its configuration to its results.

config -> base and output folder -> pictures -> encoded data -> denoiser with adapters -> phases ->
loop -> adapter, pictures, card.
"""

from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

from scumble import console
from scumble.config import TrainConfig
from scumble.config.train import describe
from scumble.formats.witnesses import RECORD_NAME
from scumble.training import results
from scumble.training.best import measured
from scumble.training.blueprint import BLUEPRINT, blueprint, picture_sets
from scumble.training.checkup import check_warmup, warnings
from scumble.training.checkup.survey import survey
from scumble.training.debug_batches import write_debug_batches
from scumble.training.determinism import deterministic
from scumble.training.fit import fit, memory_explained
from scumble.training.interrupts import interruptible
from scumble.training.launch import launcher
from scumble.training.lock import locked
from scumble.training.methods import METHODS
from scumble.training.opening import open_workshop
from scumble.training.phase import Phase
from scumble.training.picture_list import write_list
from scumble.training.rates import ParameterGroup
from scumble.training.record import Record, result_of, this_process
from scumble.training.results import TrainResult
from scumble.training.resume import continue_from
from scumble.training.runtime import Runtime, check_alike, prepare_runtime
from scumble.training.sharing import push_result
from scumble.training.sitting import Sitting
from scumble.training.speedometer import Speedometer
from scumble.training.start import LAUNCHER, find_start
from scumble.training.workshop import Workshop


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
    folder = Path(config.output_dir)
    with console.unheard(), interruptible(folder / RECORD_NAME):
        with memory_explained(config) as levels, deterministic(config):
            runtime = prepare_runtime(config)
            ours = locked(folder, this_process()) if runtime.is_main else nullcontext()
            with (
                runtime.processes.ending(),
                ours,
                closing(runtime.trackers),
                runtime.events.of_a_run(**this_process()),
            ):
                result = _train(config, runtime, levels)
        if runtime.is_main:
            push_result(config)
    return result


def _train(config: TrainConfig, runtime: Runtime, levels: list[str]) -> TrainResult:
    folder = Path(config.output_dir)
    check_alike(config, runtime.processes)
    start = runtime.processes.from_main(lambda: find_start(config))
    checkpoint = start.checkpoint
    for note in start.notes:
        console.say(note)
    if checkpoint is not None and start.is_finished:
        console.say(f"the run in {folder} is already finished after {checkpoint.step} steps")
        return TrainResult(folder, result_of(folder), checkpoint.step)
    runtime.events.go_on()
    workshop = open_workshop(config, runtime)
    phases = METHODS[config.method](workshop)
    check_warmup(config, phases)
    runtime.trackers.start(runtime.accelerator, config, checkpoint.step if checkpoint else 0)
    base = workshop.components.base
    facts = {
        "base": base.reference,
        "examples": len(workshop.gathered.train.examples),
        "total_steps": sum(phase.max_steps for phase in phases),
    }
    facts |= {LAUNCHER: found} if (found := launcher()) else {}
    record = Record(config, facts)
    state = continue_from(checkpoint, workshop, phases) if checkpoint is not None else None
    runtime.processes.equalise([p for phase in phases for p in phase.parameters()])
    record.facts[BLUEPRINT] = blueprint(workshop)
    console.say("\n".join(describe(config)))
    with record.of_a_run(runtime.is_main):
        if runtime.is_main:
            write_list(picture_sets(workshop.gathered), folder)
            runtime.events.open()
        _report_start(workshop, phases)
        level, forecast = fit(workshop, phases)
        levels.append(level)
        for finding in warnings(survey(workshop, phases, level, forecast)):
            console.say(finding.line())
        if runtime.is_main:
            write_debug_batches(workshop, phases, checkpoint.step if checkpoint else 0)
        record.facts["foretold_peak_mib"] = round(forecast.peak_bytes / 2**20, 1)
        speedometer = Speedometer(workshop, phases, forecast)
        sitting = Sitting(workshop, phases, record, checkpoint, state, speedometer)
        with runtime.stage("training"):
            sitting.train()
        return _finish(workshop, sitting)


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
        scores = {"mean loss of the last steps": record.facts["loss"], **measured(sitting.choice)}
        results.write_card(workshop, taught, sitting.kept_step, folder, samples, scores)
        memory = workshop.runtime.memory
        record.facts["peak_memory_by_stage_mib"] = memory.by_stage()
        # Last: a run that was cut off in here is finished by resuming it.
        record.save("finished")
        console.say(f"\n{memory.text()}")
        results.report_files(workshop, result, folder)
    return TrainResult(folder, result, sitting.done)
