"""The stage `sft` of `cxrsynth tune` on the tiny model and a handful of made images."""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.diffusion.resolve import model_digest
from cxrsynth.errors import ModelError
from cxrsynth.recipe.schema import SftStage
from cxrsynth.reports.request import PromptBuilder
from cxrsynth.reports.table.rows import Report
from cxrsynth.reports.table.table import open_table
from cxrsynth.rl.rollout_spec import RolloutSpec, rollout_specs
from cxrsynth.runtime.batches import chunks
from cxrsynth.settings import TuneSettings
from cxrsynth.tuning.finetune import Supervision
from cxrsynth.tuning.inputs import input_digests
from cxrsynth.tuning.latent_cache import Pair, TrainingImages
from cxrsynth.tuning.run import TuneRun
from cxrsynth.tuning.setup import open_tune
from tests.generation.making import ROWS, hashes, write_table
from tests.images.making import encoded, levels, member, tar_of, write
from tests.processes import Warm, process_group
from tests.tuning.making import metrics, tune, write_recipe
from tests.tuning.supervised import other_text, recipe, write_images

pytestmark = pytest.mark.usefixtures("one_core")


@contextmanager
def stage_of(folder: Path, content: dict[str, Any]) -> Iterator[tuple[Supervision, TrainingImages, SamplingPool]]:
    """A stage in this process, its images encoded."""
    run = open_tune(TuneSettings(recipe=write_recipe(folder, content), out=folder / "run"))
    section = run.recipe.stages[0]
    assert isinstance(section, SftStage)
    stage = Supervision(run, section, 0, checkpoint=run.model)
    with SamplingPool(stage.model, batch_size=2, threads_per_batch=1) as pool:
        yield stage, stage.read_images(pool), pool


def batch_of(step: int, radiographs: int = 4) -> list[RolloutSpec]:
    return rollout_specs(step, seed=0, reports=radiographs, per_iteration=4, images=1, pool=1)


@pytest.mark.slow
def test_a_few_steps_lower_the_loss_on_their_images(tiny_model: Path, radiographs: Path, tmp_path: Path) -> None:
    train = {"learning_rate": 1.0e-2, "ema_decay": None}
    content = recipe(tiny_model, radiographs, steps=40, checkpoint_every=40, train=train)
    with stage_of(tmp_path, content) as (stage, found, _):

        def loss() -> float:
            with torch.no_grad():
                return float(torch.cat([stage.loss(step, batch_of(step), found) for step in range(1000, 1008)]).mean())

        before = loss()
        stage.train()
        assert loss() < 0.7 * before


@pytest.mark.slow
def test_a_run_stopped_and_killed_ends_as_if_it_never_was(tiny_model: Path, radiographs: Path, tmp_path: Path) -> None:
    train = {"text_encoder": True, "learning_rate": 1.0e-3, "ema_decay": 0.9}
    path = write_recipe(tmp_path, recipe(tiny_model, radiographs, steps=12, checkpoint_every=4, train=train))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    stopped = Warm("cxrsynth", "tune", path, "--out", cut, log=tmp_path / "log")
    rows = cut / "metrics.jsonl"
    stopped.interrupt_when(lambda: rows.exists() and rows.stat().st_size > 0)
    assert stopped.wait() == 130, stopped.printed()
    assert (cut / "checkpoints" / f"0-{len(metrics(cut)):06d}").exists()
    assert list((cut / "checkpoints" / "latents-0").iterdir())
    killed = Warm("cxrsynth", "tune", path, "--out", cut, log=tmp_path / "log")
    killed.kill_when((cut / "checkpoints" / "0-000008").exists)
    assert not (cut / "model").exists()
    assert tune(path, whole).exit_code == 0
    last = tune(path, cut)
    assert last.exit_code == 0, last.output
    assert "resuming after step" in last.output
    assert metrics(whole) == metrics(cut)
    assert [row["iteration"] for row in metrics(cut)] == list(range(1, 13))
    assert hashes(whole / "model") == hashes(cut / "model")
    newest = "checkpoints/0-000012"
    assert hashes(whole / newest) == hashes(cut / newest)
    averaged = load_file(cut / newest / "ema.safetensors")
    saved = load_file(cut / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(averaged[f"unet.{name}"], saved[name]) for name in saved)
    assert not (cut / "checkpoints" / "latents-0").exists()
    again = tune(path, cut)
    assert (again.exit_code, "already complete" in again.output) == (0, True)


def encoded_of(path: Path) -> tuple[list[Any], dict[str, str]]:
    """Latents and header of a file; the order of the header differs from file to file."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("latents").tolist(), file.metadata()


@pytest.mark.parametrize("damage", ["cut", "a latent", "a prompt", "zeros", "gone"])
def test_damaged_latents_are_encoded_again(damage: str, tiny_model: Path, radiographs: Path, tmp_path: Path) -> None:
    with stage_of(tmp_path, recipe(tiny_model, radiographs)) as (stage, _, pool):
        path = min(stage.run.folder.latents(0).iterdir())
        content, whole = encoded_of(path), path.stat()
        stage.read_images(pool)
        assert path.stat().st_mtime_ns == whole.st_mtime_ns
        changed = bytearray(before := path.read_bytes())
        if damage == "a latent":
            changed[-100] ^= 1
        elif damage == "a prompt":
            changed[before.index(b"pairs") + 20] ^= 1
        elif damage == "zeros":
            changed[-100:] = bytes(100)
        path.write_bytes(changed[:-10] if damage == "cut" else changed)
        if damage == "gone":
            path.unlink()
        stage.read_images(pool)
        assert encoded_of(path) == content


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_latents_lost_under_way_end_the_run_with_a_message(
    damage: str, tiny_model: Path, radiographs: Path, tmp_path: Path
) -> None:
    with stage_of(tmp_path, recipe(tiny_model, radiographs)) as (stage, found, _):
        for path in stage.run.folder.latents(0).iterdir():
            path.unlink()
            if damage == "cut":
                path.write_bytes(b"12345678")
        with pytest.raises(ModelError, match="cannot be read any more"):
            stage.loss(0, batch_of(0), found)


@pytest.mark.parametrize("cores", [1, 2])
def test_micro_batches_and_processes_add_up_to_one_batch(
    cores: int, tiny_model: Path, radiographs: Path, tmp_path: Path
) -> None:
    def gradient(stage: Supervision) -> torch.Tensor:
        return torch.cat([weight.grad.flatten() for weight in stage.weights.values() if weight.grad is not None])

    torch.set_num_threads(cores)
    with stage_of(tmp_path, recipe(tiny_model, radiographs)) as (stage, found, pool):
        assert pool.batches == cores
        loss = stage.gradients(7, [batch_of(7)], found, pool)
        whole = gradient(stage)
        assert whole.abs().max() > 1e-4
        ones = list(chunks(batch_of(7), 1))
        assert stage.gradients(7, ones, found, pool).item() == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(gradient(stage), whole, rtol=1e-4, atol=1e-6)
        shared = torch.zeros_like(whole)
        for rank in range(2):
            stage.gradients(7, replace(stage.run.group, rank=rank, count=2).share(ones), found, pool)
            shared += gradient(stage)
        torch.testing.assert_close(shared, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tiny_model: Path, tmp_path: Path) -> None:
    """Each encodes a shard of its own, and both learn from all images."""
    for name in "ab":
        metadata = [{"report_id": f"{name}{place}", "impression": ROWS[place][2]} for place in range(3)]
        parts = [
            (f"{place}.json", json.dumps(metadata[place]).encode(), f"{place}.png", encoded(levels(place, side=32)))
            for place in range(3)
        ]
        content = tar_of(part for one in parts for part in (member(*one[:2]), member(*one[2:])))
        write(tmp_path / "images" / f"{name}.tar", content)
    path = write_recipe(tmp_path, recipe(tiny_model, tmp_path / "images", table=None))
    with process_group(2) as environments:
        running = [
            Warm(
                *("cxrsynth", "tune", path, "--out", tmp_path / "two"),
                log=tmp_path / f"{own['RANK']}.log",
                environment=own,
            )
            for own in environments
        ]
        assert tune(path, tmp_path / "one").exit_code == 0
        assert [process.wait() for process in running] == [0, 0], [process.printed() for process in running]
    name = "checkpoints/0-000004/weights.safetensors"
    expected, found = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
    assert expected.keys() == found.keys()
    assert all(torch.allclose(found[key], expected[key], rtol=1e-3, atol=2e-5) for key in expected)
    losses = [[row["sft/loss"] for row in metrics(tmp_path / out)] for out in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    line = f"{tmp_path / 'images'}: 6 images\n"  # not the progress, whose lines come with time
    assert [process.printed().count(line) for process in running] == [1, 0]


def test_adapters_of_an_absurd_rank_are_refused(tiny_model: Path, radiographs: Path, tmp_path: Path) -> None:
    content = recipe(tiny_model, radiographs, train={"unet": "lora", "lora": {"rank": 1_000_000}})
    result = tune(write_recipe(tmp_path, content), tmp_path / "run")
    assert result.exit_code == 2, result.output
    assert "expected: at most 8" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("train", "changed"),
    [
        ({"unet": "full"}, "unet."),
        pytest.param({"unet": "lora", "lora": {"rank": 2}}, "unet.", marks=pytest.mark.slow),
        pytest.param({"text_encoder": True}, "", marks=pytest.mark.slow),
    ],
)
def test_only_what_the_recipe_says_is_trained(
    train: dict[str, Any], changed: str, tiny_model: Path, radiographs: Path, tmp_path: Path
) -> None:
    before, out = hashes(tiny_model), tmp_path / "run"
    given = {"learning_rate": 1.0e-2, "ema_decay": None} | train
    result = tune(write_recipe(tmp_path, recipe(tiny_model, radiographs, steps=2, train=given)), out)
    assert result.exit_code == 0, result.output
    names = set(load_file(out / "checkpoints" / "0-000002" / "weights.safetensors"))
    assert all(name.startswith(changed) for name in names)
    assert any(name.startswith("text_encoder.") for name in names) is ("text_encoder" in train)
    assert hashes(tiny_model) == before
    after = hashes(out / "model")
    moved = {name.split("/")[0] for name in before if before[name] != after.get(name)} - {"model_index.json"}
    assert moved == {"unet", "text_encoder"} if "text_encoder" in train else {"unet"}
    weights = "unet/diffusion_pytorch_model.safetensors"
    old, new = load_file(tiny_model / weights), load_file(out / "model" / weights)
    assert old.keys() == new.keys()
    differ = {name for name in old if not torch.equal(old[name], new[name])}
    if train.get("unet") == "lora":
        assert all("to_" in name for name in names)
        assert differ
        assert all("to_" in name for name in differ)
    else:
        assert "conv_in.weight" in differ


def test_prompts_are_those_of_generate(tiny_model: Path, radiographs: Path, tmp_path: Path) -> None:
    """Row for row, an image is trained with the prompt that `generate` would use for it."""
    with stage_of(tmp_path, recipe(tiny_model, radiographs)) as (stage, found, _):
        run: TuneRun = stage.run
        prompt_builder = PromptBuilder(run.model.spec.prompt_format, run.model.spec.depicts, stage.model.fits)
        rows = [row for row in open_table(radiographs.parent / "images.csv").rows() if isinstance(row, Report)]
        built = [prompt_builder.build(row) for row in rows]
        pairs = [found.pair(place) for place in range(len(found))]
        assert [pair.prompt for pair in pairs] == [one.prompt for one in built]
        assert [pair.conditions for pair in pairs] == [one.conditions for one in built]
        assert len({pair.prompt for pair in pairs}) == 4


def test_a_run_recognizes_its_images_wherever_they_are_copied(
    tiny_model: Path, radiographs: Path, tmp_path: Path
) -> None:
    own = tmp_path / "images"
    shutil.copytree(radiographs, own)
    shutil.copy(radiographs.parent / "images.csv", tmp_path)
    path = write_recipe(tmp_path, recipe(tiny_model, own))

    def digest() -> str:
        return input_digests(open_tune(TuneSettings(recipe=path, out=tmp_path / "run")))["stages.0.data"]

    before = digest()
    for radiograph in own.iterdir():
        os.utime(radiograph, (0, 0))
    (own / "notes.txt").write_text("no image")
    assert digest() == before
    Image.new("L", (40, 36)).save(own / "image0.png")
    assert digest() != before


@pytest.mark.slow
def test_the_empty_prompt_takes_its_share(tiny_model: Path, radiographs: Path, tmp_path: Path) -> None:
    class Others:
        def __init__(self, found: TrainingImages) -> None:
            self.latent = found.latent

        def pair(self, place: int) -> Pair:
            return Pair("lungs lungs lungs", ())

    with (
        stage_of(tmp_path, recipe(tiny_model, radiographs, cond_dropout_prob=0.5)) as (stage, found, _),
        torch.no_grad(),
    ):
        same = 0
        for step in range(16):
            own, others = (stage.loss(step, batch_of(step), images) for images in (found, Others(found)))  # type: ignore[arg-type]
            same += int((own == others).sum())
    assert 20 <= same <= 44  # of 64: three standard deviations


def test_images_that_cannot_be_used_are_counted(tiny_model: Path, radiographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    table = []
    for place in range(4):
        content = (radiographs / f"image{place}.png").read_bytes()
        (folder / f"{place}.png").write_bytes(content if place else content[:100])
        table.append((f"{place}.png", f"QZX-{place}", *other_text(place)))
    (folder / "no-report.png").write_bytes((radiographs / "image0.png").read_bytes())
    write_images(tmp_path / "images.csv", table)
    held = other_text(3, "Held out."), other_text(4, "Held out.")
    write_table(tmp_path / "held.csv", (("QZX-3", *held[0]), ("QZX-9", *held[1])))
    content = recipe(tiny_model, folder, steps=1)
    content["reports"]["held_out"] = "held.csv"
    out = tmp_path / "run"
    result = tune(write_recipe(tmp_path, content), out)
    assert result.exit_code == 0, result.output
    said = "2 images; left out: 1 could not be read, 1 without a report, 1 of held-out or test reports (first: "
    assert result.output.count(said) == 1
    card = (out / "model" / "model_card.md").read_text()
    assert said.removesuffix(" (first: ") in card
    assert "0.png" not in card  # a damaged image's name may be a patient's
    write_table(tmp_path / "held.csv", tuple((f"QZX-{place}", *held[0]) for place in range(4)))
    result = tune(tmp_path / "recipe.yaml", tmp_path / "none")
    assert result.exit_code == 2
    assert "no image to train on: 0 images; left out: 1 could not be read" in result.output


def test_images_of_held_out_and_test_patients_and_texts_are_left_out(
    tiny_model: Path, radiographs: Path, tmp_path: Path
) -> None:
    """One image each by id, by patient, and by text alone, whatever its case; the fourth is trained on."""
    with (tmp_path / "images.csv").open("w", newline="") as file:
        rows = [
            ("image0.png", "held-1", "p1", "One."),
            ("image1.png", "i1", "p8", "Two."),
            ("image2.png", "i2", "p3", "effusion  ON the left"),
            ("image3.png", "i3", "p4", "Four."),
        ]
        csv.writer(file).writerows([("filename", "study_id", "patient_id", "report"), *rows])
    header = ("study_id", "patient_id", "report")
    write_table(tmp_path / "held.csv", (("held-1", "p9", "Held."), ("held-2", "p10", "Held too.")), header)
    write_table(tmp_path / "test.csv", (("t-1", "p8", "Test."), ("t-2", "", "Effusion on the left.")), header)
    content = recipe(tiny_model, radiographs, steps=1, table=str(tmp_path / "images.csv"))
    content["reports"] |= {"held_out": "held.csv", "test": "test.csv"}
    result = tune(write_recipe(tmp_path, content), tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "1 image; left out: 3 of held-out or test reports" in result.output


@pytest.mark.slow
def test_the_commit_of_a_hub_model_is_recorded(
    tiny_model: Path, radiographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository laid out as the hub's cache; its branch moves on while the run stands still."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository, (first, second) = tmp_path / "hub" / "models--lab--chest", ("a" * 40, "b" * 40)
    for commit in (first, second):
        shutil.copytree(tiny_model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(first)
    content = recipe(tiny_model, radiographs, steps=1)
    content["model"]["checkpoint"] = "lab/chest@main"
    content["stages"] *= 2
    path, out = write_recipe(tmp_path, content), tmp_path / "run"
    result = tune(path, out)
    assert result.exit_code == 0, result.output
    versions = json.loads((out / "versions.json").read_text())
    assert versions["model.revision"] == first
    for model in (out / "stages" / "0" / "model", out / "model"):
        assert f"from the Hugging Face hub, commit `{first}`" in (model / "model_card.md").read_text()
    assert "began with `lab/chest` from" in (out / "model" / "model_card.md").read_text()
    (repository / "refs" / "main").write_text(second)
    (out / "model" / "model_card.md").unlink()
    result = tune(path, out)
    assert result.exit_code == 0, result.output
    versions = json.loads((out / "versions.json").read_text())
    assert (versions["model.revision"], versions["resumed_with"]["model.revision"]) == (first, second)


def tracked(out: Path, name: str) -> list[int]:
    """Steps at which tensorboard got a number."""
    (events,) = out.rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events)).Reload()
    return [event.step for event in read.Scalars(name)]


@pytest.mark.slow
def test_comparative_feedback_starts_from_the_fine_tuned_model(
    tiny_model: Path, radiographs: Path, tmp_path: Path
) -> None:
    content = recipe(tiny_model, radiographs, steps=2, train={"learning_rate": 1.0e-2})
    content["stages"].append(
        {
            "stage": "rlcf",
            "objective": "policy_gradient",
            "iterations": 1,
            "reports_per_iteration": 2,
            "images_per_report": 2,
            "train": {"unet": "frozen", "ace": {"tokens": 4}},
            "sampling": {"steps": 2, "batch_size": 2, "guidance": 1.5},
            "rewards": {"posture": {}},
            "update": {"num_minibatches": 1},
        }
    )
    out = tmp_path / "run"
    result = tune(write_recipe(tmp_path, content | {"trackers": ["tensorboard"]}), out)
    assert result.exit_code == 0, result.output
    first, last = out / "stages" / "0" / "model", out / "model"
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (first / weights).read_bytes() == (last / weights).read_bytes() != (tiny_model / weights).read_bytes()
    assert model_digest(first) in (last / "model_card.md").read_text()
    assert model_digest(tiny_model) in (first / "model_card.md").read_text()
    assert [(row["stage"], row["iteration"]) for row in metrics(out)] == [(0, 1), (0, 2), (1, 1), (1, 1)]
    assert tracked(out, "sft/loss") == [1, 2]
    assert tracked(out, "policy/grad_norm") == [3]  # counted through the stages
    assert json.loads((last / "cxrsynth.json").read_text())["name"] == "tiny-tuned"
    written = b"".join(file.read_bytes() for file in out.rglob("*") if file.is_file())
    assert not any(word.encode() in written for word in ("Zorblattic", "Quibbleton", "Xylograph"))


def test_a_dry_run_reports_and_writes_nothing(tiny_model: Path, radiographs: Path, tmp_path: Path) -> None:
    result = tune(write_recipe(tmp_path, recipe(tiny_model, radiographs)), tmp_path / "run", "--dry-run")
    assert result.exit_code == 0, result.output
    weights = load_file(tiny_model / "unet" / "diffusion_pytorch_model.safetensors")
    trained = sum(weight.numel() for weight in weights.values())
    for part in (f"4 steps of 4 images, from {radiographs}", f"trains {trained:,} numbers", " in all (without reading"):
        assert part in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere"}, "nowhere: no such file or folder"),
        ({"table": None}, "no image to train on: 0 images; left out: 4 without a report"),
        ({"cache_gib": 1.0e-9}, "cache_gib 1e-09: latents of the images"),
        ({"columns": {"reprot": "x"}}, "stages.0.columns: unknown role 'reprot'"),
        ({"steps": 0}, "stages.0.steps: found 0"),
        ({"train": {"learning_rate": 1.0e30, "warmup": 0}}, "step 2: the loss is not a number"),
    ],
)
def test_user_errors_are_explained(
    change: dict[str, Any], message: str, tiny_model: Path, radiographs: Path, tmp_path: Path
) -> None:
    result = tune(write_recipe(tmp_path, recipe(tiny_model, radiographs, **change)), tmp_path / "run")
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
