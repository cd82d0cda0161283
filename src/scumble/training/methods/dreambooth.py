"""DreamBooth: adapters for one subject, and a prior that keeps its class (arXiv:2208.12242)."""

from scumble.training.denoising import DenoisingLoss, Draws
from scumble.training.phase import Phase, SampleLoss
from scumble.training.prior import BasePriorLoss, any_of
from scumble.training.rates import adapter_groups
from scumble.training.taught import Taught
from scumble.training.workshop import Workshop, fresh_adapters, plan_batches, training_steps


def phases(workshop: Workshop) -> list[Phase]:
    """One phase: the subject's pictures and, if asked for, a sample of its class for each."""
    plan = plan_batches(workshop)
    taught = Taught(adapters=fresh_adapters(workshop))
    losses: dict[str, SampleLoss] = {"subject": workshop.picture_loss()}
    if workshop.config.with_prior_preservation:
        losses["prior"] = _prior(workshop, taught)
    return [
        Phase(
            name="dreambooth",
            first_step=0,
            max_steps=training_steps(workshop, plan),
            plan=plan,
            taught=taught,
            groups=adapter_groups(taught.adapters, workshop.config, workshop.denoiser_name),
            losses=losses,
            dropouts=workshop.dropouts(),
        )
    ]


def _prior(workshop: Workshop, taught: Taught) -> SampleLoss:
    config, device = workshop.config, workshop.runtime.device
    if config.prior_from == "base":
        assert config.class_prompt is not None, "the configuration has checked it"
        draws = Draws(config, workshop.objective, workshop.gathered.train, device, of="prior ")
        prompt, weight = config.class_prompt, config.prior_loss_weight
        return BasePriorLoss(workshop.denoising, draws, taught, prompt, weight)
    pictures = workshop.gathered.class_pictures
    assert pictures is not None, "they are gathered with prior preservation"
    choose = any_of(len(pictures.examples), config.seed)
    draws = Draws(config, workshop.objective, pictures, device, choose, "class ")
    return DenoisingLoss(workshop.denoising, draws, config.prior_loss_weight)
