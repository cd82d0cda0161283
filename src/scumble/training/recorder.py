"""Record the device's part of a step once, and play it back: a CUDA graph for each shape.

At batch 1 a step is thousands of small kernels, and the host cannot start them as fast as the
device runs them. Played back as one graph they cost the host a single call.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from scumble import console
from scumble.errors import first_line
from scumble.training.denoising import Samples
from scumble.training.phase import Phase
from scumble.training.workshop import Workshop

Parts = Sequence[tuple[str, Samples]]
"""What a step computes on: (name of the loss, samples), in order."""
Work = Callable[[Parts], Tensor]
"""The device's part of a step: samples in, what it did out, as one tensor of numbers."""

WARM_UP_STEPS = 2
"""Steps of each shape that are taken as usual first: libraries settle on their kernels then."""
MOST_GRAPHS = 24
"""Further shapes are computed as usual: each graph takes seconds to record."""


class Recorder(Protocol):
    """Records work on a device."""

    def working(self) -> Any:
        """A context in which all work of steps is done, recorded or not."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record `work` without doing it; returns what does it, on the same memory each time."""


class CudaRecorder:
    """CUDA graphs that share one pool of memory.

    Args:
        device: to work on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Recording needs a stream of its own, and autograd remembers the stream it worked on:
        # so all steps are taken there.
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work on the recorder's stream, in order with what comes before and after."""
        outer = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outer)
        with torch.cuda.stream(self.stream):
            yield
        outer.wait_stream(self.stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture a graph."""
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            work()
        return graph.replay


class Recorded:
    """Does a step's work, from a recording where there is one for samples of such shapes.

    Args:
        work: reads nothing back to the host, and depends on nothing of the host that changes.
        recorder: of the device.
    """

    def __init__(self, work: Work, recorder: Recorder) -> None:
        self.work = work
        self.recorder = recorder
        self._seen: Counter[Any] = Counter()
        self._recordings: dict[Any, _Recording] = {}
        self._gave_up = False

    def __call__(self, parts: Parts) -> Tensor:
        """Do the work on these samples."""
        key = _shapes(parts)
        self._seen[key] += 1
        with self.recorder.working():
            if key not in self._recordings and self._is_time(key):
                self._record(key, parts)
            if key in self._recordings:
                return self._recordings[key].play(parts)
            return self.work(parts)

    def _is_time(self, key: Any) -> bool:
        room = len(self._recordings) < MOST_GRAPHS and not self._gave_up
        return room and self._seen[key] > WARM_UP_STEPS

    def _record(self, key: Any, parts: Parts) -> None:
        try:
            self._recordings[key] = _Recording(self.work, parts, self.recorder)
        except Exception as error:
            self._gave_up = True
            console.say(
                f"the step cannot be recorded as a CUDA graph, and is taken as usual: "
                f"{first_line(error.__context__ or error)}"
            )


class _Recording:
    """One recording, with the memory it reads its samples from."""

    def __init__(self, work: Work, parts: Parts, recorder: Recorder) -> None:
        self._inputs = [(name, _copied(samples)) for name, samples in parts]
        self._play = recorder.record(lambda: self._keep(work(self._inputs)))

    def _keep(self, result: Tensor) -> None:
        self._result = result

    def play(self, parts: Parts) -> Tensor:
        """Do the work on other samples of the same shapes."""
        for (_, mine), (_, given) in zip(self._inputs, parts, strict=True):
            for here, there in zip(_tensors(mine), _tensors(given), strict=True):
                here.copy_(there)
        self._play()
        # The next time writes over it.
        return self._result.clone()


def _tensors(samples: Samples) -> list[Tensor]:
    conditioning = samples.conditioning or {}
    named = [samples.latents, samples.noise, samples.timesteps]
    named += [conditioning[name] for name in sorted(conditioning)]
    return named if samples.mask is None else [*named, samples.mask]


def _copied(samples: Samples) -> Samples:
    conditioning = samples.conditioning or {}
    return samples._replace(
        latents=samples.latents.clone(),
        noise=samples.noise.clone(),
        timesteps=samples.timesteps.clone(),
        conditioning={name: tensor.clone() for name, tensor in conditioning.items()},
        mask=None if samples.mask is None else samples.mask.clone(),
    )


def _shapes(parts: Parts) -> tuple[Any, ...]:
    return tuple((name, *(tuple(t.shape) for t in _tensors(samples))) for name, samples in parts)


def recorder_for(workshop: Workshop, phase: Phase) -> Recorder | None:
    """What records the steps of a phase; None, saying why, where they are taken as usual."""
    if is_recorded(workshop, phase):
        return CudaRecorder(workshop.runtime.device)
    if _is_wanted(workshop):
        reason = next(reason for reason, holds in _reasons(workshop, phase).items() if holds)
        console.say(f"steps are not recorded as CUDA graphs: {reason}")
    return None


def is_recorded(workshop: Workshop, phase: Phase) -> bool:
    """Whether the steps of a phase are recorded and played back."""
    return _is_wanted(workshop) and not any(_reasons(workshop, phase).values())


def _is_wanted(workshop: Workshop) -> bool:
    return workshop.runtime.device.type == "cuda" and workshop.config.cuda_graph


def _reasons(workshop: Workshop, phase: Phase) -> dict[str, bool]:
    """Why steps could not be recorded, and whether it is so."""
    config, runtime = workshop.config, workshop.runtime
    return {
        "captions are encoded in every step": not workshop.texts.ready,
        "each step drops other parts of the adapters": phase.dropouts.any,
        "several processes train together": runtime.num_processes > 1,
        "8-bit Adam works on the host too": config.use_8bit_adam,
        "every weight learns": config.teaches_every_weight,
    }
