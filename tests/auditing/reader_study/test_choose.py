"""The images of a study: as many of each kind, one a patient, alike by metadata, and the same for the same key."""

from collections import Counter
from itertools import cycle

import numpy as np
import pyarrow as pa
import pytest

from cxrsynth.auditing.reader_study.blinding import Blinding
from cxrsynth.auditing.reader_study.choose import Candidate, candidates, choose_pairs, matched
from cxrsynth.errors import ShardError

FINDINGS = ("Edema", "Cardiomegaly", "No Finding")


def pool(prefix: str, count: int, *, views: tuple[str | None, ...] = ("PA",), per_patient: int = 1) -> list[Candidate]:
    """Images with views and findings in turn."""
    return [
        Candidate(f"{prefix}{place}", f"{prefix}p{place // per_patient}", view, present=frozenset({finding}))
        for place, view, finding in zip(range(count), cycle(views), cycle(FINDINGS), strict=False)
    ]


def rng(seed: int = 0) -> np.random.Generator:
    return Blinding(b"k" * 32, seed).rng("images")


def test_each_image_once_and_one_of_each_patient() -> None:
    pairs = choose_pairs(pool("s", 60, per_patient=2), pool("r", 90, per_patient=3), 30, rng())
    assert len(pairs) == 30
    for kind in ("synthetic", "real"):
        chosen = [getattr(pair, kind) for pair in pairs]
        assert {one.key[0] for one in chosen} == {kind[0]}
        assert len({one.key for one in chosen}) == len({one.patient for one in chosen}) == 30


def test_images_of_unknown_patients_count_each() -> None:
    unknown = [Candidate(f"r{place}") for place in range(6)]
    pairs = choose_pairs([Candidate(f"s{place}") for place in range(6)], unknown, 6, rng())
    assert len({pair.real.key for pair in pairs}) == 6


def test_real_images_are_like_the_synthetic_ones() -> None:
    """The reference has every view and finding; the set only frontal images, most of them normal."""
    made = [Candidate(f"s{place}", view="PA", present=frozenset({"No Finding"})) for place in range(30)]
    made += [Candidate(f"t{place}", view="AP", present=frozenset({"Edema"})) for place in range(10)]
    real = pool("r", 900, views=("PA", "AP", "LATERAL", None))
    pairs = choose_pairs(made, real, 40, rng())
    for name in ("view", "present"):
        kinds = [Counter(getattr(getattr(pair, kind), name) for pair in pairs) for kind in ("synthetic", "real")]
        assert kinds[0] == kinds[1], name
    assert matched(pairs) == {"view": 40, "age_group": 0, "sex": 0, "present": 40}


def test_the_view_goes_before_findings() -> None:
    [pair] = choose_pairs(
        [Candidate("s", view="PA", present=frozenset({"Edema"}))],
        [
            Candidate("lateral", view="LATERAL", present=frozenset({"Edema"})),
            Candidate("frontal", view="PA", present=frozenset({"Fracture"})),
        ],
        1,
        rng(),
    )
    assert pair.real.key == "frontal"
    assert matched([pair]) == {"view": 1, "age_group": 0, "sex": 0, "present": 0}


def test_images_without_a_stated_finding_come_last() -> None:
    real = [*pool("r", 10), *(Candidate(f"x{place}") for place in range(50))]
    assert all(pair.real.present for pair in choose_pairs(pool("s", 40), real, 10, rng()))
    assert len(choose_pairs(pool("s", 40), real, 20, rng())) == 20


def test_too_few_images_are_refused_with_the_number_there_is() -> None:
    for made, real, what in ((40, 9, "9 real"), (8, 40, "8 kept synthetic")):
        with pytest.raises(
            ShardError, match=rf"--reader-study 20: {what} images .*\n  ask for at most {2 * min(made, real)}"
        ):
            choose_pairs(pool("s", made), pool("r", real), 10, rng())


def test_the_key_and_the_seed_decide() -> None:
    def chosen(id_key: bytes, seed: int) -> list[tuple[str, str]]:
        pairs = choose_pairs(pool("s", 200), pool("r", 200), 20, Blinding(id_key, seed).rng("images"))
        return [(pair.synthetic.key, pair.real.key) for pair in pairs]

    first = chosen(b"k" * 32, 0)
    assert chosen(b"k" * 32, 0) == first
    assert chosen(b"k" * 32, 1) != first
    assert chosen(b"j" * 32, 0) != first, "who knows the seed alone could choose again"
    names = {Blinding(id_key, seed).name("image", "r0") for id_key in (b"k" * 32, b"j" * 32) for seed in (0, 1)}
    assert len(names) == 4
    assert Blinding(b"k" * 32, 0).name("a", "b") != Blinding(b"k" * 32, 0).name("ab")


def test_only_allowed_rows_become_candidates() -> None:
    rows = pa.table(
        {
            "key": ["a", "b", "c"],
            "view": ["PA", None, "AP"],
            "sex": ["F", None, "M"],
            "age_group": [None, None, "adult"],
            "present": [["Edema"], [], None],
            "absent": [["Fracture"], [], []],
        }
    )
    found = candidates(rows, ["p", "", "q"], [True, True, False])
    assert found == [
        Candidate("a", "p", "PA", "F", None, frozenset({"Edema"}), frozenset({"Fracture"})),
        Candidate("b"),
    ]
