"""Optimizer, learning rate and loss scale, as one thing that takes a step."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from scumble.config import TrainConfig
from scumble.errors import UserError
from scumble.training.flat import Flat
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
        # 8-bit state is kept in blocks, which do not end where a parameter ends; and of a whole
        # model there is no room for a second copy.
        self.is_narrow = config.use_8bit_adam
        keeps_apart = self.is_narrow or config.teaches_every_weight
        self.flats = [] if keeps_apart else [Flat(group.parameters) for group in self.groups]
        self.names = [name for group in self.groups for name in group.parameters]
        parts = [[flat.whole] for flat in self.flats]
        parts = parts or [list(group.parameters.values()) for group in self.groups]
        self.parameters = [parameter for group in parts for parameter in group]
        """What the optimizer sees: one tensor for each group, or the parameters themselves."""
        self.max_norm = config.max_grad_norm or float("inf")
        self.factor = global_batch if config.scale_lr else 1
        self.optimizer = _optimizer(self.groups, parts, config, device)
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
        if self.optimizer.defaults.get("fused"):
            # Fused AdamW leaves a step out on the device itself, without asking the host.
            self.optimizer.found_inf = self.broken  # type: ignore[attr-defined]

    def learning_rates(self, step: int) -> dict[str, float]:
        """The rate of each group in step `step` of the phase, counted from 0."""
        now = self.factor * self.curve(step)
        return {group.name: group.learning_rate * now for group in self.groups}

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a part of the step's loss."""
        self.scaler.scale(loss).backward()

    def step(self, step: int, loss: Tensor) -> Tensor:
        """Set the rates of step `step` of the phase, counted from 0, and take it: see `apply`."""
        self.set_rates(step)
        return self.apply(loss)

    def set_rates(self, step: int) -> None:
        """Set the learning rates of a step; all of a step that the host decides."""
        now = self.factor * self.curve(step)
        for options, group in zip(self.optimizer.param_groups, self.groups, strict=True):
            rate = group.learning_rate * now
            if isinstance(options["lr"], Tensor):
                options["lr"].fill_(rate)
            else:
                options["lr"] = rate

    def apply(self, loss: Tensor) -> Tensor:
        """Clip, move the parameters, and clear the gradients: work of the device alone.

        From the first loss or gradient that is not finite on, nothing moves any more. With fp16,
        where a gradient overflows now and then, that alone leaves out no more than its own step,
        and the loss scale goes down.

        Args:
            loss: of the step, over all processes.

        Returns:
            The gradient's norm before clipping, on the device: reading it is left to the caller.
        """
        self._note(loss.detach())
        if self.scaler.is_enabled():
            self._spoil()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        if self.scaler.is_enabled():
            self.moved.copy_(torch.isfinite(norm))
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self._note(norm)
            self.moved.copy_(1 - self.broken)
            if self.optimizer.defaults.get("fused") or not self.broken:
                self.optimizer.step()
        self.forget_gradients()
        for options, group in zip(self.optimizer.param_groups, self.groups, strict=True):
            self._pull_rows(group, options["lr"])
        return norm

    @property
    def loss_scale(self) -> float:
        """What losses are multiplied by before the way back; 1 unless the base is fp16."""
        return float(self.scaler.get_scale()) if self.scaler.is_enabled() else 1.0

    def forget_gradients(self) -> None:
        """Clear what `backward` has added up."""
        # In place where they are parts of one tensor: they must stay parts of it.
        self.optimizer.zero_grad(set_to_none=not self.flats)

    def _note(self, value: Tensor) -> None:
        """Remember that a loss or gradient was not finite."""
        self.broken.copy_(torch.maximum(self.broken, (~torch.isfinite(value)).float()))

    def _spoil(self) -> None:
        """Once a loss was not finite, let the scaler find each step so, and leave it out."""
        gradient = next((p.grad for p in self.parameters if p.grad is not None), None)
        if gradient is not None:
            gradient.add_(torch.where(self.broken > 0, float("nan"), 0.0))

    @torch.no_grad()
    def _pull_rows(self, group: ParameterGroup, rate: float | Tensor) -> None:
        """Draw the length of each row towards the group's norm."""
        if group.row_norm is None:
            return
        share = (group.row_pull * rate * self.moved).clamp(max=1.0)
        for rows in group.parameters.values():
            length = rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            rows.mul_(1 + share * (group.row_norm / length - 1))

    def state(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit, besides the number of the step."""
        moments: dict[str, Any] = {}
        for flat in self.flats:
            moments |= flat.moments(self.optimizer.state[flat.whole])
        if not self.flats:
            state = self.optimizer.state_dict()["state"]
            moments = {self.names[number]: entry for number, entry in state.items()}
        return {"moments": moments, "scaler": self.scaler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, under the settings of now.

        Raises:
            UserError: the state belongs to other parameters.
        """
        # By name: other rates group the parameters in another order.
        if set(state["moments"]) != set(self.names):
            raise UserError(
                f"the checkpoint trained {len(state['moments'])} tensors, this run trains "
                f"{len(self.names)}, or others",
                "Go on with the --target_modules it was begun with.",
            )
        is_narrow = any("state1" in entry for entry in state["moments"].values())
        if is_narrow != self.is_narrow:
            raise UserError(
                "the checkpoint's optimizer keeps its state in another number of bits",
                f"Go on {'with' if is_narrow else 'without'} --use_8bit_adam, as it was begun.",
            )
        for flat in self.flats:
            flat.set_moments(self.optimizer.state[flat.whole], state["moments"])
        if not self.flats:
            groups = self.optimizer.state_dict()["param_groups"]
            moments = {number: state["moments"][name] for number, name in enumerate(self.names)}
            self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def _optimizer(
    groups: Sequence[ParameterGroup],
    parts: Sequence[Sequence[nn.Parameter]],
    config: TrainConfig,
    device: torch.device,
) -> torch.optim.Optimizer:
    # On a GPU the rate lives there, where a recorded step reads it.
    on_device = device.type == "cuda" and not config.use_8bit_adam
    parameters = [
        {
            "params": list(tensors),
            "lr": torch.zeros((), device=device) if on_device else 0.0,
            "weight_decay": group.weight_decay,
        }
        for group, tensors in zip(groups, parts, strict=True)
    ]
    options: dict[str, Any] = {
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
    }
    if not config.use_8bit_adam:
        fused = device.type in ("cpu", "cuda")
        options |= {"fused": fused, "capturable": device.type == "cuda"}
        optimizer = torch.optim.AdamW(parameters, **options)
        for tensor in (tensor for tensors in parts for tensor in tensors):
            # From the start on, at one place: a step may be recorded before it was ever taken.
            optimizer.state[tensor] = {
                "step": torch.zeros((), device=device if fused else "cpu"),
                "exp_avg": torch.zeros_like(tensor, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(tensor, memory_format=torch.preserve_format),
            }
        return optimizer
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            "--use_8bit_adam needs bitsandbytes, which is not installed",
            "Run: pip install 'scumble[bitsandbytes]', or leave the flag away: LoRA's optimizer "
            "state is only a few MB.",
        ) from error
    narrow: torch.optim.Optimizer = AdamW8bit(parameters, **options)
    return narrow
