"""The loss on the forward process: where its gradient points, where it is zero, and what does not change it."""

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from cxrsynth.diffusion.schedule import DiscreteSchedule
from cxrsynth.rl.objective import Guidance, forward_objective

SHAPE = (6, 2, 4, 4)


def tensors(count: int, *, seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=rng) for _ in range(count)]


def gradient(predicted: Tensor, old: Tensor, target: Tensor, optimality: Tensor, **given: object) -> Tensor:
    weight = predicted.clone().requires_grad_()
    forward_objective(weight, old, target, optimality, **given).loss.backward()  # type: ignore[arg-type,no-untyped-call]
    assert weight.grad is not None
    return weight.grad


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_at_the_weights_that_sampled_an_optimality_of_one_half_teaches_nothing(strength: float) -> None:
    old, target = tensors(2)
    found = gradient(old, old, target, torch.full((6,), 0.5), strength=strength)
    assert not found.any()


def test_good_images_attract_and_bad_ones_repel_by_the_same_amount() -> None:
    old, target = tensors(2)
    optimality = torch.tensor([1.0, 0.9, 0.7, 0.3, 0.1, 0.0])
    found = gradient(old, old, target, optimality)
    mirrored = gradient(old, old, target, 1 - optimality)
    assert torch.allclose(found, -mirrored)
    # Equation 10 of the paper: the gradient is (2 r - 1) times that of supervised training.
    supervised = 2 * (old - target) / old[0].numel()
    assert torch.allclose(found, (2 * optimality - 1)[:, None, None, None] * supervised, atol=1e-7)


def test_moving_away_from_the_weights_that_sampled_costs_more_the_further() -> None:
    """With optimality one half the loss is strength |predicted - old|^2, and a constant."""
    old, target, direction = tensors(3)

    def loss(length: float, strength: float) -> float:
        half = torch.full((6,), 0.5)
        return float(forward_objective(old + length * direction, old, target, half, strength=strength).loss)

    for strength in (0.5, 1.0):
        risen = [loss(length, strength) - loss(0.0, strength) for length in (1.0, 2.0)]
        assert risen[0] == pytest.approx(strength * float(direction.square().flatten(1).mean(1).sum()), rel=1e-4)
        assert risen[1] == pytest.approx(4 * risen[0], rel=1e-4)


def test_what_a_network_predicts_does_not_change_what_it_learns() -> None:
    """The same clean latents as noise, velocity or themselves: the same loss, and the same gradient in their terms."""
    clean, noise, off = tensors(3)
    levels = torch.tensor([20, 100, 250, 400, 500, 600])
    optimality = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    found = {}
    for kind in ("epsilon", "v_prediction", "sample"):
        scheduler = DDIMScheduler(prediction_type=kind)
        schedule, alpha = DiscreteSchedule(scheduler, torch.device("cpu")), scheduler.alphas_cumprod[levels]
        signal, std = (part.sqrt()[:, None, None, None] for part in (alpha, 1 - alpha))
        noisy, target = signal * clean + std * noise, signal * noise - std * clean
        guess = (clean + 0.1 * off).requires_grad_()  # clean latents as the policy sees them

        def velocity(
            latents: Tensor,
            kind: str = kind,
            schedule: DiscreteSchedule = schedule,
            noisy: Tensor = noisy,
            signal: Tensor = signal,
            std: Tensor = std,
        ) -> Tensor:
            """From clean latents to the network's output, and from there as `tune` does."""
            eps = (noisy - signal * latents) / std
            output = {"epsilon": eps, "v_prediction": signal * eps - std * latents, "sample": latents}[kind]
            return schedule.velocity(noisy, output, levels)

        loss = forward_objective(velocity(guess), velocity(clean + 0.2 * off).detach(), target, optimality).loss
        loss.backward()  # type: ignore[no-untyped-call]
        assert guess.grad is not None
        found[kind] = (float(loss.detach()), guess.grad)
    for kind, (loss_found, grad) in found.items():
        assert loss_found == pytest.approx(found["v_prediction"][0], rel=1e-3), kind
        assert torch.allclose(grad, found["v_prediction"][1], rtol=1e-2, atol=1e-5), kind


def test_adaptive_weights_take_the_size_of_the_error_out() -> None:
    old, target = tensors(2)
    level, ones = torch.full((6,), 0.5), torch.ones(6)
    small = gradient(old, old, old + 0.01 * target, ones, noise_level=level)
    large = gradient(old, old, old + 10 * target, ones, noise_level=level)
    assert torch.allclose(small, large, rtol=1e-3, atol=1e-5)


def test_the_distance_to_the_baseline_pulls_back() -> None:
    old, target, baseline = tensors(3)
    half = torch.full((6,), 0.5)
    found = gradient(old, old, target, half, baseline=baseline, kl_weight=0.3)
    assert torch.allclose(found, 0.6 * (old - baseline) / old[0].numel(), atol=1e-7)
    loss = forward_objective(old, old, target, half, baseline=baseline, kl_weight=0.3)
    assert loss.baseline_distance == pytest.approx(float((old - baseline).square().flatten(1).mean(1).sum()), rel=1e-5)


def test_only_predictions_longer_than_the_bound_are_shortened() -> None:
    old, empty, target = tensors(3)
    optimality = torch.full((6,), 0.5)
    factor = torch.tensor([0.5, 0.9, 1.0, 1.05, 1.2, 2.0])[:, None, None, None]
    guidance = Guidance(1.0, 1.1, 1.0, empty, empty)  # scale 1: the guided prediction is the conditional one
    predicted = factor * old
    found = gradient(predicted, predicted, target, optimality, baseline=old, guidance=guidance)
    assert [bool(one.any()) for one in found] == [False] * 4 + [True] * 2
    assert all(float((one * own).sum()) > 0 for one, own in zip(found[4:], predicted[4:], strict=True))
    loss = forward_objective(predicted, predicted, target, optimality, baseline=old, guidance=guidance)
    assert loss.norm_ratio == pytest.approx(float(factor.sum()), rel=1e-4)


def test_guidance_multiplies_what_was_added() -> None:
    """A tenth is added; three tenths with guidance 3, to 0.5 + 3 (1 - 0.5) = 2 times the baseline's prediction."""
    [old] = tensors(1)
    empty = 0.5 * old
    plain, guided = (Guidance(scale, 1.0, 1.0, empty, empty).norm_ratio(1.1 * old, old) for scale in (1.0, 3.0))
    assert torch.allclose(plain, torch.full((6,), 1.1))
    assert torch.allclose(guided, torch.full((6,), 2.3 / 2.0))


@pytest.mark.parametrize("goal", [-1.0, 2.0])
def test_it_finds_the_optimum_of_a_linear_gaussian_toy(goal: float) -> None:
    """Data N(m, 0.25); the ideal predictor of its clean latents is linear in x_t, and its one free number is m.

    Images nearer to `goal` than the baseline's are good. From m = 0, m must move towards the goal and stay there.
    """
    rng = torch.Generator().manual_seed(0)
    variance, count = 0.25, 4000
    mean, old = torch.zeros((), requires_grad=True), torch.zeros(())
    optimizer = torch.optim.SGD([mean], lr=1.0)
    course = []

    def clean_of(noisy: Tensor, alpha: Tensor, center: Tensor) -> Tensor:
        gain = alpha.sqrt() * variance / (alpha * variance + 1 - alpha)
        return center + gain * (noisy - alpha.sqrt() * center)

    for _ in range(60):
        clean = old + variance**0.5 * torch.randn(count, 1, 1, 1, generator=rng)
        other = variance**0.5 * torch.randn(count, 1, 1, 1, generator=rng)  # the baseline's, m = 0
        better = -(clean - goal).abs() + (other - goal).abs()
        optimality = torch.sigmoid(better / 0.25).flatten()
        alpha = torch.rand(count, 1, 1, 1, generator=rng) * 0.96 + 0.02
        noise = torch.randn(count, 1, 1, 1, generator=rng)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean

        def velocity(center: Tensor, noisy: Tensor = noisy, alpha: Tensor = alpha) -> Tensor:
            guess = clean_of(noisy, alpha, center)
            return alpha.sqrt() * (noisy - alpha.sqrt() * guess) / (1 - alpha).sqrt() - (1 - alpha).sqrt() * guess

        optimizer.zero_grad()
        loss = forward_objective(velocity(mean), velocity(old), target, optimality).loss / count
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        old = mean.detach().clone()
        course.append(float(mean.detach()))
    sign = 1 if goal > 0 else -1
    assert sign * course[0] > 0.05
    assert sign * course[-1] > 0.8 * abs(goal)
    assert max(abs(value) for value in course) < 2 * abs(goal)
