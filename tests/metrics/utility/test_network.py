"""A network in place of the probe: trained in every way from the same weights, on images whose finding is planted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cxrsynth.errors import ModelError
from cxrsynth.metrics.groups import ImageTable
from cxrsynth.metrics.utility import network
from cxrsynth.metrics.utility.cohorts import PRETRAINED, REAL, TRAINED_ON, draw_cohorts
from cxrsynth.metrics.utility.measure import measure_utility
from cxrsynth.metrics.utility.network import Classifier, load_classifier, train_networks
from cxrsynth.rewards.networks import FindingClassifier
from tests.auditing.tables import table

CPU = torch.device("cpu")
TRUNK = {"kind": "resnet", "size": 32, "widths": [8, 16], "depths": [1, 1]}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "STEPS", 40)
    monkeypatch.setattr(network, "BATCH", 16)
    monkeypatch.setattr(network, "_TRAINED_RATE", 3e-3)


@pytest.fixture
def own(tmp_path: Path) -> Classifier:
    """A user's classifier, in a folder laid out like a reward family."""
    torch.manual_seed(0)
    FindingClassifier(["Edema"], TRUNK).save_pretrained(tmp_path / "own" / "classifier")
    return load_classifier(str(tmp_path / "own"), device=CPU, seed=0)


def pictures(count: int, *, seed: int, contrast: int = 80) -> ImageTable:
    """Noise; images with the finding have a square that is brighter by `contrast`."""
    images = table(count, seed=seed)
    pixels = np.random.default_rng(seed).integers(0, 160, (count, 32, 32)).astype(np.uint8)
    for place in np.flatnonzero(["Edema" in names for names in images.present]):
        pixels[place, 8:22, 8:22] += contrast
    return replace(images, pixels=pixels, age_group=["child" if p % 4 == 0 else "adult" for p in range(count)])


def shuffled(images: ImageTable, *, seed: int) -> ImageTable:
    order = np.random.default_rng(seed).permutation(len(images.present))
    return replace(images, present=[images.present[place] for place in order])


def test_planted_findings_are_learned_in_every_way(own: Classifier) -> None:
    said: list[str] = []
    made, real = pictures(160, seed=2), pictures(160, seed=1)
    result = measure_utility(made, real, seed=0, network=own, rounds=100, say=said.append)
    cells = [row for row in result["rows"] if (row["finding"], row["group"]) == ("Edema", "all")]
    reached = {row["trained_on"]: row["auroc"]["value"] for row in cells}
    assert list(reached) == list(TRAINED_ON)
    assert min(reached.values()) > 0.85
    assert [text.split(" on ", 1)[1] for text in said] == [f"{name} images" for name in reached]
    assert (result["model"]["starts_from"], len(result["model"]["digest"])) == ("its own weights", 64)
    missed = [
        row["trained_on"] for row in result["underdiagnosis"] if (row["finding"], row["group"]) == ("Edema", "all")
    ]
    assert missed == list(TRAINED_ON)


@pytest.mark.slow
def test_shuffled_labels_teach_a_network_nothing(own: Classifier) -> None:
    areas, covered = [], []
    for seed in range(3):
        made, real = shuffled(pictures(120, seed=2), seed=seed), shuffled(pictures(400, seed=1), seed=seed + 10)
        rows = measure_utility(made, real, seed=seed, network=own, rounds=100)["rows"]
        found = [row["auroc"] for row in rows if (row["finding"], row["group"]) == ("Edema", "all")]
        areas += [one["value"] for one in found]
        covered += [one["low"] <= 0.5 <= one["high"] for one in found]
    assert len(areas) == 3 * len(TRAINED_ON)
    assert np.mean(areas) == pytest.approx(0.5, abs=0.05)
    assert np.mean(covered) >= 0.8


@pytest.mark.slow
def test_useful_images_first_help_and_useless_ones_do_not(own: Classifier) -> None:
    """Real images of a few patients do not teach the finding by themselves."""
    real = pictures(400, seed=1, contrast=13)
    assert real.pixels is not None
    truth = ["Edema" in names for names in real.present[24:]]
    for contrast, low, high in ((40, 0.05, 0.5), (0, -0.5, 0.05)):
        cohorts = draw_cohorts(pictures(300, seed=2, contrast=contrast), real, np.arange(24), least=5, seed=0)
        logits = train_networks(own, cohorts, ["Edema"], real.pixels[24:], seed=0).logits
        area = {name: roc_auc_score(truth, test[:, 0]) for name, (test, _) in logits.items()}
        assert low <= area[PRETRAINED] - area[REAL] <= high, area


def test_every_way_starts_from_the_same_weights_and_leaves_them(own: Classifier) -> None:
    before = {name: tensor.clone() for name, tensor in own.network.state_dict().items()}
    real = pictures(60, seed=1)
    assert real.pixels is not None
    cohorts = draw_cohorts(pictures(60, seed=2), real, np.arange(40), least=5, seed=0)
    first, again = (train_networks(own, cohorts, ["Edema"], real.pixels[40:], seed=0) for _ in range(2))
    for name, (test, held_out) in first.logits.items():
        assert again.logits[name][0].tolist() == test.tolist()
        assert len(held_out) == len(first.held_out)
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.network.state_dict().items())
    # Patients whose images the thresholds are chosen on are trained on by nothing.
    trained = {patient for arm in first.arms("Edema") for _, images in arm.stages() for patient in images.patients}
    assert first.held_out.patients
    assert not trained & set(first.held_out.patients)


def test_ours_start_from_random_weights_by_seed() -> None:
    one, again, other = (load_classifier("nano-judge", device=CPU, seed=seed) for seed in (0, 0, 1))
    images = torch.rand(2, 1, 40, 40)
    with torch.inference_mode():
        features = [each.encode(images) for each in (one, again, other)]
    assert torch.equal(features[0], features[1])
    assert not torch.equal(features[0], features[2])
    assert features[0].shape == (2, one.width)
    assert one.as_json()["starts_from"] == "random weights"


def test_a_network_that_diverges_or_is_not_there_is_one_message(own: Classifier) -> None:
    with pytest.raises(ModelError, match=r"--utility-model 'nothing': unknown, and no such folder\n  expected: nano, "):
        load_classifier("nothing", device=CPU, seed=0)
    real = pictures(60, seed=1)
    assert real.pixels is not None
    cohorts = draw_cohorts(pictures(60, seed=2), real, np.arange(40), least=5, seed=0)
    broken = replace(own, encode=lambda images: own.encode(images) * float("nan"))
    with pytest.raises(ModelError, match=r"own: its loss is not finite\n  use another network"):
        train_networks(broken, cohorts, ["Edema"], real.pixels[40:], seed=0)
