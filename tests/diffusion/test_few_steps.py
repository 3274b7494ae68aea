"""Few steps: what a student must predict to land where its teacher went, on every family and schedule."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from cxrsynth.diffusion.families.base import Family
from cxrsynth.diffusion.few_steps import (
    FewSteps,
    Schedule,
    few_steps,
    nested_steps,
    student_schedule,
    teacher_schedule,
    teacher_states,
)
from cxrsynth.diffusion.model import DiffusionModel, load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import guided_condition, make_scheduler, sample_latents
from cxrsynth.errors import ModelError
from cxrsynth.settings import Precision, Sampler
from tests.families import FAMILIES, FLOW, build

PROMPTS = ["clear lungs", "left lower lobe pneumonia"]


@dataclass(frozen=True)
class Pair:
    """A model under its student's schedule, and the configuration of its folder."""

    model: DiffusionModel
    config: dict[str, Any]

    @property
    def family(self) -> Family:
        return self.model.family

    @property
    def student(self) -> Schedule:
        return student_schedule(self.config, self.family)

    def teacher(self, sampler: Sampler) -> Schedule:
        return teacher_schedule(self.config, self.family, sampler)

    def few(self, count: int) -> FewSteps:
        return few_steps(self.model, self.student, count)

    def states(
        self,
        sampler: Sampler,
        steps: int,
        *,
        count: int = 4,
        guidance: float = 3.0,
        beginnings: Tensor | None = None,
    ) -> Tensor:
        """What a teacher visits, [2, K, C, h, w]."""
        schedule = self.teacher(sampler)
        text, empty = self.model.encode(PROMPTS)
        with torch.no_grad():
            return teacher_states(
                schedule.of(self.model),
                guided_condition(self.model, text, empty, guidance),
                noise_of(self.model),
                sampler=schedule.sampler,
                steps=steps,
                guidance=guidance,
                few=self.few(count),
                beginnings=beginnings,
            )

    def nested(self, sampler: Sampler, steps: int, *, count: int = 4, exact: bool = True) -> int:
        return nested_steps(self.teacher(sampler), self.student, self.family, steps=steps, count=count, exact=exact)


def pair_of(model: DiffusionModel, **changes: Any) -> Pair:
    """With changes to the folder's scheduler."""
    config = {**model.scheduler_config, **changes}
    return Pair(student_schedule(config, model.family).of(model), config)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    home = tmp_path_factory.mktemp("families")
    return {
        name: pair_of(
            load_model(
                resolve_model(str(build(name, home / name))), device=torch.device("cpu"), precision=Precision.FP32
            )
        )
        for name in FAMILIES
    }


def noise_of(model: DiffusionModel) -> Tensor:
    return torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def check_landing(pair: Pair, count: int) -> None:
    """Whatever a network predicts, `prediction` finds it again from where its step begins and ends."""
    few = pair.few(count)
    scheduler = make_scheduler(pair.model, pair.student.sampler, steps=count)
    latents = noise_of(pair.model)
    for step, timestep in enumerate(scheduler.timesteps):
        given = torch.randn(latents.shape, generator=torch.Generator().manual_seed(step))
        landed = scheduler.step(given, timestep, latents, return_dict=False)[0]
        found = few.prediction(torch.full((2,), step), latents, landed)
        torch.testing.assert_close(found, given, atol=1e-3, rtol=1e-3)
        latents = landed


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_prediction_is_found_from_both_ends_of_a_step(name: str, count: int, models: dict[str, Pair]) -> None:
    check_landing(models[name], count)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_any_prediction_and_spacing(kind: str, spacing: str, models: dict[str, Pair]) -> None:
    changes = {"prediction_type": kind, "timestep_spacing": spacing, "clip_sample": True, "thresholding": True}
    pair = pair_of(models["stable_diffusion"].model, **changes)
    check_landing(pair, 4)
    assert pair.few(4).timesteps.tolist() == [999, 749, 499, 249]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_step_is_wasted_next_to_the_image(name: str, models: dict[str, Pair]) -> None:
    """Flow matching's own scheduler begins its last step at a noise level of less than 1%."""
    pair = models[name]
    levels = pair.few(4).timesteps.double() / 1000
    shift = float(pair.config.get("shift", pair.config.get("flow_shift", 1.0)))
    assert levels[0] > 0.99
    assert levels[-1] > 0.2
    if name in ("sd3", "sana"):
        even = torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64)
        assert (levels - shift * even / (1 + (shift - 1) * even)).abs().max() < 2e-3


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_teacher_in_the_students_own_steps_is_the_student(name: str, models: dict[str, Pair]) -> None:
    """Its states are those of the student's sampler, and the network itself is the solution."""
    pair, count = models[name], 4
    model, few = pair.model, pair.few(count)
    sampler = Sampler.EULER if name in FLOW else Sampler.DDIM
    states, noise = pair.states(sampler, count, guidance=1.0), noise_of(model)
    assert states.shape == (2, count, *model.latent_shape)
    text, empty = model.encode(PROMPTS)
    condition = guided_condition(model, text, empty, 1.0)
    last = sample_latents(model, condition, noise, sampler=pair.student.sampler, steps=count, guidance=1.0)
    torch.testing.assert_close(states[:, -1], last, atol=1e-5, rtol=1e-5)
    starts = torch.cat([noise[:, None], states[:, :-1]], 1)
    for step in range(count):
        steps = torch.full((2,), step)
        predicted = model.predict(starts[:, step], few.timesteps[steps], condition)
        wanted = few.prediction(steps, starts[:, step], states[:, step])
        levels = few.levels[steps]
        found, target = (model.schedule.velocity(starts[:, step], one, levels) for one in (predicted, wanted))
        torch.testing.assert_close(found, target, atol=2e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stable_diffusion", "sd3", "flux"])
@pytest.mark.parametrize("sampler", [Sampler.DDIM, Sampler.DPMPP, Sampler.EULER])
def test_samplers_visit_the_same_states(name: str, sampler: Sampler, models: dict[str, Pair]) -> None:
    """In many steps all follow the same curve, whichever frame their latents are in."""
    pair = models[name]
    if name in FLOW and sampler is Sampler.DDIM:
        return
    plain = Sampler.EULER if name in FLOW else Sampler.DDIM
    exact, found, other = pair.states(plain, 500), pair.states(sampler, 100), pair.states(plain, 4)
    off = [(one - exact).square().mean((0, 2, 3, 4)).sqrt() for one in (found, other)]
    assert (off[0] < 0.5 * off[1] + 2e-3).all(), (off[0], off[1])


@pytest.mark.parametrize("name", ["stable_diffusion", "sd3"])
@pytest.mark.parametrize("sampler", [Sampler.DDIM, Sampler.EULER, Sampler.DPMPP])
def test_a_teacher_that_begins_anew_where_it_is_goes_on_as_before(
    name: str, sampler: Sampler, models: dict[str, Pair]
) -> None:
    """Samplers without a memory do so to the rounding; one with a memory has lost it, and goes another way."""
    pair = models[name]
    if name in FLOW and sampler is Sampler.DDIM:
        return
    plain = pair.states(sampler, 12)
    where = torch.cat([noise_of(pair.model)[:, None], plain[:, :-1]], 1)
    anew = pair.states(sampler, 12, beginnings=where)
    same = slice(0, 1) if sampler is Sampler.DPMPP else slice(0, None)
    torch.testing.assert_close(anew[:, same], plain[:, same], atol=1e-3, rtol=1e-3)
    other = pair.states(sampler, 12, beginnings=where + torch.tensor([0.0, 0.0, 1.0, 0.0])[None, :, None, None, None])
    changed = [
        not torch.allclose(one, two, atol=1e-3) for one, two in zip(other.unbind(1), anew.unbind(1), strict=True)
    ]
    assert changed == [False, False, True, False]  # each step is of its own


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_begin_at_images_with_the_noise_of_their_level(name: str, models: dict[str, Pair]) -> None:
    """The step of a perfect network leads from each to where the next begins, and at last to the image."""
    pair = models[name]
    few, noise = pair.few(4), noise_of(pair.model)
    clean = noise.flip(0).cos()
    begun = few.beginnings(pair.model, clean, noise)
    assert begun.shape == (2, 4, *pair.model.latent_shape)
    alike = torch.nn.functional.cosine_similarity(begun[:, 0].flatten(1), noise.flatten(1))
    assert (alike > 0.98).all()
    ends = torch.cat([begun[:, 1:], clean[:, None]], 1)
    for step in range(4):
        steps = torch.full((2,), step)
        levels = few.levels[steps]
        wanted = few.prediction(steps, begun[:, step], ends[:, step])
        target = pair.model.schedule.target(clean, noise, levels)
        found, right = (pair.model.schedule.velocity(begun[:, step], one, levels) for one in (wanted, target))
        torch.testing.assert_close(found, right, atol=2e-2, rtol=1e-2)


def test_a_teacher_keeps_its_clipping(models: dict[str, Pair]) -> None:
    """It is sampled as the model is used; only the student's steps must be linear."""
    model = models["stable_diffusion"].model
    clipped, free = (pair_of(model, clip_sample=clips) for clips in (True, False))
    assert (clipped.states(Sampler.DDIM, 8) - free.states(Sampler.DDIM, 8)).abs().max() > 1e-3
    assert clipped.student.config["clip_sample"] is False


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("sampler", [Sampler.DPMPP, Sampler.EULER])
def test_a_teacher_that_misses_the_students_steps_is_refused(
    name: str, sampler: Sampler, models: dict[str, Pair]
) -> None:
    pair = models[name]
    assert pair.nested(sampler, 4) == 4
    assert pair.nested(sampler, 28) == 28
    with pytest.raises(ModelError, match=r"3 steps of .* do not visit .* 4 steps begin\n  expected: 4"):
        pair.nested(sampler, 3)
    with pytest.raises(ModelError, match="expected: ") as refused:
        pair.nested(sampler, 22)
    nearest = [int(number) for number in str(refused.value).rpartition("expected: ")[2].split(", ")]
    assert {20, 24} <= set(nearest)
    assert pair.nested(sampler, 22, exact=False) in (20, 24)
    assert pair.nested(sampler, 50, exact=False) in (48, 52)
    for steps in nearest[:1]:
        assert pair.states(sampler, steps).shape[1] == 4


def test_the_schedule_of_a_student_begins_in_noise(models: dict[str, Pair]) -> None:
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
    found = student_schedule(config, models["stable_diffusion"].family).config
    assert (found["_class_name"], found["timestep_spacing"], found["clip_sample"]) == (
        "DDIMScheduler",
        "trailing",
        False,
    )
    assert (found["beta_start"], found["prediction_type"]) == (0.00085, "epsilon")
    solver = {
        "_class_name": "DPMSolverMultistepScheduler",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
    }
    for name, expected in (
        ("sana", ("DPMSolverMultistepScheduler", "flow_shift")),
        ("flux", ("FlowMatchEulerDiscreteScheduler", "shift")),
    ):
        for given in (solver, {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}):
            own = student_schedule(given, models[name].family).config
            assert (own["_class_name"], own[expected[1]]) == (expected[0], 3.0)


@pytest.mark.parametrize("name", ["sd3", "sana"])
@pytest.mark.parametrize(
    "solver",
    [
        {},
        {"solver_order": 1},
        {"solver_order": 3, "solver_type": "heun", "lower_order_final": False, "euler_at_final": True},
        {"_class_name": "UniPCMultistepScheduler", "solver_order": 3, "solver_type": "bh2"},
    ],
)
def test_a_teacher_takes_the_steps_that_the_model_takes(
    solver: dict[str, Any], name: str, models: dict[str, Pair]
) -> None:
    """Its last state is what the same model samples that it is compared with at the end."""
    model = models[name].model
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    config = {"_class_name": "DPMSolverMultistepScheduler", **flow, **solver}
    states = Pair(student_schedule(config, model.family).of(model), config).states(Sampler.DPMPP, 8)
    used = Schedule(config, Sampler.DPMPP).of(model)
    condition = guided_condition(used, *used.encode(PROMPTS), 3.0)
    last = sample_latents(used, condition, noise_of(used), sampler=Sampler.DPMPP, steps=8, guidance=3.0)
    torch.testing.assert_close(states[:, -1], last, atol=1e-5, rtol=1e-5)


def test_a_distilled_model_is_its_own_teacher_when_it_is_distilled_again(models: dict[str, Pair]) -> None:
    for name in ("sd3", "sana"):
        student = models[name].student
        assert teacher_schedule(student.config, models[name].family, student.sampler) == student
        assert student.config["solver_order"] == 1


@pytest.mark.parametrize("name", ["flux", "lumina2"])
def test_a_students_steps_draw_no_noise_in_plain_diffusers(name: str, models: dict[str, Pair]) -> None:
    pair = pair_of(models[name].model, stochastic_sampling=True)
    assert pair.student.config["stochastic_sampling"] is False
    assert pair.teacher(Sampler.EULER).config["stochastic_sampling"] is False


def test_more_steps_than_the_schedule_has_are_refused(models: dict[str, Pair]) -> None:
    with pytest.raises(ModelError, match=r"timesteps"):
        models["stable_diffusion"].few(1001)
