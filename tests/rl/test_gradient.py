"""The policy gradient on a sampler whose true gradient is known: why the baseline has step noise of its own."""

import pytest
import torch
from torch import Tensor

from cxrsynth.diffusion.ddim import step_log_prob
from cxrsynth.rewards.feedback import Comparison, compare
from cxrsynth.rl.objective import clipped_objective

STD, SAMPLES = 0.5, 400_000


def reward(z: Tensor) -> Tensor:
    return -(z - 1).square()


def estimate(theta: float, *, shared: bool) -> float:
    """Gradient of the mean reward of z = theta + 0.5 eps, by the functions of `tune`; the baseline is theta 0."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(SAMPLES, 1, 1, 1, generator=rng)
    other = noise if shared else torch.randn(SAMPLES, 1, 1, 1, generator=rng)
    weight = torch.tensor(theta, requires_grad=True)
    reached = theta + STD * noise
    std = torch.full((SAMPLES, 1, 1, 1), STD)
    log_prob = step_log_prob(reached, weight.expand(SAMPLES, 1, 1, 1), std)
    feedback = compare(
        reward(reached).view(-1, 1), reward(STD * other).view(-1, 1), kind=Comparison.MARGIN, scale=torch.ones(1)
    )
    loss = clipped_objective(log_prob, log_prob.detach(), feedback[:, 0], clip_range=1e-4)
    (loss.loss / SAMPLES).backward()
    assert weight.grad is not None
    return -float(weight.grad)


@pytest.mark.parametrize("theta", [0.0, 0.2, 0.6])
def test_independent_step_noise_leaves_the_gradient_unbiased(theta: float) -> None:
    assert estimate(theta, shared=False) == pytest.approx(2 * (1 - theta), abs=0.03)


def test_shared_step_noise_turns_the_gradient_around() -> None:
    """The figures of the trial: 1.60 is true, -0.40 comes out."""
    assert estimate(0.2, shared=True) == pytest.approx(-0.40, abs=0.03)
    assert estimate(0.0, shared=True) == pytest.approx(0.0, abs=1e-6)  # no signal at all at the start
