"""The update on the forward process, on the tiny model: micro-batches add up, good images attract, bad ones repel."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cxrsynth.diffusion.forward_process import ForwardProcess
from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.errors import ModelError
from cxrsynth.recipe.schema import AceSection, ForwardSection, LoraSection
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.base import RewardSuite
from cxrsynth.rl.experience import CleanSamples
from cxrsynth.rl.forward_update import ForwardStats, ForwardUpdater
from cxrsynth.rl.policy import Policy, load_policy
from cxrsynth.rl.rollout_spec import RolloutSpec, rollout_specs
from cxrsynth.rl.rollouts import CleanDrawing, Collector, PromptExample
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.runtime.processes import ProcessGroup
from cxrsynth.settings import Precision, Sampler
from cxrsynth.tuning.forward import clean_samples, follow, shift_advantage
from tests.rl.test_update import CPU, Brightness, snapshot

OPTIMALITY = torch.tensor([0.9, 0.1, 0.7, 0.4])


@dataclass
class Made:
    policy: Policy
    samples: CleanSamples
    rewards: Tensor
    specs: list[RolloutSpec]

    def update(
        self,
        optimality: Tensor = OPTIMALITY,
        *,
        old: dict[str, Tensor] | None = None,
        workers: int = 1,
        micro_batch: int = 4,
        rate: float = 1.0,
        key: str = "k",
        **given: Any,
    ) -> ForwardStats:
        """One round with plain gradient descent, so that what changed is the gradient."""
        with OrderedPool(workers, threads=1) as pool:
            updater = ForwardUpdater(
                self.policy,
                torch.optim.SGD(list(self.policy.weights.values()), lr=rate),
                old={n: w.detach().clone() for n, w in self.policy.denoising_weights.items()} if old is None else old,
                settings=ForwardSection(**{"num_minibatches": 1, "timesteps": 3, "grad_norm": 1e9} | given),
                guidance=2.0,
                micro_batch=micro_batch,
                pool=pool,
                add_up=lambda tensor: tensor,
            )
            return updater(
                self.samples,
                optimality,
                shift_advantage(optimality, self.specs),
                report_ids=self.samples.report_ids,
                key=key,
            )


def make(folder: Path, unet: str, *, ace: AceSection | None = None, batch_size: int = 4) -> Made:
    policy = load_policy(
        resolve_model(str(folder)),
        unet=unet,
        lora=LoraSection(rank=2),
        ace=ace or AceSection(tokens=4),
        prompts=lambda _: [" ".join(["report", "PA", "AP", "man", "chest", "image"][: i + 1]) for i in range(6)],
        device=CPU,
        precision=Precision.FP32,
        gradient_checkpointing=False,
        seed=0,
    )
    specs = rollout_specs(0, seed=0, reports=2, per_iteration=2, images=2, pool=1, mirrored=policy.exploration_std > 0)
    cases = [PromptExample(Report(f"r{d.report}", 2), f"report {d.report}", ("any report", "view PA")) for d in specs]
    with OrderedPool(1, threads=1) as pool:
        collector = Collector[Tensor](
            policy,
            RewardSuite({"brightness": Brightness()}),
            drawing=CleanDrawing(Sampler.DPMPP, steps=4, guidance=1.5, seed=0),
            batch_size=batch_size,
            seed=0,
            pool=pool,
            group=ProcessGroup(),
        )
        conditioning, latents, rewards = collector.policy_samples(0, specs, cases)
    return Made(policy, clean_samples(conditioning, latents, policy.model.latent_shape), rewards, specs)


def learned(folder: Path, unet: str = "full", **given: Any) -> dict[str, Tensor]:
    made = make(folder, unet)
    before = snapshot(made.policy)
    made.update(**given)
    return {name: weight - before[name] for name, weight in snapshot(made.policy).items()}


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"micro_batch": 1}, marks=pytest.mark.slow),
        {"workers": 2, "micro_batch": 2},
        pytest.param({"micro_batch": 5}, marks=pytest.mark.slow),
    ],
)
def test_micro_batches_and_workers_add_up(given: dict[str, int], tiny_model: Path) -> None:
    whole, parts = learned(tiny_model), learned(tiny_model, **given)
    for name, change in whole.items():
        assert torch.allclose(parts[name], change, rtol=1e-3, atol=1e-6), name
    assert any(change.abs().max() > 1e-4 for change in whole.values())


@pytest.mark.parametrize("unet", ["full", "lora"])
def test_images_as_good_as_the_baselines_teach_nothing(unet: str, tiny_model: Path) -> None:
    made = make(tiny_model, unet)
    before = snapshot(made.policy)
    stats = made.update(torch.full((4,), 0.5), rate=100.0, max_norm_ratio=1.0)
    assert stats.baseline_distance == 0.0
    assert stats.norm_ratio == pytest.approx(1.0, abs=1e-6)
    assert all(torch.allclose(weight, before[name], atol=1e-6) for name, weight in snapshot(made.policy).items())


def test_adaptive_weights_change_the_update_and_add_up(tiny_model: Path) -> None:
    plain, whole, parts = (
        learned(tiny_model, weighting=weighting, micro_batch=size)
        for weighting, size in (("velocity", 4), ("adaptive", 4), ("adaptive", 1))
    )
    for name, change in whole.items():
        assert change.isfinite().all()
        assert torch.allclose(parts[name], change, rtol=1e-3, atol=1e-6), name
    assert any(not torch.allclose(plain[name], change, rtol=1e-2) for name, change in whole.items())


def test_the_noise_level_is_what_a_noisy_latent_has_of_the_noise(tiny_model: Path) -> None:
    process = ForwardProcess(load_model(resolve_model(str(tiny_model)), device=CPU, precision=Precision.FP32))
    levels = process.levels(torch.tensor([0.0, 0.4, 0.99]))
    noise = torch.ones(3, 1, 1, 1)
    torch.testing.assert_close(process.noise_level(levels), process.noisy(0 * noise, noise, levels).flatten())
    assert process.noise_level(levels).diff().gt(0).all()


@pytest.mark.parametrize(
    ("warmup", "stays"), [(0, {0: 0.5, 9: 0.5}), (4, {0: 0.0, 2: 0.25, 4: 0.5, 9: 0.5})], ids=["at once", "rising"]
)
def test_the_weights_that_sample_follow_the_policy(warmup: int, stays: dict[int, float]) -> None:
    settings = ForwardSection(old_decay=0.5, old_warmup=warmup)
    for iteration, share in stays.items():
        old = {"weight": torch.ones(2)}
        follow(old, {"weight": torch.zeros(2), "another": torch.ones(1)}, settings, iteration)
        assert old["weight"].tolist() == [share] * 2


def test_mirrored_optimality_turns_the_gradient_around(tiny_model: Path) -> None:
    up, down = (learned(tiny_model, optimality=value) for value in (OPTIMALITY, 1 - OPTIMALITY))
    for name, change in up.items():
        assert torch.allclose(change, -down[name], rtol=1e-2, atol=1e-6), name


def test_the_prediction_moves_towards_good_images_and_away_from_bad_ones(tiny_model: Path) -> None:
    """By the supervised loss at the update's own noise levels: lower for the good image, higher for the bad one."""
    made = make(tiny_model, "full")
    process = ForwardProcess(made.policy.model)

    def losses() -> Tensor:
        found = []
        with torch.no_grad():
            for place, seed in product((0.2, 0.5, 0.8), range(4)):
                levels = process.levels(torch.full((4,), place))
                noise = torch.randn(made.samples.clean.shape, generator=torch.Generator().manual_seed(seed))
                noisy = process.noisy(made.samples.clean, noise, levels)
                condition = made.samples.condition(made.policy.model, made.policy, torch.arange(4), guidance=1.0)
                predicted = made.policy.model.predict(noisy, process.timesteps(levels), condition)
                velocity = process.velocity(noisy, predicted, levels)
                found.append((velocity - process.target(made.samples.clean, noise, levels)).square().mean((1, 2, 3)))
        return torch.stack(found).mean(0)

    before = losses()
    for turn in range(8):
        made.update(torch.tensor([1.0, 0.0, 0.5, 0.5]), rate=0.03, key=f"turn {turn}", kl_weight=0.0, timesteps=6)
    change = losses() - before
    assert float(change[0]) < -1e-4
    assert float(change[1]) > 1e-4


def test_what_a_reports_images_have_in_common_cancels_out(tiny_model: Path) -> None:
    """Two equal images of one report, one called good and one bad, teach nothing: unless their noise differs."""

    def moved(**given: Any) -> float:
        made = make(tiny_model, "full")
        assert made.samples.report_ids == ["r0", "r0", "r1", "r1"] or made.samples.report_ids == [
            "r1",
            "r1",
            "r0",
            "r0",
        ]
        made.samples.clean[1], made.samples.clean[3] = made.samples.clean[0], made.samples.clean[2]
        before = snapshot(made.policy)
        made.update(torch.tensor([0.9, 0.1, 0.3, 0.7]), kl_weight=0.0, **given)
        return max(float((weight - before[name]).abs().max()) for name, weight in snapshot(made.policy).items())

    assert moved() < 1e-6
    assert moved(num_minibatches=2) < 1e-6  # a minibatch is a whole report
    assert moved(common_noise=False) > 1e-3


@pytest.mark.slow
def test_the_baseline_pulls_back(tiny_model: Path) -> None:
    made = make(tiny_model, "full")
    made.update(rate=0.1, kl_weight=0.0)
    away = {name: weight.detach().clone() for name, weight in made.policy.weights.items()}
    still = torch.full((4,), 0.5)
    found = [made.update(still, old=away, rate=0.05, kl_weight=1.0).baseline_distance for _ in range(6)]
    assert found[0] > 1e-6
    assert found[-1] < 0.7 * found[0]


def test_what_sampled_is_not_what_learns(tiny_model: Path) -> None:
    """The policy may have moved on from the old weights; those are the same afterwards, and back in their place."""
    made = make(tiny_model, "full")
    old = {name: weight.detach().clone() + 0.01 for name, weight in made.policy.denoising_weights.items()}
    before, kept = snapshot(made.policy), {name: weight.clone() for name, weight in old.items()}
    made.update(torch.full((4,), 0.5), old=old, kl_weight=0.0, rate=1.0)
    assert all(torch.equal(weight, kept[name]) for name, weight in old.items())
    moved = {name: weight - before[name] for name, weight in snapshot(made.policy).items()}
    towards = sum(float((change * 0.01).sum()) for change in moved.values())
    assert towards > 0  # |predicted - old|^2 falls along a weight's way to its old value
    with made.policy.holding(old):
        assert all(torch.equal(weight, kept[name]) for name, weight in snapshot(made.policy).items() if name in kept)
    assert not any(torch.equal(weight, kept[name]) for name, weight in snapshot(made.policy).items() if name in kept)


def test_shifts_learn_from_their_mirror_images(tiny_model: Path) -> None:
    made = make(tiny_model, "frozen", ace=AceSection(subspace=3, exploration_std=0.5))
    assert made.samples.shifts is not None
    ace = made.policy.shifts
    assert ace is not None
    first, second = made.samples.shifts.values[0], made.samples.shifts.values[1]
    assert torch.allclose(first, -second)
    made.update(torch.tensor([0.9, 0.1, 0.5, 0.5]), rate=1e4)
    moved = ace.mean(torch.ones(1, len(ace.conditions))).detach()[0]
    assert float(moved @ first) > 0  # the better one of the pair
    assert torch.nn.functional.cosine_similarity(moved, first, dim=0) > 0.99


@pytest.mark.parametrize("own", [None, 1.0, 0.0])
def test_divergence_limits_the_embeddings_too(own: float | None, tiny_model: Path) -> None:
    """By the weight of the objective, unless the embeddings have one of their own."""
    made = make(tiny_model, "frozen", ace=AceSection(subspace=3, exploration_std=0.5, kl_weight=own))
    ace = made.policy.shifts
    assert ace is not None
    with torch.no_grad():
        ace.coordinates.fill_(1.0)
    still, rate = torch.full((4,), 0.5), 0.01 * made.samples.clean[0].numel()
    made.update(still, kl_weight=0.0, rate=rate)
    assert bool((ace.coordinates == 1.0).all()) is (own != 1.0)
    made.update(still, kl_weight=1.0, rate=rate)
    assert bool((ace.coordinates < 1.0).any()) is (own != 0.0)
    assert bool((ace.coordinates > 0).all())


def test_noise_levels_are_stratified(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an image's noise levels, each equal part of the range holds one."""
    made, drawn, strata = make(tiny_model, "full"), [], 6
    levels = ForwardProcess.levels

    def watched(self: ForwardProcess, places: Tensor) -> Tensor:
        drawn.append(places.tolist())
        return levels(self, places)

    monkeypatch.setattr(ForwardProcess, "levels", watched)
    made.update(micro_batch=4, timesteps=strata, kl_weight=0.0)
    # A micro-batch is one draw of the four images.
    assert [{int(place * strata) for place in places} for places in drawn[:strata]] == [
        {draw} for draw in range(strata)
    ]
    assert len({place * strata % 1 for places in drawn[:strata] for place in places}) > strata  # at random within them


def test_noise_levels_are_within_the_schedule(tiny_model: Path) -> None:
    process = ForwardProcess(load_model(resolve_model(str(tiny_model)), device=CPU, precision=Precision.FP32))
    levels = process.levels(torch.tensor([0.0, 0.5, 0.999999]))
    assert levels.tolist() == [process.first, (process.first + process.end) // 2, process.end - 1]
    assert process.first == 20
    clean, noise = torch.randn(3, 3, 8, 8), torch.randn(3, 3, 8, 8)
    noisy = process.noisy(clean, noise, levels)
    assert process.velocity(noisy, process.target(clean, noise, levels), levels).isfinite().all()


def test_a_loss_that_is_no_number_names_the_report(tiny_model: Path) -> None:
    made = make(tiny_model, "full")
    made.samples.clean[2] = float("nan")
    with pytest.raises(ModelError, match=r"report r.*: the loss is not a number"):
        made.update(micro_batch=1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
