"""Noise, targets and weights against their formulas in float64, and draws as pure functions of (seed, n)."""

from __future__ import annotations

import pytest
import torch

from studio.errors import BadConfig, DoesNotFit, UnknownName
from studio.families.process import PREDICTIONS, Diffusion, Flow
from studio.trainers.image.objective import DENSITIES, NOT_FOR_FLOWS, WEIGHTINGS, Objective, row_losses
from studio.trainers.loop.draws import Draws, micro_batches
from studio.trainers.loop.group import Group

ALPHAS = torch.linspace(0.9991, 0.0047, 1000, dtype=torch.float64)  # the ends of Stable Diffusion's schedule
SNR = ALPHAS / (1 - ALPHAS)


def test_min_snr_for_epsilon_and_v():
    """Hang et al. 2023, eq. 5 and appendix: ε: min(snr, γ)/snr; v: min(snr, γ)/(snr + 1)."""
    for gamma in (1.0, 5.0, 20.0):
        for prediction, expected in (
            ("epsilon", SNR.clamp(max=gamma) / SNR),
            ("v_prediction", SNR.clamp(max=gamma) / (SNR + 1)),
            ("sample", SNR.clamp(max=gamma)),
        ):
            got = WEIGHTINGS["min-snr"](SNR, PREDICTIONS[prediction].factor, gamma)
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


def test_min_snr_offset_is_the_formula_of_the_embedded_base():
    got = WEIGHTINGS["min-snr-offset"](SNR, PREDICTIONS["v_prediction"].factor, 5.0)
    torch.testing.assert_close(got, (0.3 + SNR.clamp(max=3)) / (SNR + 1) * 1.5, rtol=1e-12, atol=0)


def test_debiased_for_epsilon_is_one_over_root_snr():
    got = WEIGHTINGS["debiased"](SNR, PREDICTIONS["epsilon"].factor, 5.0)
    torch.testing.assert_close(got, SNR.clamp(max=1000).sqrt() / SNR, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", sorted(set(WEIGHTINGS) - {"none"}))  # "none" weighs the prediction's own error
def test_a_weighting_weighs_the_picture_alike_whatever_is_predicted(name):
    """The same wrong picture costs the same for ε, v and sample, because factor · e² is the prediction's error."""
    generator = torch.Generator().manual_seed(0)
    x, n, wrong = (torch.randn(1000, 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    a, s = ALPHAS.sqrt().view(-1, 1, 1, 1), (1 - ALPHAS).sqrt().view(-1, 1, 1, 1)
    x_t = a * x + s * n
    guess = x + 0.1 * wrong  # a picture, and the ε and v that imply it at x_t
    epsilon = (x_t - a * guess) / s
    implied = {"sample": guess, "epsilon": epsilon, "v_prediction": a * epsilon - s * guess}
    costs = []
    for prediction, value in implied.items():
        row = PREDICTIONS[prediction]
        costs.append(row_losses(value, row.target(x, n, a, s), WEIGHTINGS[name](SNR, row.factor, 5.0)))
    torch.testing.assert_close(costs[1], costs[0], rtol=1e-7, atol=0)
    torch.testing.assert_close(costs[2], costs[0], rtol=1e-7, atol=0)


def test_a_flows_factor_is_one_over_sigma_squared():
    """From x_t = (1 − s) x + s n: a guess x̂ implies n̂ − x̂, whose error is (x̂ − x)/s."""
    process, s = Flow(), torch.tensor([0.01, 0.3, 0.9], dtype=torch.float64)
    factor = PREDICTIONS["flow_prediction"].factor(process.snr(1000 * s))
    torch.testing.assert_close(factor, 1 / s**2, rtol=1e-12, atol=0)


def diffusion(scheduler, **settings):
    return Objective(process=Diffusion.of(scheduler), **settings)


def test_noise_and_targets_equal_diffusers():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    generator = torch.Generator().manual_seed(0)
    x, n = (torch.randn(4, 3, 5, 5, generator=generator) for _ in range(2))
    t = torch.tensor([0, 10, 500, 999])
    objective = diffusion(scheduler)
    torch.testing.assert_close(objective.noisy(x, n, t), scheduler.add_noise(x, n, t))
    assert torch.equal(objective.target(x, n, t), n)
    v = Objective(process=Diffusion(scheduler.alphas_cumprod, "v_prediction"))
    torch.testing.assert_close(v.target(x, n, t), scheduler.get_velocity(x, n, t))


def test_a_flows_noise_and_times_equal_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    objective = Objective(process=Flow.of(scheduler), shift=3.0)
    generator = torch.Generator().manual_seed(0)
    x, n = (torch.randn(4, 3, 5, 5, generator=generator) for _ in range(2))
    t = scheduler.timesteps[[999, 750, 500, 1]]  # of u = 0.001, 0.25, 0.5, 0.999
    torch.testing.assert_close(objective.timesteps(torch.tensor([0.001, 0.25, 0.5, 0.999], dtype=torch.float64)), t)
    torch.testing.assert_close(objective.noisy(x, n, t), scheduler.scale_noise(x, t, n))
    assert torch.equal(objective.target(x, n, t), n - x)


def test_densities_are_densities():
    """A number that is evenly spread becomes one whose distribution is the density's: Φ(logit) for logit-normal."""
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert torch.equal(DENSITIES["uniform"](u), u)
    drawn = DENSITIES["logit-normal"](u)
    back = 0.5 * (1 + torch.erf(torch.logit(drawn) / 2**0.5))
    torch.testing.assert_close(back, u, rtol=1e-9, atol=1e-12)


def test_a_schedule_that_ends_in_pure_noise_has_finite_weights():
    alphas = torch.tensor([0.9, 0.5, 0.0])
    for name in WEIGHTINGS:
        for prediction in set(PREDICTIONS) - {"flow_prediction"}:
            objective = Objective(process=Diffusion(alphas, prediction), weighting=name)
            assert objective.weights(torch.arange(3)).isfinite().all()
    for name in set(WEIGHTINGS) - set(NOT_FOR_FLOWS):
        weights = Objective(process=Flow(), weighting=name).weights(torch.tensor([0.0, 500.0, 1000.0]))
        assert weights.isfinite().all()
    assert Diffusion(alphas).snr(torch.tensor([2])) == 0


def test_objective_refuses_what_it_cannot_train():
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    with pytest.raises(UnknownName, match="did you mean 'min-snr'"):
        diffusion(DDPMScheduler(), weighting="minsnr")
    with pytest.raises(UnknownName, match="did you mean 'uniform'"):
        diffusion(DDPMScheduler(), density="unifrom")
    with pytest.raises(BadConfig, match="gamma=0"):
        diffusion(DDPMScheduler(), weighting="min-snr", gamma=0)
    with pytest.raises(DoesNotFit, match="no table"):
        diffusion(FlowMatchEulerDiscreteScheduler())
    with pytest.raises(DoesNotFit, match="samples no flow"):
        Flow.of(DDPMScheduler())
    with pytest.raises(DoesNotFit, match="shift=3.0 is for flows"):
        diffusion(DDPMScheduler(), shift=3.0)
    with pytest.raises(DoesNotFit, match="'min-snr' is for bases that predict"):
        Objective(process=Flow(), weighting="min-snr")
    with pytest.raises(BadConfig, match="shift=0"):
        Objective(process=Flow(), shift=0)


def test_accumulation_draws_what_a_larger_batch_draws():
    whole = [n for step in range(3) for part in micro_batches(step, 4, 1, Group()) for n in part]
    parts = [n for step in range(3) for part in micro_batches(step, 2, 2, Group()) for n in part]
    assert parts == whole == list(range(12))


def test_draws_depend_on_seed_and_number_only():
    one, other = Draws(7), Draws(7)
    other.noise(range(50), (2, 2))  # what was drawn before does not matter
    assert torch.equal(one.noise([3], (2, 2))[0], other.noise([9, 3], (2, 2))[1])
    assert torch.equal(one.uniforms([3, 4], "timestep"), other.uniforms(range(5), "timestep")[3:])
    assert not torch.equal(one.noise([3], (2, 2)), Draws(8).noise([3], (2, 2)))
    assert not torch.equal(one.noise([3], (2, 2)), Draws(7, "prior").noise([3], (2, 2)))
    assert one.generator(3, "noise").initial_seed() != one.generator(3, "flip").initial_seed()


def test_every_epoch_draws_every_item_once_in_a_new_order():
    draws = Draws(0)
    epochs = [[draws.item(epoch * 7 + place, 7) for place in range(7)] for epoch in range(20)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 15


def test_timesteps_are_uniform():
    times = Diffusion(torch.linspace(0.9, 0.1, 10)).timesteps(Draws(1).uniforms(range(4000), "timestep"), 1.0)
    counts = torch.bincount(times, minlength=10)
    assert counts.min() > 320 and counts.max() < 480  # 400 ± 4 standard deviations of 19
