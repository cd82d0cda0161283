"""Workshop: what every training method builds its phases from."""

from dataclasses import dataclass

from scumble import console
from scumble.adapters import ADAPTERS
from scumble.adapters.inject import AdapterSet, Target, inject
from scumble.config import TrainConfig
from scumble.data.buckets import BatchPlan
from scumble.diffusion.objectives import DiscreteObjective
from scumble.errors import UserError
from scumble.families import Components, Family
from scumble.training.precompute import EncodedData
from scumble.training.runtime import Runtime

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
        data: encoded pictures and captions.
    """

    config: TrainConfig
    runtime: Runtime
    family: Family
    components: Components
    objective: DiscreteObjective
    data: EncodedData

    @property
    def denoiser_name(self) -> str:
        """The denoiser's component name."""
        return self.family.components[0]


def targets(config: TrainConfig, family: Family) -> list[Target]:
    """The layers to adapt: the configured ones, or the family's own choice.

    Raises:
        UserError: a malformed target or an unknown adapter type.
    """
    if config.adapter_type not in ADAPTERS:
        known = ", ".join(ADAPTERS)
        raise UserError(f"unknown --adapter_type '{config.adapter_type}'", f"Known: {known}.")
    patterns = config.target_modules or family.default_targets
    return [Target.parse(pattern, config.rank, config.alpha) for pattern in patterns]


def denoiser_adapters(workshop: Workshop) -> dict[str, AdapterSet]:
    """Put fresh adapters on the denoiser.

    Raises:
        UserError: a target matches nothing.
    """
    config = workshop.config
    adapters = inject(
        workshop.components[workshop.denoiser_name],
        ADAPTER_NAME,
        ADAPTERS[config.adapter_type],
        targets(config, workshop.family),
        init=config.adapter_init,
        seed=config.seed,
    )
    return {workshop.denoiser_name: adapters}


def training_steps(config: TrainConfig, plan: BatchPlan) -> int:
    """How many steps to train: as given, or so many epochs of the plan.

    Raises:
        UserError: the warm-up would last longer.
    """
    steps = config.max_train_steps or config.num_train_epochs * plan.steps_per_epoch
    if config.lr_scheduler != "constant" and config.lr_warmup_steps >= steps:
        raise UserError(
            f"--lr_warmup_steps {config.lr_warmup_steps} would outlast the run of {steps} steps",
            "Make it a tenth of the steps or less.",
        )
    if config.lr_scheduler == "constant" and config.lr_warmup_steps:
        console.say(
            "--lr_warmup_steps has no effect with --lr_scheduler constant; "
            "constant_with_warmup has one"
        )
    return steps


def plan_batches(workshop: Workshop) -> BatchPlan:
    """Plan which pictures each step sees."""
    config = workshop.config
    return BatchPlan(
        [example.bucket for example in workshop.data.examples],
        config.train_batch_size * workshop.runtime.num_processes,
        config.gradient_accumulation_steps,
        config.seed,
    )
