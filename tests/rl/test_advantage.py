"""Comparison and advantage: signs, units, statistics by report."""

import math

import pytest
import torch

from cxrsynth.rewards.feedback import Comparison, compare, reward_std
from cxrsynth.rl.advantage import PromptStatistics, no_signal, to_advantage

POLICY = torch.tensor([[1.0, -3.0], [0.0, 40.0], [2.0, math.nan]])
BASELINE = torch.tensor([[0.0, -1.0], [0.0, 0.0], [1.0, 1.0]])
SCALE = torch.tensor([0.5, 2.0])
ONES = torch.ones(1)


@pytest.mark.parametrize("kind", list(Comparison))
def test_equal_is_zero_swapped_is_the_opposite_and_nan_says_nothing(kind: Comparison) -> None:
    assert not compare(POLICY[:2], POLICY[:2], kind=kind, scale=SCALE).any()
    found = compare(POLICY, BASELINE, kind=kind, scale=SCALE)
    assert torch.equal(found.nan_to_num(9.0), -compare(BASELINE, POLICY, kind=kind, scale=SCALE).nan_to_num(-9.0))
    assert found[2, 1].isnan()
    assert found.nan_to_num(0.0).sign().tolist() == [[1, -1], [0, 1], [1, 0]]


def test_margins_are_in_units_of_the_scale_and_bounded_kinds_are_bounded() -> None:
    assert compare(POLICY, BASELINE, kind=Comparison.MARGIN, scale=SCALE)[0].tolist() == [2.0, -1.0]
    squeezed = compare(POLICY, BASELINE, kind=Comparison.SIGMOID, scale=SCALE, beta=3.0)
    assert squeezed.nan_to_num(0.0).abs().max() <= 1
    expected = 2 * torch.tensor(3.0 * 2.0).sigmoid() - 1
    assert squeezed[0, 0] == pytest.approx(float(expected))


def test_spread_leaves_out_what_is_not_known() -> None:
    values = torch.tensor([[1.0, math.nan, 5.0], [3.0, 2.0, 5.0], [5.0, 4.0, 5.0]])
    assert reward_std(values).tolist() == pytest.approx([2.0, math.sqrt(2.0), 1.0])
    assert reward_std(values[:1]).tolist() == [1.0, 1.0, 1.0]


def test_a_reward_of_a_small_unit_counts_as_any_other() -> None:
    """Not so what differs by the rounding of float32 alone."""
    values = torch.tensor([[1.0], [3.0], [5.0]])
    assert reward_std(values * 1e-7).tolist() == pytest.approx([2e-7])
    rounded = torch.tensor([[300.0], [300.0], [300.0]]).nextafter(torch.tensor([[300.0], [300.0], [301.0]]))
    assert 0 < float(rounded.std()) < 1e-4
    assert reward_std(rounded).tolist() == [1.0]


def test_a_batch_alone_is_brought_to_zero_mean_and_unit_standard_deviation() -> None:
    feedback = torch.tensor([[1.0], [2.0], [6.0], [7.0]])
    found = to_advantage(feedback, list("abcd"), PromptStatistics(), weights=ONES, clip=5.0)
    assert found.mean() == pytest.approx(0.0, abs=1e-6)
    assert found.std() == pytest.approx(1.0)


def test_a_report_with_enough_values_is_normalized_by_its_own() -> None:
    statistics = PromptStatistics(least=4)
    easy, hard = torch.tensor([[10.0], [12.0]]), torch.tensor([[-12.0], [-10.0]])
    for _ in range(2):
        found = to_advantage(torch.cat((easy, hard)), ["e", "e", "h", "h"], statistics, weights=ONES, clip=5.0)
    assert found[0] == found[2] < 0 < found[1] == found[3]


def test_a_missing_answer_counts_neither_for_nor_against() -> None:
    """A report without labels among others that have them: its advantage comes from the other reward alone."""
    feedback = torch.tensor([[1.0, 5.0], [3.0, math.nan], [8.0, 7.0], [4.0, 9.0]])
    weights = torch.tensor([1.0, 1.0])
    for least in (8, 1):  # by the batch's statistics, and by the report's own
        found = to_advantage(feedback, list("aaaa"), PromptStatistics(least=least), weights=weights, clip=5.0)
        first = to_advantage(feedback[:, :1], list("aaaa"), PromptStatistics(least=least), weights=ONES, clip=5.0)
        known = feedback[[0, 2, 3], 1:]
        second = to_advantage(known, list("aaa"), PromptStatistics(least=least), weights=ONES, clip=5.0)
        assert found[[0, 2, 3]].tolist() == pytest.approx(((first[[0, 2, 3]] + second) / 2).tolist())
        assert found[1] == pytest.approx(float(first[1] / 2))
    unknown = torch.full((4, 1), math.nan)
    assert not to_advantage(unknown, list("aabb"), PromptStatistics(), weights=ONES, clip=5.0).any()


def test_statistics_forget_and_are_saved() -> None:
    statistics = PromptStatistics(size=4, least=2)
    statistics.add(["a"] * 6, torch.arange(6.0)[:, None])
    kept = statistics.of("a")
    assert kept is not None
    assert kept[:, 0].tolist() == [2, 3, 4, 5]
    assert statistics.of("b") is None
    other = PromptStatistics(size=4, least=2)
    other.load(statistics.state())
    assert other.state() == statistics.state()


def test_weights_of_rewards_do_not_depend_on_their_units() -> None:
    feedback = torch.tensor([[1.0, 3000.0], [2.0, 1000.0], [3.0, 2000.0]])
    first, second = (
        to_advantage(feedback, list("abc"), PromptStatistics(), weights=torch.tensor(w), clip=5.0)
        for w in ([1.0, 0.0], [0.0, 1.0])
    )
    both = to_advantage(feedback, list("abc"), PromptStatistics(), weights=torch.tensor([3.0, 1.0]), clip=5.0)
    assert torch.allclose(both, (3 * first + second) / 4, atol=1e-6)


def test_without_centring_the_sign_of_the_comparison_stays() -> None:
    feedback = torch.tensor([[1.0], [2.0], [3.0]])
    kept = to_advantage(feedback, list("abc"), PromptStatistics(), weights=ONES, clip=1.5, centre=False)
    assert (kept > 0).all()
    assert kept.max() == 1.5


def test_reports_whose_images_all_score_alike_are_counted() -> None:
    feedback = torch.tensor([[1.0], [1.0], [1.0], [2.0], [3.0]])
    assert no_signal(feedback, ["a", "a", "b", "b", "c"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("least", "others"), [(2, "the batch"), (8, "the batch"), (4, "the report")])
def test_what_shares_an_images_noise_is_left_out_of_its_mean(least: int, others: str) -> None:
    """Else the two images of a mirrored pair would always weigh their common noise by opposite numbers."""
    ids, streams = ["a", "a", "b", "b"], [0, 0, 2, 2]
    feedback = torch.tensor([[1.0], [3.0], [10.0], [14.0]])
    statistics = PromptStatistics(least=least)
    if others == "the report":  # values of an earlier iteration
        statistics.add(["a", "a"], torch.tensor([[5.0], [6.0]]))
    found = to_advantage(feedback, ids, statistics, weights=ONES, clip=1e9, streams=streams)
    mean = 5.5 if others == "the report" else 12.0
    std = {
        "the report": torch.tensor([5.0, 6.0, 1.0, 3.0]).std(),
        "the batch": torch.tensor([1.0, 3.0]).std() if least == 2 else feedback.std(),
    }[others]
    assert found[:2].tolist() == pytest.approx([(1 - mean) / float(std), (3 - mean) / float(std)])


def test_more_images_at_once_than_are_remembered_have_a_mean_too() -> None:
    found = to_advantage(
        torch.tensor([[1.0], [2.0], [3.0], [6.0]]),
        ["a"] * 4,
        PromptStatistics(size=2, least=2),
        weights=ONES,
        clip=9.0,
        streams=[0, 1, 2, 3],
    )
    assert found.sign().tolist() == [-1, -1, 0, 1]
    assert found[2] == 0.0


@pytest.mark.slow
def test_leaving_pairs_out_keeps_the_gradient_of_their_common_noise() -> None:
    """Four images of a report in two mirrored pairs: with their own pair in the mean, half the gradient is gone."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, 2, generator=rng).repeat_interleave(2, 1).flatten()  # of each pair
    shift = torch.randn(4000, 2, generator=rng).repeat_interleave(2, 1).flatten() * torch.tensor([1.0, -1.0]).repeat(
        8000
    )
    feedback = (noise + shift)[:, None]
    ids = [str(place // 4) for place in range(len(noise))]

    def gradient(streams: list[int] | None, *, centre: bool = True) -> float:
        statistics = PromptStatistics(least=99)  # by the batch's standard deviation, the same for all
        whole = to_advantage(feedback, ids, statistics, weights=ONES, clip=1e9, centre=False)
        if not centre:
            return float((whole * noise).mean())
        found = []
        for first in range(0, 2000, 4):
            part = slice(first, first + 4)
            streams_of = None if streams is None else streams[part]
            statistics = PromptStatistics(least=4)
            one = to_advantage(feedback[part], ids[part], statistics, weights=ONES, clip=1e9, streams=streams_of)
            found.append(one * feedback[part].std() * noise[part] / feedback.std())
        return float(torch.cat(found).mean())

    true = gradient(None, centre=False)
    pairs = [place // 2 for place in range(len(noise))]
    assert gradient(pairs) == pytest.approx(true, rel=0.15)
    assert gradient(None) == pytest.approx(0.5 * true, rel=0.15)
