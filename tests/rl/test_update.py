"""The update on the tiny model: micro-batches add up, the first ratio is 1, the baseline stays, KL pulls back."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cxrsynth.diffusion.ddim import DDIMSchedule
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.rollout import Trajectory, predict_means, trajectory_schedule
from cxrsynth.recipe.schema import AceSection, LoraSection, UpdateSection
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.base import RewardSuite
from cxrsynth.rl import update as update_module
from cxrsynth.rl.experience import Conditioning, Experience
from cxrsynth.rl.policy import Policy, load_policy
from cxrsynth.rl.rollout_spec import RolloutSpec, rollout_specs
from cxrsynth.rl.rollouts import BaselineCache, Collector, PromptExample, TrajectoryDrawing
from cxrsynth.rl.update import Updater, UpdateStats
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.runtime.processes import ProcessGroup
from cxrsynth.settings import Precision
from cxrsynth.tuning.policy_gradient import experience

CPU = torch.device("cpu")
GUIDANCE = 1.5
ADVANTAGE = torch.tensor([1.0, -1.0, 0.5, 2.0])


class Brightness:
    unit, low, high, needs_report = "mean grey", 0.0, 1.0, False

    def __call__(self, images: Tensor, reports: Sequence[Report]) -> Tensor:
        return images.mean((1, 2, 3))


@dataclass
class Made:
    policy: Policy
    collector: Collector[Trajectory]
    schedule: DDIMSchedule
    drawn: list[RolloutSpec]
    cases: list[PromptExample]

    def experience(self, iteration: int = 0) -> Experience:
        return experience(*self.sampled(iteration)[:2], self.collector)

    def sampled(self, iteration: int = 0) -> tuple[Conditioning, list[Trajectory], Tensor]:
        return self.collector.policy_samples(iteration, self.drawn, self.cases)

    def baseline(self, cache: BaselineCache) -> Tensor:
        keys = [(case.report.report_id, one.start) for case, one in zip(self.cases, self.drawn, strict=True)]
        self.collector.fill(cache, dict(zip(keys, self.cases, strict=True)))
        return cache.table(keys)

    def update(
        self,
        experience: Experience,
        *,
        workers: int = 1,
        micro_batch: int = 4,
        rate: float = 1.0,
        advantage: Tensor = ADVANTAGE,
        after_step: Callable[[], None] = lambda: None,
        **given: Any,
    ) -> UpdateStats:
        """One round with plain gradient descent, so that what changed is the gradient."""
        with OrderedPool(workers, threads=1) as pool:
            updater = Updater(
                self.policy,
                torch.optim.SGD(list(self.policy.weights.values()), lr=rate),
                schedule=self.schedule,
                settings=UpdateSection(**{"num_minibatches": 1, "grad_norm": 1e9} | given),
                guidance=GUIDANCE,
                micro_batch=micro_batch,
                pool=pool,
                add_up=lambda tensor: tensor,
                after_step=after_step,
            )
            return updater(experience, advantage, key="k")


def make(
    folder: Path,
    unet: str,
    pool: OrderedPool,
    *,
    batch_size: int = 4,
    seed: int = 0,
    ace: AceSection | None = None,
) -> Made:
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
    schedule = trajectory_schedule(policy.model, steps=4, eta=1.0)
    suite = RewardSuite({"brightness": Brightness()})
    group = ProcessGroup()
    collector = Collector[Trajectory](
        policy,
        suite,
        drawing=TrajectoryDrawing(schedule, guidance=GUIDANCE, seed=seed),
        batch_size=batch_size,
        seed=seed,
        pool=pool,
        group=group,
    )
    drawn = rollout_specs(0, seed=0, reports=2, per_iteration=2, images=2, pool=2, mirrored=policy.exploration_std > 0)
    cases = [PromptExample(Report(f"r{d.report}", 2), f"report {d.report}", ("any report", "view PA")) for d in drawn]
    return Made(policy, collector, schedule, drawn, cases)


@pytest.fixture
def pool() -> Iterator[OrderedPool]:
    with OrderedPool(1, threads=1) as one:
        yield one


def snapshot(policy: Policy) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in policy.weights.items()}


def learned(folder: Path, pool: OrderedPool, **given: Any) -> dict[str, Tensor]:
    made = make(folder, "full", pool)
    before = snapshot(made.policy)
    made.update(made.experience(), **given)
    return {name: weight - before[name] for name, weight in snapshot(made.policy).items()}


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"micro_batch": 1}, marks=pytest.mark.slow),
        {"workers": 2, "micro_batch": 2},
        pytest.param({"micro_batch": 3}, marks=pytest.mark.slow),
    ],
)
def test_micro_batches_and_workers_add_up(given: dict[str, int], tiny_model: Path, pool: OrderedPool) -> None:
    whole, parts = learned(tiny_model, pool), learned(tiny_model, pool, **given)
    for name, change in whole.items():
        assert torch.allclose(parts[name], change, rtol=1e-3, atol=1e-7), name
    assert any(change.abs().max() > 1e-6 for change in whole.values())


@pytest.mark.parametrize("unet", ["full", "lora", "frozen"])
def test_before_any_update_policy_and_baseline_agree(unet: str, tiny_model: Path, pool: OrderedPool) -> None:
    made = make(tiny_model, unet, pool)
    stats = made.update(made.experience(), rate=0.0, kl_weight=1.0)
    assert stats.ratio_error < 1e-6
    assert stats.clip_fraction == 0.0
    assert max(abs(stats.approx_kl), stats.baseline_kl) < 1e-7


@pytest.mark.parametrize("unet", ["full", "lora"])
def test_the_baseline_stays_while_the_policy_learns(unet: str, tiny_model: Path, pool: OrderedPool) -> None:
    made = make(tiny_model, unet, pool)
    latents, text = torch.randn(2, *made.policy.model.latent_shape), torch.randn(2, 24, 16)

    def predicted(model: Any) -> Tensor:
        with torch.no_grad():
            found: Tensor = model.denoiser(latents, 300, text).sample
        return found

    with made.policy.baseline() as baseline:
        before = predicted(baseline)
    for iteration in range(3):
        made.update(made.experience(iteration), rate=100.0)
    with made.policy.baseline() as baseline:
        assert torch.equal(predicted(baseline), before)
        assert (baseline.denoiser is made.policy.model.denoiser) == (unet == "lora")
    assert not torch.allclose(predicted(made.policy.model), before, atol=1e-5)
    assert made.policy.model.ace is not None
    assert made.policy.model.ace.blocks.any()


@pytest.mark.slow
def test_kl_pulls_back_to_the_baseline(tiny_model: Path, pool: OrderedPool) -> None:
    """From a policy that has moved, the KL term alone lowers the divergence."""
    made = make(tiny_model, "full", pool)
    made.update(made.experience(), rate=10.0)
    still = torch.zeros(4)
    found = [made.update(made.experience(1), advantage=still, rate=0.3, kl_weight=1.0).baseline_kl for _ in range(6)]
    assert found[0] > 1e-6
    assert found[-1] < 0.8 * found[0]


@pytest.mark.parametrize(
    ("given", "steps", "learned"),
    [
        ({}, 1, 1.0),
        ({"num_minibatches": 2}, 2, 1.0),
        ({"timestep_fraction": 0.34}, 1, 0.34),
        ({"inner_epochs": 2}, 2, 2.0),
    ],
)
def test_steps_and_samples_are_divided_among_minibatches(
    given: dict[str, Any],
    steps: int,
    learned: float,
    tiny_model: Path,
    pool: OrderedPool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = make(tiny_model, "full", pool)
    seen: list[tuple[int, int]] = []

    def counted(model: DiffusionModel, schedule: DDIMSchedule, steps: Tensor, *rest: Any, **named: Any) -> Tensor:
        if torch.is_grad_enabled():  # else only the old log-probability is asked for
            seen.extend((int(step), len(moved)) for step in steps)
        return predict_means(model, schedule, steps, *rest, **named)

    moved: list[bool] = []
    monkeypatch.setattr(update_module, "predict_means", counted)
    made.update(made.experience(), after_step=lambda: moved.append(True), **given)
    actions = made.schedule.actions
    assert len(moved) == steps
    assert len(seen) == 4 * max(1, round(learned * actions))
    assert {step for step, _ in seen} <= set(range(actions))
    # Every optimizer step has an equal share of the samples.
    assert {sum(turn == found for _, found in seen) for turn in range(steps)} == {len(seen) // steps}


def test_noise_does_not_depend_on_the_batch(tiny_model: Path, pool: OrderedPool) -> None:
    one, four = (make(tiny_model, "frozen", pool, batch_size=size).experience() for size in (1, 4))
    assert torch.equal(one.latents[0], four.latents[0])
    assert torch.allclose(one.latents, four.latents, atol=1e-4)
    assert torch.allclose(one.log_probs, four.log_probs, atol=1e-5)
    other = make(tiny_model, "frozen", pool).experience(1)
    assert torch.equal(other.latents[0], four.latents[0])  # the same x_T of the pool
    assert not torch.allclose(other.latents[1], four.latents[1], atol=1e-2)  # new step noise


def test_the_baseline_is_sampled_once_with_step_noise_of_its_own(tiny_model: Path, pool: OrderedPool) -> None:
    made, cache = make(tiny_model, "full", pool), BaselineCache()
    first = made.baseline(cache)
    policy = made.sampled()[2]
    assert first.shape == policy.shape == (4, 1)
    # Same weights, same x_T, other step noise: none of the images is the other's.
    assert not torch.isclose(first, policy.T, atol=1e-7).any()
    made.update(made.experience(), rate=10.0)
    assert torch.equal(made.baseline(cache), first)
    again = made.baseline(BaselineCache())
    assert torch.allclose(again, first, atol=1e-6)  # the frozen start, though the policy has moved


@pytest.mark.parametrize("num_minibatches", [1, 2])
def test_rounding_of_the_rollout_does_not_count_as_learning(
    num_minibatches: int, tiny_model: Path, pool: OrderedPool
) -> None:
    """On a GPU it can be far above the clip range, and would take most steps out of the update."""
    made = make(tiny_model, "full", pool)
    start, experience = snapshot(made.policy), made.experience()
    rounding = 1e-3 * torch.randn(experience.log_probs.shape, generator=torch.Generator().manual_seed(0))
    ends = []
    for log_probs in (experience.log_probs, experience.log_probs + rounding):
        with torch.no_grad():
            for name, weight in made.policy.weights.items():
                weight.copy_(start[name])
        stats = made.update(replace(experience, log_probs=log_probs), num_minibatches=num_minibatches, rate=1e-6)
        assert stats.clip_fraction == 0.0
        ends.append(snapshot(made.policy))
    assert 1e-4 < stats.ratio_error < 1.01 * float(rounding.abs().max())
    assert all(torch.equal(end, ends[1][name]) for name, end in ends[0].items())
    assert any(not torch.equal(end, start[name]) for name, end in ends[0].items())


def test_each_pass_takes_every_report_once_and_starts_from_the_pool() -> None:
    found = [rollout_specs(i, seed=3, reports=5, per_iteration=2, images=3, pool=2) for i in range(5)]
    reports = [one.report for drawn in found for one in drawn[::3]]
    assert sorted(reports[:5]) == sorted(reports[5:]) == list(range(5))
    assert reports[:5] != reports[5:]
    assert {one.start for drawn in found for one in drawn} == {0, 1}
    assert [one.place for one in found[0]] == list(range(6))


EXPLORING = AceSection(subspace=3, exploration_std=0.5)


@pytest.mark.parametrize("unet", ["frozen", "lora"])
def test_a_shift_teaches_the_embeddings_without_the_unet(unet: str, tiny_model: Path, pool: OrderedPool) -> None:
    """Gradient descent moves each block by the mean of advantage times shift over the reports that have it."""
    made = make(tiny_model, unet, pool, ace=EXPLORING)
    experience = made.experience()
    shifts, mask, ace = experience.shifts, experience.mask, made.policy.shifts
    assert shifts is not None
    assert mask is not None
    assert ace is not None
    assert torch.allclose(shifts.values[::2], -shifts.values[1::2], atol=1e-6)
    if unet == "frozen":
        made.policy.model.denoiser.forward = None  # must not be called
    stats = made.update(experience)
    assert stats.ratio_error == 0.0
    elements = experience.latents[0, 0].numel()
    expected = mask.T @ (ADVANTAGE[:, None] * shifts.values) / 0.5**2 / elements / len(ADVANTAGE)
    assert torch.allclose(ace.coordinates, expected, rtol=1e-4, atol=1e-9)
    assert ace.coordinates.any()
    assert (unet == "lora") == any(
        weight.any() for name, weight in made.policy.unet_weights.items() if "lora_B" in name
    )


def test_mirrored_images_have_the_same_noise(tiny_model: Path, pool: OrderedPool) -> None:
    still = make(tiny_model, "frozen", pool, ace=AceSection(subspace=3, exploration_std=1e-9)).experience()
    assert torch.allclose(still.latents[:, ::2], still.latents[:, 1::2], atol=1e-5)
    assert not torch.allclose(still.latents[:, 0], still.latents[:, 2], atol=1e-2)
    moved = make(tiny_model, "frozen", pool, ace=EXPLORING).experience()
    assert torch.equal(moved.latents[0, ::2], moved.latents[0, 1::2])
    assert not torch.allclose(moved.latents[-1, ::2], moved.latents[-1, 1::2], atol=1e-4)


def test_the_divergence_of_steps_is_to_a_baseline_with_the_same_shift(tiny_model: Path, pool: OrderedPool) -> None:
    """Otherwise the adapters would learn to undo what the embeddings explore."""
    made = make(tiny_model, "lora", pool, ace=EXPLORING)
    assert made.update(made.experience(), rate=0.0, kl_weight=1.0).baseline_kl == pytest.approx(0.0, abs=1e-9)


def test_divergence_limits_the_embeddings_too(tiny_model: Path, pool: OrderedPool) -> None:
    made = make(tiny_model, "frozen", pool, ace=EXPLORING)
    ace = made.policy.shifts
    assert ace is not None
    with torch.no_grad():
        ace.coordinates.fill_(1.0)
    elements = made.experience().latents[0, 0].numel()
    stats = made.update(made.experience(), advantage=torch.zeros(4), kl_weight=1.0, rate=0.01 * elements)
    assert stats.baseline_kl > 0
    assert 0 < float(ace.coordinates.min()) < 1
