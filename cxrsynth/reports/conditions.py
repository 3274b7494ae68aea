"""Conditions of a report for adaptive condition embeddings: view, age group, findings stated and denied."""

from cxrsynth.reports.labels import OBSERVATIONS, Status
from cxrsynth.reports.prompt import age_group
from cxrsynth.reports.table.rows import Report

_ANY = "any report"
_VIEWS = ("view PA", "view AP", "view LATERAL")
_AGES = ("age group adult", "age group child")
_TOLD = {Status.PRESENT: "present", Status.ABSENT: "absent"}
CONDITIONS = (
    _ANY,
    *_VIEWS,
    *_AGES,
    *(f"{observation} {word}" for observation in OBSERVATIONS for word in _TOLD.values()),
)


def conditions_of(report: Report) -> tuple[str, ...]:
    """Which blocks a report's condition gets, of `CONDITIONS`: never its text, only its facts and labels."""
    group = report.stated_age_group or age_group(report.age_years)
    named = [_ANY, f"view {report.view}", f"age group {group}"]
    named += [
        f"{observation} {_TOLD[label.status]}" for observation, label in report.labels.items() if label.status in _TOLD
    ]
    known = set(named)
    return tuple(condition for condition in CONDITIONS if condition in known)
