"""The loop: one optimizer step after another. No family, adapter or method is named here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scumble.data.buckets import StepPlan
from scumble.training.optimizers import Update
from scumble.training.phase import Phase
from scumble.training.recorder import Parts, Recorded, Recorder, Work
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
        stop: more than 0 where some process was asked to stop before the step's gradients were
            added up; on the device.
    """

    plan: StepPlan
    losses: Mapping[str, Tensor]
    grad_norm: Tensor
    learning_rates: Mapping[str, float]
    ends_epoch: bool
    stop: Tensor

    @property
    def loss(self) -> Tensor:
        """All losses together."""
        return torch.stack(list(self.losses.values())).sum()


def never() -> bool:
    """Nobody asks to stop."""
    return False


def train_steps(
    phase: Phase,
    update: Update,
    runtime: Runtime,
    start: int,
    recorder: Recorder | None = None,
    asked_to_stop: Callable[[], bool] = never,
) -> Iterator[StepResult]:
    """Train a phase from step `start` to its end, handing control back after every step.

    Between two steps the caller may save, draw or stop. No result is read here.

    Args:
        phase: what to train on what.
        update: the optimizer, in the state that belongs to `start`.
        runtime: device and processes.
        start: steps of this phase that are done already.
        recorder: records the device's part of a step, to play it back; None does not.
        asked_to_stop: of this process; every process hears of it in the step's result.
    """
    step_work = StepWork(phase, update, runtime, asked_to_stop)
    work: Work = step_work if recorder is None else Recorded(step_work, recorder)
    for index in range(start, phase.max_steps):
        step = phase.first_step + index
        plan = phase.plan.step(step)
        phase.enter_step(step)
        update.set_rates(index)
        parts = [
            (name, loss.samples(plan, positions))
            for positions in own_positions(plan, runtime.rank, runtime.num_processes)
            for name, loss in phase.losses.items()
        ]
        *sums, stop, grad_norm = work(parts).unbind()
        ends_epoch = (step + 1) % phase.plan.steps_per_epoch == 0
        losses = {
            n: total / len(plan.examples) for n, total in zip(phase.losses, sums, strict=True)
        }
        yield StepResult(plan, losses, grad_norm, update.learning_rates(index), ends_epoch, stop)


@dataclass(frozen=True)
class StepWork:
    """The device's part of an optimizer step: forward, backward, clip, update.

    Args:
        phase: whose losses are computed.
        update: the optimizer.
        runtime: device and processes.
        asked_to_stop: travels with the gradients of several processes: a message of its own would
            make the host wait for the device.
    """

    phase: Phase
    update: Update
    runtime: Runtime
    asked_to_stop: Callable[[], bool] = never

    def __call__(self, parts: Parts) -> Tensor:
        """Take the step; returns the sum of each loss, then how many processes were asked to stop,
        then the gradient's norm before clipping.
        """
        losses = self.phase.losses
        sums = {name: torch.zeros((), device=self.runtime.device) for name in losses}
        for name, samples in parts:
            # Each loss goes back at once: only one graph is alive at a time.
            loss_B = losses[name](samples)
            sums[name] += loss_B.detach().sum()
            # Divided by the full step's size, so that a small bucket's pictures weigh no more.
            self.update.backward(loss_B.sum() / self.phase.plan.nominal)
        several = self.runtime.num_processes > 1
        stop = torch.zeros((), device=self.runtime.device)
        if several and self.asked_to_stop():
            stop += 1
        totals = torch.stack([*sums.values(), stop])
        if several:
            totals = _add_up(self.update.parameters, self.runtime, totals)
        grad_norm = self.update.apply(totals[:-1].sum())
        return torch.cat([totals, grad_norm.reshape(1)])


def own_positions(plan: StepPlan, rank: int, num_processes: int) -> Iterator[range]:
    """The part of each micro-batch that one process computes, as positions in the step's batch."""
    offset = 0
    for micro_batch in plan.micro_batches:
        size = len(micro_batch)
        first, last = (size * part // num_processes for part in (rank, rank + 1))
        if first < last:
            yield range(offset + first, offset + last)
        offset += size


def _add_up(parameters: Sequence[nn.Parameter], runtime: Runtime, totals: Tensor) -> Tensor:
    """Sum gradients and losses over all processes, in one message."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([totals, *(grad.flatten() for grad in grads)])
    flat = runtime.processes.add_up(flat)
    totals, *parts = flat.split([len(totals), *(grad.numel() for grad in grads)])
    for parameter, grad, part in zip(parameters, grads, parts, strict=True):
        grad.copy_(part.view_as(grad))
        parameter.grad = grad
    return totals
