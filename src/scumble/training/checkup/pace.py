"""Checks of the time: how long the run will take, and whether that is the hardware's best."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scumble.data.wording import counted
from scumble.training.checkup.facts import Facts
from scumble.training.checkup.finding import Finding

TIME, SPEED = "time", "speed"
USUAL = (0.35, 0.9)
"""Between these shares of the hardware's best product of matrices lie large models."""
OF_BANDWIDTH = 0.5
"""So much of the best bandwidth is usual where things are moved beside other work."""
SLOWER = 2.0
"""So many times longer than foretold is no longer usual."""
MOST_DRAWN = 0.4
LOST_S = 1800.0
MINUTE, HOUR = 60, 3600


@dataclass(frozen=True)
class Speed:
    """A step against what the hardware can do.

    Args:
        step_s: seconds of a step, measured.
        flops: of a step, counted.
        moved_bytes: of weights and of what is kept for the way back, counted.
        launches: operations of a step, counted.
        flops_per_s: of the device at best.
        bytes_per_s: of the device's memory at best.
        launch_s: of starting one operation.
    """

    step_s: float
    flops: float
    moved_bytes: float
    launches: float
    flops_per_s: float
    bytes_per_s: float
    launch_s: float

    @property
    def share(self) -> float:
        """Of what the device's products of matrices reach."""
        return self.flops / self.step_s / self.flops_per_s

    @property
    def usual_s(self) -> float:
        """Seconds that such a step usually takes at most."""
        moving_s = self.moved_bytes / self.bytes_per_s / OF_BANDWIDTH
        starting_s = self.launches * self.launch_s
        return self.flops / self.flops_per_s / USUAL[0] + moving_s + starting_s

    @property
    def is_slow(self) -> bool:
        """Whether the step takes longer than can be explained."""
        return self.step_s > SLOWER * self.usual_s


@dataclass(frozen=True)
class Pace:
    """What was measured of a run.

    Args:
        parts: (what, seconds in all), the training first.
        step_s: seconds of the slowest phase's full step.
        mean_s: seconds of a step on average: the last ones of an epoch may be small.
        drawing_s: seconds for sample pictures and measurements, of all that.
        speed: of the first phase.
    """

    parts: Sequence[tuple[str, float]]
    step_s: float
    mean_s: float
    drawing_s: float
    speed: Speed


def duration(pace: Pace) -> Iterator[Finding]:
    """How long the run will take, and what for."""
    parts = [(what, seconds) for what, seconds in pace.parts if seconds >= 1 or what == "training"]
    total = sum(seconds for _, seconds in parts)
    what = ", ".join(f"{in_words(seconds)} {what}" for what, seconds in parts)
    details = f": {what}" if len(parts) > 1 else ""
    yield Finding(
        "ok", TIME, f"about {in_words(total)}{details} ({in_words(pace.step_s)} per full step)"
    )


def mostly_drawing(facts: Facts, pace: Pace) -> Iterator[Finding]:
    """A run that draws more than it learns."""
    total = sum(seconds for _, seconds in pace.parts)
    config = facts.config
    way = "Draw fewer: --num_validation_images 1; or none: --no_before_after."
    if config.validation_prompt is not None or config.holds_out:
        way = "Less often: raise --validation_steps (or --validation_epochs)."
    if pace.drawing_s > MOST_DRAWN * total and pace.drawing_s > MINUTE:
        yield Finding(
            "note",
            TIME,
            f"{pace.drawing_s / total:.0%} of the time goes into pictures and measurements",
            way,
        )


def between_checkpoints(facts: Facts, pace: Pace) -> Iterator[Finding]:
    """Hours that a crash would cost."""
    every = min(facts.config.checkpointing_steps, facts.steps)
    lost_s = every * pace.mean_s
    if lost_s > LOST_S:
        better = max(1, round(every * LOST_S / lost_s / 2))
        yield Finding(
            "note",
            TIME,
            f"a crash would cost up to {in_words(lost_s)}: {counted(every, 'step')} between "
            "checkpoints",
            f"Say --checkpointing_steps {better}.",
        )


def speed(pace: Pace) -> Iterator[Finding]:
    """Whether the speed is normal."""
    it = pace.speed
    text = _compared(it)
    if it.is_slow:
        yield slow(it)
    elif it.share >= USUAL[0]:
        yield Finding("ok", SPEED, f"normal: {text}; usual is {USUAL[0]:.0%} to {USUAL[1]:.0%}")
    else:
        yield Finding(
            "ok",
            SPEED,
            f"normal for its size: {text}; {it.launches:,.0f} small operations take their time",
        )


def slow(it: Speed) -> Finding:
    """A step that takes longer than it should."""
    text = _compared(it)
    return Finding(
        "note",
        SPEED,
        f"slow: {text}, and usual is {in_words(it.usual_s)} per step, not {in_words(it.step_s)}",
        "Look for other programs, a hot or throttled device, and the notes on the machine.",
    )


def _compared(it: Speed) -> str:
    return (
        f"{in_flops(it.flops / it.step_s)} = {it.share:.0%} of the {in_flops(it.flops_per_s)} that "
        "matrix products reach here"
    )


def in_words(seconds: float) -> str:
    """A time in the largest two units that it has."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < MINUTE:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / MINUTE)
    if minutes < MINUTE:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} days {hours % 24} h"


def in_flops(flops_per_s: float) -> str:
    """A speed of arithmetic with the unit that suits it."""
    for unit, size in (("PFLOP/s", 1e15), ("TFLOP/s", 1e12), ("GFLOP/s", 1e9)):
        if flops_per_s >= size:
            return f"{flops_per_s / size:.3g} {unit}"
    return f"{flops_per_s / 1e6:.3g} MFLOP/s"
