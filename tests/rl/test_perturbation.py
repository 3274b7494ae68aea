"""The condition's shift as an action: its gradient on a sampler whose true gradient is known, mirrored samples, KL."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from cxrsynth.rewards.feedback import Comparison, compare
from cxrsynth.rl.objective import clipped_objective
from cxrsynth.rl.perturbation import sample_shifts, shift_kl, shift_log_prob
from cxrsynth.rl.rollout_spec import rollout_specs

STD, SAMPLES = 0.5, 200_000


def reward(shift: Tensor, eps: Tensor) -> Tensor:
    return -(shift - 1).square() + 2 * eps


def estimates(mean: float, *, mirrored: bool, noise_is_shared: bool) -> Tensor:
    """Gradients [SAMPLES], the shift being the action and eps the step noise, beside a baseline without a shift."""
    rng = torch.Generator().manual_seed(0)
    count = SAMPLES // 2
    draw, eps, other = torch.randn(3, SAMPLES, generator=rng)
    if mirrored:  # the second half of all is the first, the other way
        draw = torch.cat([draw[:count], -draw[:count]])
        eps, other = eps[:count].repeat(2), other[:count].repeat(2)
    if noise_is_shared:
        other = eps
    weight = torch.full((SAMPLES, 1), mean, requires_grad=True)
    shifts = weight.detach() + STD * draw[:, None]
    log_prob = shift_log_prob(shifts, weight, STD, elements=1)
    feedback = compare(
        reward(shifts, eps[:, None]),
        reward(torch.zeros(SAMPLES, 1), other[:, None]),
        kind=Comparison.MARGIN,
        scale=torch.ones(1),
    )
    loss = clipped_objective(log_prob, log_prob.detach(), feedback[:, 0], clip_range=1e-4)
    loss.loss.backward()
    assert weight.grad is not None
    return -weight.grad[:, 0]


@pytest.mark.parametrize("mean", [0.0, 0.4])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("noise_is_shared", [False, True])
def test_the_gradient_is_unbiased_even_if_step_noise_is_shared(
    mean: float, mirrored: bool, noise_is_shared: bool
) -> None:
    """Unlike that of the denoising steps (test_gradient.py): the step noise is not an action of the embeddings."""
    found = estimates(mean, mirrored=mirrored, noise_is_shared=noise_is_shared)
    error = float(found.std()) / SAMPLES**0.5
    assert float(found.mean()) == pytest.approx(2 * (1 - mean), abs=5 * error)


def test_mirrored_samples_isolate_the_effect_of_the_shift() -> None:
    """In a pair the step noise cancels, so the same accuracy takes a fraction of the images."""
    alone = estimates(0.0, mirrored=False, noise_is_shared=False)
    pairs = estimates(0.0, mirrored=True, noise_is_shared=False).view(2, -1).mean(0)
    assert 2 * float(pairs.var()) < 0.5 * float(alone.var())


def test_mirrored_trajectories_differ_in_the_sign_alone() -> None:
    drawn = rollout_specs(3, seed=1, reports=5, per_iteration=2, images=4, pool=4, mirrored=True)
    assert [draw.sign for draw in drawn] == [1.0, -1.0] * 4
    assert [draw.stream for draw in drawn] == [0, 0, 2, 2, 4, 4, 6, 6]
    assert all(plus.start == minus.start for plus, minus in zip(drawn[::2], drawn[1::2], strict=True))
    assert drawn[0].start != drawn[2].start
    mean = torch.arange(16.0).view(8, 2)
    made = sample_shifts(mean, 0.3, drawn, "key", elements=4)
    away = (made.values - mean).view(4, 2, 2)
    assert torch.allclose(away[:, 0], -away[:, 1], atol=1e-6)
    assert torch.allclose(made.log_probs.view(4, 2)[:, 0], made.log_probs.view(4, 2)[:, 1])
    assert len({tuple(row.tolist()) for row in away[:, 0]}) == 4
    other = sample_shifts(mean, 0.3, drawn, "another key", elements=4)
    assert not torch.allclose(other.values, made.values)


def test_log_probability_and_divergence_agree_with_torch() -> None:
    rng = torch.Generator().manual_seed(4)
    values, mean = torch.randn(2, 6, 3, generator=rng)
    expected = Normal(mean, 0.3).log_prob(values).sum(1) / 50
    found = shift_log_prob(values, mean, 0.3, elements=50)
    assert torch.allclose(found - found[0], expected - expected[0], atol=1e-5)
    divergence = kl_divergence(Normal(mean, 0.3), Normal(torch.zeros(3), 0.3)).sum(1) / 50
    assert torch.allclose(shift_kl(mean, 0.3, elements=50), divergence, atol=1e-5)
