"""Charts as inline SVG: drawn by matplotlib, colored by the page's style sheet.

Every color is also a class (`fill-kept`, `line-grid`), so that one drawing serves light and dark mode. No chart needs a
style attribute, which a strict Content-Security-Policy would refuse.
"""

import io
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Numbers = npt.NDArray[np.float64]

KEPT, REJECTED, REAL, INK, MUTED, GRID = "#1f6f9c", "#b9500f", "#5a6b2f", "#1c2530", "#56616d", "#d5dbe1"
_CLASSES = {KEPT: "kept", REJECTED: "rejected", REAL: "real", INK: "ink", MUTED: "muted", GRID: "grid"}
_WIDTH = 380  # units of the drawing, about one pixel each on a phone
_HISTOGRAM, _CURVES = 230, 250  # heights
_LETTERS = 10.5  # as in page.css
_FEWEST_BINS, _MOST_BINS = 10, 40
_LONGEST_NAME = 28
_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML cannot hold


@dataclass(frozen=True, slots=True)
class Series:
    """A named set of numbers, in the color of its role."""

    name: str
    values: Numbers
    color: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a cumulative distribution: x ascending, share in [0, 1] at or below it."""

    name: str
    x: Sequence[float]
    share: Sequence[float]
    color: str


def histogram(name: str, series: Sequence[Series], *, label: str, thresholds: Sequence[float] = ()) -> Markup:
    """Histograms over shared bins, each as shares of its own set; thresholds are dashed lines.

    Args:
        name: unique among the charts of the page.
        series: finite numbers, at least one in all.
        label: of the axis.
        thresholds: values on the axis.
    """
    figure, axes = _canvas(_HISTOGRAM)
    every = np.concatenate([one.values for one in series] + [np.asarray(thresholds, dtype=np.float64)])
    low, high = float(every.min()), float(every.max())
    margin = max((high - low) * 0.02, abs(high) * 1e-3, 1e-6)
    bins = int(np.clip(1.5 * math.sqrt(len(every)), _FEWEST_BINS, _MOST_BINS))
    edges = np.linspace(low - margin, high + margin, bins + 1)
    for one in series:
        if len(one.values):
            shares = np.histogram(one.values, edges)[0] / len(one.values)
            axes.stairs(shares, edges, fill=True, color=one.color, alpha=0.3)
            axes.stairs(shares, edges, color=one.color, linewidth=1.4, label=f"{one.name} ({len(one.values):,})")
    _mark(axes, thresholds)
    axes.set_xlabel(_printable(label), parse_math=False)
    axes.set_ylabel("share of images")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    _legend(axes, height=_HISTOGRAM)
    return _svg(figure, name, f"Histogram of {label}: {' and '.join(one.name for one in series)} images")


def bars(name: str, counts: Mapping[str, int], *, label: str) -> Markup:
    """Horizontal bars with their counts, from the top in the order given."""
    figure, axes = _canvas(46 + 24 * max(len(counts), 1), left=0.44, right=0.12)
    places = np.arange(len(counts))
    axes.barh(places, list(counts.values()), color=REJECTED, height=0.62)
    axes.set_yticks(places, [_shortened(reason) for reason in counts], parse_math=False)
    axes.invert_yaxis()
    for place, count in zip(places, counts.values(), strict=True):
        axes.annotate(
            f"{count:,}", (count, place), (4, 0), textcoords="offset points", va="center", color=INK, fontsize=_LETTERS
        )
    axes.set_xlabel(label)
    axes.tick_params(left=False)
    axes.grid(axis="x")
    return _svg(figure, name, f"Bar chart of {label}; the table next to it has the numbers")


def cumulative(name: str, curves: Sequence[Curve], *, label: str, threshold: float | None) -> Markup:
    """Cumulative distributions over one axis."""
    figure, axes = _canvas(_CURVES)
    for curve in curves:
        axes.plot(curve.x, curve.share, color=curve.color, linewidth=1.6, label=_printable(curve.name))
    _mark(axes, [] if threshold is None else [threshold])
    axes.set_xlabel(_printable(label), parse_math=False)
    axes.set_ylabel("share of images at or below")
    axes.set_ylim(0, 1.02)
    axes.grid(axis="y")
    _legend(axes, height=_CURVES)
    names = " and ".join(curve.name for curve in curves)
    return _svg(figure, name, f"Cumulative distribution of {label}: {names}")


def intervals(
    name: str, rows: Mapping[str, tuple[float, float, float]], *, label: str, chance: float | None = None
) -> Markup:
    """Shares in [0, 1] with their intervals, a row each: name -> value, low, high. `chance` is a dashed line."""
    return _intervals(name, rows, label=label, limits=(0, 1), line=None if chance is None else ("guessing", chance))


def differences(name: str, rows: Mapping[str, tuple[float, float, float]], *, label: str) -> Markup:
    """Differences with their intervals, a row each: name -> value, low, high. A dashed line marks 0."""
    reach = 1.1 * max(0.01, *(abs(end) for row in rows.values() for end in row))
    return _intervals(name, rows, label=label, limits=(-reach, reach), line=("no difference", 0))


def amounts(name: str, rows: Mapping[str, tuple[float, float, float]], *, label: str) -> Markup:
    """Amounts from 0 up with their ranges, a row each: name -> value, low, high."""
    reach = 1.1 * max(1e-9, *(end for row in rows.values() for end in row))
    least = min(0.0, *(end for row in rows.values() for end in row))
    return _intervals(name, rows, label=label, limits=(least, reach), line=None)


def _intervals(
    name: str,
    rows: Mapping[str, tuple[float, float, float]],
    *,
    label: str,
    limits: tuple[float, float],
    line: tuple[str, float] | None,
) -> Markup:
    height = 62 + 24 * max(len(rows), 1)
    figure, axes = _canvas(height, left=0.44)
    for place, (value, low, high) in enumerate(rows.values()):
        axes.plot([low, high], [place, place], color=KEPT, linewidth=1.6)
        axes.plot([value], [place], color=KEPT, marker="o", markersize=5)
    axes.set_yticks(np.arange(len(rows)), [_shortened(row) for row in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(*limits)
    if line is not None:
        axes.axvline(line[1], color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label=line[0])
    axes.set_xlabel(_printable(label), parse_math=False)
    axes.tick_params(left=False)
    axes.grid(axis="x")
    if line is not None:
        _legend(axes, height=height)
    return _svg(figure, name, f"{label} of each row, with its interval where it has one; the table has the numbers")


def _canvas(height: int, *, left: float = 0.13, right: float = 0.03) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH / 72, height / 72))
    bottom, top = 40 / height, 6 / height
    axes = figure.add_axes((left, bottom, 1 - left - right, 1 - bottom - top))
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(MUTED)
    axes.tick_params(colors=MUTED, length=3, labelsize=_LETTERS, grid_color=GRID)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=MUTED, fontsize=_LETTERS)
    return figure, axes


def _mark(axes: Axes, thresholds: Sequence[float]) -> None:
    for place, threshold in enumerate(thresholds):
        axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label="_" if place else "threshold")


def _legend(axes: Axes, *, height: int) -> None:
    """Above the drawing, where it hides nothing."""
    box = axes.get_position()
    axes.set_position((box.x0, box.y0, box.width, box.height - 16 / height))
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.99),
        ncols=4,
        frameon=False,
        borderaxespad=0,
        columnspacing=1.2,
        handlelength=1.4,
        fontsize=_LETTERS,
        labelcolor=INK,
    )


def _svg(figure: Figure, name: str, description: str) -> Markup:
    """The drawing as an HTML element. Equal drawings have equal bytes."""
    buffer = io.StringIO()
    # Text stays text: searchable, small, and in the font of the page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser has it
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())
    root[:] = [child for child in root if not any(part.tag.endswith(("}style", "}RDF")) for part in child)]
    used = set(re.findall(r"#([\w.-]+)", " ".join(v for node in root.iter() for v in node.attrib.values())))
    for node in root.iter():
        _make_plain(node, name, used)
    for size in ("width", "height", "version"):
        root.attrib.pop(size)
    root.attrib |= {"class": "chart", "role": "img", "aria-label": _printable(description)}
    return Markup(ET.tostring(root, encoding="unicode"))


def _make_plain(node: ET.Element, name: str, used: set[str]) -> None:
    """Move style into attributes and classes, drop name spaces, make ids unique to this chart."""
    node.tag = node.tag.split("}")[-1]
    old = dict(node.attrib)
    node.attrib.clear()
    for key, value in old.items():
        key = key.split("}")[-1]
        if key == "id":
            if value in used:
                node.set("id", f"{name}-{value}")
        elif key != "style":
            node.set(key, re.sub(r"#(?=[\w.-]+)", f"#{name}-", " ".join(value.split())))
    classes = []
    for part in old.get("style", "").split(";"):
        key, _, value = (piece.strip() for piece in part.partition(":"))
        if key in ("fill", "stroke") and value in _CLASSES:
            classes.append(f"{'fill' if key == 'fill' else 'line'}-{_CLASSES[value]}")
        if key and not key.startswith("font"):
            node.set(key, value)
    if classes:
        node.set("class", " ".join(classes))


def _shortened(name: str) -> str:
    name = _printable(name)
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))
