"""What each step did, for the progress bar, the log file, the trackers and the loss curve."""

import json
import math
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scumble import console
from scumble.data.wording import counted
from scumble.errors import UserError
from scumble.formats.container import write_atomically
from scumble.training.loop import StepResult
from scumble.training.phase import Phase
from scumble.training.runtime import Runtime

LOG_NAME = "log.jsonl"
MAX_OVERFLOWS = 20
"""So many gradients in a row may overflow with fp16 before the run is stopped."""
LAG_STEPS = 10
"""On a GPU, results are read this many steps late, so that the host never waits for the device."""
PACE_STEPS = 20
"""The pace of a run is the mean of so many steps."""


class NotFiniteError(UserError):
    """A loss or gradient became NaN or infinite; the weights are those of the step before.

    Args:
        step: the first bad step, counted from 1.
        message: what happened where.
        hint: what to do.
    """

    def __init__(self, step: int, message: str, hint: str) -> None:
        super().__init__(message, hint, everywhere=True)
        self.step = step


class Pace:
    """How fast a run is: the mean of its last steps, without what is done between steps."""

    def __init__(self) -> None:
        self._marks = deque([(time.monotonic(), 0)], maxlen=PACE_STEPS + 1)

    def add(self, samples: int) -> dict[str, float]:
        """Note that a step of so many samples is done; samples and steps per second."""
        self._marks.append((time.monotonic(), samples))
        seconds = max(self._marks[-1][0] - self._marks[0][0], 1e-9)
        count = sum(samples for _, samples in self._marks) - self._marks[0][1]
        steps = len(self._marks) - 1
        return {
            "samples_per_s": round(count / seconds, 3),
            "steps_per_s": round(steps / seconds, 3),
        }

    def begin_anew(self) -> None:
        """Leave out the time up to now: something else than training was done in it."""
        self._marks.clear()
        self._marks.append((time.monotonic(), 0))


class Pending(NamedTuple):
    """A step whose result is maybe still being computed."""

    step: int
    phase: Phase
    result: StepResult
    times: dict[str, float]


class Journal:
    """Collects step results and passes them on once the device has computed them.

    Args:
        runtime: the device, and the trackers.
        folder: the run's output folder.
        start: steps done in earlier sittings; later entries of an old log are dropped.
        total: steps of the whole run.
    """

    def __init__(self, runtime: Runtime, folder: Path, start: int, total: int) -> None:
        self.runtime = runtime
        self.path = folder / LOG_NAME
        self.losses: list[float] = []
        self.must_stop = False
        """Whether some process was asked to stop, as far as results have been read."""
        self.steps_per_s = 0.0
        """Of late, without what is done between steps."""
        self._pending: list[Pending] = []
        self._restored: list[dict[str, Any]] = []
        self._overflows = 0
        self._lag = LAG_STEPS if runtime.device.type == "cuda" else 1
        self._restore(start)
        self._bar = console.progress(total, "training", start=start, unit="step")
        self._start = time.monotonic()
        self._pace = Pace()

    def add(self, step: int, phase: Phase, result: StepResult) -> None:
        """Note a step.

        Args:
            step: steps done in the run, this one included.
            phase: that the step belongs to.
            result: of the step, maybe still being computed.

        Raises:
            NotFiniteError: a loss was NaN or infinite.
        """
        times = {
            **self._pace.add(len(result.plan.examples)),
            "elapsed_s": round(time.monotonic() - self._start, 3),
        }
        self.steps_per_s = times["steps_per_s"]
        self._pending.append(Pending(step, phase, result, times))
        self._bar.update()
        if len(self._pending) >= self._lag:
            self.flush()

    def flush(self) -> None:
        """Read every pending result.

        Raises:
            NotFiniteError: a loss was NaN or infinite.
        """
        # Taken out first: a bad result is reported once.
        pending, self._pending = self._pending, []
        rows = [torch.stack([r.loss, r.grad_norm, r.stop]) for _, _, r, _ in pending]
        values = torch.stack(rows).tolist() if rows else []
        entries: list[dict[str, Any]] = []
        bad: NotFiniteError | None = None
        memory = round(self.runtime.peak_memory_mib(), 1)
        for one, (loss, grad_norm, stop) in zip(pending, values, strict=True):
            self.must_stop |= stop > 0
            if self._is_bad(loss, grad_norm):
                bad = NotFiniteError(one.step, *_explain(one, loss, self.runtime.dtype))
                break
            self.losses.append(loss)
            entries.append(_entry(one, loss, grad_norm, memory))
        if entries:
            self._write(entries)
        if bad is not None:
            raise bad

    def note(self, entry: dict[str, Any]) -> None:
        """Write an entry that is no step's, such as a measurement on held-out pictures."""
        self._append([entry])
        numbers = {k: v for k, v in entry.items() if k != "step" and isinstance(v, float)}
        if numbers:
            self.runtime.trackers.log(numbers, entry["step"])
        self._pace.begin_anew()

    def tells(self, step: int, what: str) -> bool:
        """Whether the log had an entry with `what` for a step when this sitting began."""
        return any(entry["step"] == step and what in entry for entry in self._restored)

    def close(self) -> None:
        """End the progress bar."""
        self._bar.close()

    def _is_bad(self, loss: float, grad_norm: float) -> bool:
        self._overflows = 0 if math.isfinite(grad_norm) else self._overflows + 1
        # With fp16 a gradient overflows now and then; the loss scale skips the step and goes down.
        allowed = MAX_OVERFLOWS if self.runtime.dtype == torch.float16 else 0
        return not math.isfinite(loss) or self._overflows > allowed

    def _write(self, entries: list[dict[str, Any]]) -> None:
        self._append(entries)
        for entry in entries:
            self.runtime.trackers.log(_tracked(entry), entry["step"])
        self._show(entries[-1])

    def _append(self, entries: list[dict[str, Any]]) -> None:
        if not self.runtime.is_main:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in entries)
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}",
                "The checkpoints so far are untouched; go on with "
                "--resume_from_checkpoint latest once there is room.",
            ) from error

    def _show(self, entry: dict[str, Any]) -> None:
        recent = self.losses[-20:]
        self._bar.set_postfix(
            loss=f"{sum(recent) / len(recent):.4f}",
            lr=f"{entry['lr']:.2g}",
            peak=f"{self.runtime.peak_memory_mib() / 1024:.2f} GiB",
            refresh=False,
        )

    def _restore(self, start: int) -> None:
        """Keep the log of the steps that still stand, drop what came after the checkpoint."""
        if not self.runtime.is_main or not self.path.is_file():
            return
        try:
            *lines, cut_short = self.path.read_bytes().split(b"\n")
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error
        entries = [_read(line) for line in lines]
        damaged = entries.count(None)
        kept = [entry for entry in entries if entry is not None and entry["step"] <= start]
        self.losses += [entry["loss"] for entry in kept if "loss" in entry]
        self._restored = kept
        if damaged:
            console.say(f"{self.path}: {counted(damaged, 'line')} damaged and left out")
        if damaged or cut_short or len(kept) < len(lines):
            text = "".join(json.dumps(entry) + "\n" for entry in kept)
            write_atomically(self.path, text.encode())


def _read(line: bytes) -> dict[str, Any] | None:
    """An entry of the log; None where it is damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match entry:
        case {"step": int(), "loss": float()}:
            return dict(entry)
        case {"step": int()} if "loss" not in entry:
            return dict(entry)
    return None


def _entry(one: Pending, loss: float, grad_norm: float, memory_mib: float) -> dict[str, Any]:
    result = one.result
    entry = {
        "step": one.step,
        "phase": one.phase.name,
        "epoch": result.plan.epoch,
        "loss": loss,
        "lr": next(iter(result.learning_rates.values())),
        "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
        "memory_mib": memory_mib,
        **one.times,
    }
    if len(result.losses) > 1:
        entry |= {f"loss {name}": float(part) for name, part in result.losses.items()}
    if len(result.learning_rates) > 1:
        entry |= {f"lr {name}": rate for name, rate in result.learning_rates.items()}
    return entry


def _tracked(entry: dict[str, Any]) -> dict[str, float]:
    """The numbers of an entry, the loss by the name that diffusers' scripts give it."""
    left_out = ("step", "phase", "epoch", "loss", "elapsed_s")
    numbers = {name: value for name, value in entry.items() if name not in left_out}
    numbers["train_loss"] = entry["loss"]
    return {name: value for name, value in numbers.items() if value is not None}


def _explain(one: Pending, loss: float, dtype: torch.dtype) -> tuple[str, str]:
    step, phase, result, _ = one
    shown = range(min(8, len(result.plan.examples)))
    bad = [name for name, part in result.losses.items() if not math.isfinite(part)]
    is_narrow = dtype == torch.float16
    wider = ", or train with --mixed_precision bf16 or no" if is_narrow else ""
    describe = phase.losses[bad[0] if bad else next(iter(phase.losses))].describe
    samples = ", ".join(describe(result.plan, position) for position in shown)
    return (
        f"step {step}: the loss is {loss} and the gradient not finite; samples: {samples}",
        f"The weights are those of the last good step. Lower --learning_rate{wider}.",
    )
