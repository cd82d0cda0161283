"""Checkpoints that survive a kill, and one progress line with an ETA; shared by every stage."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write beside the target, then rename: a kill leaves the old file or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_if_any(path: Path) -> dict[str, Any] | None:
    """The checkpoint, or None when this stage has not begun."""
    if not path.exists():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)


@dataclass
class Progress:
    """Prints `stage step/total loss rate ETA` every so many seconds."""

    stage: str
    total_steps: int
    first_step: int = 0
    every_s: float = 30.0
    started: float = field(default_factory=time.monotonic)
    printed: float = field(default_factory=time.monotonic)
    loss: float | None = None

    def update(self, step: int, loss: float, note: str = "") -> bool:
        """Note one finished step; returns whether a line was printed."""
        self.loss = loss if self.loss is None else 0.98 * self.loss + 0.02 * loss
        now = time.monotonic()
        if now - self.printed < self.every_s and step < self.total_steps:
            return False
        self.printed = now
        rate = (step - self.first_step) / max(now - self.started, 1e-9)
        left_min = (self.total_steps - step) / max(rate, 1e-9) / 60
        print(
            f"{self.stage} {step}/{self.total_steps} loss {self.loss:.4f} "
            f"{rate:.2f} steps/s ETA {left_min:.1f} min {note}",
            flush=True,
        )
        return True


class WeightAverage:
    """An exponential moving average of a module's weights, warmed up from the first steps."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards the module; early averages forget faster."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.shadow[name].lerp_(value, 1 - decay)


def warm_then_cosine(step: int, total_steps: int, warmup_steps: int) -> float:
    """Learning-rate factor: linear up, then a half cosine down to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return 0.5 * float(torch.cos(torch.tensor(share * torch.pi))) + 0.5
