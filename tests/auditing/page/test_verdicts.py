"""The verdicts at the head of the page: what they say of numbers, and of numbers that are not there."""

import re
from typing import Any

import pytest

from cxrsynth.auditing.page.verdicts import FOUND, HELP, LOOK, Verdict, verdicts
from cxrsynth.metrics.membership.inference import COMBINED, WITHOUT_MODEL
from cxrsynth.metrics.utility.cohorts import BOTH
from tests.auditing.page.page_example import example_rows, example_summary, few_images


@pytest.fixture
def summary() -> dict[str, Any]:
    return example_summary(example_rows())


def of(summary: dict[str, Any], question: str) -> Verdict:
    return next(one for one in verdicts(summary) if one.question == question)


def test_closeness_is_that_to_the_floor(summary: dict[str, Any]) -> None:
    verdict = of(summary, LOOK)
    assert verdict.answer == "2.3 times as far from the real images as these are from each other."
    assert (
        "Fréchet distance 14.2; between real images 6.12 (5.22 to 7.02), means of ten draws of 80 images each"
        in verdict.details
    )
    summary["fidelity"][0]["floor"]["audited"]["frechet"] = 7.0
    assert of(summary, LOOK).answer.startswith("As close to the real images as these are to each other, as far as 80")


def test_without_a_floor_or_a_reference_it_says_so(summary: dict[str, Any]) -> None:
    summary["fidelity"][0] |= {"floor": None, "not_measured": {"floor": "real images of 7 known patients"}}
    said = "Not measured against a floor of real images: "
    assert of(summary, LOOK).answer == f"{said}real images of 7 known patients."
    summary["fidelity"][0]["not_measured"] = {"all": "7 audited and 512 real images, expected at least 20 of each"}
    assert of(summary, LOOK).answer == f"{said}7 audited and 512 real images, expected at least 20 of each."
    summary |= {"reference": None, "fidelity": [], "memorization": None, "utility": None}
    summary["reidentification"] = None
    assert [one.answer for one in verdicts(summary)] == [
        "Not compared with real images: there is no reference.",
        "Not measured (--utility, with a reference that has labels).",
        "Copies of real images were not looked for: there is no reference.",
    ]
    summary["not_measured"]["memorization"] = "reference: 5 images of 5 patients\n  expected: at least 20"
    expected = "Copies of real images were not looked for: reference: 5 images of 5 patients; expected: at least 20."
    assert of(summary, FOUND).answer == expected
    assert "Floor" not in " ".join(of(summary, FOUND).details)
    for number, said in ((0, "None is a copy"), (1, "1 is a copy"), (2, "2 are copies")):
        summary["copies"] = {"flagged": number, "threshold": 0.8, "real": 5}
        expected = f"{said} of a real image. Near-duplicates were not looked for: reference: 5 images of 5 patients;"
        expected += " expected: at least 20."
        assert of(summary, FOUND).answer == expected


def test_few_images_are_judged_by_a_distance_that_does_not_depend_on_their_number(summary: dict[str, Any]) -> None:
    few_images(summary)
    verdict = of(summary, LOOK)
    assert verdict.answer == "24 images are too few to see a distance from the real ones."
    assert (
        "MMD 0.00201 (-0.00019 to 0.00421); between real images 1e-05 (-0.00039 to 0.00041), mean of ten draws of 24"
        " images each"
    ) in verdict.details
    summary["fidelity"][0]["compared"] = 90
    assert of(summary, LOOK).answer == (
        "No further from the real images than these are from each other, as far as 24 of them in one half of the"
        " patients tell."
    )
    summary["fidelity"][0]["mmd"]["low"] = 0.00042
    assert of(summary, LOOK).answer == "Further from the real images than these are from each other."


def test_help_counts_findings_by_their_intervals(summary: dict[str, Any]) -> None:
    first = "Trained on before real images they raise the AUROC of 1 of 1 finding."
    assert of(summary, HELP).answer == f"Added to real images they raise the AUROC of 1 of 1 finding. {first}"
    lifts = (("Pneumonia", "all", -0.1, 0.05), ("Fracture", "all", 0.0, 0.1), ("Fracture", "sex: F", 0.3, 0.1))
    summary["utility"]["lift"] += [
        {"finding": finding, "group": group, "trained_on": BOTH, "value": v, "low": v - reach, "high": v + reach}
        for finding, group, v, reach in lifts
    ]
    said = "Added to real images they raise the AUROC of 1 and lower that of 1 of 3 findings."
    assert of(summary, HELP).answer == f"{said} {first}"
    summary["utility"]["lift"] = summary["utility"]["lift"][3:4]
    expected = "Added to real images they measurably change the AUROC of none of 1 finding."
    assert of(summary, HELP).answer == expected


def test_help_gives_means_gaps_and_what_was_trained(summary: dict[str, Any]) -> None:
    verdict = of(summary, HELP)
    assert verdict.details == (
        "Floor: real images alone reach a mean AUROC of 0.800 (0.780 to 0.820); 0.5 is chance",
        "real + synthetic: mean AUROC +0.012 (-0.003 to +0.027) over 3 findings",
        "synthetic then real: mean AUROC +0.023 (+0.008 to +0.038) over 3 findings",
        "real: underdiagnosis differs by sex or age in 1 of 1 comparisons",
    )
    assert "linear classifier" in verdict.limit
    summary["utility"]["model"] = {"name": "nano", "starts_from": "random weights"}
    assert of(summary, HELP).limit.startswith("Of nano, trained from random weights;")
    summary["utility"]["mean"] = []
    assert of(summary, HELP).details[0].startswith("Floor: an AUROC of 0.5 is chance")
    summary["utility"] = None
    assert of(summary, HELP).details == ()


def test_copies_the_search_and_the_attack(summary: dict[str, Any]) -> None:
    flagged = summary["memorization"]["flagged"]
    assert of(summary, FOUND).answer.startswith(f"{flagged} are nearer to a real image than")
    assert "The search finds 66% (blended) to 98% of the copies planted in the reference" in of(summary, FOUND).details
    share = flagged / summary["input"]["images"]
    floor = f"the search flags 1 of 400 (0.0% to 1.4%); of these images, {share:.1%}"
    assert f"Floor: of held-out real images of other patients, {floor}" in of(summary, FOUND).details
    assert any("was not attacked" in detail for detail in of(summary, FOUND).details)
    summary["memorization"]["flagged"] = 0
    assert of(summary, FOUND).answer.startswith("None was found")


def attack(value: float, low: float) -> dict[str, Any]:
    return {"auc": {"value": value, "low": low, "high": 0.9}, "true_positives": {"0.01": None, "0.001": None}}


def test_the_answer_is_of_all_three_tests(summary: dict[str, Any]) -> None:
    """A set without copies whose patients are recognized, or whose model tells its members, must not look clean."""
    summary["memorization"]["flagged"] = 0
    found = summary["reidentification"]
    found["reference"]["false_matches"] = {"caught": 3, "of": 300, "low": 0.003, "high": 0.03}
    found["share"] = {"caught": 160, "of": 400, "low": 0.35, "high": 0.45}
    answer = of(summary, FOUND).answer
    assert answer.startswith("None was found to be nearly a copy of a real image. 160 of 400 are taken for a patient")
    found["share"] = {"caught": 4, "of": 400, "low": 0.004, "high": 0.025}
    assert of(summary, FOUND).answer.endswith(
        "No more are taken for a patient of the reference than of real images of other patients are."
    )
    attacks = {"loss": attack(0.55, 0.49), "proximal": attack(0.6, 0.52), COMBINED: attack(0.5, 0.4)}
    summary["membership"] = {"model": {"name": "m"}, "attacks": attacks | {WITHOUT_MODEL: attack(0.5, 0.4)}}
    answer = of(summary, FOUND).answer
    assert "One attack on the model (proximal) tells members of its training set from others, the other 2" in answer
    assert answer.endswith("one does by chance in up to 7% of audits.")
    attacks["loss"]["auc"]["low"] = 0.51
    assert of(summary, FOUND).answer.endswith("The model's weights tell who was in its training set (loss, proximal).")
    attacks["loss"]["auc"]["low"] = 0.49
    told = "0.50 (0.40 to 0.90) by all attacks on m together, 0.60 (0.52 to 0.90) by the best (proximal), and 0.50"
    assert any(told in detail for detail in of(summary, FOUND).details)
    attacks["proximal"]["true_positives"]["0.01"] = {"value": 0.2, "low": 0.1, "high": 0.3}
    assert "At 1% false alarms, proximal finds 20% of the members (10% to 30%)" in of(summary, FOUND).details
    attacks["proximal"]["auc"]["low"] = 0.5
    assert of(summary, FOUND).answer.endswith("Attacks on the model do not tell who was in its training set.")
    summary["membership"]["attacks"][WITHOUT_MODEL] = attack(0.9, 0.85)
    assert "differ in themselves" in of(summary, FOUND).answer


def test_a_distance_of_few_images_has_one_beside_it_that_does_not_depend_on_them(summary: dict[str, Any]) -> None:
    assert any("The ratio of these depends on the number of images" in one for one in of(summary, LOOK).details)
    summary["fidelity"][0]["warnings"] = {}
    assert not any("The ratio of these depends" in one for one in of(summary, LOOK).details)


def test_readers_are_quoted(summary: dict[str, Any]) -> None:
    summary["reader_study"] = {"scores": {"accuracy": {"value": 0.62, "low": 0.51, "high": 0.72}}}
    assert any("in 62% of cases (51% to 72%)" in detail for detail in of(summary, LOOK).details)


def test_no_verdict_promises_anything(summary: dict[str, Any]) -> None:
    said = " ".join(" ".join((one.answer, one.limit, *one.details)) for one in verdicts(summary))
    assert not re.search(r"\b(safe|anonymous|private|guarantee|proves?)\b", said, re.IGNORECASE)
    assert all(one.limit for one in verdicts(summary))
