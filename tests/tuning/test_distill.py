"""The stage `distill` of `cxrsynth tune` on tiny models: it learns its teacher's trajectories, and what it leaves."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from safetensors.torch import load_file

from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.errors import ModelError, ShardError
from cxrsynth.recipe.schema import DistillStage
from cxrsynth.rewards.diagnosis import DiagnosisReward
from cxrsynth.rl.rollout_spec import RolloutSpec, rollout_specs
from cxrsynth.runtime.batches import chunks
from cxrsynth.settings import Precision, Sampler, TuneSettings
from cxrsynth.tuning import distill
from cxrsynth.tuning.distill import Distillation
from cxrsynth.tuning.setup import open_tune
from tests.conftest import build_tiny_model
from tests.diffusion.test_families import PROMPTS, by_diffusers, noise_of
from tests.families import FAMILIES, build
from tests.generation.making import hashes
from tests.processes import Warm, process_group
from tests.tuning.making import install_brightness, metrics, tune, write_recipe
from tests.tuning.making import recipe as reinforced

pytestmark = pytest.mark.usefixtures("one_core")


def recipe(model: Path, **changes: Any) -> dict[str, Any]:
    stage = {
        "stage": "distill",
        "sampling_steps": 2,
        "teacher": {"steps": 4, "sampler": "ddim", "guidance": 2.0},
        "trajectories": 4,
        "steps": 4,
        "batch_size": 4,
        "micro_batch": 2,
        "checkpoint_every": 2,
        "train": {"learning_rate": 1.0e-3, "ema_decay": 0.9},
    }
    return {
        "model": {"checkpoint": str(model), "device": "cpu", "precision": "fp32"},
        "reports": {"table": "reports.csv", "held_out": 2},
        "stages": [stage | changes],
        "evaluation": {"steps": 2, "sheet": 2},
    }


@contextmanager
def stage_of(folder: Path, content: dict[str, Any]) -> Iterator[Distillation]:
    """A stage in this process, its trajectories sampled."""
    run = open_tune(TuneSettings(recipe=write_recipe(folder, content), out=folder / "run"))
    section = run.recipe.stages[0]
    assert isinstance(section, DistillStage)
    run.folder.baseline_images.mkdir(parents=True)  # as a run does at its start
    stage = Distillation(run, section, 0, checkpoint=run.model)
    stage.sample()
    yield stage


def batch_of(step: int) -> list[RolloutSpec]:
    return rollout_specs(step, seed=0, reports=4, per_iteration=4, images=1, pool=1)


@pytest.mark.slow
def test_the_student_learns_to_land_where_its_teacher_goes(tiny_model: Path, tmp_path: Path) -> None:
    """By its images: from the same noise, in half the steps and without guidance."""
    train = {"learning_rate": 3.0e-3, "ema_decay": None}
    content = recipe(tiny_model, steps=60, checkpoint_every=60, train=train)
    with stage_of(tmp_path, content) as stage:
        teacher, places = stage.teacher(), range(4)
        noise = torch.stack([stage.trajectories.noise(place) for place in places])
        prompts = [stage.example(stage.run.training[place % len(stage.run.training)]).prompt for place in places]

        def images(model: Any, sampler: Sampler, steps: int, guidance: float) -> torch.Tensor:
            return sample_images(model, prompts, noise, sampler=sampler, steps=steps, guidance=guidance)

        wanted = images(teacher, Sampler.DDIM, 4, 2.0)
        before = (images(stage.model, Sampler.DDIM, 2, 1.0) - wanted).square().mean()
        stage.train()
        after = (images(stage.model, Sampler.DDIM, 2, 1.0) - wanted).square().mean()
    assert after < 0.3 * before, (before, after)


def test_the_result_is_used_in_few_steps_without_guidance(tmp_path: Path) -> None:
    spec: dict[str, object] = {
        "name": "own",
        "negative_prompt": "blurry",
        "defaults": {"steps": 6, "guidance": 2.5, "sampler": "dpm++"},
    }
    source = build_tiny_model(tmp_path / "source", spec=spec)
    content = recipe(source, teacher={})
    out = tmp_path / "run"
    result = tune(write_recipe(tmp_path, content), out)
    assert result.exit_code == 0, result.output
    found = json.loads((out / "model" / "cxrsynth.json").read_text())
    assert found == {"name": "own-distilled", "defaults": {"steps": 2, "guidance": 1.0, "sampler": "ddim"}}
    card = (out / "model" / "model_card.md").read_text()
    assert "# own, distilled" in card
    assert "2 passes of the network in place of 12" in card
    assert "teacher: 6 steps of dpm++, guidance 2.5" in card
    assert "| evaluator diagnosis |" in card
    assert (out / "sheets" / "0-distilled.png").is_file()
    assert not (out / "checkpoints" / "latents-0").exists()
    tested = [row for row in metrics(out) if "test/frechet_to_baseline" in row]
    assert len(tested) == 1
    assert "test/tuning/total/margin" not in tested[0]
    # Plain diffusers, without a word about how to sample, gives the same image.
    model = load_model(resolve_model(str(out / "model")), device=torch.device("cpu"), precision=Precision.FP32)
    noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    ours = sample_images(model, ["clear lungs"], noise, sampler=Sampler.DDIM, steps=2, guidance=1.0)
    pipeline = DiffusionPipeline.from_pretrained(out / "model", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    plain = pipeline("clear lungs", latents=noise, num_inference_steps=2, guidance_scale=1.0, output_type="np").images
    torch.testing.assert_close(ours[:, 0], torch.from_numpy(plain).mean(-1), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_run_stopped_and_killed_ends_as_if_it_never_was(tiny_model: Path, tmp_path: Path) -> None:
    content = recipe(tiny_model, trajectories=80, steps=12, checkpoint_every=4)
    path = write_recipe(tmp_path, content)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    latents = cut / "checkpoints" / "latents-0"
    first = Warm("cxrsynth", "tune", path, "--out", cut, log=tmp_path / "log")
    first.kill_when(lambda: latents.exists() and any(latents.glob("*.safetensors")))
    second = Warm("cxrsynth", "tune", path, "--out", cut, log=tmp_path / "log")
    second.kill_when((cut / "checkpoints" / "0-000008").exists)
    kept = sorted(latents.glob("*.safetensors"))
    assert len(kept) == 2
    kept[0].write_bytes(kept[0].read_bytes()[:100])  # a damaged file is sampled again
    kept[1].unlink()
    assert tune(path, whole).exit_code == 0
    last = tune(path, cut)
    assert last.exit_code == 0, last.output
    assert "resuming after step 8 of 12" in last.output
    assert metrics(whole) == metrics(cut)
    assert hashes(whole / "model") == hashes(cut / "model")
    again = tune(path, cut)
    assert (again.exit_code, "already complete" in again.output) == (0, True)


@pytest.mark.parametrize("cores", [1, 2])
def test_micro_batches_and_processes_add_up_to_one_batch(cores: int, tiny_model: Path, tmp_path: Path) -> None:
    def gradient(stage: Distillation) -> torch.Tensor:
        return torch.cat([weight.grad.flatten() for weight in stage.weights.values() if weight.grad is not None])

    torch.set_num_threads(cores)
    with stage_of(tmp_path, recipe(tiny_model)) as stage, stage.pool() as pool:

        def gradients(batches: list[list[RolloutSpec]]) -> float:
            return stage.regression.gradients(batches, lambda batch: stage.loss(7, batch), pool).item()

        loss = gradients([batch_of(7)])
        whole = gradient(stage)
        assert whole.abs().max() > 1e-4
        ones = [list(one) for one in chunks(batch_of(7), 1)]
        assert gradients(ones) == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(gradient(stage), whole, rtol=1e-4, atol=1e-6)
        shared = torch.zeros_like(whole)
        for rank in range(2):
            gradients(list(replace(stage.run.group, rank=rank, count=2).share(ones)))
            shared += gradient(stage)
        torch.testing.assert_close(shared, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tiny_model: Path, tmp_path: Path) -> None:
    """Each samples files of trajectories of its own, and both learn from all."""
    path = write_recipe(tmp_path, recipe(tiny_model, trajectories=80))
    with process_group(2) as environments:
        running = [
            Warm(
                *("cxrsynth", "tune", path, "--out", tmp_path / "two"),
                log=tmp_path / f"{own['RANK']}.log",
                environment=own,
            )
            for own in environments
        ]
        assert [one.wait() for one in running] == [0, 0], [one.printed() for one in running]
    assert tune(path, tmp_path / "one").exit_code == 0
    weights = [
        load_file(tmp_path / out / "model" / "unet" / "diffusion_pytorch_model.safetensors") for out in ("one", "two")
    ]
    before = load_file(tiny_model / "unet" / "diffusion_pytorch_model.safetensors")
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-6)
    assert any(not torch.equal(before[name], weight) for name, weight in weights[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, "sd3 by DPM-Solver", "sana by DPM-Solver"])
def test_every_family_is_distilled_and_sampled_by_plain_diffusers(name: str, tmp_path: Path) -> None:
    """With adapters: they are small enough for any model. The steps of the teacher are the nearest that fit."""
    name, _, solver = name.partition(" by ")
    source = build(name, tmp_path / "source")
    if solver:
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
        DPMSolverMultistepScheduler(**flow).save_pretrained(source / "scheduler")
        index = json.loads((source / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", "DPMSolverMultistepScheduler"]
        (source / "model_index.json").write_text(json.dumps(index))
    train = {"unet": "lora", "lora": {"rank": 2}, "learning_rate": 1.0e-2}
    content = recipe(source, sampling_steps=4, steps=1, batch_size=2, trajectories=2, train=train, teacher={})
    result = tune(write_recipe(tmp_path, content), tmp_path / "run")
    assert result.exit_code == 0, result.output
    resolved = resolve_model(str(tmp_path / "run" / "model"))
    model = load_model(resolved, device=torch.device("cpu"), precision=Precision.FP32)
    defaults = resolved.spec.defaults
    expected = {"sd3": Sampler.DPMPP, "sana": Sampler.DPMPP, "flux": Sampler.EULER, "lumina2": Sampler.EULER}
    assert (defaults.steps, defaults.sampler) == (4, expected.get(name, Sampler.DDIM))
    assert defaults.guidance == (3.5 if model.takes_guidance else 1.0)
    noise = noise_of(model)
    ours = sample_images(model, PROMPTS, noise, sampler=defaults.sampler, steps=4, guidance=defaults.guidance)
    torch.testing.assert_close(ours, by_diffusers(resolved.folder, noise, defaults.guidance), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_model_without_text_is_distilled(tmp_path: Path) -> None:
    source = build("gray", tmp_path / "source")
    content = recipe(source, teacher={"steps": 4, "guidance": 1.0, "sampler": "ddim"})
    result = tune(write_recipe(tmp_path, content), tmp_path / "run")
    assert result.exit_code == 0, result.output
    content = recipe(source)
    result = tune(write_recipe(tmp_path, content), tmp_path / "other")
    assert result.exit_code == 2
    assert "stages.0.teacher.guidance: 2\n  expected: 1, no guidance" in result.output


@pytest.mark.slow
def test_reinforcement_goes_on_from_a_distilled_model(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one recipe: it samples and evaluates as the distilled model is used, not as its teacher was."""
    install_brightness(tmp_path / "own", monkeypatch)
    content = recipe(tiny_model)
    second = reinforced(tiny_model, objective="forward", iterations=1)["stages"][0]
    second["sampling"] = {"steps": 2, "batch_size": 2}
    content["stages"].append(second)
    del content["evaluation"]["steps"]
    path = write_recipe(tmp_path, content)
    estimate = tune(path, tmp_path / "run", "--dry-run").output
    assert "stage 2, rlcf: 1 iteration of 4 images and 1 update; 2 steps, guidance 1, objective forward" in estimate
    result = tune(path, tmp_path / "run")
    assert result.exit_code == 0, result.output
    found = resolve_model(str(tmp_path / "run" / "model"))
    assert (found.name, found.spec.defaults.steps, found.spec.defaults.guidance) == (
        f"{tiny_model.name}-distilled-tuned",
        2,
        1.0,
    )


@pytest.mark.slow
def test_adaptive_embeddings_stay(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher has them, so the student learns under them, and keeps them as they are."""
    install_brightness(tmp_path / "own", monkeypatch)
    first = reinforced(tiny_model, iterations=1, train={"unet": "frozen", "ace": {"tokens": 4}})
    assert tune(write_recipe(tmp_path, first), tmp_path / "ace").exit_code == 0
    source = tmp_path / "ace" / "model"
    result = tune(write_recipe(tmp_path, recipe(source)), tmp_path / "run")
    assert result.exit_code == 0, result.output
    for name in ("ace.json", "ace.safetensors"):
        assert (tmp_path / "run" / "model" / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flipped", "zeros", "gone"])
def test_damaged_trajectories_are_sampled_again(damage: str, tiny_model: Path, tmp_path: Path) -> None:
    with stage_of(tmp_path, recipe(tiny_model)) as stage:
        [path] = stage.run.folder.latents(0).iterdir()
        before = path.read_bytes()
        changed = bytearray(before)
        if damage == "flipped":
            changed[-100] ^= 1
        elif damage == "zeros":
            changed[-1000:] = bytes(1000)
        path.write_bytes(changed[:-10] if damage == "cut" else changed)
        if damage == "gone":
            path.unlink()
        [places] = stage.trajectories.files
        assert not stage.trajectories.is_there(places)
        stage.sample()
        assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_trajectories_lost_under_way_end_the_run_with_a_message(damage: str, tiny_model: Path, tmp_path: Path) -> None:
    with stage_of(tmp_path, recipe(tiny_model)) as stage:
        [path] = stage.run.folder.latents(0).iterdir()
        path.unlink()
        with pytest.raises(ModelError, match="1 of 1 files of trajectories are not here"):
            stage.trajectories.check_all_there()
        if damage == "cut":
            path.write_bytes(b"12345678")
        with pytest.raises(ModelError, match="cannot be read any more"):
            stage.loss(0, batch_of(0))


@pytest.mark.slow
def test_a_run_whose_metrics_were_lost_still_leaves_its_model(tiny_model: Path, tmp_path: Path) -> None:
    path, out = write_recipe(tmp_path, recipe(tiny_model)), tmp_path / "run"
    assert tune(path, out).exit_code == 0
    shutil.rmtree(out / "model")
    (out / "metrics.jsonl").unlink()
    (out / "checkpoints" / "latents-0").mkdir()  # as a run leaves it that is killed before it is removed
    result = tune(path, out)
    assert result.exit_code == 0, result.output
    assert "mean loss" not in (out / "model" / "model_card.md").read_text()
    (out / "checkpoints" / "latents-0").mkdir(exist_ok=True)
    assert "already complete" in tune(path, out).output
    assert not (out / "checkpoints" / "latents-0").exists()


def test_other_settings_are_not_sent_to_a_best_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert tune(write_recipe(tmp_path, recipe(tiny_model)), out).exit_code == 0
    shutil.rmtree(out / "model")
    other = write_recipe(tmp_path, recipe(tiny_model, train={"learning_rate": 2.0e-3, "ema_decay": 0.9}))
    result = tune(other, out)
    assert result.exit_code == 2
    assert "--from-best" not in result.output
    result = tune(other, out, "--from-best")
    assert result.exit_code == 2
    assert "stage 0 is distill, which keeps no best checkpoint" in result.output


@pytest.mark.slow
def test_a_second_distillation_starts_from_what_the_first_leaves(tiny_model: Path, tmp_path: Path) -> None:
    """Its teacher is used as the first one's result is; the dry run says so, too."""
    content = recipe(tiny_model, sampling_steps=4)
    content["stages"].append(recipe(tiny_model, sampling_steps=1, teacher={})["stages"][0])
    path = write_recipe(tmp_path, content)
    estimate = tune(path, tmp_path / "run", "--dry-run")
    assert estimate.exit_code == 0, estimate.output
    assert "stage 2, distill: 1 step of ddim" in estimate.output
    assert "in place of 4 of ddim at guidance 1" in estimate.output
    result = tune(path, tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "1 pass of the network in place of 4" in (tmp_path / "run" / "model" / "model_card.md").read_text()


def test_a_dry_run_says_what_it_takes(tiny_model: Path, tmp_path: Path) -> None:
    result = tune(write_recipe(tmp_path, recipe(tiny_model)), tmp_path / "run", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "2 steps of ddim without classifier-free guidance in place of 4 of ddim at guidance 2" in result.output
    assert "4 trajectories of the teacher" in result.output
    assert "4 steps of 4, trains" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"teacher": {"steps": 5}}, "stages.0.teacher.steps: 5 steps of ddim do not visit the noise levels at which 2"),
        ({"teacher": {"sampler": "model"}}, "expected: 'ddim', 'dpm++' or 'euler'"),
        ({"batch_size": 5}, "batch_size 5: more than the 4 trajectories"),
        ({"cache_gib": 1e-6}, "cache_gib 1e-06: 4 trajectories take"),
        ({"sampling_steps": 17}, "expected: less than or equal to 16"),
        ({"rewards": {}}, "unknown key"),
        ({"stage": "distil"}, "expected: sft, distill, rlcf or ddpo"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    changes: dict[str, Any], expected: str, tiny_model: Path, tmp_path: Path
) -> None:
    content = recipe(tiny_model, **changes)
    if "teacher" in changes:
        content["stages"][0]["teacher"] = {"sampler": "ddim", "guidance": 2.0} | changes["teacher"]
    result = tune(write_recipe(tmp_path, content), tmp_path / "run")
    assert result.exit_code == 2, result.output
    assert expected in result.output.replace("\n  ", " ") or expected in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fault", ["reference", "evaluator"])
def test_what_cannot_be_evaluated_ends_a_run_before_its_first_trajectory(
    fault: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = recipe(tiny_model)
    if fault == "reference":
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "cut.png").write_bytes(b"\x89PNG")
        content["evaluation"]["reference"] = "real"
    else:
        monkeypatch.setattr(DiagnosisReward, "__call__", lambda *_: torch.full((_[1].shape[0],), torch.nan))
    result = tune(write_recipe(tmp_path, content), tmp_path / "run")
    assert result.exit_code == 2, result.output
    said = {"reference": "0 images that can be read, 1 that cannot", "evaluator": "evaluator reward diagnosis"}
    assert said[fault] in result.output
    assert "--export" not in result.output
    assert not list((tmp_path / "run" / "checkpoints" / "latents-0").glob("*"))
    assert metrics(tmp_path / "run") == []


def test_a_reference_lost_under_way_leaves_the_model_to_be_exported(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = iter([distill.open_evaluator])

    def open_once(*given: Any, **named: Any) -> Any:
        if (first := next(opened, None)) is None:
            raise ShardError("evaluation.reference: gone")
        return first(*given, **named)

    monkeypatch.setattr(distill, "open_evaluator", open_once)
    path = write_recipe(tmp_path, recipe(tiny_model))
    result = tune(path, tmp_path / "run")
    assert result.exit_code == 2, result.output
    assert "evaluation.reference: gone\n  --export writes the distilled model without a test" in result.output
    assert tune(path, tmp_path / "run", "--export").exit_code == 0


def test_the_trajectories_hold_no_report_text(tiny_model: Path, tmp_path: Path) -> None:
    with stage_of(tmp_path, recipe(tiny_model)) as stage:
        folder = stage.run.folder.latents(0)
        content = b"".join(path.read_bytes() for path in folder.iterdir())
        texts = [report.impression or report.findings for report in stage.run.training]
    assert all(text and text.encode() not in content for text in texts)
    shutil.rmtree(folder)
