"""`tune` prompts a model as `generate` does: with its template, and away from its negative prompt."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.settings import TuneSettings
from cxrsynth.tuning.finetune import Supervision
from cxrsynth.tuning.setup import open_tune
from tests.conftest import build_tiny_model
from tests.generation.making import HEADER, ROWS, write_table
from tests.tuning.making import install_brightness, recipe, tune, write_recipe

TEMPLATE = "[{ward}: ][{sex} ]{impression}"
NEGATIVE = "effusion"


pytestmark = pytest.mark.usefixtures("one_core")


@pytest.fixture(autouse=True)
def _brightness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_brightness(tmp_path / "installed", monkeypatch)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec: dict[str, object] = {"prompt_template": TEMPLATE, "negative_prompt": NEGATIVE}
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny", max_tokens=64, spec=spec)


def prepared(folder: Path, content: dict[str, Any], header: tuple[str, ...] = (*HEADER, "ward")) -> Path:
    """The recipe, beside a table of reports with one column more."""
    path = write_recipe(folder, content)
    rows = tuple((*row, "Dr. Quibbleton" if place % 2 else "portable") for place, row in enumerate(ROWS))
    write_table(folder / "reports.csv", rows, header)
    return path


@pytest.mark.parametrize("objective", [pytest.param("policy_gradient", marks=pytest.mark.slow), "forward"])
def test_rollouts_and_evaluation_use_template_and_negative_prompt(
    objective: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[tuple[str, str]] = set()
    encode = DiffusionModel.encode

    def spy(self: DiffusionModel, prompts: Any) -> Any:
        asked.update((prompt, self.negative_prompt) for prompt in prompts)
        return encode(self, prompts)

    monkeypatch.setattr(DiffusionModel, "encode", spy)
    out = tmp_path / "run"
    result = tune(prepared(tmp_path, recipe(model, objective=objective, iterations=1)), out)
    assert result.exit_code == 0, result.output
    assert {negative for _, negative in asked} == {NEGATIVE}
    prompts = {prompt for prompt, _ in asked}
    assert any(prompt.startswith("portable: ") for prompt in prompts)
    assert any(prompt.startswith(("female ", "male ")) for prompt in prompts)
    assert not any("Quibbleton" in prompt for prompt in prompts)
    spec = json.loads((out / "model" / "cxrsynth.json").read_text())
    assert (spec["prompt_template"], spec["negative_prompt"]) == (TEMPLATE, NEGATIVE)


def test_a_table_without_a_column_of_the_template_is_refused(model: Path, tmp_path: Path) -> None:
    path = prepared(tmp_path, recipe(model), (*HEADER, "room"))
    result = tune(path, tmp_path / "run")
    assert result.exit_code == 2
    assert "reports.csv: the prompt template has {ward}, but there is no such column" in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["stages.0.sampling.guidance", "evaluation.guidance"])
def test_a_negative_prompt_needs_guidance(key: str, model: Path, tmp_path: Path) -> None:
    result = tune(prepared(tmp_path, recipe(model)), tmp_path / "run", "--set", f"{key}=1")
    assert result.exit_code == 2
    assert f"{key}: 1, but the model has a negative prompt" in " ".join(result.output.split())


def images_of(folder: Path, *header: str) -> Path:
    """Three images, and a table of them with one column more than reports have."""
    images = folder / "images"
    images.mkdir()
    rows = np.linspace(0, 1, 40)[:, None]
    for place in range(3):
        levels = 0.5 + 0.4 * np.sin((place + 2) * rows + np.linspace(0, 3 + place, 36)[None])
        Image.fromarray((levels * 255).astype(np.uint8)).save(images / f"image{place}.png")
    with (folder / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("filename", "report_id", "impression", *header),
                ("image0.png", "F-0", "Rib fracture.", "portable"),
                ("image1.png", "F-1", "Picc line.", "Dr. Quibbleton"),
                ("image2.png", "F-2", "Big heart.", ""),
            ]
        )
    return images


def finetuning(model: Path, images: Path) -> dict[str, Any]:
    stage = {
        "stage": "sft",
        "data": str(images),
        "table": str(images.parent / "images.csv"),
        "steps": 1,
        "batch_size": 2,
        "micro_batch": 2,
    }
    return recipe(model) | {"stages": [stage]}


def test_fine_tuning_uses_the_template(model: Path, tmp_path: Path) -> None:
    path = prepared(tmp_path, finetuning(model, images_of(tmp_path, "ward")))
    run = open_tune(TuneSettings(recipe=path, out=tmp_path / "run"))
    section: Any = run.recipe.stages[0]
    stage = Supervision(run, section, 0, checkpoint=run.model)
    with SamplingPool(stage.model, batch_size=2, threads_per_batch=1) as pool:
        images = stage.read_images(pool)
    assert [images.pair(place).prompt for place in range(3)] == ["portable: Rib fracture.", "Picc line.", "Big heart."]


def test_a_table_of_images_without_a_column_of_the_template_is_refused(model: Path, tmp_path: Path) -> None:
    path = prepared(tmp_path, finetuning(model, images_of(tmp_path, "room")))
    result = tune(path, tmp_path / "run")
    assert result.exit_code == 2
    assert "images.csv: the prompt template has {ward}" in " ".join(result.output.split())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose folder says nothing of prompts, but sampling defaults."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny", max_tokens=64, spec={"name": "plain"})


FINDINGS = {"Zorblattic heart size is normal.", "Told. Zorblattic lungs.", "Cardiomegaly.", "Old rib fracture."}
FINDINGS |= {"Xylograph lines. Right pneumothorax.", "Lungs are clear.", "Picc line ends in the SVC."}


@pytest.mark.parametrize(
    ("key", "value", "other"),
    [("prompt", "findings", "report"), ("prompt_template", "Ward {ward}: {impression}", "'{report}'")],
)
def test_the_recipe_names_the_prompt_format(
    key: str, value: str, other: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[str] = set()
    encode = DiffusionModel.encode

    def spy(self: DiffusionModel, prompts: Any) -> Any:
        asked.update(prompts)
        return encode(self, prompts)

    monkeypatch.setattr(DiffusionModel, "encode", spy)
    content = recipe(plain, objective="forward", iterations=1)
    content["model"][key] = value
    path, out = prepared(tmp_path, content), tmp_path / "run"
    result = tune(path, out)
    assert result.exit_code == 0, result.output
    of_reports = asked - {"", "chest"}  # the empty prompt, and the one that stands for any
    assert of_reports
    assert of_reports <= FINDINGS if key == "prompt" else all(prompt.startswith("Ward ") for prompt in of_reports)
    spec = json.loads((out / "model" / "cxrsynth.json").read_text())
    assert spec == {"name": "plain-tuned", key: value}
    assert ("model.prompt_template" in json.loads((out / "inputs.json").read_text())) == (key == "prompt_template")
    result = tune(path, out, "--set", f"model.{key}={other}")
    assert result.exit_code == 2
    assert "holds a run of another recipe" in " ".join(result.output.split())


def test_where_nothing_names_a_format_the_run_says_that_it_takes_impressions(plain: Path, tmp_path: Path) -> None:
    path, said = prepared(tmp_path, recipe(plain, objective="forward")), "prompts: impressions of the reports, since"
    for given, expected in ((), True), (("--set", "model.prompt=impression"), False):
        result = tune(path, tmp_path / "run", "--dry-run", *given)
        assert result.exit_code == 0, result.output
        assert (said in " ".join(result.output.split())) == expected
        assert ("prompts: impression (nothing names another)" in result.output) == expected


def test_a_run_from_before_there_were_the_keys_is_resumed(plain: Path, tmp_path: Path) -> None:
    path, out = prepared(tmp_path, recipe(plain, objective="forward", iterations=1)), tmp_path / "run"
    assert tune(path, out).exit_code == 0
    written = (out / "recipe.yaml").read_text()
    before = "".join(line for line in written.splitlines(keepends=True) if not line.strip().startswith("prompt"))
    assert before != written
    (out / "recipe.yaml").write_text(before)
    again = tune(path, out)
    assert again.exit_code == 0, again.output
    assert "already complete" in again.output
    other = tune(path, out, "--set", "model.prompt=findings")
    assert other.exit_code == 2
    assert "holds a run of another recipe" in " ".join(other.output.split())


def test_the_recipes_prompts_replace_the_models_template(model: Path, tmp_path: Path) -> None:
    content = recipe(model, objective="forward", iterations=1)
    content["model"]["prompt"] = "impression"
    path = prepared(tmp_path, content, (*HEADER, "room"))  # the folder's template has a column of another name
    result = tune(path, tmp_path / "run")
    assert result.exit_code == 0, result.output
    spec = json.loads((tmp_path / "run" / "model" / "cxrsynth.json").read_text())
    assert spec == {"name": "tiny-tuned", "prompt": "impression", "negative_prompt": NEGATIVE}


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ((), f"prompts: {TEMPLATE} (cxrsynth.json of the model)"),
        (("model.prompt=findings",), "prompts: findings (model.prompt)"),
        (("model.prompt_template=roentgen",), "prompts: {impression} (model.prompt_template)"),
    ],
)
def test_a_dry_run_shows_the_prompt_format(options: tuple[str, ...], shown: str, model: Path, tmp_path: Path) -> None:
    path = prepared(tmp_path, recipe(model, objective="forward"))
    result = tune(path, tmp_path / "run", "--dry-run", *(part for one in options for part in ("--set", one)))
    assert result.exit_code == 0, result.output
    assert shown in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "class"}, "model.prompt: class, but the model has no classes"),
        ({"prompt": "caption"}, "model.prompt: found 'caption'"),
        ({"prompt_template": "{impression"}, "model.prompt_template: "),
        ({"prompt": "report", "prompt_template": "{report}"}, "model: prompt and prompt_template: found both"),
    ],
)
def test_prompt_formats_that_cannot_be_used_are_refused(
    settings: dict[str, str], message: str, model: Path, tmp_path: Path
) -> None:
    content = recipe(model)
    content["model"] |= settings
    result = tune(prepared(tmp_path, content), tmp_path / "run")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()
