"""How the page writes numbers, and the tables it makes from a summary."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from markupsafe import Markup, escape

from cxrsynth.metrics.membership.attacks import DISCREPANCY, LOSS, PROXIMAL, ROUND_TRIP
from cxrsynth.metrics.membership.inference import COMBINED, FALSE_POSITIVES, WITHOUT_MODEL

_OPTION = re.compile(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*")
UNMEASURED = Markup('<span class="unmeasured">not measured</span>')


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure of fidelity: its name in the summary, its title, and what it means to a reader."""

    name: str
    title: str
    meaning: str


MEASURES = (
    Measure(
        "frechet",
        "Fréchet distance",
        "distance between the two sets of features, each modeled as one Gaussian; lower is better, and the fewer the "
        "images, the higher even for equal sets; the interval is that of its mean at this number of images",
    ),
    Measure(
        "frechet_infinity",
        "Fréchet distance, extrapolated",
        "the same distance for infinitely many images, so that it can be compared across numbers of images; equal sets "
        "scatter around 0; the interval is that of the distance between the two populations",
    ),
    Measure(
        "kid",
        "KID",
        "a distance by a kernel, without assuming a Gaussian; lower is better, equal sets scatter around 0; the "
        "interval takes all images for independent",
    ),
    Measure(
        "mmd",
        "MMD by patient",
        "KID without pairs of images of one patient (or report), which are more alike than others and raise it; the "
        "interval is that of the distance between the two populations",
    ),
    Measure(
        "precision",
        "Precision",
        "share of audited images that fall among the real ones; higher is better; its interval, and those of recall, "
        "density and coverage, are those of the mean at this number of images",
    ),
    Measure(
        "recall",
        "Recall",
        "share of real images that fall among the audited ones; low if some kinds of images are missing",
    ),
    Measure("density", "Density", "how densely real images surround an audited one; near 1 or above for equal sets"),
    Measure(
        "coverage", "Coverage", "share of real images with an audited image in their neighborhood; higher is better"
    ),
    Measure(
        "ms_ssim_within",
        "MS-SSIM, audited",
        "mean similarity of two audited images; 1 is identical, high means little diversity",
    ),
    Measure(
        "ms_ssim_real", "MS-SSIM, real", "mean similarity of two real images: compare the previous measure with it"
    ),
    Measure("ms_ssim_to_real", "MS-SSIM, across", "mean similarity of an audited image and a real one"),
)
SUBGROUPS = {"view": "View", "sex": "Sex", "age_group": "Age group"}
_LONGEST_TEXT = 600
_QUANTILES = {"min": 0.0, "median": 0.5, "max": 1.0}


def figure(value: float | None) -> str | Markup:
    """A number with three significant digits; "not measured" where there is none."""
    if value is None or math.isnan(value):
        return UNMEASURED
    return f"{value:,.{_decimals(value)}f}"


def count(value: int | None) -> str | Markup:
    """A whole number."""
    return UNMEASURED if value is None else f"{value:,}"


def interval(entry: Mapping[str, float | None] | None) -> str | Markup:
    """A value over its 95% interval, with the same number of decimals."""
    value, low, high = ((entry or {}).get(name) for name in ("value", "low", "high"))
    if value is None or math.isnan(value):
        return UNMEASURED
    decimals = _decimals(max(abs(each) for each in (value, low, high) if each is not None))
    if low is None or high is None:
        return f"{value:,.{decimals}f}"
    span = Markup('<span class="interval">{} to {}</span>')
    return Markup("{} {}").format(
        f"{value:,.{decimals}f}", span.format(f"{low:,.{decimals}f}", f"{high:,.{decimals}f}")
    )


def share(part: float, whole: float) -> str | Markup:
    """A share in percent; "not measured" if there is nothing to count."""
    return f"{100 * part / whole:.1f}%" if whole else UNMEASURED


def _decimals(value: float) -> int:
    if not value or not math.isfinite(value):
        return 0
    return min(6, max(0, 2 - math.floor(math.log10(abs(value)))))


_ATTACKS = {
    LOSS: "the training loss at five noise levels",
    PROXIMAL: "whether noise that the network sees in the image comes back (PIA)",
    ROUND_TRIP: "whether steps into the noise and back return (SecMI)",
    DISCREPANCY: "how much the report lowers the loss (CLiD)",
    COMBINED: "all of these, weighed as suits other patients best",
    WITHOUT_MODEL: "the images alone, by the features of this audit",
}


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack on the model, what it looks at, its AUC, and the members found at each of `FALSE_POSITIVES`."""

    name: str
    meaning: str
    auc: Mapping[str, float]
    found: Sequence[Mapping[str, float] | None]


def attacks(summary: Mapping[str, Any]) -> list[list[Attack]]:
    """The attacks of a summary; what knows nothing of the model stands apart."""
    measured = (summary.get("membership") or {}).get("attacks") or {}
    every = [
        Attack(name, meaning, one["auc"], [one["true_positives"][f"{share:g}"] for share in FALSE_POSITIVES])
        for name, meaning in _ATTACKS.items()
        if (one := measured.get(name)) is not None
    ]
    return [every[:-1], every[-1:]] if every else []


@dataclass(frozen=True, slots=True)
class Compared:
    """A group compared with the reference; `entry` is what the summary holds of it."""

    name: str
    images: int
    real: int
    entry: Mapping[str, Any]

    @property
    def cautions(self) -> list[str]:
        """Why measures are missing, and which ones mean little at this number of images."""
        titles = {measure.name: measure.title for measure in MEASURES} | {"floor": "Floor (real against real)"}
        missing, little = (self.entry.get(part) or {} for part in ("not_measured", "warnings"))
        same: dict[str, list[str]] = {}
        for part, word in ((missing, "not measured: "), (little, "")):
            for name in filter(part.__contains__, titles):
                same.setdefault(f"{word}{part[name]}", []).append(titles[name])
        return [f"{', '.join(names)}: {why}" for why, names in same.items()]

    @property
    def too_few(self) -> bool:
        """Whether the group was too small for any measure."""
        return all((self.entry.get(measure.name) or {}).get("value") is None for measure in MEASURES)


def compared(summary: Mapping[str, Any], *, kind: str, of_all: bool = False) -> list[Compared]:
    """Groups of one kind ("finding", "view"), or one group of kind "all": the kept images, or all with `of_all`."""
    entries = summary["fidelity_all" if of_all else "fidelity"] or ()
    named = [(*entry["group"].partition(": "), entry) for entry in entries]
    title = "All images" if of_all or not summary["fidelity_all"] else "Kept images"
    return [
        Compared(name or title, entry["images"], entry["real"], entry)
        for of_kind, _, name, entry in named
        if of_kind == kind
    ]


def compared_subgroups(summary: Mapping[str, Any]) -> dict[str, list[Compared]]:
    """Views, sexes and age groups that were compared with the reference."""
    found = {title: compared(summary, kind=title.lower()) for title in SUBGROUPS.values()}
    return {title: groups for title, groups in found.items() if groups}


@dataclass(frozen=True, slots=True)
class Group:
    """Images of one view, sex or age group; `means` by reward."""

    name: str
    images: int
    kept: int
    means: Mapping[str, float | None]


def subgroups(rows: pa.Table, *, rewards: Sequence[str]) -> dict[str, list[Group]]:
    """Images by view, sex and age group; unknown ones come last."""
    return {title: _grouped(rows, column, rewards) for column, title in SUBGROUPS.items()}


def _grouped(rows: pa.Table, column: str, rewards: Sequence[str]) -> list[Group]:
    means = [(f"reward_{reward}", "mean") for reward in rewards]
    table = rows.group_by(column).aggregate([([], "count_all"), ("kept", "sum"), *means])
    entries = sorted(table.to_pylist(), key=lambda entry: (entry[column] is None, entry[column] or ""))
    return [
        Group(
            "unknown" if entry[column] is None else entry[column],
            entry["count_all"],
            entry["kept_sum"] or 0,
            {reward: entry[f"reward_{reward}_mean"] for reward in rewards},
        )
        for entry in entries
    ]


@dataclass(frozen=True, slots=True)
class UtilityRow:
    """One finding in one group of patients, and an entry for each training set, None where there is none."""

    finding: str
    group: str
    images: int | None
    entries: tuple[Mapping[str, Any] | None, ...]


@dataclass(frozen=True, slots=True)
class UtilityTable:
    """Numbers by what was trained on."""

    trained_on: tuple[str, ...]
    rows: tuple[UtilityRow, ...]


def utility_table(summary: Mapping[str, Any], part: str, *, value: str | None = None) -> UtilityTable | None:
    """A list of the summary's utility with a column for each training set; None where there is none.

    Args:
        summary: of the audit.
        part: of its utility.
        value: where a row of it has its interval; None if it is one itself.
    """
    entries = (summary.get("utility") or {}).get(part) or ()
    trained_on = tuple(dict.fromkeys(str(entry["trained_on"]) for entry in entries))
    cells: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for entry in entries:
        # Between two groups, the difference of the first and the second.
        group = entry["group"] if "group" in entry else " minus ".join(entry["between"])
        cells.setdefault((str(entry["finding"]), str(group)), {})[str(entry["trained_on"])] = entry
    rows = tuple(
        UtilityRow(
            finding,
            group,
            next(iter(cell.values())).get("images"),
            tuple(cell[name].get(value) if value and name in cell else cell.get(name) for name in trained_on),
        )
        for (finding, group), cell in cells.items()
    )
    return UtilityTable(trained_on, rows) if rows else None


def flat(values: Mapping[str, Any], *, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names and text; a list of plain values is one text."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, prefix=f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and not any(isinstance(each, Mapping | list | tuple) for each in value):
            yield f"{prefix}{name}", _cut(", ".join(_plain(each) for each in value) or "none")
        else:
            yield f"{prefix}{name}", _cut(_plain(value))


def _plain(value: Any) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} ... ({len(text):,} letters)"


def quantiles(values: Mapping[str, float | None] | None) -> list[tuple[float, float]]:
    """Pairs of share and value, ascending, of a mapping such as {"min": 0.1, "p50": 0.4, "p99.5": 0.8}."""
    shares = {_QUANTILES.get(name, _percent(name)): value for name, value in (values or {}).items()}
    return sorted((share, value) for share, value in shares.items() if share is not None and value is not None)


def quantile_title(name: str) -> str:
    """ "p50" as "50%"; other names as they are."""
    return name if _percent(name) is None else f"{name[1:]}%"


def _percent(name: str) -> float | None:
    try:
        return float(name.removeprefix("p")) / 100 if name.startswith("p") else None
    except ValueError:
        return None


def whole_options(text: str) -> Markup:
    """A text, escaped, whose options stay in one line: browsers break `--model` at its hyphens."""
    return Markup(_OPTION.sub(r'<span class="option">\g<0></span>', str(escape(text))))
