"""Gather the facts of a run from what is loaded for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from scumble.training.checkup.facts import (
    BaseFacts,
    Facts,
    Kind,
    Rate,
    Room,
    Shown,
    Stretch,
)
from scumble.training.checkup.surroundings import disk_free_bytes, surroundings
from scumble.training.forecast import Forecast, free_bytes
from scumble.training.phase import Phase
from scumble.training.rates import ParameterGroup
from scumble.training.taught import Taught, together
from scumble.training.workshop import Workshop, targets


def survey(
    workshop: Workshop,
    phases: Sequence[Phase],
    level: str,
    forecast: Forecast,
    pictures: Sequence[Shown] | None = None,
    steps_per_epoch: int | None = None,
    beyond: Mapping[str, int] | None = None,
) -> Facts:
    """Gather the facts.

    Args:
        workshop: with everything loaded.
        phases: of the method.
        level: of --memory.
        forecast: of the memory.
        pictures: that the run will see, where the workshop has only some of them.
        steps_per_epoch: of all those.
        beyond: caption -> tokens of it that are not read, where that is not said otherwise.
    """
    config, runtime = workshop.config, workshop.runtime
    return Facts(
        config=config,
        pictures=_shown(workshop) if pictures is None else pictures,
        report=workshop.gathered.report,
        batch=workshop.batch_size,
        steps_per_epoch=steps_per_epoch or phases[0].plan.steps_per_epoch,
        stretches=[Stretch(phase.name, phase.max_steps) for phase in phases],
        rates=_rates(workshop, phases),
        base=_base(workshop),
        room=Room(
            level=level,
            peak_bytes=forecast.peak_bytes,
            more_bytes=forecast.more_bytes,
            free_bytes=free_bytes(runtime.device) // runtime.sharers,
            checkpoint_bytes=_checkpoint_bytes(workshop, phases),
            disk_free_bytes=disk_free_bytes(Path(config.output_dir)),
        ),
        machine=surroundings(config, runtime),
        beyond=beyond or {},
    )


def _shown(workshop: Workshop) -> list[Shown]:
    sizes = workshop.gathered.report.sizes
    return [
        Shown(example.id, *sizes[example.id], example.bucket, example.captions)
        for example in workshop.gathered.train.examples
    ]


def _base(workshop: Workshop) -> BaseFacts:
    base, family = workshop.components.base, workshop.family
    denoiser = workshop.components[workshop.denoiser_name]
    learning = {id(p) for p in denoiser.parameters() if p.requires_grad}
    frozen = [p for p in denoiser.parameters() if id(p) not in learning]
    return BaseFacts(
        name=base.public_name,
        family=family.name,
        prediction=str(workshop.objective.prediction),
        native_px=family.geometry(base).native_px,
        parameters=sum(p.numel() for p in frozen or denoiser.parameters()),
    )


def _checkpoint_bytes(workshop: Workshop, phases: Sequence[Phase]) -> int:
    """The result, the parameters as they are, two moments, and maybe their average."""
    learning = together(phase.taught for phase in phases).named_parameters().values()
    copies = 4 + (workshop.config.ema_decay is not None)
    return copies * sum(4 * parameter.numel() for parameter in learning)


def _rates(workshop: Workshop, phases: Sequence[Phase]) -> list[Rate]:
    """The highest rate of each kind of thing that learns, by the part of the model it is of."""
    config = workshop.config
    factor = workshop.batch_size if config.scale_lr else 1
    scales = _scales(workshop)
    found: dict[tuple[str, str], Rate] = {}
    for phase in phases:
        for group in phase.groups:
            kind = _kind(group, phase.taught)
            component = next(iter(group.parameters)).split(".")[0]
            is_first = kind != "adapters" or component == workshop.denoiser_name
            scale = scales[component] if kind == "adapters" else 1.0
            rate = Rate(
                kind, component, group.learning_rate * factor, scale, phase.max_steps, is_first
            )
            known = found.setdefault((kind, component), rate)
            if known.rate < rate.rate:
                found[kind, component] = rate
    return list(found.values())


def _kind(group: ParameterGroup, taught: Taught) -> Kind:
    if any(name.split(".", 1)[1].startswith("token ") for name in group.parameters):
        return "rows"
    return "weights" if taught.models else "adapters"


def _scales(workshop: Workshop) -> dict[str, float]:
    """Component -> the largest alpha / rank on it."""
    config = workshop.config
    if not config.teaches_adapters:
        return {}
    return {
        component: max(target.alpha / target.rank for target in wanted)
        for component, wanted in targets(config, workshop.family).items()
    }
