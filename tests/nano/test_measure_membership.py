"""Membership of nano: which images are attacked, and what the card says of it."""

from pathlib import Path

import pytest
import torch

from cxrsynth.diffusion.resolve import find_model
from cxrsynth.metrics.membership.attacks import ATTACKS
from cxrsynth.metrics.membership.inference import COMBINED, WITHOUT_MODEL
from cxrsynth.nano.build.card import _membership
from cxrsynth.nano.build.export import FAMILIES_FOLDER
from cxrsynth.nano.build.images import Radiograph
from cxrsynth.nano.build.measure_generator import Framed, ImageGenerator
from cxrsynth.nano.build.measure_membership import membership_numbers
from cxrsynth.nano.build.reward_models import FAMILIES
from cxrsynth.reports.prompt import Subject
from cxrsynth.rewards.networks import FindingClassifier


def framed(split: str, counts: dict[str, int], *, seed: int) -> Framed:
    """Smooth images of as many patients."""
    radiographs = [
        Radiograph(f"{split}-{group}-{place}", f"{split}-{group}-{place}", group, Subject(), (), (), padded=False)
        for group, count in counts.items()
        for place in range(count)
    ]
    coarse = torch.rand(len(radiographs), 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Framed(radiographs, torch.nn.functional.interpolate(coarse, (256, 256), mode="bilinear"))


@pytest.fixture(scope="module")
def classifier() -> FindingClassifier:
    folder = Path(find_model("nano")) / FAMILIES_FOLDER / FAMILIES[1] / "classifier"
    return FindingClassifier.from_pretrained(folder).eval()


@pytest.mark.slow
def test_members_are_of_the_sources_of_val_and_nobody_is_given_away(classifier: FindingClassifier) -> None:
    train = framed("train", {"nih": 30, "kermany_ped": 3, "hannover": 5}, seed=1)
    val = framed("val", {"nih": 8, "kermany_ped": 4}, seed=2)
    numbers = membership_numbers(ImageGenerator(find_model("nano")).model, classifier, train, val, seed=0)
    assert numbers is not None
    assert (numbers["members"], numbers["non_members"]) == (2 * 8 + 3, 12)
    assert set(numbers["attacks"]) == {*ATTACKS, COMBINED, WITHOUT_MODEL}
    for name, attack in numbers["attacks"].items():
        assert attack["auc"]["low"] < 0.5 + 0.1, name


def test_too_few_patients_are_not_attacked(classifier: FindingClassifier) -> None:
    model = ImageGenerator(find_model("nano")).model
    few = framed("val", {"nih": 9}, seed=2)
    assert membership_numbers(model, classifier, framed("train", {"nih": 30}, seed=1), few, seed=0) is None


def test_the_card_says_what_was_found_and_what_was_not_measured() -> None:
    def numbers(low: float) -> dict[str, object]:
        measured = {"value": 0.6, "low": low, "high": 0.7}
        attack = {"auc": measured, "true_positives": {"0.01": measured, "0.001": None}}
        return {"members": 20, "non_members": 10, "attacks": {COMBINED: attack, WITHOUT_MODEL: attack}}

    assert "part of that may be in the weights" in " ".join(_membership(numbers(0.51)))
    assert "they find nothing in the weights" in " ".join(_membership(numbers(0.49)))
    assert "Not measured" in " ".join(_membership(None))
