"""Our noise schedules, objectives and loss weights against diffusers' own."""

import json

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from scumble.diffusion.objectives import DiscreteObjective, Prediction
from scumble.diffusion.schedules import BETAS, schedule_from_betas
from scumble.diffusion.timesteps import TIMESTEP_SAMPLERS
from scumble.diffusion.weighting import min_snr_weights, offset_noise
from scumble.errors import UserError
from scumble.families import FAMILIES
from scumble.families.locate import BaseModel

START, END = 0.00085, 0.012
EVERY_TIMESTEP = torch.arange(1000)


def theirs(name: str, *, zero_terminal_snr: bool = False) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=START,
        beta_end=END,
        beta_schedule=name,
        rescale_betas_zero_snr=zero_terminal_snr,
    )


def ours(name: str, prediction: Prediction, *, zero_terminal_snr: bool = False):
    betas = BETAS[name](START, END, 1000)
    schedule = schedule_from_betas(betas, zero_terminal_snr=zero_terminal_snr)
    return DiscreteObjective(schedule, prediction)


@pytest.fixture
def latents_noise_timesteps():
    torch.manual_seed(0)
    timesteps = torch.tensor([0, 1, 250, 500, 999])
    return torch.randn(5, 4, 3, 2), torch.randn(5, 4, 3, 2), timesteps


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_every_schedule_is_diffusers(name, zero_terminal_snr):
    wanted = theirs(name, zero_terminal_snr=zero_terminal_snr).alphas_cumprod
    betas = BETAS[name](START, END, 1000)
    got = schedule_from_betas(betas, zero_terminal_snr=zero_terminal_snr)
    assert got.num_timesteps == 1000
    assert got.has_zero_terminal_snr == zero_terminal_snr == bool(wanted[-1] == 0)
    torch.testing.assert_close(got.alphas_cumprod, wanted, rtol=1e-5, atol=2e-7)


def test_the_schedules_differ():
    curves = [BETAS[name](START, END, 1000) for name in BETAS]
    assert all(not torch.allclose(curves[i], curves[i - 1], rtol=0.01) for i in range(len(BETAS)))


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_noise_is_added_as_diffusers_does(name, zero_terminal_snr, latents_noise_timesteps):
    objective = ours(name, Prediction.V, zero_terminal_snr=zero_terminal_snr)
    wanted = theirs(name, zero_terminal_snr=zero_terminal_snr).add_noise(*latents_noise_timesteps)
    got = objective.noised(*latents_noise_timesteps)
    # Where hardly any noise is added, diffusers' way back to betas costs it some digits.
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=5e-5)


def test_the_last_step_of_a_rescaled_schedule_is_the_noise_alone(latents_noise_timesteps):
    objective = ours("scaled_linear", Prediction.V, zero_terminal_snr=True)
    latents, noise, timesteps = latents_noise_timesteps
    assert torch.equal(objective.noised(latents, noise, timesteps)[-1], noise[-1])
    assert torch.equal(objective.target(latents, noise, timesteps)[-1], -latents[-1])


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_the_velocity_is_diffusers(zero_terminal_snr, latents_noise_timesteps):
    objective = ours("scaled_linear", Prediction.V, zero_terminal_snr=zero_terminal_snr)
    scheduler = theirs("scaled_linear", zero_terminal_snr=zero_terminal_snr)
    wanted = scheduler.get_velocity(*latents_noise_timesteps)
    got = objective.target(*latents_noise_timesteps)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_epsilon_asks_for_the_noise_itself(latents_noise_timesteps):
    objective = ours("scaled_linear", Prediction.EPSILON)
    assert torch.equal(objective.target(*latents_noise_timesteps), latents_noise_timesteps[1])


def test_epsilon_cannot_be_learnt_from_pure_noise():
    with pytest.raises(UserError, match="ends in pure noise"):
        ours("scaled_linear", Prediction.EPSILON, zero_terminal_snr=True)


@pytest.mark.parametrize("gamma", [1.0, 5.0, float("inf")])
@pytest.mark.parametrize("prediction", Prediction)
def test_min_snr_weights_are_those_of_diffusers_scripts(prediction, gamma):
    snr = compute_snr(theirs("scaled_linear"), EVERY_TIMESTEP)
    wanted = torch.minimum(snr, torch.full_like(snr, gamma))
    wanted = wanted / (snr if prediction is Prediction.EPSILON else snr + 1)
    schedule = ours("scaled_linear", prediction).schedule
    got = min_snr_weights(schedule.snr(EVERY_TIMESTEP), gamma, prediction)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_min_snr_weights_stay_finite_where_the_signal_ends():
    schedule = ours("scaled_linear", Prediction.V, zero_terminal_snr=True).schedule
    weights = min_snr_weights(schedule.snr(EVERY_TIMESTEP), 5.0, Prediction.V)
    assert torch.isfinite(weights).all()
    assert weights[-1] == 0


def test_trained_betas_take_the_place_of_the_curve(tmp_path):
    betas = [0.1, 0.2, 0.3]
    (tmp_path / "scheduler").mkdir()
    config = {"trained_betas": betas, "beta_schedule": "linear", "num_train_timesteps": 3}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    base = BaseModel("base", str(tmp_path), "StableDiffusionPipeline")
    schedule = FAMILIES["stable_diffusion"].objective(base).schedule
    wanted = DDPMScheduler(trained_betas=betas).alphas_cumprod
    torch.testing.assert_close(schedule.alphas_cumprod, wanted)


@pytest.mark.parametrize("name", TIMESTEP_SAMPLERS)
def test_every_sampler_reaches_all_timesteps_and_no_other(name):
    draws = [TIMESTEP_SAMPLERS[name](4, torch.Generator().manual_seed(s)) for s in range(300)]
    assert set(draws) == {0, 1, 2, 3}
    again = [TIMESTEP_SAMPLERS[name](4, torch.Generator().manual_seed(s)) for s in range(300)]
    assert draws == again


def test_samplers_spread_as_their_names_say():
    draw = torch.Generator().manual_seed(0)
    shares = {}
    for name, sampler in TIMESTEP_SAMPLERS.items():
        drawn = torch.tensor([sampler(1000, draw) for _ in range(3000)])
        shares[name] = ((drawn >= 250) & (drawn < 750)).float().mean().item()
    assert shares["uniform"] == pytest.approx(0.5, abs=0.04)
    # P(|z| < ln 3) of a standard normal: what the logistic curve maps onto the middle half.
    assert shares["logit_normal"] == pytest.approx(0.728, abs=0.04)


def test_offset_noise_moves_whole_channels():
    torch.manual_seed(0)
    noise = torch.randn(4, 5, 6)
    assert offset_noise(noise, 0.0, torch.Generator()) is noise
    moved = offset_noise(noise, 0.1, torch.Generator().manual_seed(3)) - noise
    torch.testing.assert_close(moved, moved[:, :1, :1].expand_as(moved), rtol=0, atol=1e-6)
    assert len(set(moved[:, 0, 0].tolist())) == 4
    louder = offset_noise(noise, 0.2, torch.Generator().manual_seed(3)) - noise
    torch.testing.assert_close(louder, 2 * moved, rtol=1e-4, atol=1e-6)
