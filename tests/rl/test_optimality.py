"""Optimality: bounded, one half where nothing is known, and in the order of the rewards."""

import math

import pytest
import torch

from cxrsynth.rl.optimality import centred, group, margin, win_probability, with_others

SCALE, WEIGHTS = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
NAN = math.nan


def test_an_image_like_the_baselines_wins_half_the_time() -> None:
    rewards = torch.tensor([[1.0, -2.0]])
    baseline = rewards[:, None].expand(1, 4, 2)
    assert win_probability(rewards, baseline, scale=SCALE, weights=WEIGHTS, temperature=0.25).tolist() == [0.5]
    assert margin(rewards, baseline, scale=SCALE, weights=WEIGHTS).tolist() == [0.5]


def test_win_probability_is_the_mean_over_the_baselines_images_and_the_rewards() -> None:
    rewards = torch.tensor([[1.0, 0.0]])
    baseline = torch.tensor([[[0.75, 0.0], [1.25, -1000.0]]])
    found = win_probability(rewards, baseline, scale=SCALE, weights=WEIGHTS, temperature=0.25)
    first = (1 / (1 + math.exp(-1)) + 1 / (1 + math.exp(1))) / 2  # a unit above one, a unit below the other
    second = (0.5 + 1.0) / 2
    assert float(found) == pytest.approx((first * 1 + second * 3) / 4, abs=1e-6)


def test_both_are_bounded_however_large_the_difference() -> None:
    rewards, baseline = torch.tensor([[1e4, 1e4], [-1e4, -1e4]]), torch.zeros(2, 3, 2)
    for found in (
        win_probability(rewards, baseline, scale=SCALE, weights=WEIGHTS, temperature=0.25),
        margin(rewards, baseline, scale=SCALE, weights=WEIGHTS),
    ):
        assert found.tolist() == [1.0, 0.0]


def test_a_reward_without_an_answer_is_left_out() -> None:
    rewards = torch.tensor([[0.5, NAN], [NAN, NAN]])
    baseline = torch.tensor([[[0.0, 1.0], [NAN, 2.0]], [[0.0, 1.0], [0.0, 2.0]]])
    one = win_probability(rewards, baseline, scale=SCALE, weights=WEIGHTS, temperature=0.5)
    assert one.tolist() == pytest.approx([1 / (1 + math.exp(-1)), 0.5])
    assert margin(rewards, baseline, scale=SCALE, weights=WEIGHTS).tolist() == pytest.approx([0.75, 0.5])


def test_only_the_ratios_of_weights_count() -> None:
    rewards, baseline = torch.tensor([[0.5, -1.0], [2.0, 0.3], [0.1, NAN]]), torch.zeros(3, 4, 2)
    for factor in (1e-25, 1e5):
        for rate, more in ((win_probability, {"temperature": 0.5}), (margin, {})):
            plain, scaled = (
                rate(rewards, baseline, scale=SCALE, weights=w, **more) for w in (WEIGHTS, WEIGHTS * factor)
            )
            torch.testing.assert_close(scaled, plain)
            assert not torch.allclose(plain, torch.full((3,), 0.5), atol=1e-2)


def test_a_group_is_compared_with_itself() -> None:
    rewards = torch.tensor([[0.0, 0.0], [1.0, 2.0], [100.0, 200.0], [101.0, 202.0], [7.0, 7.0]])
    found = group(rewards, ["a", "a", "b", "b", "alone"], range(5), scale=SCALE, weights=WEIGHTS)
    assert found[0] == pytest.approx(float(found[2]))
    assert found[1] == pytest.approx(float(found[3]))
    assert float(found[0]) < 0.5 < float(found[1])
    assert float(found[4]) == 0.5
    assert float(found[:4].mean()) == pytest.approx(0.5)


def test_a_group_of_equal_images_teaches_nothing() -> None:
    found = group(torch.ones(4, 2), ["a"] * 4, range(4), scale=SCALE, weights=WEIGHTS)
    assert found.tolist() == [0.5] * 4


def test_what_a_reports_images_have_in_common_is_taken_away() -> None:
    found = centred(
        torch.tensor([0.5, 0.7, 0.9, 0.1, 0.3]), ["a", "a", "a", "b", "b"], range(5), known=torch.ones(5).bool()
    )
    assert found.tolist() == pytest.approx([0.5 - 0.3, 0.5, 0.5 + 0.3, 0.5 - 0.2, 0.5 + 0.2])


def test_a_centred_optimality_stays_in_bounds_and_an_image_alone_keeps_its_own() -> None:
    found = centred(torch.tensor([1.0, 0.0, 0.9]), ["a", "a", "b"], range(3), known=torch.ones(3).bool())
    assert found.tolist() == pytest.approx([1.0, 0.0, 0.9])


def test_mirrored_images_are_not_in_each_others_mean() -> None:
    optimality = torch.tensor([0.9, 0.7, 0.4, 0.2])
    found = centred(optimality, ["a"] * 4, [0, 0, 1, 1], known=torch.ones(4).bool())
    assert found.tolist() == pytest.approx([1.0, 0.9, 0.1, 0.0])  # 0.9 + 0.5 - 0.3 is above 1
    alone = centred(optimality[:2], ["a"] * 2, [0, 0], known=torch.ones(2).bool())
    assert alone.tolist() == pytest.approx([0.9, 0.7])


def test_an_image_without_an_answer_is_in_no_mean() -> None:
    found = centred(torch.tensor([0.8, 0.6, 0.5]), ["a"] * 3, range(3), known=torch.tensor([True, True, False]))
    assert found.tolist() == pytest.approx([0.7, 0.3, 0.5])


def test_centring_leaves_the_expected_gradient_and_takes_variance_away() -> None:
    """On x ~ N(0, 1) with a comparison whose level differs from report to report: the mean of (2 r - 1) x."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, 8, generator=rng)
    level = torch.randn(4000, 1, generator=rng)
    optimality = torch.sigmoid(0.5 * noise + level).flatten()
    ids, known = [str(place // 8) for place in range(32_000)], torch.ones(32_000, dtype=torch.bool)
    after = centred(optimality, ids, range(32_000), known=known)
    gradients = [((2 * one - 1) * noise.flatten()).view(4000, 8).mean(1) for one in (optimality, after)]
    error = float(gradients[0].std()) / 4000**0.5
    assert float(gradients[1].mean()) == pytest.approx(float(gradients[0].mean()), abs=4 * error)
    assert float(gradients[1].var()) < 0.6 * float(gradients[0].var())


def test_a_group_leaves_mirrored_images_out_of_each_others_mean() -> None:
    """Each is compared with the other pair: the first by 4 - 1, the others by 0 - 1 and 1 - 2, all the same."""
    rewards = torch.tensor([[4.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    found = group(rewards, ["a"] * 4, [0, 0, 1, 1], scale=torch.ones(2), weights=torch.tensor([1.0, 0.0]))
    assert found.tolist() == pytest.approx([float(found[0]), *[float(found[1])] * 3])
    assert float(found[1]) < 0.5 < float(found[0])
    pair = group(rewards[1:3], ["a"] * 2, [0, 0], scale=torch.ones(2), weights=torch.tensor([1.0, 0.0]))
    assert pair.tolist() == [0.5, 0.5]


NAN = float("nan")


def test_a_reward_without_an_answer_makes_an_image_neither_better_nor_worse() -> None:
    """No two lungs found, no posture to be bad: the weighted mean of the rest would be far above the others'."""
    rewards = torch.tensor([[-5.0, 6.0], [NAN, 6.0], [-7.0, 6.0], [NAN, NAN]])
    scale = torch.tensor([1.0, 1.0])
    found = group(rewards, ["a"] * 4, range(4), scale=scale, weights=torch.ones(2))
    assert found[0] > 0.5
    assert found.tolist()[1] == pytest.approx(0.5, abs=1e-6)
    assert found[2] < 0.5
    assert found.tolist()[3] == 0.5
    assert with_others(rewards, ["a"] * 4, range(4)).tolist()[1] == [-6.0, 6.0]
    assert with_others(rewards, ["a"] * 4, [0, 0, 1, 1]).tolist()[1] == [-7.0, 6.0]  # not of its mirrored image
    assert with_others(rewards, list("abcd"), range(4))[1].isnan().tolist() == [True, False]
    assert with_others(rewards, ["a"] * 4, range(4))[3].isnan().all()


def test_an_image_without_an_answer_stays_at_one_half_beside_others() -> None:
    known = torch.tensor([True, True, False])
    found = centred(torch.tensor([0.9, 0.7, 0.5]), ["a"] * 3, range(3), known=known)
    assert found.tolist()[2] == 0.5


def test_better_rewards_are_never_worse() -> None:
    rng = torch.Generator().manual_seed(0)
    rewards, baseline = torch.randn(20, 2, generator=rng), torch.randn(20, 5, 2, generator=rng)
    for more in (torch.tensor([0.3, 0.0]), torch.tensor([0.0, 0.3])):
        low, high = (
            win_probability(one, baseline, scale=SCALE, weights=WEIGHTS, temperature=0.25)
            for one in (rewards, rewards + more)
        )
        assert (high > low).all()
