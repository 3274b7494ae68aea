"""The estimate of `tune --dry-run` for reinforcement learning: it counts what an iteration does, as it does it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.recipe.schema import DdpoStage, RlcfStage
from cxrsynth.rl.forward_update import ForwardUpdater
from cxrsynth.rl.update import Updater
from cxrsynth.settings import TuneSettings
from cxrsynth.tuning.dry_run import Passes, _peak_memory, update_passes
from cxrsynth.tuning.reinforce import Reinforcement
from cxrsynth.tuning.run import TuneRun
from cxrsynth.tuning.setup import open_tune
from tests.tuning.making import install_brightness, recipe, tune, write_recipe

Pass = tuple[bool, int]  # with gradient, samples


@pytest.fixture(autouse=True)
def _brightness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    install_brightness(tmp_path / "own", monkeypatch)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Pass]:
    """Every pass through a network, as it comes."""
    seen: list[Pass] = []
    predict = DiffusionModel.predict

    def watched(self: DiffusionModel, latents: torch.Tensor, *given: Any) -> torch.Tensor:
        seen.append((torch.is_grad_enabled(), len(latents)))
        return predict(self, latents, *given)

    monkeypatch.setattr(DiffusionModel, "predict", watched)
    return seen


def slow(*values: Any) -> Any:
    """Parameters that are left out of the default run."""
    return pytest.param(*values, marks=pytest.mark.slow)


def opened(folder: Path, content: dict[str, Any]) -> Reinforcement:
    run = open_tune(TuneSettings(recipe=write_recipe(folder, content), out=folder / "run"))
    section = run.recipe.stages[0]
    assert isinstance(section, RlcfStage | DdpoStage)
    return Reinforcement(run, section, 0, checkpoint=run.model)


@pytest.mark.parametrize(
    ("objective", "section"),
    [
        ("forward", {"num_minibatches": 2, "timesteps": 3, "micro_batch": 4, "kl_weight": 0.1}),
        slow("forward", {"num_minibatches": 1, "timesteps": 2, "kl_weight": 0.0, "max_norm_ratio": None}),
        slow("forward", {"num_minibatches": 2, "timesteps": 2, "micro_batch": 1, "max_norm_ratio": 1.1}),
        slow("policy_gradient", {"num_minibatches": 2, "inner_epochs": 2, "micro_batch": 1}),
        ("policy_gradient", {"num_minibatches": 1, "inner_epochs": 3, "micro_batch": 3, "kl_weight": 0.1}),
        slow("policy_gradient", {"num_minibatches": 4, "timestep_fraction": 0.5, "micro_batch": 64, "kl_weight": 0.1}),
    ],
)
def test_passes_are_those_of_an_iteration(
    objective: str,
    section: dict[str, Any],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    passes: list[Pass],
) -> None:
    key = "forward" if objective == "forward" else "update"
    made = opened(tmp_path, recipe(tiny_model, objective=objective, **{key: section}))
    found = []

    def counted(update: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            passes.clear()
            stats = update(*given, **named)
            found.append(Passes(sum(grad for grad, _ in passes), sum(not grad for grad, _ in passes)))
            return stats

        return call

    for kind in (Updater, ForwardUpdater):
        monkeypatch.setattr(kind, "__call__", counted(kind.__call__))
    with made.pool() as pool:
        assert pool.batches == 1
        made.opened(pool)(0)
    assert found == [update_passes(made, at_once=1)]


@pytest.mark.parametrize(
    ("objective", "micro_batch", "samples"),
    [("forward", 1, 1), slow("forward", 64, 8), slow("policy_gradient", 1, 2), ("policy_gradient", 64, 16)],
)
def test_an_update_is_measured_at_its_own_micro_batch(
    objective: str, micro_batch: int, samples: int, tiny_model: Path, tmp_path: Path, passes: list[Pass]
) -> None:
    """Of eight pairs of image and noise level, or step; with guidance, a policy gradient runs each of them twice."""
    path = write_recipe(tmp_path, recipe(tiny_model, objective=objective))
    key = f"stages.0.{'forward' if objective == 'forward' else 'update'}.micro_batch={micro_batch}"
    result = tune(path, tmp_path / "run", "--dry-run", "--set", key)
    assert result.exit_code == 0, result.output
    assert {size for grad, size in passes if grad} == {samples}
    assert 4 in {size for grad, size in passes if not grad}  # a batch of two images is sampled with guidance


def test_memory_that_was_given_back_counts(tiny_model: Path, tmp_path: Path) -> None:
    run: TuneRun = opened(tmp_path, recipe(tiny_model)).run
    with _peak_memory(run) as before:
        pass
    with _peak_memory(run) as peak:
        torch.ones(1 << 25).exp_().sum()
    assert peak.bytes > before.bytes + (1 << 26)
