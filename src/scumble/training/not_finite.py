"""What is left of a step whose loss or gradient was not finite: facts and tensors to look into.

Nothing is watched while all is well. The samples of a step are drawn by name, so that those of the
bad one can be drawn again, and passed through the model once more with an eye on every layer.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from scumble import console
from scumble.errors import first_line
from scumble.formats.container import write_atomically
from scumble.training.debug_batches import alone, facts_of, samples_of
from scumble.training.denoising import Samples
from scumble.training.journal import NotFiniteError
from scumble.training.optimizers import Update
from scumble.training.phase import Phase
from scumble.training.record import versions
from scumble.training.workshop import Workshop

FOLDER = "not_finite"
GROWN = 1e4
"""No number that was taught well is as large."""


def examined(
    error: NotFiniteError, workshop: Workshop, phase: Phase, update: Update
) -> NotFiniteError:
    """Write what can be found out about a bad step into the run's folder.

    Args:
        error: names the step. The weights must be those of the step before.
        workshop: model, data and settings.
        phase: that the step belongs to.
        update: of the phase.

    Returns:
        The error, which names the first bad layer and the folder too; unchanged where nothing
        could be found out.
    """
    folder = Path(workshop.config.output_dir) / FOLDER / f"step_{error.step:06d}"
    try:
        facts, tensors = _look_into(error, workshop, phase, update)
        text = json.dumps(_spelled(facts), indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / "facts.json", text.encode("utf-8", "backslashreplace"))
        write_atomically(folder / "tensors.safetensors", save(tensors))
    except Exception as trouble:
        console.say(f"the bad step could not be looked into: {first_line(trouble)}")
        return error
    finally:
        update.forget_gradients()
    found = f"{error.message}; {_summary(facts)}; all about it: {folder}"
    return NotFiniteError(error.step, found, _advice(facts) or error.hint)


def _look_into(
    error: NotFiniteError, workshop: Workshop, phase: Phase, update: Update
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    step = error.step - 1
    plan = phase.plan.step(step)
    phase.enter_step(step)
    update.forget_gradients()
    samples: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    with _watched(workshop.components.parts) as bad_layers:
        for name, positions, part in samples_of(phase, plan):
            loss = phase.losses[name]
            loss_B = loss(part)
            update.backward(loss_B.sum() / phase.plan.nominal)
            for index, position in enumerate(positions):
                facts = facts_of(loss, plan, position, alone(part, index))
                samples.append({"part": name, **facts, "loss": float(loss_B[index].detach())})
            tensors |= _named(f"{name}.{positions.start}", part)
    taught = phase.taught.named_parameters()
    gradients = {n: p.grad / update.loss_scale for n, p in taught.items() if p.grad is not None}
    facts = {
        "message": error.message,
        "step": error.step,
        "phase": phase.name,
        "epoch": plan.epoch,
        "learning_rates": update.learning_rates(step - phase.first_step),
        "loss_scale": update.loss_scale,
        "dtype": str(workshop.runtime.dtype).removeprefix("torch."),
        "device": workshop.runtime.device.type,
        "versions": versions(),
        "first_bad_layer": bad_layers[0] if bad_layers else None,
        "samples": samples,
        "bad_inputs": [name for name, tensor in tensors.items() if not _is_finite(tensor)],
        "bad_frozen_weights": _bad_weights(workshop.components.parts, taught),
        "gradients": {name: _numbers(tensor) for name, tensor in gradients.items()},
        "weights": {name: _numbers(tensor.detach()) for name, tensor in taught.items()},
    }
    return facts, tensors


def _summary(facts: Mapping[str, Any]) -> str:
    layer = facts["first_bad_layer"]
    if facts["bad_inputs"]:
        return f"its inputs are not finite: {facts['bad_inputs'][0]}"
    if facts["bad_frozen_weights"]:
        return f"the base itself is not finite: {facts['bad_frozen_weights'][0]}"
    if layer is not None:
        return f"the first layer to give NaN or infinity is {layer['name']}"
    bad = [name for name, numbers in facts["gradients"].items() if numbers["not_finite"]]
    if bad:
        return f"forward all is finite, the gradient of {bad[0]} is not ({len(bad)} in all)"
    return "computed once more, all of it is finite"


def _advice(facts: Mapping[str, Any]) -> str:
    """What to do where the run was lost before it was noticed; else nothing."""
    largest = max((n["largest"] or 0.0 for n in facts["weights"].values()), default=0.0)
    if largest < GROWN:
        return ""
    return (
        f"What is taught had grown to {largest:.1g} by then: nothing can go on from there. Start "
        "anew in another --output_dir, with a lower --learning_rate."
    )


@contextmanager
def _watched(parts: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """List the layers whose output is not finite, in the order in which they are computed."""
    models = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    names = {
        id(module): f"{component}.{path}".rstrip(".")
        for component, model in models.items()
        for path, module in model.named_modules()
    }
    found: list[dict[str, Any]] = []

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        bad = [tensor for tensor in _tensors(output) if not _is_finite(tensor)]
        if bad and id(module) in names:
            found.append(
                {
                    "name": names[id(module)],
                    "kind": type(module).__name__,
                    "inputs_are_finite": all(map(_is_finite, _tensors(inputs))),
                    **_numbers(bad[0]),
                }
            )

    handle = nn.modules.module.register_module_forward_hook(look)
    try:
        yield found
    finally:
        handle.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(inner)


def _bad_weights(parts: Mapping[str, Any], taught: Mapping[str, Tensor]) -> list[str]:
    learning = {id(parameter) for parameter in taught.values()}
    return [
        f"{component}.{name}"
        for component, model in parts.items()
        if isinstance(model, nn.Module)
        for name, tensor in _state(model)
        if id(tensor) not in learning and not _is_finite(tensor)
    ]


def _state(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _numbers(tensor: Tensor) -> dict[str, Any]:
    """How many numbers are not finite, and how large the others are, if there are any."""
    numbers = tensor.detach().float()
    finite = torch.isfinite(numbers)
    largest = float(numbers[finite].abs().max()) if bool(finite.any()) else None
    return {"not_finite": int((~finite).sum()), "of": numbers.numel(), "largest": largest}


def _named(prefix: str, samples: Samples) -> dict[str, Tensor]:
    named = {"latents": samples.latents, "noise": samples.noise, "timesteps": samples.timesteps}
    named |= {} if samples.mask is None else {"mask": samples.mask}
    named |= {f"conditioning.{name}": t for name, t in (samples.conditioning or {}).items()}
    return {f"{prefix}.{name}": t.detach().cpu().contiguous() for name, t in named.items()}


def _spelled(value: Any) -> Any:
    """JSON has no NaN: numbers that are not finite become words."""
    if isinstance(value, Mapping):
        return {name: _spelled(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_spelled(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
