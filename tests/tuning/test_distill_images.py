"""The stage `distill` with images of the user's: its steps begin at images with noise."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cxrsynth.settings import Sampler
from tests.generation.making import hashes
from tests.processes import Warm, process_group
from tests.tuning.making import metrics, tune, write_recipe
from tests.tuning.supervised import other_text, write_images
from tests.tuning.test_distill import batch_of, recipe, stage_of

pytestmark = pytest.mark.usefixtures("one_core")


def with_images(model: Path, radiographs: Path, **changes: Any) -> dict[str, Any]:
    given = {"data": str(radiographs), "table": str(radiographs.parent / "images.csv")}
    return recipe(model, **given, **changes)


def test_each_step_begins_at_an_image_with_noise_and_ends_where_the_teacher_goes(
    tiny_model: Path, radiographs: Path, tmp_path: Path
) -> None:
    with stage_of(tmp_path, with_images(tiny_model, radiographs, trajectories=5)) as stage:
        assert stage.images is not None
        assert len(stage.images) == 4
        alpha = stage.model.schedule.scheduler.alphas_cumprod[stage.few.levels]
        for place in (1, 4):  # of five trajectories of four images, the last is of the first image again
            clean, noise = stage.images.latent(place % 4), stage.trajectories.noise(place)
            for step in range(2):
                start, end = stage.trajectories.ends(place, step)
                noisy = alpha[step].sqrt() * clean + (1 - alpha[step]).sqrt() * noise
                torch.testing.assert_close(start, noisy, atol=5e-3, rtol=5e-3)
                assert not torch.allclose(end, start, atol=1e-2)
        assert not torch.equal(stage.trajectories.noise(0), stage.trajectories.noise(4))
        assert not torch.allclose(stage.trajectories.ends(1, 0)[1], stage.trajectories.ends(1, 1)[0], atol=1e-2)
        loss = stage.loss(0, batch_of(0))
        assert loss.shape == (4,)
        assert loss.isfinite().all()


@pytest.mark.slow
def test_the_student_learns_its_teachers_steps_from_images(tiny_model: Path, radiographs: Path, tmp_path: Path) -> None:
    train = {"learning_rate": 3.0e-3, "ema_decay": None}
    content = with_images(tiny_model, radiographs, steps=60, checkpoint_every=60, train=train)
    with stage_of(tmp_path, content) as stage:

        def loss() -> float:
            with torch.no_grad():
                return float(torch.cat([stage.loss(step, batch_of(step)) for step in range(1000, 1008)]).mean())

        before = loss()
        stage.train()
        assert loss() < 0.3 * before, (before, loss())
        assert stage.defaults.sampler is Sampler.DDIM


def test_the_result_says_what_it_was_made_from(tiny_model: Path, radiographs: Path, tmp_path: Path) -> None:
    """Images of held-out reports are left out; what was encoded is gone afterwards."""
    folder, out = tmp_path / "own", tmp_path / "run"
    shutil.copytree(radiographs, folder / "images")
    rows = [(f"image{place}.png", f"QZX-{place}", *other_text(place)) for place in range(4)]
    write_images(folder / "images.csv", rows)
    content = with_images(tiny_model, folder / "images", steps=1)
    path = write_recipe(tmp_path, content)
    (tmp_path / "held.csv").write_text("study_id,report\nQZX-3,Cardiomegaly. No edema.\nQZX-9,Small effusion.\n")
    estimate = tune(path, out, "--dry-run", "--set", "reports.held_out=held.csv")
    assert estimate.exit_code == 0, estimate.output
    assert f"from images of {folder / 'images'}" in " ".join(estimate.output.split())
    result = tune(path, out, "--set", "reports.held_out=held.csv")
    assert result.exit_code == 0, result.output
    card = (out / "model" / "model_card.md").read_text()
    assert "- images: 3 images; left out: 1 of held-out or test reports" in card
    assert "4 trajectories of images with noise" in card
    assert "It may have memorized training images" in card
    assert not (out / "checkpoints" / "latents-0").exists()


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_never_was_and_two_processes_as_one(
    tiny_model: Path, radiographs: Path, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path, with_images(tiny_model, radiographs, trajectories=80, steps=12, checkpoint_every=4))
    whole, cut, two = tmp_path / "whole", tmp_path / "cut", tmp_path / "two"
    killed = Warm("cxrsynth", "tune", path, "--out", cut, log=tmp_path / "log")
    killed.kill_when((cut / "checkpoints" / "0-000004").exists)
    assert tune(path, whole).exit_code == 0
    last = tune(path, cut)
    assert last.exit_code == 0, last.output
    assert metrics(whole) == metrics(cut)
    assert hashes(whole / "model") == hashes(cut / "model")
    with process_group(2) as environments:
        running = [
            Warm("cxrsynth", "tune", path, "--out", two, log=tmp_path / f"{own['RANK']}.log", environment=own)
            for own in environments
        ]
        assert [one.wait() for one in running] == [0, 0], [one.printed() for one in running]
    weights = [load_file(out / "model" / "unet" / "diffusion_pytorch_model.safetensors") for out in (whole, two)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"table": "images.csv"}, "table: of no images expected: data, too"),
        ({"columns": {"report": "text"}}, "columns: of no images expected: data, too"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_images_that_cannot_be_read_are_refused(
    changes: dict[str, Any], expected: str, tiny_model: Path, tmp_path: Path
) -> None:
    result = tune(write_recipe(tmp_path, recipe(tiny_model, **changes)), tmp_path / "run")
    assert result.exit_code == 2, result.output
    assert expected in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()
