"""Foretell the memory that a run will need, from exact counts of one step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from scumble.config import given
from scumble.data.buckets import StepPlan
from scumble.families import Components
from scumble.lean.count import Count, count_step, on_meta, parameters_of
from scumble.lean.install import put_on
from scumble.lean.levels import LEVELS
from scumble.training import counts
from scumble.training.denoising import Samples
from scumble.training.phase import Phase, SampleLoss
from scumble.training.taught import together
from scumble.training.workshop import Workshop

GIB = 2**30
SCRATCH_BYTES = 96 << 20
"""What a device's libraries need beside the tensors that PyTorch knows of."""
HEAP_SHARE = 1.4
"""The heap of a process has holes: so many times a step's bytes. A GPU's allocator has few."""


@dataclass(frozen=True)
class Forecast:
    """What a run will need of the memory of its device.

    Args:
        now_bytes: in use before the first step: libraries, frozen weights, parameters.
        learning_bytes: moments and averages of what learns.
        step: the costliest forward and backward pass, gradients included.
        scratch_bytes: of the device's libraries.
        heap_share: what the step's bytes take in memory, holes included, over what they are.
        before_bytes: the most that was in use up to now.
        work: phase -> what one forward and backward pass of all its losses counts, in order.
    """

    now_bytes: int
    learning_bytes: int
    step: Count
    scratch_bytes: int
    heap_share: float
    before_bytes: int
    work: Mapping[str, Sequence[Count]] = field(default_factory=dict)

    @property
    def more_bytes(self) -> int:
        """What must be free from now on."""
        step_bytes = round(self.heap_share * self.step.peak_bytes)
        return self.learning_bytes + step_bytes + self.scratch_bytes

    @property
    def peak_bytes(self) -> int:
        """The most that will be in use over the whole run, as `Runtime.peak_memory_mib` says it."""
        return max(self.now_bytes + self.more_bytes, self.before_bytes)


def foretell(workshop: Workshop, phases: Sequence[Phase], level: str) -> Forecast:
    """Count what a run will need at one level of --memory.

    Args:
        workshop: with the denoiser loaded and nothing lean put on it yet.
        phases: of the run, adapters attached.
        level: a key of `LEVELS`, or "off".
    """
    learning = list(together(phase.taught for phase in phases).named_parameters().values())
    size = sum(parameter.nbytes for parameter in learning)
    copies = 2 + (workshop.config.ema_decay is not None)
    work = {}
    for phase in phases:
        phase.begin(phases)
        work[phase.name] = [_counted(workshop, phase, name, level) for name in phase.losses]
    steps = [count for passes in work.values() for count in passes]
    return Forecast(
        now_bytes=workshop.runtime.memory_bytes(),
        learning_bytes=copies * size,
        step=max(steps, key=lambda step: step.peak_bytes),
        scratch_bytes=SCRATCH_BYTES,
        heap_share=_heap_share(workshop),
        before_bytes=round(workshop.runtime.peak_memory_mib() * 2**20),
        work=work,
    )


def _heap_share(workshop: Workshop) -> float:
    device = workshop.runtime.device
    if device.type == "cpu":
        return HEAP_SHARE
    shapes = {example.bucket for example in workshop.gathered.train.examples}
    # Recorded steps keep their memory; what is not recorded yet, of another shape, has its own.
    is_recorded = device.type == "cuda" and workshop.config.cuda_graph
    return 2.0 if is_recorded and len(shapes) > 1 else 1.0


def _counted(workshop: Workshop, phase: Phase, name: str, level: str) -> Count:
    """One loss of one phase, from memory where the very same was counted before."""
    loss, folder = phase.losses[name], workshop.config.cache_folder
    samples = loss.samples(_largest(workshop, phase), range(_batch(workshop, phase)))
    parts = workshop.components.parts.items()
    modules = [(part, module) for part, module in parts if isinstance(module, nn.Module)]
    what = f"{level} {phase.name} {name}"
    key = counts.key_of(workshop.config, what, modules, samples)
    count = counts.remembered(folder, key)
    if count is None:
        count = _count(workshop, loss, _on_meta(samples), level)
        counts.remember(folder, key, count)
    return count


def _count(workshop: Workshop, loss: SampleLoss, samples: Samples, level: str) -> Count:
    parts = {
        name: on_meta(part) if isinstance(part, nn.Module) else part
        for name, part in workshop.components.parts.items()
    }
    components = Components(workshop.components.base, parts)
    if level in LEVELS:
        put_on(parts[workshop.denoiser_name], LEVELS[level], "sdpa")
    denoising = loss.denoising.on(components)
    twin = replace(cast(Any, loss), denoising=denoising)
    modules = [part for part in parts.values() if isinstance(part, nn.Module)]
    conditioning = (samples.conditioning or {}).values()
    there = [samples.latents, samples.noise, samples.timesteps, *conditioning]
    return count_step(lambda: twin(samples).sum(), [*parameters_of(*modules), *there])


def _batch(workshop: Workshop, phase: Phase) -> int:
    return min(given(workshop.config.train_batch_size), phase.plan.nominal)


def _largest(workshop: Workshop, phase: Phase) -> StepPlan:
    """A batch of the largest pictures that there are."""
    examples = workshop.gathered.train.examples
    areas = [example.bucket[0] * example.bucket[1] for example in examples]
    index = areas.index(max(areas))
    return StepPlan(phase.first_step, 0, ((index,) * _batch(workshop, phase),))


def _on_meta(samples: Samples) -> Samples:
    conditioning = samples.conditioning
    return samples._replace(
        latents=samples.latents.to("meta"),
        noise=samples.noise.to("meta"),
        timesteps=samples.timesteps.to("meta"),
        conditioning=conditioning and {name: t.to("meta") for name, t in conditioning.items()},
        mask=None if samples.mask is None else samples.mask.to("meta"),
    )


def free_bytes(device: torch.device) -> int:
    """How much more of a device's memory can be used."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What PyTorch holds in reserve is free for us too.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    import psutil

    return min(int(psutil.virtual_memory().available), _container_bytes())


def _container_bytes(root: Path = Path("/sys/fs/cgroup")) -> int:
    """What a container's limit leaves free, where there is one."""
    try:
        limit = int((root / "memory.max").read_text())
        used = int((root / "memory.current").read_text())
        stat = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 1 << 62
    # Cached files are given up when memory is wanted.
    return limit - used + int(stat.get("inactive_file", 0))
