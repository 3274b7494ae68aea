"""The table of scores: its file to the byte, what is left out of it, and its summaries written out."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxrsynth.auditing.decide import Rules, decide
from cxrsynth.auditing.score_table import (
    NONE_STATED,
    check_names,
    finding_groups,
    read_scores,
    reward_names,
    reward_values,
    scores_schema,
    scores_table,
    summaries,
    write_keep_list,
    write_scores,
)
from cxrsynth.errors import ModelError, ShardError
from cxrsynth.runtime.files import stable_json
from tests.auditing.score_rows import CHECKS, part

IMAGES = (
    {"key": "a", "posture": -1.0, "dia": 4.0, "present": ["Edema"], "absent": ["Fracture"], "view": "PA"},
    {"key": "b", "posture": -2.0, "dia": math.nan, "present": ["Edema", "Fracture"], "check_blank": math.nan},
    {"key": "c", "posture": -3.0, "dia": None, "checks_failed": ["blank", "text"], "source": "other.tar"},
    {"key": "d", "posture": -6.0, "dia": 2.0, "present": ["Fracture"], "sex": "F"},
)
REWARDS = ("posture", "dia")


def scores(**found: Any) -> Any:
    return scores_table([part(IMAGES, rewards=REWARDS)], found)


def decided() -> Any:
    return decide(scores(memorized=[None, True, False, None]), Rules(at_least={"posture": -2.5}))


def test_the_columns_are_those_promised() -> None:
    assert scores_schema(REWARDS, CHECKS).names == [
        *("key", "source", "place", "view", "sex", "age_group", "present", "absent"),
        *("reward_posture", "reward_dia", "check_blank", "check_inverted", "check_text", "checks_failed"),
        *(
            "duplicate_of",
            "duplicate_similarity",
            "nearest_real",
            "nearest_real_similarity",
            "memorized",
            "nearest_patient",
            "nearest_patient_score",
            "source_score",
            "kept",
            "reasons",
        ),
    ]
    table = scores()
    assert table.schema.equals(scores_schema(REWARDS, CHECKS, decided=False))
    assert reward_names(table) == list(REWARDS)
    assert check_names(table) == list(CHECKS)
    assert table["memorized"].null_count == table["duplicate_of"].null_count == 4


def test_nan_becomes_null_and_infinity_is_refused() -> None:
    table = scores()
    assert table["reward_dia"].to_pylist() == [4.0, None, None, 2.0]
    assert table["check_blank"].to_pylist() == [0.0, None, 0.0, 0.0]
    np.testing.assert_array_equal(reward_values(table, "dia"), [4.0, math.nan, math.nan, 2.0])
    for wrong in (math.inf, -math.inf):
        with pytest.raises(ModelError, match="reward posture: infinite for image b"):
            scores_table([part([{"key": "a"}, {"key": "b", "posture": wrong}], rewards=REWARDS)])


def test_names_and_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="expected each name once"):
        scores_schema(("posture", "kept"), ())
    with pytest.raises(ValueError, match="expected each name once"):
        scores_schema((), ("blank", "blank"))
    with pytest.raises(ValueError, match="expected some of"):
        scores(patient=["x"] * 4)
    with pytest.raises(ValueError, match="with 4 values each"):
        scores(memorized=[True])


def test_the_file_reads_back_and_repeats_to_the_byte_whatever_the_chunks(tmp_path: Path) -> None:
    whole = decided()
    write_scores(tmp_path / "scores.parquet", whole)
    assert read_scores(tmp_path / "scores.parquet").equals(whole.cast(scores_schema(REWARDS, CHECKS)))
    # Chunks show in the bytes of a table longer than a row group.
    many = whole.take(np.arange(70_000) % 4).set_column(0, "key", pa.array([f"{n:020x}" for n in range(70_000)]))
    in_pieces = pa.concat_tables([many.slice(first, 777) for first in range(0, len(many), 777)])
    assert in_pieces["key"].num_chunks == 91
    write_scores(tmp_path / "many.parquet", many.combine_chunks())
    write_scores(tmp_path / "again.parquet", in_pieces)
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "many.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.parquet", "many.parquet", "scores.parquet"]


def test_an_undecided_and_an_empty_table_read_back(tmp_path: Path) -> None:
    for table in (scores(), scores().slice(0, 0)):
        write_scores(tmp_path / "scores.parquet", table)
        assert read_scores(tmp_path / "scores.parquet").equals(table)


def test_columns_that_do_not_belong_are_not_written(tmp_path: Path) -> None:
    table = decided().append_column("patient", pa.array(["Quibbleton"] * 4))
    write_scores(tmp_path / "scores.parquet", table)
    assert "patient" not in pq.read_schema(tmp_path / "scores.parquet").names
    assert not {"sha256", "patient", "features", "preview"} & set(scores().column_names)


def test_other_files_are_refused(tmp_path: Path) -> None:
    write_scores(tmp_path / "whole", decided())
    whole = (tmp_path / "whole").read_bytes()
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "foreign")
    (tmp_path / "cut").write_bytes(whole[:-30])
    (tmp_path / "damaged").write_bytes(whole[:40] + bytes(200) + whole[240:])
    (tmp_path / "text").write_text("key,kept\n", encoding="utf-8")
    for name in ("foreign", "cut", "damaged", "text"):
        with pytest.raises(ShardError, match="not scores that an audit wrote"):
            read_scores(tmp_path / name)
    with pytest.raises(ShardError, match="cannot be read"):
        read_scores(tmp_path / "missing")


def test_summaries_written_out() -> None:
    found = summaries(decided())
    assert (found["kept"], found["rejected"]) == (1, 3)
    assert found["reasons"] == {"check: blank": 1, "check: text": 1, "memorized": 1, "posture<-2.5": 2}
    assert found["rewards"]["posture"] == pytest.approx(
        {
            "mean": -3.0,
            "std": math.sqrt((4 + 1 + 0 + 9) / 4),
            "p5": -5.55,
            "p25": -3.75,
            "p50": -2.5,
            "p75": -1.75,
            "p95": -1.15,
            "unscored": 0,
        }
    )
    assert (found["rewards"]["dia"]["mean"], found["rewards"]["dia"]["unscored"]) == (3.0, 2)
    assert (found["rewards_kept"]["posture"]["mean"], found["rewards_kept"]["posture"]["p5"]) == (-1.0, -1.0)
    assert (found["rewards_kept"]["dia"]["mean"], found["rewards_kept"]["dia"]["unscored"]) == (4.0, 0)
    assert found["findings"] == {
        "Edema": {"images": 2, "kept": 1, "posture": -1.5, "dia": 4.0},
        "Fracture": {"images": 2, "kept": 0, "posture": -4.0, "dia": 2.0},
        NONE_STATED: {"images": 1, "kept": 0, "posture": -3.0, "dia": None},
    }
    stable_json(found)


def test_summaries_where_nothing_is_defined_hold_nulls_not_nan() -> None:
    nobody = decide(scores_table([part([{"key": "a"}], rewards=REWARDS)]), Rules())
    found = summaries(nobody)["rewards"]["posture"]
    assert found == {**dict.fromkeys(("mean", "std", "p5", "p25", "p50", "p75", "p95")), "unscored": 1}
    empty = summaries(nobody.slice(0, 0))
    assert (empty["kept"], empty["rejected"], empty["findings"]) == (0, 0, {})
    stable_json(empty)


def test_a_finding_stated_twice_counts_once() -> None:
    radiographs = [{"key": "a", "present": ["Edema", "Edema"]}, {"key": "b"}]
    groups = finding_groups(scores_table([part(radiographs, rewards=())]))
    assert {name: rows.tolist() for name, rows in groups.items()} == {"Edema": [0], NONE_STATED: [1]}


def test_keep_list(tmp_path: Path) -> None:
    write_keep_list(tmp_path / "keep.csv", decided())
    with (tmp_path / "keep.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["key", "source", "kept", "reasons"],
            ["a", "cxr-000000.tar", "true", ""],
            ["b", "cxr-000000.tar", "false", "memorized"],
            ["c", "other.tar", "false", "check: blank; check: text; posture<-2.5"],
            ["d", "cxr-000000.tar", "false", "posture<-2.5"],
        ]
    odd = decide(scores_table([part([{"key": 'o"d, key\n', "checks_failed": ["x"]}], rewards=())]), Rules())
    write_keep_list(tmp_path / "keep.csv", odd)
    with (tmp_path / "keep.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1][0] == 'o"d, key\n'


@pytest.mark.parametrize(("key", "cell"), [("=1+2", "'=1+2"), ("@x", "'@x"), ("-a/b.png", "'-a/b.png"), ("a=b", "a=b")])
def test_no_name_is_a_formula(tmp_path: Path, key: str, cell: str) -> None:
    write_keep_list(tmp_path / "keep.csv", decide(scores_table([part([{"key": key}], rewards=())]), Rules()))
    with (tmp_path / "keep.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1][0] == cell
