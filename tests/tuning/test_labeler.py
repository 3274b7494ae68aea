"""`reports.labeler` of a recipe: labels of reports and of images of `sft` are those of the user's labeler."""

import shutil
from pathlib import Path

import pytest

from cxrsynth.reports.findings.labeler import labeler_digest
from cxrsynth.reports.labels import FindingLabel, Status
from cxrsynth.settings import TuneSettings
from cxrsynth.tuning.inputs import input_digests
from cxrsynth.tuning.run import TuneRun
from cxrsynth.tuning.setup import open_tune
from tests.conftest import build_tiny_model
from tests.reports.findings.test_labeler import save_labeler
from tests.tuning.making import tune, write_recipe
from tests.tuning.supervised import recipe

SAID = {"Pleural Other": Status.PRESENT}  # of no report here


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny", max_tokens=64, spec={"prompt": "canonical"})


def opened(folder: Path, model: Path, radiographs: Path, labeler: str | None) -> TuneRun:
    content = recipe(model, radiographs)
    content["reports"]["labeler"] = labeler
    return open_tune(TuneSettings(recipe=write_recipe(folder, content), out=folder / "run"))


def test_labels_of_reports_and_images_are_the_labelers(tmp_path: Path, model: Path, radiographs: Path) -> None:
    # Beside the recipe, as its other paths.
    folder = save_labeler(tmp_path / "labeler", said=SAID)
    run = opened(tmp_path, model, radiographs, "labeler")
    examples = run.prompt_examples(lambda _: True)

    labels = [examples(report).report.labels for report in run.training]
    assert labels
    assert all(one["Pleural Other"] == FindingLabel(Status.PRESENT) for one in labels)
    assert all("pleural abnormality" in examples(report).prompt.lower() for report in run.training)
    images = run.loaded.images[0]
    assert images.units
    read = [image for unit in images.units for image in images.read(unit)]
    assert [image.report.labels for image in read] == [{"Pleural Other": FindingLabel(Status.PRESENT)}] * 4
    assert input_digests(run)["reports.labeler"] == labeler_digest(folder)


def test_without_one_the_rules_read(tmp_path: Path, model: Path, radiographs: Path) -> None:
    run = opened(tmp_path, model, radiographs, None)
    examples = run.prompt_examples(lambda _: True)

    labels = [examples(report).report.labels for report in run.training]
    assert FindingLabel(Status.PRESENT) not in [one.get("Pleural Other") for one in labels]
    assert "reports.labeler" not in input_digests(run)


def test_a_run_does_not_go_on_with_another_labeler(tmp_path: Path, model: Path, radiographs: Path) -> None:
    save_labeler(tmp_path / "labeler", said=SAID)
    content = recipe(model, radiographs, steps=1)
    content["reports"]["labeler"] = "labeler"
    path = write_recipe(tmp_path, content)
    done = tune(path, tmp_path / "run")
    assert done.exit_code == 0, done.output
    shutil.rmtree(tmp_path / "run" / "model")  # as if it had been stopped before its end
    (tmp_path / "labeler").rename(tmp_path / "old")
    save_labeler(tmp_path / "labeler", said={"Edema": Status.PRESENT})

    changed = tune(path, tmp_path / "run")
    assert changed.exit_code == 2
    assert "reports.labeler" in changed.output


def test_what_is_no_labeler_is_refused_by_its_key(tmp_path: Path, model: Path, radiographs: Path) -> None:
    content = recipe(model, radiographs)
    content["reports"]["labeler"] = "nowhere"
    refused = tune(write_recipe(tmp_path, content), tmp_path / "run")

    assert refused.exit_code == 2
    assert "reports.labeler: nowhere: no such folder" in refused.output
    assert not (tmp_path / "run").exists()
