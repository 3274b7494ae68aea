"""Cells that a spreadsheet would run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cxrsynth.auditing.real_names import RealNames
from cxrsynth.generation.lists import write_rejected
from cxrsynth.runtime.cells import as_text_cell


@pytest.mark.parametrize("text", ["=1+2", "+1", "-a.png", "@x", "\tx", "\rx"])
def test_what_looks_like_a_formula_is_behind_an_apostrophe(text: str) -> None:
    assert as_text_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "a=b", "1-2", "'=1"])
def test_other_texts_stay(text: str) -> None:
    assert as_text_cell(text) == text


def test_names_of_real_images_are_no_formulas(tmp_path: Path) -> None:
    names = RealNames(b"key")
    hidden = {names.hide(name): name for name in ("=cmd|x.png", "a.png")}
    names.write(tmp_path / "names.csv")
    rows = dict(line.split(",") for line in (tmp_path / "names.csv").read_text().splitlines()[1:])
    assert rows == {key: f"'{name}" if name.startswith("=") else name for key, name in hidden.items()}


def test_reasons_of_rejected_rows_are_no_formulas(tmp_path: Path) -> None:
    settings = SimpleNamespace(rejected=tmp_path / "r.csv", out=tmp_path / "out", part=None)
    run: Any = SimpleNamespace(settings=settings)
    row = SimpleNamespace(line=2, reason="=a: empty")
    rows: Any = SimpleNamespace(rejected=1, rejected_rows=lambda: [row])
    write_rejected(run, rows)
    assert (tmp_path / "r.csv").read_text().splitlines() == ["line,reason", "2,'=a: empty"]
