"""Who is kept: the reasons as they read, and laws over drawn sets."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrsynth.auditing.decide import Rules, decide, thresholds, with_usual_rules
from cxrsynth.auditing.score_table import NONE_STATED, scores_table
from cxrsynth.errors import RecipeError
from tests.auditing.score_rows import part

REWARDS = ("diagnosis", "posture")
Radiograph = Mapping[str, Any]


def table(*radiographs: Radiograph, rewards: Sequence[str] = REWARDS) -> Any:
    """Scores of images, each a mapping of what differs from an image without fault."""
    found = {name: [radiograph.get(name) for radiograph in radiographs] for name in ("duplicate_of", "memorized")}
    return scores_table([part(radiographs, rewards=rewards)], found)


def decisions(scores: Any, rules: Rules, reference: Any = None) -> dict[str, list[str]]:
    """Reasons by key, after seeing that an image is kept exactly where it has none."""
    decided = decide(scores, rules, reference)
    assert decided["kept"].to_pylist() == [not found for found in decided["reasons"].to_pylist()]
    return dict(zip(decided["key"].to_pylist(), decided["reasons"].to_pylist(), strict=True))


def test_every_reason_is_reported_in_order() -> None:
    scores = table(
        {"key": "good", "posture": -1.0, "diagnosis": 3.0},
        {
            "key": "bad",
            "posture": -3.0,
            "diagnosis": -9.0,
            "checks_failed": ["inverted", "blank", "text"],
            "duplicate_of": "good",
            "memorized": True,
        },
        {"key": "memorized", "posture": -1.0, "diagnosis": 3.0, "memorized": True},
        {"key": "no copy", "posture": -1.0, "diagnosis": 3.0, "memorized": False},
    )
    rules = Rules(at_least={"posture": -2}, percentile={"diagnosis": 5}, ignored_checks=frozenset({"text"}))
    assert decisions(scores, rules, {"diagnosis": np.arange(101.0), "posture": np.zeros(3)}) == {
        "good": ["diagnosis below p5 of reference", "repeats memorized"],
        "bad": [
            "check: blank",
            "check: inverted",
            "duplicate",
            "memorized",
            "posture<-2.0",
            "diagnosis below p5 of reference",
        ],
        "memorized": ["memorized", "diagnosis below p5 of reference"],
        "no copy": ["diagnosis below p5 of reference"],
    }


def test_one_of_the_same_pictures_stays_where_the_first_is_rejected() -> None:
    rows = [
        {"key": "a", "checks_failed": ["cropped"]},
        {"key": "b", "duplicate_of": "a", "posture": -3.0},
        {"key": "d", "duplicate_of": "a"},
        {"key": "c", "duplicate_of": "a", "posture": 0.0},
        {"key": "e", "duplicate_of": "a"},
        {"key": "f"},
        {"key": "g", "duplicate_of": "f"},
        {"key": "h", "duplicate_of": "not among these"},
        {"key": "i", "posture": -3.0},
        {"key": "j", "duplicate_of": "i", "checks_failed": ["text"]},
        {"key": "k", "duplicate_of": "i"},
        {"key": "l", "memorized": True},
        {"key": "m", "duplicate_of": "l"},
    ]
    rules = Rules(at_least={"posture": -2}, ignored_checks=frozenset({"text"}))
    expected = {
        "a": ["check: cropped"],
        "b": ["duplicate", "posture<-2.0"],
        "c": [],
        "d": ["duplicate"],
        "e": ["duplicate"],
        "f": [],
        "g": ["duplicate"],
        "h": ["duplicate"],
        "i": ["posture<-2.0"],
        "j": [],
        "k": ["duplicate"],
        "l": ["memorized"],
        "m": ["duplicate"],
    }
    assert decisions(table(*rows), rules) == expected
    assert decisions(table(*rows[::-1]), rules) == expected
    stricter = decisions(table(*rows), Rules(at_least={"posture": 9}))
    assert stricter["c"] == ["duplicate", "posture<9.0"]
    assert stricter["d"] == []
    none = decisions(table(*rows[:2]), Rules(at_least={"posture": 9}))
    assert none == {"a": ["check: cropped"], "b": ["duplicate", "posture<9.0"]}


def test_of_duplicates_of_which_one_is_memorized_none_stays() -> None:
    """Those that lie below the threshold of similarity show the same patient, whichever of them comes first."""
    rows = [
        {"key": "a"},
        {"key": "b", "duplicate_of": "a", "memorized": True},
        {"key": "c", "duplicate_of": "a"},
        {"key": "d", "checks_failed": ["cropped"]},
        {"key": "e", "duplicate_of": "d"},
        {"key": "f", "duplicate_of": "d", "memorized": True},
        {"key": "g"},
        {"key": "h", "duplicate_of": "g"},
        {"key": "i", "memorized": True},
        {"key": "j", "duplicate_of": "not among these", "memorized": True},
    ]
    expected = {
        "a": ["repeats memorized"],
        "b": ["duplicate", "memorized"],
        "c": ["duplicate"],
        "d": ["check: cropped", "repeats memorized"],
        "e": ["duplicate"],
        "f": ["duplicate", "memorized"],
        "g": [],
        "h": ["duplicate"],
        "i": ["memorized"],
        "j": ["duplicate", "memorized"],
    }
    assert decisions(table(*rows), Rules()) == expected
    assert decisions(table(*rows[::-1]), Rules()) == expected


def test_a_value_equal_to_its_limit_passes_also_where_float32_rounds_it_down() -> None:
    assert float(np.float32(-1.1)) < -1.1
    scores = table({"key": "a", "posture": -1.1, "diagnosis": 5.0}, {"key": "b", "posture": -1.2, "diagnosis": 4.99})
    rules = Rules(at_least={"posture": -1.1}, percentile={"diagnosis": 50})
    reference = {"diagnosis": np.array([math.nan, 4.0, 5.0, 6.0, math.nan])}
    assert decisions(scores, rules, reference) == {
        "a": [],
        "b": ["posture<-1.1", "diagnosis below p50 of reference"],
    }
    assert thresholds(rules, reference) == [
        {"rule": "at least", "on": "posture", "value": -1.1},
        {"rule": "p50 of reference", "on": "diagnosis", "value": 5.0},
    ]


def test_a_rare_finding_is_not_filtered_away() -> None:
    """All images with Edema score below all others: half of each stay, and the one Fracture."""
    radiographs = [{"key": f"n{i}", "posture": float(i), "diagnosis": 0.0, "present": ["No Finding"]} for i in range(6)]
    radiographs += [{"key": f"e{i}", "posture": -9.0 - i, "diagnosis": 0.0, "present": ["Edema"]} for i in range(3)]
    radiographs += [{"key": "f", "posture": -99.0, "diagnosis": 0.0, "present": ["Fracture"]}]
    radiographs += [{"key": "u", "posture": -99.0, "diagnosis": 0.0}]
    found = decisions(table(*radiographs), Rules(keep_fraction=0.5))
    assert found == {
        **{f"n{i}": ["outside best 0.50 of No Finding"] for i in range(3)},
        **{f"n{i}": [] for i in range(3, 6)},
        "e0": [],
        "e1": [],
        "e2": ["outside best 0.50 of Edema"],
        "f": [],
        "u": [],
    }


def test_an_image_with_several_findings_stays_for_one_and_names_all_it_failed() -> None:
    radiographs = [{"key": f"a{i}", "posture": float(i), "diagnosis": 0.0, "present": ["Edema"]} for i in range(4)]
    radiographs += [
        {"key": "x", "posture": -1.0, "diagnosis": 0.0, "present": ["Edema", "Fracture"]},
        {"key": "y", "posture": -2.0, "diagnosis": 0.0, "present": ["Fracture", "Edema"]},
        {"key": "z", "posture": -3.0, "diagnosis": 0.0},
    ]
    found = decisions(table(*radiographs), Rules(keep_fraction=0.125))
    assert found["x"] == []
    assert found["y"] == ["outside best 0.125 of Edema", "outside best 0.125 of Fracture"]
    assert found["z"] == []
    assert found["a0"] == ["outside best 0.125 of Edema"]
    assert [key for key in found if key.startswith("a") and not found[key]] == ["a3"]
    worse = decisions(table(*radiographs, {"key": "w", "posture": -4.0, "diagnosis": 0.0}), Rules(keep_fraction=0.5))
    assert worse["w"] == [f"outside best 0.50 of {NONE_STATED}"]


def test_only_images_that_pass_all_else_take_places() -> None:
    radiographs = [
        {"key": "blank", "posture": 9.0, "diagnosis": 9.0, "checks_failed": ["blank"]},
        {"key": "a", "posture": 2.0, "diagnosis": 2.0},
        {"key": "b", "posture": 1.0, "diagnosis": 1.0},
    ]
    assert decisions(table(*radiographs), Rules(keep_fraction=0.5)) == {
        "blank": ["check: blank"],
        "a": [],
        "b": [f"outside best 0.50 of {NONE_STATED}"],
    }


def test_rewards_count_alike_whatever_their_unit_and_ties_go_by_key() -> None:
    radiographs = [
        {"key": "b", "posture": 1e6, "diagnosis": 0.0},
        {"key": "a", "posture": 0.0, "diagnosis": 1e-6},
    ]
    assert decisions(table(*radiographs), Rules(keep_fraction=0.5))["a"] == []
    assert decisions(table(*radiographs), Rules(keep_fraction=0.5, rank_on=("posture",)))["b"] == []
    assert decisions(table(*radiographs), Rules(keep_fraction=0.5, rank_on=("diagnosis",)))["a"] == []


def test_a_tenth_of_thirty_is_three() -> None:
    assert math.ceil(0.1 * 30) == 3
    assert math.ceil(0.07 * 100) == 8, "as floating point has it"
    radiographs = [{"key": f"{i:03}", "posture": float(i), "diagnosis": 0.0} for i in range(100)]
    assert sum(not found for found in decisions(table(*radiographs), Rules(keep_fraction=0.07)).values()) == 7


def test_an_undefined_reward_neither_rejects_nor_helps() -> None:
    strict = Rules(at_least=dict.fromkeys(REWARDS, 5.0), percentile=dict.fromkeys(REWARDS, 99.0), keep_fraction=0.01)
    reference = dict.fromkeys(REWARDS, np.array([7.0]))
    radiographs = [
        {"key": f"k{i}", "posture": value, "diagnosis": math.nan} for i, value in enumerate((None, 8.0, 9.0))
    ]
    found = decisions(table(*radiographs), strict, reference)
    assert found == {"k0": [], "k1": [f"outside best 0.01 of {NONE_STATED}"], "k2": []}
    # Unknown stands in the middle of its reward: behind an equal that is good there, before what is bad in both.
    radiographs = [
        {"key": "low", "posture": 0.0, "diagnosis": 0.0},
        {"key": "unknown", "posture": 1.0, "diagnosis": None},
        {"key": "high", "posture": 1.0, "diagnosis": 1.0},
    ]
    assert [
        key for key, reasons in decisions(table(*radiographs), Rules(keep_fraction=0.3)).items() if not reasons
    ] == ["high"]
    assert decisions(table(*radiographs), Rules(keep_fraction=0.6))["low"] != []
    only_one = [{"key": "scored", "posture": 0.0, "diagnosis": 0.0}, {"key": "not", "posture": 0.0, "diagnosis": None}]
    assert decisions(table(*only_one), Rules(keep_fraction=0.5))["not"] == []


def test_tables_without_what_was_not_measured_and_tables_decided_before() -> None:
    bare = table({"key": "a", "posture": 1.0}, rewards=("posture",)).drop_columns(["memorized", "duplicate_of"])
    assert decisions(bare, Rules(at_least={"posture": 0})) == {"a": []}
    again = decide(decide(bare, Rules(at_least={"posture": 9})), Rules())
    assert again.column_names.count("kept") == 1
    assert again["kept"].to_pylist() == [True]
    assert decide(bare.slice(0, 0), Rules(keep_fraction=0.5)).num_rows == 0
    without = table({"key": "a"}, rewards=())
    assert decisions(without, Rules()) == {"a": []}


@pytest.mark.parametrize(
    ("rules", "reference", "message"),
    [
        (Rules(at_least={"postur": 1}), None, "--min postur: .*\n.*diagnosis, posture\n.*did you mean: posture"),
        (Rules(keep_fraction=0.5, rank_on=("x",)), None, "--keep-fraction by x: .*\n"),
        (Rules(percentile={"posture": 5}), None, "no reference to beat\n  name one with --reference"),
        (Rules(percentile={"posture": 5}), {"diagnosis": np.ones(3)}, "no reference to beat"),
        (
            Rules(percentile={"posture": 5}),
            {"posture": np.array([math.nan])},
            "undefined for every image",
        ),
        (Rules(percentile={"posture": 5}), {"posture": np.array([])}, "undefined for every image"),
    ],
)
def test_rules_on_what_is_not_measured_are_refused(rules: Rules, reference: Any, message: str) -> None:
    scores = table({"key": "a", "posture": 1.0, "diagnosis": 1.0})
    with pytest.raises(RecipeError, match=message):
        decide(scores, rules, reference)


def test_rules_are_checked_before_there_are_scores() -> None:
    with pytest.raises(RecipeError, match=r"--ignore-check txt: .*\n.*\n  did you mean: text"):
        Rules(ignored_checks=frozenset({"txt"})).check(REWARDS, checks=("text", "blank"))
    with pytest.raises(RecipeError, match="no reward is measured"):
        Rules(keep_fraction=0.5).check(())
    Rules(ignored_checks=frozenset({"text"}), percentile={"posture": 1}).check(REWARDS, REWARDS, ("text",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"at_least": {"posture": math.nan}},
        {"at_least": {"posture": -math.inf}},
        {"percentile": {"posture": 100.5}},
        {"percentile": {"posture": math.nan}},
        {"keep_fraction": 0.0},
        {"keep_fraction": 1.5},
        {"keep_fraction": math.nan},
    ],
)
def test_numbers_outside_their_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"(--min posture|--beat-reference posture|--keep-fraction).*expected"):
        Rules(**wrong)


def test_an_image_must_fit_its_report_as_nearly_all_real_ones_do_unless_told_otherwise() -> None:
    real = {"consistency": np.linspace(0, 1, 201), "posture": np.linspace(0, 1, 201)}
    rules = with_usual_rules(Rules(percentile={"posture": 5}), real)
    assert rules.percentile == {"posture": 5, "consistency": 0.5}
    scores = table(*({"key": str(value), "consistency": value} for value in (0.0, 0.005, 1.0)), rewards=["consistency"])
    kept = decisions(scores, with_usual_rules(Rules(), real), real)
    assert kept == {"0.0": ["consistency below p0.5 of reference"], "0.005": [], "1.0": []}


@pytest.mark.parametrize("rules", [Rules(at_least={"consistency": -1}), Rules(percentile={"consistency": 0})])
def test_given_rules_replace_the_usual_ones(rules: Rules) -> None:
    assert with_usual_rules(rules, {"consistency": np.linspace(0, 1, 201)}) == rules


def test_few_real_reports_make_no_rule() -> None:
    few = np.concatenate([np.linspace(0, 1, 199), np.full(100, np.nan)])
    assert with_usual_rules(Rules(), {"consistency": few}) == with_usual_rules(Rules(), {}) == Rules()


def test_rules_as_json() -> None:
    rules = Rules(at_least={"b": 1, "a": 2}, keep_fraction=0.5, ignored_checks=frozenset({"z", "y"}))
    assert rules.as_json() == {
        "at_least": {"a": 2, "b": 1},
        "keep_fraction": 0.5,
        "rank_on": [],
        "percentile": {},
        "ignored_checks": ["y", "z"],
    }
    assert thresholds(rules)[-1] == {"rule": "best of each finding", "on": "all rewards", "value": 0.5}


_VALUE = st.one_of(st.none(), st.just(math.nan), st.integers(-4, 4).map(float))
_IMAGE = st.fixed_dictionaries(
    {
        "posture": _VALUE,
        "diagnosis": _VALUE,
        "present": st.lists(st.sampled_from(["Edema", "Fracture", "No Finding"]), unique=True),
        "checks_failed": st.lists(st.sampled_from(["blank", "inverted"]), unique=True, max_size=1),
        "memorized": st.sampled_from([None, None, False, True]),
    }
)
_SETS = st.lists(_IMAGE, min_size=1, max_size=14).map(
    lambda radiographs: [radiograph | {"key": f"{place * 7 % 15:02}"} for place, radiograph in enumerate(radiographs)]
)
_FRACTIONS = st.sampled_from([0.05, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0])


def value_of(radiograph: Radiograph, reward: str) -> float | None:
    value = radiograph[reward]
    return None if value is None or math.isnan(value) else float(value)


def groups_of(radiograph: Radiograph) -> set[str]:
    return set(radiograph["present"]) or {NONE_STATED}


@settings(max_examples=30, deadline=None)
@given(_SETS, _FRACTIONS, st.randoms(use_true_random=False))
def test_order_and_units_change_nothing(radiographs: list[dict[str, Any]], fraction: float, random: Any) -> None:
    rules = Rules(keep_fraction=fraction)
    found = decisions(table(*radiographs), rules)
    shuffled = list(radiographs)
    random.shuffle(shuffled)
    stretched = [
        radiograph | {"posture": value if (value := value_of(radiograph, "posture")) is None else value * 8 - 3}
        for radiograph in shuffled
    ]
    assert decisions(table(*stretched), rules) == found


@settings(max_examples=30, deadline=None)
@given(_SETS, _FRACTIONS)
def test_each_finding_keeps_its_fraction_and_the_better_stay(
    radiographs: list[dict[str, Any]], fraction: float
) -> None:
    rules = Rules(at_least={"posture": -2.0}, keep_fraction=fraction)
    found = decisions(table(*radiographs), rules)
    passed = []
    for radiograph in radiographs:
        posture = value_of(radiograph, "posture")
        alone = [f"check: {name}" for name in radiograph["checks_failed"]]
        alone += ["memorized"] * (radiograph["memorized"] is True) + ["posture<-2.0"] * (
            posture is not None and posture < -2
        )
        if alone:
            assert found[radiograph["key"]] == alone
        else:
            passed.append(radiograph)
    ranked = [radiograph for radiograph in passed if any(value_of(radiograph, name) is not None for name in REWARDS)]
    assert all(found[radiograph["key"]] == [] for radiograph in passed if radiograph not in ranked)
    for group in {name for radiograph in ranked for name in groups_of(radiograph)}:
        members = [radiograph for radiograph in ranked if group in groups_of(radiograph)]
        kept = [radiograph for radiograph in members if not found[radiograph["key"]]]
        assert len(kept) >= math.ceil(Fraction(repr(fraction)) * len(members))
        alone_here = [radiograph for radiograph in members if groups_of(radiograph) == {group}]
        if len(alone_here) == len(members):
            assert len(kept) == math.ceil(Fraction(repr(fraction)) * len(members))
        for better in alone_here:
            for worse in alone_here:
                pairs = [(value_of(better, name), value_of(worse, name)) for name in REWARDS]
                if all(a is not None and b is not None and a > b for a, b in pairs) and not found[worse["key"]]:
                    assert not found[better["key"]]


@settings(max_examples=20, deadline=None)
@given(_SETS)
def test_a_larger_fraction_loses_no_image(radiographs: list[dict[str, Any]]) -> None:
    before: set[str] = set()
    for fraction in (0.05, 0.25, 0.5, 0.9, 1.0):
        found = decisions(table(*radiographs), Rules(keep_fraction=fraction))
        kept = {key for key, reasons in found.items() if not reasons}
        assert before <= kept
        before = kept
    assert before == {key for key, reasons in decisions(table(*radiographs), Rules()).items() if not reasons}


def test_decided_columns_have_their_types() -> None:
    decided = decide(table({"key": "a"}), Rules())
    assert decided.schema.field("kept").type == pa.bool_()
    assert decided.schema.field("reasons").type == pa.list_(pa.string())
