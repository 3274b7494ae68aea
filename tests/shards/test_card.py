"""The dataset card says what its data set is, and nothing that is not so."""

from pathlib import Path
from typing import Any

import pytest

from cxrsynth.settings import Deid
from cxrsynth.shards.card import dataset_card

DOCS = Path(__file__).resolve().parents[2] / "docs"


def manifest(*, text: str = "none", shards: int = 2, unsupported: dict[str, int] | None = None) -> dict[str, Any]:
    return {
        "plan": {
            "seed": 7,
            "images_per_report": 2,
            "model": {"name": "tiny", "digest": "ab" * 32},
            "sampling": {"steps": 20, "guidance": 4.0, "sampler": "ddim"},
            "shards": {"format": "webdataset" if shards else "dicom", "include_text": text},
            "deid": "strict",
            "versions": {"cxrsynth": "1.2.3"},
        },
        "counts": {"samples": 10, "reports": 5, "rejected": 1},
        "hardware": {"x86_64 CPU, AVX2": shards},
        "shards": [{"name": f"cxr-00000{index}.tar"} for index in range(shards)],
        "sanitized": {"date": 3, "name": 1},
        "prompts_truncated": 0,
        "reports_not_in_english": 2,
        "unread_cells": {"view": 2},
        "unsupported_findings": unsupported or {},
    }


def test_it_says_what_the_data_set_is() -> None:
    card = dataset_card(manifest(unsupported={"Edema": 2})).decode()
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert headings == [
        "# Synthetic chest X-rays",
        *("## Intended use", "## How it was made", "## Contents", "## Labels", "## What it cannot show", "## Privacy"),
    ]
    for part in (
        *("Every image in this data set is synthetic", "Not for diagnosis", "10 images in 2 shards", "Edema: 2 images"),
        *(
            "20 ddim steps, guidance scale 4, seed 7, 2 images per report",
            "5; 1 row could not be used",
            "cxrsynth 1.2.3",
        ),
        "wds.WebDataset(['cxr-000000.tar', 'cxr-000001.tar'], shardshuffle=False)",
    ):
        assert part in card
    assert max(map(len, card.splitlines())) <= 120


def test_the_snippet_reads_all_shards() -> None:
    card = dataset_card(manifest(shards=7)).decode()
    assert 'wds.WebDataset(sorted(glob("*.tar")), shardshuffle=False)' in card
    assert "from glob import glob" in card
    assert "glob" not in dataset_card(manifest(shards=3)).decode()


@pytest.mark.parametrize("only", [True, False])
def test_a_filtered_set_is_not_said_to_be_as_its_reports(only: bool) -> None:
    made = manifest()
    assert "Findings occur as often as in the reports" in dataset_card(made).decode()
    made["plan"]["acceptance"] = {"ignored_checks": [], "at_least": {}, "attempts": 3, "only_accepted": only}
    counts = {"images": 20, "accepted": 10, "accepted_at_first": 8, "draws": 40, "accepted_per_draw": 0.25}
    made["acceptance"] = {"total": counts, "by_finding": {"Edema": counts}}
    card = " ".join(dataset_card(made).decode().split())
    assert ("Findings occur as often as in the reports" in card) is not only
    assert ("Findings do not occur as often as in the reports" in card) is only
    assert "are not assessed here beyond what Selection says" in card


@pytest.mark.parametrize("strength", Deid)
def test_the_recall_it_quotes_is_that_of_the_documentation(strength: Deid) -> None:
    page = (DOCS / "privacy.md").read_text()
    table = page[page.index("| | names | places |") :]  # the first of two, on all texts
    row = next(row for row in table.splitlines() if row.startswith(f"| `{strength.value}` |"))
    names, places = (cell.split()[0] for cell in row.split("|")[2:4])
    made = manifest(text="sanitized")
    made["plan"]["deid"] = strength.value
    card = " ".join(dataset_card(made).decode().split())
    assert f"this strength removed {names}%, of places {places}%" in card


@pytest.mark.parametrize("text", ["none", "sanitized"])
def test_text_is_reviewed_only_where_there_is_text(text: str) -> None:
    card = dataset_card(manifest(text=text)).decode()
    assert ("4 passages removed" in card) == (text == "sanitized")
    assert "| De-identification | strict |" in card
    assert ("strength `strict`" in card) == (text == "sanitized")
    assert (f"| Report text | {'not included' if text == 'none' else text} |") in card


@pytest.mark.parametrize("shards", [2, 0])
def test_the_list_of_what_never_passed_is_a_content_where_there_is_one(shards: int) -> None:
    made = manifest(shards=shards)
    contents = dataset_card(made).decode().partition("## Contents")[2].partition("##")[0]
    assert "not_accepted.csv" not in contents
    made["plan"]["acceptance"] = {"ignored_checks": [], "at_least": {}, "only_accepted": True, "attempts": 2}
    total = {"images": 3, "accepted": 2, "accepted_at_first": 1}
    made["acceptance"] = {"total": total, "by_finding": {}}
    contents = dataset_card(made).decode().partition("## Contents")[2].partition("##")[0]
    assert "- `not_accepted.csv`: the images that never passed" in contents


def test_a_file_set_has_no_shards_to_read() -> None:
    card = dataset_card(manifest(shards=0)).decode()
    assert "10 images in one DICOM file-set" in card
    assert "fileset/DICOMDIR" in card
    assert "webdataset" not in card
    assert "Unsupported findings in this data set" not in card


def test_reports_that_were_not_read_are_counted_in_the_card() -> None:
    assert "no findings were read: 2 reports" in dataset_card(manifest()).decode()
