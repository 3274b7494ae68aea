"""Answers scored: numbers computed by hand."""

from pathlib import Path
from typing import Any

import pytest

from cxrsynth.auditing.reader_study.answers import read_answers
from cxrsynth.auditing.reader_study.scores import score
from tests.auditing.reader_study.making import answer, file_of, study_key, with_key, write

PRESENT = {"r0": ["Edema"], "r1": ["Edema", "Cardiomegaly"], "s0": ["Edema"], "s1": ["Cardiomegaly"]}


@pytest.fixture
def scores(tmp_path: Path) -> dict[str, Any]:
    """Two readers of four images: A right about r0, r1, s0; B about r0, s0, and done with three."""
    keys = with_key(tmp_path / "keys", study_key(2, 2, present=PRESENT))
    first = [
        answer("r0", "real", quality=5, findings=["Edema"], seconds=4.0),
        answer("r1", "real", quality=3, findings=["Cardiomegaly"], seconds=6.0),
        answer("s0", "synthetic", quality=2, findings=["Edema"], match="no", seconds=8.0),
        answer("s1", "real", quality=4, findings=["No Finding"], match="partly", seconds=10.0),
    ]
    second = [
        answer("r0", "real", quality=4, findings=["Edema"], seconds=1.0),
        answer("r1", "synthetic", quality=3, findings=["Edema"], match="no", seconds=2.0),
        answer("s0", "synthetic", quality=1, findings=["No Finding"], match="no", seconds=3.0),
        answer("s1", None, quality=None, findings=[], match=None, seconds=60.0),
    ]
    paths = [write(tmp_path, name, file_of(name, given)) for name, given in (("A", first), ("B", second))]
    return score(read_answers(paths, keys))


def test_real_and_synthetic(scores: dict[str, Any]) -> None:
    assert scores["chance"] == 0.5
    shares = {
        name: (scores[name]["value"], scores[name]["answers"]) for name in ("accuracy", "sensitivity", "specificity")
    }
    assert shares == {"accuracy": (5 / 7, 7), "sensitivity": (2 / 3, 3), "specificity": (3 / 4, 4)}
    first, second = scores["readers"]
    assert (first["name"], first["role"], first["years"], first["answered"], first["of"]) == (
        "A",
        "radiologist",
        5,
        4,
        4,
    )
    assert (first["accuracy"]["value"], first["sensitivity"]["value"], first["specificity"]["value"]) == (0.75, 0.5, 1)
    assert (second["answered"], second["accuracy"]["value"]) == (3, 2 / 3)


def test_quality_is_compared_by_image(scores: dict[str, Any]) -> None:
    # Real: (5 + 4) / 2 and 3. Synthetic: (2 + 1) / 2 and 4.
    quality = scores["quality"]
    assert (quality["real"], quality["synthetic"]) == (3.75, 2.75)
    assert quality["difference"]["value"] == 1
    assert quality["difference"]["low"] < 1 < quality["difference"]["high"]


def test_matches_and_times(scores: dict[str, Any]) -> None:
    real, synthetic = scores["match"]["real"], scores["match"]["synthetic"]
    assert (real["yes"], real["partly"], real["no"], real["share"]["value"]) == (3, 0, 1, 0.75)
    assert (synthetic["yes"], synthetic["partly"], synthetic["no"], synthetic["share"]["value"]) == (0, 1, 2, 0)
    # The minute on the image that was not answered does not count.
    assert scores["seconds"] == {"p25": 2.5, "p50": 4.0, "p75": 7.0, "real": 3.0, "synthetic": 8.0}


def test_by_finding(scores: dict[str, Any]) -> None:
    rows = {row["finding"]: row for row in scores["findings"]}
    assert list(rows) == ["Cardiomegaly", "Edema"]
    edema = rows["Edema"]
    assert edema["images"] == {"real": 2, "synthetic": 1}
    assert (edema["accuracy"]["value"], edema["accuracy"]["answers"]) == (5 / 6, 6)
    assert edema["stated"] == {"real": {"seen": 3, "of": 4}, "synthetic": {"seen": 1, "of": 2}}
    assert edema["denied"] == {"real": {"seen": 0, "of": 0}, "synthetic": {"seen": 0, "of": 0}}
    # On r0, r1, s0: A sees it on r0 and s0, B on r0 and r1.
    assert edema["fleiss"] == pytest.approx((1 / 3 - 5 / 9) / (1 - 5 / 9))


def test_agreement_is_of_what_both_answered(scores: dict[str, Any]) -> None:
    origin = scores["agreement"]["origin"]
    assert origin["images"] == 3
    # A: real, real, synthetic; B: real, synthetic, synthetic. Agreement 2/3, by chance 4/9.
    assert origin["pairs"] == [{"readers": ["A", "B"], "images": 3, "kappa": pytest.approx(0.4)}]
    # Shares 1/2 and 1/2.
    assert origin["fleiss"] == pytest.approx((2 / 3 - 1 / 2) / (1 / 2))
    assert scores["agreement"]["quality"]["pairs"][0]["kappa"] > 0.5


def test_one_reader_agrees_with_nobody(tmp_path: Path) -> None:
    keys = with_key(tmp_path / "keys", study_key(2, 2))
    found = score(read_answers([write(tmp_path, "A", file_of("A", [answer("r0", "synthetic")]))], keys))
    assert found["agreement"] == {"origin": None, "quality": None, "match": None}
    assert found["sensitivity"] == {"value": None, "low": None, "high": None, "answers": 0}
    assert found["accuracy"]["value"] == 0
    assert found["findings"] == []
