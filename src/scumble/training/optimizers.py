"""Optimizer, learning rate and loss scale, as one thing that takes a step."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from scumble.config import TrainConfig
from scumble.errors import UserError
from scumble.training.rates import ParameterGroup


class Update:
    """Turns accumulated gradients into one step of the parameters.

    Args:
        groups: the parameters, with their rates.
        config: optimizer settings.
        max_steps: length of the learning-rate schedule.
        global_batch: samples per step over all processes, for --scale_lr.
        dtype: of the frozen weights; fp16 needs a loss scale.
        device: where the parameters are.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        config: TrainConfig,
        max_steps: int,
        global_batch: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        from diffusers.optimization import get_scheduler

        self.groups = list(groups)
        named = {name: p for group in self.groups for name, p in group.parameters.items()}
        self.names, self.parameters = list(named), list(named.values())
        self.max_norm = config.max_grad_norm or float("inf")
        self.factor = global_batch if config.scale_lr else 1
        self.optimizer = _optimizer(self.groups, config, self.factor, device)
        schedule = get_scheduler(
            config.lr_scheduler,
            optimizer=self.optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=max_steps,
            num_cycles=config.lr_num_cycles,
            power=config.lr_power,
        )
        # Only the curve is taken: the rate of a step depends on its number and nothing else.
        self.curve = cast(Callable[[int], float], schedule.lr_lambdas[0])
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        if self.scaler.is_enabled():
            # It makes its scale with the first loss, and a process may have none in a small step.
            self.scaler.scale(torch.zeros((), device=device))
        self.broken = torch.zeros((), device=device)
        self.moved = torch.ones((), device=device)
        """1 where the last step moved the parameters, 0 where it was left out."""

    def learning_rates(self, step: int) -> dict[str, float]:
        """The rate of each group in step `step` of the phase, counted from 0."""
        now = self.factor * self.curve(step)
        return {group.name: group.learning_rate * now for group in self.groups}

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a part of the step's loss."""
        self.scaler.scale(loss).backward()

    def step(self, step: int, loss: Tensor) -> Tensor:
        """Clip, take step `step` of the phase, and clear the gradients.

        From the first loss or gradient that is not finite on, nothing moves any more. With fp16,
        where a gradient overflows now and then, that alone leaves out no more than its own step,
        and the loss scale goes down.

        Args:
            step: counted from 0.
            loss: of the step, over all processes.

        Returns:
            The gradient's norm before clipping, on the device: reading it is left to the caller.
        """
        now = self.factor * self.curve(step)
        for options, group in zip(self.optimizer.param_groups, self.groups, strict=True):
            options["lr"] = group.learning_rate * now
        self.broken = torch.maximum(self.broken, (~torch.isfinite(loss.detach())).float())
        if self.scaler.is_enabled():
            self._spoil()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        if self.scaler.is_enabled():
            self.moved = torch.isfinite(norm).float()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.broken = torch.maximum(self.broken, (~torch.isfinite(norm)).float())
            self.moved = 1 - self.broken
            if self.optimizer.defaults.get("fused"):
                # Fused AdamW leaves the step out on the device itself, without asking the host.
                self.optimizer.found_inf = self.broken  # type: ignore[attr-defined]
                self.optimizer.step()
            elif not self.broken:
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for group in self.groups:
            self._pull_rows(group, group.learning_rate * now)
        return norm

    def _spoil(self) -> None:
        """Once a loss was not finite, let the scaler find each step so, and leave it out."""
        gradient = next((p.grad for p in self.parameters if p.grad is not None), None)
        if gradient is not None:
            gradient.add_(torch.where(self.broken > 0, float("nan"), 0.0))

    @torch.no_grad()
    def _pull_rows(self, group: ParameterGroup, rate: float) -> None:
        """Draw the length of each row towards the group's norm."""
        if group.row_norm is None:
            return
        share = min(1.0, group.row_pull * rate) * self.moved
        for rows in group.parameters.values():
            length = rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            rows.mul_(1 + share * (group.row_norm / length - 1))

    def state(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit, besides the number of the step."""
        state = self.optimizer.state_dict()["state"]
        moments = {self.names[number]: entry for number, entry in state.items()}
        return {"moments": moments, "scaler": self.scaler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, under the settings of now.

        Raises:
            UserError: the state belongs to other parameters.
        """
        groups = self.optimizer.state_dict()["param_groups"]
        # By name: other rates group the parameters in another order.
        if set(state["moments"]) != set(self.names):
            raise UserError(
                f"the checkpoint trained {len(state['moments'])} tensors, this run trains "
                f"{len(self.names)}, or others",
                "Go on with the --target_modules it was begun with.",
            )
        moments = {number: state["moments"][name] for number, name in enumerate(self.names)}
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def _optimizer(
    groups: Iterable[ParameterGroup], config: TrainConfig, factor: float, device: torch.device
) -> torch.optim.Optimizer:
    parameters = [
        {
            "params": list(group.parameters.values()),
            "lr": group.learning_rate * factor,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]
    options: dict[str, Any] = {
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
    }
    if not config.use_8bit_adam:
        return torch.optim.AdamW(parameters, fused=device.type in ("cpu", "cuda"), **options)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            "--use_8bit_adam needs bitsandbytes, which is not installed",
            "Run: pip install 'scumble[bitsandbytes]', or leave the flag away: LoRA's optimizer "
            "state is only a few MB.",
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(parameters, **options)
    return optimizer
