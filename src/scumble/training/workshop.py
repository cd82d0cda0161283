"""Workshop: what every training method builds its phases from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from scumble.adapters import ADAPTERS, Adapter, LayerSpec
from scumble.adapters.inject import AdapterSet, Target, inject
from scumble.adapters.pissa import PiSSA
from scumble.config import TrainConfig, given
from scumble.data.buckets import BatchPlan
from scumble.diffusion.objectives import DiscreteObjective
from scumble.errors import UserError
from scumble.families import Components, Family, text_encoders
from scumble.training.denoising import Denoising, DenoisingLoss, Draws
from scumble.training.gather import Gathered
from scumble.training.phase import Dropouts
from scumble.training.runtime import Runtime
from scumble.training.texts import Texts

ADAPTER_NAME = "trained"
"""Name of the adapter in training on the live model."""


@dataclass(frozen=True)
class Workshop:
    """The loaded model, the encoded data and the settings of a run.

    Args:
        config: the run's settings.
        runtime: device, dtype and processes.
        family: of the base model.
        components: the loaded parts; the denoiser is among them.
        objective: noise schedule and prediction target.
        gathered: encoded pictures: to learn, to measure on, to hold the class to.
        texts: conditioning of captions.
        marks: component of the base -> what tells its weights from others'; on the main process.
        changes: settings that were others in earlier sittings, worded for the user.
    """

    config: TrainConfig
    runtime: Runtime
    family: Family
    components: Components
    objective: DiscreteObjective
    gathered: Gathered
    texts: Texts
    marks: Mapping[str, str] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)

    @property
    def denoiser_name(self) -> str:
        """The denoiser's component name."""
        return self.family.components[0]

    @property
    def denoising(self) -> Denoising:
        """How the denoiser is asked and its answers compared."""
        return Denoising(
            self.config, self.family, self.components, self.objective, self.texts, self.runtime
        )

    @property
    def batch_size(self) -> int:
        """Pictures per optimizer step over all processes."""
        config = self.config
        pictures = given(config.train_batch_size) * config.gradient_accumulation_steps
        return pictures * self.runtime.num_processes

    def dropouts(self) -> Dropouts:
        """What is switched off of adapters while they train."""
        config = self.config
        seeds = (config.seed, self.runtime.rank)
        return Dropouts(config.rank_dropout, config.lora_dropout, *seeds)

    def picture_loss(self) -> DenoisingLoss:
        """The loss of the pictures that are to be learnt."""
        draws = Draws(self.config, self.objective, self.gathered.train, self.runtime.device)
        return DenoisingLoss(self.denoising, draws)


def adapter_maker(config: TrainConfig) -> Callable[[LayerSpec, int, float], Adapter]:
    """Choose what makes the adapters of a run.

    Raises:
        UserError: an adapter type that cannot be trained, or an option that it does not know.
    """
    name = config.adapter_type
    trainable = [name for name, kind in ADAPTERS.items() if kind.is_trainable]
    if name not in ADAPTERS:
        raise UserError(f"unknown --adapter_type '{name}'", f"Known: {', '.join(trainable)}.")
    kind = ADAPTERS[name]
    if not kind.is_trainable:
        raise UserError(
            f"--adapter_type {name}: files of it are read, merged and drawn with, not trained",
            f"These can be trained: {', '.join(trainable)}.",
        )
    special = set().union(*(ADAPTERS[other].options for other in trainable))
    for option in sorted(config.changed().keys() & special - kind.options):
        having = [other for other in trainable if option in ADAPTERS[other].options]
        raise UserError(
            f"--{option} has no meaning for --adapter_type {name}",
            f"It belongs to: {', '.join(having)}.",
        )
    if config.adapter_init == "pissa":
        return PiSSA
    if "decompose_factor" not in kind.options:
        return kind
    make: Callable[..., Adapter] = kind
    return partial(make, decompose_factor=config.decompose_factor)


def targets(config: TrainConfig, family: Family) -> dict[str, list[Target]]:
    """Component name -> its layers to adapt: the configured ones, or the family's own choice.

    Raises:
        UserError: a malformed target.
    """
    denoiser = family.components[0]
    chosen = {denoiser: _parse(config, config.target_modules, family, denoiser, given(config.rank))}
    if config.train_text_encoder:
        rank = config.text_encoder_rank or given(config.rank)
        for name in text_encoders(family):
            patterns = config.text_encoder_target_modules
            chosen[name] = _parse(config, patterns, family, name, rank)
    return chosen


def _parse(
    config: TrainConfig, patterns: tuple[str, ...], family: Family, component: str, rank: int
) -> list[Target]:
    patterns = patterns or tuple(family.default_targets[component])
    parsed = [Target.parse(pattern, rank, config.alpha) for pattern in patterns]
    if not config.use_rslora:
        return parsed
    # Rounded as files may hold it: alpha / rank is then alpha / sqrt(rank) in every program.
    return [
        replace(target, alpha=torch.tensor(target.alpha * target.rank**0.5).item())
        for target in parsed
    ]


def fresh_adapters(workshop: Workshop) -> Mapping[str, AdapterSet]:
    """Put fresh adapters on the denoiser and, where asked for, on the text encoders.

    Raises:
        UserError: a target matches nothing.
    """
    config = workshop.config
    return {
        component: inject(
            workshop.components[component],
            ADAPTER_NAME,
            adapter_maker(config),
            wanted,
            init=config.adapter_init,
            seed=config.seed,
        )
        for component, wanted in targets(config, workshop.family).items()
    }


def training_steps(workshop: Workshop, plan: BatchPlan) -> int:
    """How many steps to train: as given, or so many epochs of the plan."""
    config = workshop.config
    epochs = given(config.num_train_epochs) * config.repeats
    return config.max_train_steps or epochs * plan.steps_per_epoch


def plan_batches(workshop: Workshop) -> BatchPlan:
    """Plan which pictures each step sees."""
    config = workshop.config
    return BatchPlan(
        [example.bucket for example in workshop.gathered.train.examples],
        workshop.batch_size // config.gradient_accumulation_steps,
        config.gradient_accumulation_steps,
        config.seed,
    )
