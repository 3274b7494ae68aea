"""Attacks on a network that has memorized one image, which every attack must find, and on every family of models."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cxrsynth.diffusion.condition import Condition
from cxrsynth.diffusion.model import DiffusionModel, load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.metrics.membership.attacks import DISCREPANCY, LOSS, PROXIMAL, ROUND_TRIP, Attacks
from cxrsynth.settings import Precision
from tests.families import FAMILIES, build

PROMPTS = ("heart size is normal", "no effusion", "left lower lobe pneumonia")


def loaded(folder: Path) -> DiffusionModel:
    return load_model(resolve_model(str(folder)), device=torch.device("cpu"), precision=Precision.FP32)


@pytest.fixture(scope="module", params=["stable_diffusion", "sd3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    """One of noise prediction, one of flow matching."""
    return loaded(build(request.param, tmp_path_factory.mktemp("models") / request.param))


@pytest.fixture
def memorized(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The image of a model that always predicts just that one: the ideal denoiser of a training set of one image."""
    image = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(1))
    schedule = model.schedule

    def predict(self: DiffusionModel, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        # Noise levels by timestep, of either schedule.
        every = torch.arange(schedule.count)
        level = (schedule.timesteps(every).float()[None] - timesteps.float()[:, None]).abs().argmin(1)
        clean = image.expand_as(latents)
        none = torch.zeros_like(latents)
        signal = schedule.noisy(torch.ones_like(latents), none, level)
        noise = (latents - signal * clean) / schedule.noise_std(level)[:, None, None, None]
        return schedule.target(clean, noise, level)

    monkeypatch.setattr(DiffusionModel, "predict", predict)
    return image


def found_by(model: DiffusionModel, clean: Tensor, prompts: Sequence[str | None] | None = None) -> dict[str, Tensor]:
    attacks = Attacks(model, seed=0)
    keys = [str(place) for place in range(len(clean))]
    found = attacks(clean, keys, prompts or [PROMPTS[0]] * len(clean), [()] * len(clean))
    assert found.shape == (len(clean), len(attacks.names))
    return dict(zip(attacks.names, found.T, strict=True))


def test_every_attack_finds_the_one_image_that_a_model_has_memorized(model: DiffusionModel, memorized: Tensor) -> None:
    others = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(2))
    found = found_by(model, torch.cat([memorized[None], others]))
    for name, column in found.items():
        if name.startswith(DISCREPANCY):  # this model does not listen to the prompt
            assert column.abs().max() == 0
        elif name.startswith(ROUND_TRIP):  # and leads straight from anywhere
            assert column.abs().max() < 1e-6
        else:
            assert column[0] == pytest.approx(0, abs=1e-2), name
            assert column[1:].max() < 10 * column[0] - 1e-3, name


def test_the_round_trip_is_the_one_of_its_paper(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eleven deterministic steps of 1% into the noise, one of them back; the network here bends the way."""
    schedule = model.schedule

    def predict(self: DiffusionModel, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        return torch.sin(3 * latents)

    monkeypatch.setattr(DiffusionModel, "predict", predict)
    clean = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(2))

    def level(share: float) -> Tensor:
        return torch.full((2,), round(share * schedule.count))

    def step(latents: Tensor, here: float, there: float) -> Tensor:
        velocity = schedule.velocity(latents, torch.sin(3 * latents), level(here))
        parts = schedule.clean_and_noise(latents, velocity, level(here))
        assert torch.allclose(schedule.noisy(*parts, level(here)), latents, atol=1e-4)
        return schedule.noisy(*parts, level(there))

    way = [clean]
    for place in range(11):
        way.append(step(way[-1], place / 100, (place + 1) / 100))
    expected = -(step(way[11], 0.11, 0.10) - way[10]).square().flatten(1).mean(1)
    found = found_by(model, clean)[f"{ROUND_TRIP} 10%"]
    assert expected.abs().min() > 1e-8
    assert torch.allclose(found, expected, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_attacked_and_a_batch_changes_nothing(name: str, tmp_path: Path) -> None:
    model = loaded(build(name, tmp_path / name))
    clean = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(3))
    attacks = Attacks(model, seed=0)
    together = attacks(clean, ["a", "b", "c"], PROMPTS, [()] * 3)
    alone = torch.cat([attacks(clean[[place]], ["abc"[place]], [PROMPTS[place]], [()]) for place in range(len(clean))])
    assert together.isfinite().all()
    # Prompts of a batch are padded to its longest, which changes results a little.
    assert torch.allclose(together, alone, rtol=2e-3, atol=2e-3)


def test_passes_are_counted_and_the_loss_is_that_of_training(
    model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, whole = [], DiffusionModel.predict

    def counted(self: DiffusionModel, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        calls.append(len(latents))
        return whole(self, latents, timesteps, condition)

    monkeypatch.setattr(DiffusionModel, "predict", counted)
    clean = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(3))
    found = found_by(model, clean)
    assert len(calls) == Attacks(model, seed=0).passes
    # At random weights a prediction says nothing of the target: the loss is about the sum of both mean squares.
    first = -found[f"{LOSS} 60%"]
    assert bool((first > 0.3).all())
    assert {name.split(" ")[0] for name in found} == {LOSS, PROXIMAL, DISCREPANCY, ROUND_TRIP.split(" ")[0]}


def test_columns_go_to_their_attacks(model: DiffusionModel) -> None:
    attacks = Attacks(model, seed=0)
    places = attacks.by_attack(np.arange(len(attacks.names), dtype=np.float64)[None])
    named = {name: [attacks.names[int(place)] for place in found[0]] for name, found in places.items()}
    assert {name: len(of) for name, of in named.items()} == {LOSS: 5, PROXIMAL: 5, ROUND_TRIP: 1, DISCREPANCY: 5}
    assert all(one.startswith(name) for name, of in named.items() for one in of)


def test_without_a_prompt_there_is_no_discrepancy(model: DiffusionModel) -> None:
    clean = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(3))
    found = found_by(model, clean, [PROMPTS[0], None])
    for name, column in found.items():
        expected = [False, name.startswith(DISCREPANCY)]
        assert np.isnan(column.numpy()).tolist() == expected, name
