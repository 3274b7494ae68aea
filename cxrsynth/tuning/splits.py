"""Training, held-out and test reports: no report id, no patient and no report text stands in two of them."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from pathlib import Path

from cxrsynth import console
from cxrsynth.console import counted
from cxrsynth.errors import RecipeError, ReportsError
from cxrsynth.recipe.schema import Recipe
from cxrsynth.reports.table.columns import ColumnNames
from cxrsynth.reports.table.rows import Rejected, Report
from cxrsynth.reports.table.table import open_table
from cxrsynth.reports.template import PromptFormat
from cxrsynth.runtime.processes import read_launch
from cxrsynth.settings import PromptStyle

HELD_OUT, TEST = "held_out", "test"
_SHARE = 4  # by default, at most a quarter of the reports that are not held out is left for the test
_LEAST = 2  # fewer images have neither diversity nor intervals


@dataclass(frozen=True)
class ReportSets:
    """The reports of a run.

    `separated` says by what the sets are kept apart; `left_out` counts reports of the table that are in none of them,
    because their text or their patient stands in another one.
    """

    training: Sequence[Report] = field(repr=False)
    held_out: Sequence[Report] = field(repr=False)
    test: Sequence[Report] = field(repr=False)
    separated: str
    left_out: int = 0

    @property
    def summary(self) -> str:
        """Counts, for console and model card; nothing of a report."""
        counts = f"{len(self.training)} to train, {len(self.held_out)} held out, {len(self.test) or 'none'} to test"
        left_out = f"; {self.left_out} left out, because their text or patient stands in another set"
        return f"{counts}; separated {self.separated}{left_out if self.left_out else ''}"


@dataclass(frozen=True)
class _Read:
    """The usable reports of one table, the SHA-256 of its file, and whether it has a column of patients."""

    path: Path
    digest: str
    reports: list[Report] = field(repr=False)
    patients: bool


def text_key(report: Report) -> bytes | None:
    """The same for reports whose texts differ in case, white space and punctuation alone; None without text."""
    folded = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", report.full_text).casefold()).strip()
    return hashlib.blake2b(folded.encode(), digest_size=16).digest() if folded else None


def split_reports(recipe: Recipe, prompt_format: PromptFormat = PromptStyle.REPORT) -> ReportSets:
    """The three sets of a run. What is drawn depends on ids and seed, not on row order.

    Args:
        recipe: of the run.
        prompt_format: decides which columns are read beside those of every report.

    Raises:
        ReportsError: if a table cannot be used.
        RecipeError: if tables overlap, or there are too few reports.
    """
    section = recipe.reports
    tables = {"table": _read(section.table, section.columns, section.limit, prompt_format)}
    for key in (HELD_OUT, TEST):
        given = getattr(section, key)
        if isinstance(given, Path):
            tables[key] = _read(given, section.columns, None, prompt_format)
    for first, second in combinations(tables, 2):
        _refuse_overlap(second, tables[second], tables[first])
    reports = tables["table"].reports
    sizes = _sizes(recipe, tables)
    if sum(sizes.values()) >= len(reports):
        asked = " and ".join(f"reports.{key} {size}" for key, size in sizes.items() if size)
        raise RecipeError(
            f"{asked}: {section.table} has {len(reports)} usable rows\n"
            "  expected: fewer held out than there are, so that some are left to train on"
        )
    drawn = draw_sets(reports, sizes, seed=recipe.seed)
    if section.test is None and sizes[TEST] > 0 and len(drawn[TEST]) < _LEAST:
        # Nobody asked for a test: patients with many reports are no reason to refuse the recipe.
        sizes[TEST] = 0
        drawn = draw_sets(reports, sizes, seed=recipe.seed)
    for key, size in sizes.items():
        if size and not drawn[key]:
            raise RecipeError(
                f"reports.{key} {size}: every patient or text of {section.table} has more reports than that\n"
                "  expected: a higher number, or a table of its own"
            )
        if len(drawn[key]) < size and read_launch().rank == 0:
            console.warn(
                f"reports.{key} {size}: {counted(len(drawn[key]), 'report')}, since patients and repeated texts"
                " stay together"
            )
    training = drawn.pop("training")
    if not training:
        raise RecipeError(
            f"{section.table}: no report is left to train on: all share a text or a patient with held-out or test"
            " reports\n  expected: fewer of those, or tables without such repetitions"
        )
    return ReportSets(
        training,
        held_out=tables[HELD_OUT].reports if HELD_OUT in tables else drawn[HELD_OUT],
        test=tables[TEST].reports if TEST in tables else drawn[TEST],
        separated=_separated(tables.values()),
        left_out=len(reports) - len(training) - sum(map(len, drawn.values())),
    )


def _sizes(recipe: Recipe, tables: Mapping[str, _Read]) -> dict[str, int]:
    """How many reports of the table each set gets, without those that have a table of their own."""
    section, count = recipe.reports, len(tables["table"].reports)
    sizes = {}
    if isinstance(section.held_out, int):
        sizes[HELD_OUT] = section.held_out
    if isinstance(section.test, int):
        sizes[TEST] = section.test
    elif section.test is None:
        held_out = sizes.get(HELD_OUT, 0)
        evaluated = held_out or len(tables[HELD_OUT].reports)
        wanted = min(evaluated, recipe.evaluation.reports or evaluated, (count - held_out) // _SHARE)
        sizes[TEST] = wanted if wanted >= _LEAST else 0
    return sizes


def draw_sets(reports: Sequence[Report], sizes: Mapping[str, int], *, seed: int) -> dict[str, list[Report]]:
    """Draw sets of at most the given sizes; the others are `training`. Each is in the order of `reports`.

    Patients stay whole, and patients with a text in common stay together. Where repeated texts join so many patients
    that they fit in no set, patients are drawn one by one: a text that has more copies than the set has room stays in
    training, and the drawn patient's reports of it are left out; of any other text, it is the copies in training.
    """
    texts = [text_key(report) for report in reports]
    units: dict[str, list[int]] = {}  # of one patient, or one report without a known patient
    for place, report in enumerate(reports):
        key = f"patient\0{report.patient_id}" if report.patient_id else report.report_id
        units.setdefault(key, []).append(place)

    def rank(key: str) -> str:
        return hashlib.sha256(f"{seed}\0{key}".encode()).hexdigest()

    groups = sorted(_joined(units, texts), key=lambda group: rank(group[0]))
    drawn: dict[str, set[int]] = {name: set() for name in sizes}
    taken: set[str] = set()
    for name, size in sizes.items():
        for group in groups:
            places = [place for key in group for place in units[key]]
            if taken.isdisjoint(group) and len(drawn[name]) + len(places) <= size:
                drawn[name].update(places)
                taken.update(group)
    copies = Counter(texts)
    for name, size in sizes.items():
        others = {texts[place] for other in drawn if other != name for place in drawn[other]} - {None}
        large = [group for group in groups if sum(len(units[key]) for key in group) > size]
        rest = [key for group in large for key in group if key not in taken]
        for key in sorted(rest, key=rank):
            kept = [
                place
                for place in units[key]
                if texts[place] is None or (copies[texts[place]] <= size and texts[place] not in others)
            ]
            if kept and len(drawn[name]) + len(kept) <= size:
                drawn[name].update(kept)
                taken.add(key)
    elsewhere = {texts[place] for places in drawn.values() for place in places} - {None}
    left = {place for key, places in units.items() if key not in taken for place in places}
    training = {place for place in left if texts[place] not in elsewhere}
    return {
        name: [report for place, report in enumerate(reports) if place in places]
        for name, places in (drawn | {"training": training}).items()
    }


def _joined(units: Mapping[str, list[int]], texts: Sequence[bytes | None]) -> list[list[str]]:
    """Keys of `units` in groups that have texts in common, directly or through others; sorted within a group."""
    parents = {key: key for key in units}

    def root(key: str) -> str:
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    first: dict[bytes, str] = {}
    for key, places in units.items():
        for text in (texts[place] for place in places):
            if text is not None:
                parents[root(key)] = root(first.setdefault(text, key))
    groups: dict[str, list[str]] = {}
    for key in sorted(units):
        groups.setdefault(root(key), []).append(key)
    return list(groups.values())


def _refuse_overlap(key: str, given: _Read, other: _Read) -> None:
    """Refuse a table that shares reports, patients or texts with another set."""
    if given.digest == other.digest:
        raise RecipeError(
            f"reports.{key}: {given.path.name} is {other.path.name} again\n"
            "  held-out and test reports must never be trained on: give other ones, or a number of them"
        )
    # Rows without an id column are named by their line, in both tables alike.
    counts = {
        "report ids": _shared(*([one.report_id for one in table.reports if one.has_id] for table in (given, other))),
        "patients": _shared(*([one.patient_id or None for one in table.reports] for table in (given, other))),
        "report texts": _shared(*(map(text_key, table.reports) for table in (given, other))),
    }
    found = [f"{count} {what}" for what, count in counts.items() if count]
    if found:
        raise RecipeError(
            f"reports.{key}: {', '.join(found)} are also in {other.path.name}\n"
            "  held-out and test reports must never be trained on: leave them out of one of the tables"
        )


def _shared(first: Iterable[object], second: Iterable[object]) -> int:
    return len(set(first) & set(second) - {None})


def _separated(tables: Iterable[_Read]) -> str:
    """By what the sets are kept apart."""
    tables = list(tables)
    if not all(table.patients for table in tables):
        some = any(table.patients for table in tables)
        return f"by report, since {'a table has' if some else 'there is'} no column of patient ids"
    unknown = sum(not report.patient_id for table in tables for report in table.reports)
    return "by patient" + (f", {unknown} reports without a patient id by report" if unknown else "")


def _read(path: Path, columns: dict[str, str], limit: int | None, prompt_format: PromptFormat) -> _Read:
    table = open_table(path, columns=ColumnNames(**columns)).for_prompts(prompt_format)
    rejected: list[Rejected] = []

    def usable() -> Iterator[Report]:
        for row in table.rows():
            if isinstance(row, Rejected):
                rejected.append(row)
            else:
                yield row

    reports = list(islice(usable(), limit))
    if not reports:
        raise ReportsError(f"{path}: no usable row\n  expected: at least one row with report text or labels")
    if rejected and read_launch().rank == 0:
        console.warn(
            f"{path}: {len(rejected)} of {len(rejected) + len(reports)} rows cannot be used and are left out"
            f" (the first: line {rejected[0].line}: {rejected[0].reason})"
        )
    return _Read(path, table.digest(), reports, "patient_id" in table.roles)
