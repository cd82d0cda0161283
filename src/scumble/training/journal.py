"""What each step did, for the progress bar, the log file, the trackers and the loss curve."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from scumble import console
from scumble.errors import UserError
from scumble.training.loop import StepResult
from scumble.training.phase import Phase
from scumble.training.runtime import Runtime

LOG_NAME = "log.jsonl"
LAG_STEPS = 10
"""On a GPU, results are read this many steps late, so that the host never waits for the device."""


class NotFiniteError(UserError):
    """A loss or gradient became NaN or infinite; the weights are those of the last good step."""


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
        self._pending: list[tuple[int, Phase, StepResult]] = []
        self._lag = LAG_STEPS if runtime.device.type == "cuda" else 1
        self._restore(start)
        self._bar = console.progress(total, "training", start=start, unit="step")
        self._seconds = time.monotonic()

    def add(self, step: int, phase: Phase, result: StepResult) -> None:
        """Note a step.

        Args:
            step: steps done in the run, this one included.
            phase: that the step belongs to.
            result: of the step, maybe still being computed.

        Raises:
            NotFiniteError: a loss was NaN or infinite.
        """
        self._pending.append((step, phase, result))
        self._bar.update()
        if len(self._pending) >= self._lag:
            self.flush()

    def flush(self) -> None:
        """Read every pending result.

        Raises:
            NotFiniteError: a loss was NaN or infinite.
        """
        if not self._pending:
            return
        # Taken out first: a bad result is reported once.
        pending, self._pending = self._pending, []
        pairs = [torch.stack([r.loss, r.grad_norm]) for _, _, r in pending]
        values = torch.stack(pairs).tolist()
        entries = []
        for (step, phase, result), (loss, grad_norm) in zip(pending, values, strict=True):
            if not _is_good(loss, grad_norm, self.runtime.dtype):
                raise NotFiniteError(*_explain(step, phase, result, loss))
            self.losses.append(loss)
            entries.append(self._entry(step, result, loss, grad_norm))
        if self.runtime.is_main:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in entries)
        for entry in entries:
            self.runtime.accelerator.log(_tracked(entry), step=entry["step"])
        self._show(entries[-1])

    def close(self) -> None:
        """End the progress bar."""
        self._bar.close()

    def _entry(
        self, step: int, result: StepResult, loss: float, grad_norm: float
    ) -> dict[str, Any]:
        return {
            "step": step,
            "epoch": result.plan.epoch,
            "loss": loss,
            "lr": result.learning_rate,
            "grad_norm": grad_norm,
            "elapsed_s": round(time.monotonic() - self._seconds, 3),
        }

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
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text("utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the line that a kill cut short
            if entry["step"] <= start:
                kept.append(line)
                self.losses.append(entry["loss"])
        if self.runtime.is_main:
            self.path.write_text("".join(line + "\n" for line in kept), "utf-8")


def _is_good(loss: float, grad_norm: float, dtype: torch.dtype) -> bool:
    finite = torch.isfinite(torch.tensor([loss, grad_norm])).tolist()
    # With fp16 a gradient overflows now and then; the loss scale skips the step and goes down.
    return bool(finite[0] and (finite[1] or dtype == torch.float16))


def _tracked(entry: dict[str, Any]) -> dict[str, float]:
    return {"train_loss": entry["loss"], "lr": entry["lr"], "grad_norm": entry["grad_norm"]}


def _explain(step: int, phase: Phase, result: StepResult, loss: float) -> tuple[str, str]:
    shown = range(min(8, len(result.plan.examples)))
    samples = ", ".join(phase.loss.describe(result.plan, position) for position in shown)
    return (
        f"step {step}: the loss is {loss} and the gradient not finite; samples: {samples}",
        "The weights are those of the last good step. Lower --learning_rate, or train with "
        "--mixed_precision bf16 or no.",
    )
