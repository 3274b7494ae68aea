"""Copies among made images: who is flagged, by what threshold, and how well that is known to work."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cxrsynth.errors import ShardError
from cxrsynth.metrics.memorization import planted
from cxrsynth.metrics.memorization.features import MatchSpace, thumbnails
from cxrsynth.metrics.memorization.planted import ALTERATIONS, MIXED, ProbeKeeper, Probes
from cxrsynth.metrics.memorization.registration import unmoved
from cxrsynth.metrics.memorization.search import (
    ImageSet,
    SearchReport,
    SearchSettings,
    _held_out,
    find_near_duplicates,
)
from tests.metrics.made_images import made_images, made_thumbs

REAL = made_images(120)
NEW = made_images(20, seed=77)
SETTINGS = SearchSettings(sample=60)
# Of 16; of the others 14. No posture regressor undoes part of what is done to made images.
LEAST_CAUGHT = {"zoomed_30": 12, "rotated_15": 6}


def image_set(radiographs: torch.Tensor, name: str, *, images_a_patient: int = 2) -> ImageSet:
    keys = tuple(f"{name}-{i}" for i in range(len(radiographs)))
    patients = tuple(f"{name}-patient-{i // images_a_patient}" for i in range(len(radiographs)))
    thumbs = thumbnails(radiographs, unmoved)
    return ImageSet(keys, thumbs, thumbs, patients)


def probes_of(radiographs: torch.Tensor, *, count: int) -> Probes:
    keeper = ProbeKeeper(count)
    keeper.offer([f"real-{i}" for i in range(len(radiographs))], radiographs)
    return keeper.probes()


@pytest.fixture(scope="module")
def reference() -> ImageSet:
    return image_set(REAL, "real")


@pytest.fixture(scope="module")
def space(reference: ImageSet) -> MatchSpace:
    return MatchSpace.fit(reference.thumbs)


@pytest.fixture(scope="module")
def report(reference: ImageSet, space: MatchSpace) -> SearchReport:
    """Twenty new images, four of them near-duplicates of real ones."""
    rng = torch.Generator().manual_seed(0)
    radiographs = NEW.clone()
    radiographs[3] = REAL[10]
    radiographs[8] = REAL[50].flip(-1)
    radiographs[12] = (REAL[90] + 0.03 * torch.randn(REAL[90].shape, generator=rng)).clamp(0, 1)
    radiographs[17] = (REAL[30] + NEW[17]) / 2
    return find_near_duplicates(
        image_set(radiographs, "made"),
        reference,
        space,
        register=unmoved,
        probes=probes_of(REAL, count=16),
        autoencode=lambda images: images**1.1,
        settings=SETTINGS,
    )


def test_near_duplicates_are_flagged_and_new_images_are_not(report: SearchReport) -> None:
    flagged = {radiograph.key: radiograph.real for radiograph in report.matches if radiograph.flagged}
    assert flagged == {"made-3": "real-10", "made-8": "real-50", "made-12": "real-90", "made-17": "real-30"}
    radiographs = {radiograph.key: radiograph for radiograph in report.matches}
    assert radiographs["made-3"].similarity == pytest.approx(1.0, abs=1e-3)
    assert radiographs["made-8"].mirrored
    assert all(radiograph.flagged == (radiograph.similarity > report.threshold) for radiograph in report.matches)
    assert [radiograph.key for radiograph in report.matches] == [f"made-{i}" for i in range(20)]


def test_the_threshold_is_the_tail_of_different_patients(report: SearchReport) -> None:
    assert report.threshold == pytest.approx(max(report.real_to_real["p99"] + 0.02, 0.5))
    assert list(report.real_to_real.values()) == sorted(report.real_to_real.values())
    assert report.made_to_real["p100"] > report.threshold > report.made_to_real["p50"]
    assert report.patients_known


def test_sensitivity_and_false_alarms_are_counted_with_intervals(report: SearchReport) -> None:
    assert set(report.sensitivity) == set(ALTERATIONS)
    for kind, share in report.sensitivity.items():
        assert share.of == 16
        assert share.caught >= LEAST_CAUGHT.get(kind, 14), kind
        assert 0 <= share.low < share.caught / share.of <= share.high <= 1
    assert report.false_alarms.of == 24  # a fifth of the reference
    assert report.false_alarms.caught <= 2


@pytest.mark.slow
def test_the_image_that_a_patch_is_pasted_into_is_hidden(
    reference: ImageSet, space: MatchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be found in each case where there is next to nothing of the other."""
    monkeypatch.setattr(planted, "_PATCH", 4 / 256)
    found = find_near_duplicates(
        image_set(NEW, "made"), reference, space, register=unmoved, probes=probes_of(REAL, count=16), settings=SETTINGS
    )
    assert found.sensitivity["patch"].caught <= 2


def test_a_patient_with_most_images_does_not_leave_two_to_learn_the_threshold_from() -> None:
    for sizes in ([18, 1, 1], [90, *[1] * 30], [4, 4, 4]):
        groups = np.repeat(np.arange(len(sizes)), sizes)
        for seed in range(10):
            held = _held_out(groups, SearchSettings(seed=seed))
            assert 0 < held.sum() <= max(min(sizes), 0.2 * len(groups))
            assert not set(groups[held].tolist()) & set(groups[~held].tolist())


def test_mixtures_are_planted_of_two_patients_or_not_at_all(reference: ImageSet, space: MatchSpace) -> None:
    """With one probe there is no other image: hiding its own patient would hide what is to be found."""
    made = image_set(NEW, "made")
    found = find_near_duplicates(
        made, reference, space, register=unmoved, probes=probes_of(REAL, count=1), settings=SETTINGS
    )
    assert found.sensitivity.keys() == {*ALTERATIONS} - {*MIXED} - {"autoencoded"}


@pytest.mark.slow
def test_sensitivity_has_intervals_over_patients(space: MatchSpace) -> None:
    """Sixteen probes of four patients say less than sixteen of sixteen."""
    few = replace(image_set(REAL, "real"), patients=tuple(f"p{place // 4}" for place in range(len(REAL))))
    made = image_set(NEW[:2], "made")
    shares = [
        find_near_duplicates(made, one, space, register=unmoved, probes=probes_of(REAL, count=16), settings=SETTINGS)
        for one in (image_set(REAL, "real"), few)
    ]
    assert shares[1].sensitivity["exact"].low < shares[0].sensitivity["exact"].low


def test_the_summary_is_json_with_the_nearest_first(report: SearchReport) -> None:
    summary = json.loads(json.dumps(report.summary(nearest=5)))
    assert summary["flagged"] == 4
    assert [pair["flagged"] for pair in summary["nearest"]] == [True] * 4 + [False]
    similarities = [pair["similarity"] for pair in summary["nearest"]]
    assert similarities == sorted(similarities, reverse=True)
    assert set(summary["nearest"][0]) == {"key", "real", "similarity", "flagged"}
    assert set(summary["sensitivity"]["blended"]) == {"caught", "of", "low", "high"}
    assert {"threshold", "features", "made_to_real", "real_to_real", "false_alarms"} < set(summary)


def test_blends_are_flagged_by_what_they_are_unmoved(reference: ImageSet, space: MatchSpace) -> None:
    """Ten blends and ten new images, of which registration leaves nothing to recognize them by."""
    blends, lost = image_set((REAL[:10] + NEW[:10]) / 2, "made"), image_set(made_images(20, seed=78), "made")
    made = replace(lost, framed=np.concatenate((blends.framed, lost.framed[10:])))
    found = find_near_duplicates(made, reference, space, register=unmoved, settings=SETTINGS)
    assert [match.real for match in found.matches[:10]] == list(reference.keys[:10])
    assert [match.flagged for match in found.matches] == [True] * 10 + [False] * 10


def test_an_audit_repeats(report: SearchReport, reference: ImageSet, space: MatchSpace) -> None:
    made = image_set(NEW, "made")
    one, other = (find_near_duplicates(made, reference, space, register=unmoved, settings=SETTINGS) for _ in range(2))
    assert one == other
    assert one.sensitivity == {}  # nothing to plant was given
    assert one.threshold == report.threshold


def test_images_of_one_patient_do_not_hide_near_duplicates(space: MatchSpace) -> None:
    """Every patient has two all but equal images: known as one patient's they say nothing of different patients."""
    rng = torch.Generator().manual_seed(1)
    pairs = REAL[:60].repeat_interleave(2, 0)
    pairs = (pairs + 0.03 * torch.randn(pairs.shape, generator=rng)).clamp(0, 1)
    known = image_set(pairs, "real")
    unknown = replace(known, patients=())
    made = image_set(NEW, "made")
    known_report, unknown_report = (
        find_near_duplicates(made, one, space, register=unmoved, settings=SETTINGS) for one in (known, unknown)
    )
    assert known_report.threshold < 0.75 < unknown_report.threshold == SETTINGS.ceiling
    assert known_report.real_to_real["p50"] < 0.7 < unknown_report.real_to_real["p50"]
    assert known_report.false_alarms.caught <= 2 < 15 < unknown_report.false_alarms.caught
    assert (known_report.patients_known, unknown_report.patients_known) == (True, False)


def test_without_an_autoencoder_that_kind_is_left_out(reference: ImageSet, space: MatchSpace) -> None:
    found = find_near_duplicates(
        image_set(NEW[:2], "made"),
        reference,
        space,
        register=unmoved,
        probes=probes_of(REAL, count=2),
        settings=SETTINGS,
    )
    assert set(ALTERATIONS) - set(found.sensitivity) == {"autoencoded"}


def test_groups_are_patients_and_unknown_ones_are_apart() -> None:
    thumbs = made_thumbs(5)
    radiographs = ImageSet(tuple("abcde"), thumbs, thumbs, ("x", "", "x", "", "y"))
    assert radiographs.groups().tolist() == [0, 1, 0, 2, 3]
    assert ImageSet(tuple("abcde"), thumbs, thumbs).groups().tolist() == [0, 1, 2, 3, 4]


def test_a_reference_too_small_is_refused(reference: ImageSet, space: MatchSpace) -> None:
    few = ImageSet(reference.keys[:19], reference.thumbs[:19], reference.framed[:19])
    one = replace(reference, patients=("same",) * 120)
    with pytest.raises(ShardError, match="19 images of 19 patients\n  expected: at least 20 images of 3 patients"):
        find_near_duplicates(reference, few, space, register=unmoved)
    with pytest.raises(ShardError, match="120 images of 1 patient\n"):
        find_near_duplicates(reference, one, space, register=unmoved)
