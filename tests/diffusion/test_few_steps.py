"""Few steps: what a student must predict to land where its teacher went, on every family and schedule."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cxrsynth.diffusion.few_steps import (
    check_nested,
    few_step_config,
    few_step_sampler,
    few_steps,
    teacher_states,
    with_few_step_config,
)
from cxrsynth.diffusion.model import DiffusionModel, load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import guided_condition, make_scheduler, sample_latents
from cxrsynth.errors import ModelError
from cxrsynth.settings import Precision, Sampler
from tests.families import FAMILIES, build

PROMPTS = ["clear lungs", "left lower lobe pneumonia"]
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DiffusionModel]:
    home = tmp_path_factory.mktemp("families")
    found = {}
    for name in FAMILIES:
        folder = build(name, home / name)
        loaded = load_model(resolve_model(str(folder)), device=torch.device("cpu"), precision=Precision.FP32)
        found[name] = with_few_step_config(loaded)
    return found


def noise_of(model: DiffusionModel) -> Tensor:
    return torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))


def with_schedule(model: DiffusionModel, **changes: Any) -> DiffusionModel:
    config = {**model.scheduler_config, **changes}
    return with_few_step_config(replace(model, components=replace(model.components, scheduler_config=config)))


def guidance_of(model: DiffusionModel) -> float:
    return 3.0 if model.family.has_text else 1.0


@torch.no_grad()
def check_landing(model: DiffusionModel, count: int) -> None:
    """Whatever a network predicts, `prediction` finds it again from where its step begins and ends."""
    sampler, few = few_step_sampler(model.scheduler_config), few_steps(model, count)
    scheduler = make_scheduler(model, sampler, steps=count)
    latents = noise_of(model)
    for step, timestep in enumerate(scheduler.timesteps):
        given = torch.randn(latents.shape, generator=torch.Generator().manual_seed(step))
        landed = scheduler.step(given, timestep, latents, return_dict=False)[0]
        found = few.prediction(torch.full((2,), step), latents, landed)
        torch.testing.assert_close(found, given, atol=1e-3, rtol=1e-3)
        latents = landed


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_prediction_is_found_from_both_ends_of_a_step(
    name: str, count: int, models: dict[str, DiffusionModel]
) -> None:
    check_landing(models[name], count)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_any_prediction_and_spacing(kind: str, spacing: str, models: dict[str, DiffusionModel]) -> None:
    model = with_schedule(
        models["stable_diffusion"], prediction_type=kind, timestep_spacing=spacing, clip_sample=True, thresholding=True
    )
    check_landing(model, 4)
    assert few_steps(model, 4).timesteps.tolist() == [999, 749, 499, 249]


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_teacher_in_the_students_own_steps_is_the_student(name: str, models: dict[str, DiffusionModel]) -> None:
    """Its states are those of the student's sampler, and the network itself is the solution."""
    model, count = models[name], 4
    sampler, few = few_step_sampler(model.scheduler_config), few_steps(model, count)
    text, empty = model.encode(PROMPTS)
    condition = guided_condition(model, text, empty, 1.0)
    noise = noise_of(model)
    states = teacher_states(model, condition, noise, sampler=sampler, steps=count, guidance=1.0, few=few)
    assert states.shape == (2, count, *model.latent_shape)
    last = sample_latents(model, condition, noise, sampler=sampler, steps=count, guidance=1.0)
    torch.testing.assert_close(states[:, -1], last, atol=1e-5, rtol=1e-5)
    starts = torch.cat([noise[:, None], states[:, :-1]], 1)
    for step in range(count):
        steps = torch.full((2,), step)
        predicted = model.predict(starts[:, step], few.timesteps[steps], condition)
        wanted = few.prediction(steps, starts[:, step], states[:, step])
        levels = few.levels[steps]
        found, target = (model.schedule.velocity(starts[:, step], one, levels) for one in (predicted, wanted))
        torch.testing.assert_close(found, target, atol=2e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("sampler", [Sampler.DDIM, Sampler.DPMPP, Sampler.EULER])
def test_samplers_visit_the_same_states(sampler: Sampler, models: dict[str, DiffusionModel]) -> None:
    """In many steps all follow the same curve, whichever frame their latents are in."""
    model, few = models["stable_diffusion"], few_steps(models["stable_diffusion"], 4)
    text, empty = model.encode(PROMPTS)
    condition = guided_condition(model, text, empty, 3.0)

    def states(sampler: Sampler, steps: int) -> Tensor:
        return teacher_states(model, condition, noise_of(model), sampler=sampler, steps=steps, guidance=3.0, few=few)

    exact, found, other = states(Sampler.DDIM, 500), states(sampler, 100), states(Sampler.DDIM, 4)
    off = [(one - exact).square().mean((0, 2, 3, 4)).sqrt() for one in (found, other)]
    assert (off[0] < 0.5 * off[1] + 1e-3).all(), (off[0], off[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_teacher_that_misses_the_students_steps_is_refused(name: str, models: dict[str, DiffusionModel]) -> None:
    model = models[name]
    config, family = model.scheduler_config, model.family
    sampler = few_step_sampler(config)
    check_nested(config, family, sampler, steps=4, count=4)
    with pytest.raises(ModelError, match=r"3 steps of .* do not visit .* 4 steps begin\n  expected: 4"):
        check_nested(config, family, sampler, steps=3, count=4)
    with pytest.raises(ModelError, match="expected: ") as refused:
        check_nested(config, family, sampler, steps=21, count=4)
    nearest = [int(number) for number in str(refused.value).rpartition("expected: ")[2].split(", ")]
    assert nearest
    for steps in nearest:
        check_nested(config, family, sampler, steps=steps, count=4)
        text, empty = model.encode(PROMPTS)
        condition = guided_condition(model, text, empty, guidance_of(model))
        few = few_steps(model, 4)
        with torch.no_grad():
            states = teacher_states(
                model, condition, noise_of(model), sampler=sampler, steps=steps, guidance=guidance_of(model), few=few
            )
        assert states.shape[1] == 4


def test_the_schedule_of_a_student_begins_in_noise() -> None:
    config = {
        "_class_name": "PNDMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "use_karras_sigmas": True,
        "prediction_type": "epsilon",
        "skip_prk_steps": True,
    }
    found = few_step_config(config)
    assert (found["_class_name"], found["timestep_spacing"], found["clip_sample"]) == (
        "DDIMScheduler",
        "trailing",
        False,
    )
    assert (found["beta_start"], found["prediction_type"]) == (0.00085, "epsilon")
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    assert few_step_config(flow) == flow


def test_a_step_without_effect_is_refused(models: dict[str, DiffusionModel]) -> None:
    model = models["stable_diffusion"]
    with pytest.raises(ModelError, match=r"timesteps"):
        few_steps(model, 1001)
