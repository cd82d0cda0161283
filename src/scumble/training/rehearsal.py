"""Take a few real steps of a run and time them; nothing of them is kept."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from scumble import console
from scumble.training.ceiling import fastest_s, synchronise
from scumble.training.loop import train_steps
from scumble.training.optimizers import Update
from scumble.training.phase import Phase
from scumble.training.recorder import WARM_UP_STEPS, recorder_for
from scumble.training.workshop import Workshop

MOST_STEPS = 5
MOST_SECONDS = 10.0


@dataclass(frozen=True)
class Timed:
    """How long a step of a phase takes.

    Args:
        name: of the phase.
        steps: that the run takes of it.
        step_s: seconds of a full step.
        first_s: seconds of the very first one.
    """

    name: str
    steps: int
    step_s: float
    first_s: float


def time_steps(workshop: Workshop, phases: Sequence[Phase]) -> list[Timed]:
    """Time every phase: the optimizer's step included, the first steps left out."""
    return [_time_phase(workshop, phase, phases) for phase in phases]


def time_question(workshop: Workshop, phase: Phase) -> float:
    """Seconds that the denoiser takes for one picture, forward alone."""
    loss = next(iter(phase.losses.values()))
    device = workshop.runtime.device
    samples = loss.samples(phase.plan.step(phase.first_step), range(1))
    with torch.no_grad():
        return fastest_s(lambda: loss.denoising.predict(samples), device)


def _time_phase(workshop: Workshop, phase: Phase, phases: Sequence[Phase]) -> Timed:
    runtime = workshop.runtime
    long = replace(phase, max_steps=max(phase.max_steps, 100))
    long.begin(phases)
    groups, steps, batch = phase.groups, long.max_steps, workshop.batch_size
    update = Update(groups, workshop.config, steps, batch, runtime.dtype, runtime.device)
    recorder = recorder_for(workshop, phase)
    # Of each shape some steps come before the one that is recorded, and that one.
    unlike = 1 if recorder is None else WARM_UP_STEPS + 1
    times: list[float] = []
    start = last = time.perf_counter()
    with console.progress(unlike + MOST_STEPS, f"timing {phase.name}", unit="step") as bar:
        for result in train_steps(long, update, runtime, 0, recorder):
            synchronise(runtime.device)
            now = time.perf_counter()
            if len(result.plan.examples) == phase.plan.nominal:
                times.append(now - last)
                bar.update()
            last = now
            is_enough = len(times) >= unlike + MOST_STEPS
            if times and (is_enough or now - start > MOST_SECONDS):
                break
    phase.at_rest()
    return Timed(phase.name, phase.max_steps, median(times[unlike:] or times), times[0])
