"""Whether a run is as fast as the hardware lets it be: steps counted against what was measured."""

from collections.abc import Sequence

from scumble import console
from scumble.config import given
from scumble.training.ceiling import Ceiling, measure_ceiling
from scumble.training.checkup.pace import Speed, in_words, slow
from scumble.training.forecast import Forecast
from scumble.training.phase import Phase
from scumble.training.recorder import is_recorded
from scumble.training.workshop import Workshop

AFTER_STEPS = 20
"""So many steps of a phase tell its pace."""
WORTH_S = 120.0
"""A run that has less left is not worth a look."""
WITH_WAY_BACK = 6.0
"""An operation of a model, with what Python and autograd do for it, over the smallest there is."""


def speed_of(
    workshop: Workshop,
    phase: Phase,
    forecast: Forecast,
    ceiling: Ceiling,
    step_s: float,
    pictures: float,
) -> Speed:
    """A measured step against what was counted for it.

    Args:
        workshop: of the run.
        phase: that the step is of.
        forecast: has the counts, of a batch of the largest pictures.
        ceiling: of the device.
        step_s: seconds of a step.
        pictures: of the largest size, that the step amounts to.
    """
    batch = min(given(workshop.config.train_batch_size), phase.plan.nominal)
    passes = pictures / batch / workshop.runtime.num_processes
    counts = forecast.work[phase.name]
    weights = workshop.components[workshop.denoiser_name].parameters()
    # The weights are read on the way there and back; what is kept is written and read.
    moved = 2 * sum(weight.nbytes for weight in weights) * len(counts)
    moved += 2 * sum(count.saved_bytes for count in counts)
    return Speed(
        step_s=step_s,
        flops=passes * sum(count.flops for count in counts),
        moved_bytes=passes * moved,
        launches=passes * sum(count.launches for count in counts),
        flops_per_s=ceiling.flops_per_s,
        bytes_per_s=ceiling.bytes_per_s,
        launch_s=ceiling.launch_s * (1 if is_recorded(workshop, phase) else WITH_WAY_BACK),
    )


class Speedometer:
    """Looks once at the pace of each phase, and says so where it is slower than it should be.

    Args:
        workshop: of the run.
        phases: of the run.
        forecast: of what steps cost.
    """

    def __init__(self, workshop: Workshop, phases: Sequence[Phase], forecast: Forecast) -> None:
        self.workshop = workshop
        self.forecast = forecast
        self.total = sum(phase.max_steps for phase in phases)
        self._seen: dict[str, int] = {}

    def look(self, phase: Phase, done: int, steps_per_s: float) -> None:
        """Look at the pace after a step.

        Args:
            phase: that the step was of.
            done: steps of the run.
            steps_per_s: of late.
        """
        self._seen[phase.name] = self._seen.get(phase.name, 0) + 1
        if self._seen[phase.name] != AFTER_STEPS or not steps_per_s:
            return
        left_s = (self.total - done) / steps_per_s
        if left_s < WORTH_S or not self.workshop.runtime.is_main:
            return
        runtime = self.workshop.runtime
        try:
            ceiling = measure_ceiling(runtime.device, runtime.dtype)
        except RuntimeError:  # no room for it: the run needs the memory more
            return
        pictures = len(self.workshop.gathered.train.examples) / phase.plan.steps_per_epoch
        pace = speed_of(self.workshop, phase, self.forecast, ceiling, 1 / steps_per_s, pictures)
        if pace.is_slow:
            console.say(f"{slow(pace).line()}; about {in_words(left_s)} to go")
