"""The loop: one optimizer step after another. No family, adapter or method is named here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from scumble.data.buckets import StepPlan
from scumble.training.optimizers import Update
from scumble.training.phase import Phase
from scumble.training.runtime import Runtime


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did.

    Args:
        plan: the step's examples.
        losses: name -> mean over the step's samples, on the device.
        grad_norm: before clipping, on the device.
        learning_rates: parameter group -> the rate that the step was taken with.
        ends_epoch: whether every example has now been seen once more.
    """

    plan: StepPlan
    losses: Mapping[str, Tensor]
    grad_norm: Tensor
    learning_rates: Mapping[str, float]
    ends_epoch: bool

    @property
    def loss(self) -> Tensor:
        """All losses together."""
        return torch.stack(list(self.losses.values())).sum()


def train_steps(phase: Phase, update: Update, runtime: Runtime, start: int) -> Iterator[StepResult]:
    """Train a phase from step `start` to its end, handing control back after every step.

    Between two steps the caller may save, draw or stop. No result is read here.

    Args:
        phase: what to train on what.
        update: the optimizer, in the state that belongs to `start`.
        runtime: device and processes.
        start: steps of this phase that are done already.
    """
    for index in range(start, phase.max_steps):
        step = phase.first_step + index
        plan = phase.plan.step(step)
        phase.enter_step(step)
        sums = {name: torch.zeros((), device=runtime.device) for name in phase.losses}
        for positions in own_positions(plan, runtime.rank, runtime.num_processes):
            for name, loss in phase.losses.items():
                # Each loss goes back at once: only one graph is alive at a time.
                loss_B = loss(plan, positions)
                sums[name] += loss_B.detach().sum()
                # Divided by the full step's size, so that a small bucket's pictures weigh no more.
                update.backward(loss_B.sum() / phase.plan.nominal)
        if runtime.num_processes > 1:
            sums = _add_up(phase, runtime, sums)
        grad_norm = update.step(index, torch.stack(list(sums.values())).sum())
        ends_epoch = (step + 1) % phase.plan.steps_per_epoch == 0
        losses = {name: total / len(plan.examples) for name, total in sums.items()}
        yield StepResult(plan, losses, grad_norm, update.learning_rates(index), ends_epoch)


def own_positions(plan: StepPlan, rank: int, num_processes: int) -> Iterator[range]:
    """The part of each micro-batch that one process computes, as positions in the step's batch."""
    offset = 0
    for micro_batch in plan.micro_batches:
        size = len(micro_batch)
        first, last = (size * part // num_processes for part in (rank, rank + 1))
        if first < last:
            yield range(offset + first, offset + last)
        offset += size


def _add_up(phase: Phase, runtime: Runtime, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum gradients and losses over all processes, in one message."""
    parameters = phase.parameters()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([torch.stack(list(sums.values())), *(grad.flatten() for grad in grads)])
    flat = cast(Tensor, runtime.accelerator.reduce(flat, reduction="sum"))
    sizes = [len(sums), *(grad.numel() for grad in grads)]
    totals, *parts = flat.split(sizes)
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
    return dict(zip(sums, totals.unbind(), strict=True))
