"""curves.png: the metrics of a tuning run over its iterations."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cxrsynth.runtime.files import open_atomically

_PANELS = (
    ("Tuning rewards: margin over the baseline (SD)", ("evaluation/tuning/total/margin",)),
    ("Evaluator: margin over the baseline (SD)", ("evaluation/evaluator/total/margin",)),
    ("Win rate on held-out reports", ("evaluation/tuning/total/win_rate", "evaluation/evaluator/total/win_rate")),
    ("Optimality", ("feedback/optimality",)),
    ("Squared distance to the baseline's prediction", ("policy/baseline_distance",)),
    ("Norm of the prediction over the baseline's", ("policy/norm_ratio",)),
    ("KL divergence", ("policy/approx_kl", "policy/baseline_kl")),
    ("Clip fraction", ("policy/clip_fraction",)),
    ("Gradient norm", ("policy/grad_norm", "sft/grad_norm", "distill/grad_norm")),
    ("Fine-tuning loss", ("sft/loss",)),
    ("Distillation loss", ("distill/loss",)),
)
_COLUMNS = 3


def draw_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a panel for each kind of metric in `rows`, with the stages one after another.

    Nothing is written if there are no metrics.
    """
    there = {name for row in rows for name, value in row.items() if value is not None}
    panels = [(title, names) for title, names in _PANELS if there.intersection(names)]
    if not panels:
        return
    height = math.ceil(len(panels) / _COLUMNS)
    figure = Figure(figsize=(13, 3.5 * height))
    FigureCanvasAgg(figure)
    places = _places(rows)
    grid = list(figure.subplots(height, _COLUMNS, squeeze=False).flat)
    # In inches; a layout engine takes as long as all the drawing, in every iteration.
    figure.subplots_adjust(
        left=0.7 / 13, right=1 - 0.15 / 13, bottom=0.6 / (3.5 * height), top=1 - 0.4 / (3.5 * height), hspace=0.35
    )
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, names) in zip(grid, panels, strict=False):
        for name in names:
            points = [
                (place, row[name], row.get(f"{name}_low"), row.get(f"{name}_high"))
                for place, row in zip(places, rows, strict=True)
                if row.get(name) is not None
            ]
            if not points:
                continue
            x, y, low, high = zip(*points, strict=True)
            (line,) = axes.plot(x, y, marker="o" if len(points) < 40 else None, markersize=3, label=name)
            if None not in low and None not in high:
                axes.fill_between(x, low, high, alpha=0.2, color=line.get_color())
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("iteration")
        axes.set_xlim(0, max(places) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    with open_atomically(path) as file:
        figure.savefig(file, format="png", dpi=90)


def _places(rows: Sequence[dict[str, Any]]) -> list[int]:
    """The iteration of each row, counted through all stages."""
    lengths: dict[int, int] = {}
    for row in rows:
        lengths[row["stage"]] = max(lengths.get(row["stage"], 0), row["iteration"])
    starts = {stage: sum(length for other, length in lengths.items() if other < stage) for stage in lengths}
    return [starts[row["stage"]] + row["iteration"] for row in rows]
