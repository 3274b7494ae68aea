"""The tables under recipes/ are usable as they are."""

from pathlib import Path

import pytest

from cxrsynth.reports.findings.reader import FindingsReader
from cxrsynth.reports.labels import Status
from cxrsynth.reports.table.rows import Report
from cxrsynth.reports.table.table import open_table

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.mark.slow
def test_the_example_reports_are_usable_and_varied() -> None:
    rows = list(open_table(RECIPES / "reports.csv").rows())
    assert len(rows) == 24
    reports = [row for row in rows if isinstance(row, Report)]
    assert len(reports) == 24
    labels = [FindingsReader().read(report.full_text) for report in reports]
    present = {name for one in labels for name, label in one.items() if label.status is Status.PRESENT}
    wanted = {"No Finding", "Cardiomegaly", "Pleural Effusion", "Pneumothorax", "Consolidation", "Support Devices"}
    assert wanted <= present
    assert any(label.status is Status.UNCERTAIN for one in labels for label in one.values())
    assert {report.view for report in reports} >= {"PA", "AP", None}
