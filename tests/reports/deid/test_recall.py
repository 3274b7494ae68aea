"""The scores of hand-written cases, and the recall that docs and data set cards state."""

import json
import re
from pathlib import Path

import pytest

from cxrsynth.reports.deid.sanitize import sanitize
from cxrsynth.settings import Deid
from cxrsynth.shards.card import _RECALL
from tests.benchmarks.deid_recall import print_cases, score_cases

PAGE = Path(__file__).resolve().parents[3] / "docs" / "privacy.md"


def write(path: Path, *lines: object) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def cases(folder: Path) -> Path:
    write(
        folder / "identifiers.jsonl",
        {"kind": "date", "text": "Line placed 3/14/2019.", "secrets": ["3/14", "2019"]},
        {"kind": "word", "text": "The aorta is wide.", "secrets": ["aorta"]},
    )
    write(
        folder / "harmless.jsonl",
        {"text": "Clear lungs."},
        {"text": "Seen by Dr. Nkosi."},
        {"text": "Stable edema."},
    )
    return folder


def test_scores_count_what_survives_and_what_changes(tmp_path: Path) -> None:
    score = score_cases(cases(tmp_path), lambda text: sanitize(text).text)

    assert score.secrets == {"date": 2, "word": 1}
    assert +score.survived == {"word": 1}
    assert (score.neighbors_lost, score.sentences) == (0, 2)
    assert (score.harmless, score.unchanged) == (2, 1)  # a word that compares is not judged


def test_a_tool_that_removes_all_loses_the_neighbors(tmp_path: Path) -> None:
    score = score_cases(cases(tmp_path), lambda text: "")
    assert score.survived.total() == 0
    assert score.neighbors_lost == 4
    assert score.unchanged == 0


def test_both_strengths_and_what_survived_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_cases(cases(tmp_path))
    printed = capsys.readouterr().out
    assert re.search(r"(?m)^\| standard \| 66\.67 ", printed)
    assert re.search(r"(?m)^\| strict \| 66\.67 ", printed)
    assert printed.count(", word: 1 of 1 survived") == 2


def test_a_card_states_the_recall_of_the_page() -> None:
    """Names and places of the first table, the one that is measured on 500 reports."""
    page = PAGE.read_text(encoding="utf-8")
    for strength in Deid:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{strength.value}` |"))
        names, places = (cell.split()[0] for cell in row.split("|")[2:4])
        assert _RECALL[strength] == (names, places)
