"""All printing: messages go to standard error, tables to standard output."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_PLAIN_EVERY_S = 10.0
_COLUMNS = 6  # of numbers that a line of 80 characters holds beside a model's name
_DISTANCES = ("frechet", "frechet_infinity", "kid", "mmd", "precision", "recall", "density", "coverage")
_DAMAGED_SHOWN = 3
_MEASURES = (*_DISTANCES, "ms_ssim_within", "ms_ssim_real", "ms_ssim_to_real")


class Advance(Protocol):
    """Advances a progress display by this many images; `made` False for those that were already finished."""

    def __call__(self, images: int, *, made: bool = True) -> None: ...


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 image`, `2 images`, `12,000 images`."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def say(message: str) -> None:
    """One line for the user, on standard error."""
    _print(message, stderr=True)


def warn(message: str) -> None:
    """One warning, on standard error."""
    _print(("warning:", "yellow"), " ", message, stderr=True)


def fail(message: str) -> None:
    """The error that ended a run, on standard error."""
    _print(("error:", "red"), " ", message, stderr=True)


def is_terminal() -> bool:
    """Whether somebody reads what `say` prints: else it may end in a log."""
    return sys.stderr.isatty()


def _print(*parts: str | tuple[str, str], stderr: bool = False) -> None:
    """Print texts, some with a style, as they are: brackets and backslashes are no markup."""
    Console(stderr=stderr, emoji=False, highlight=False, soft_wrap=True).print(Text.assemble(*parts))


@contextmanager
def image_progress(total: int | None, *, quiet: bool = False, what: str = "images") -> Iterator[Advance]:
    """A bar with images/s and time left on a terminal; a plain line every ten seconds when piped.

    `total` None: unknown beforehand.
    """
    rate = _Rate(total, what)
    if quiet:
        yield rate.count
    elif is_terminal():
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}  {task.fields[speed]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True, emoji=False)) as bar:
            task = bar.add_task(what, total=total, speed="")

            def advance(images: int, *, made: bool = True) -> None:
                rate.count(images, made=made)
                bar.update(task, advance=images, speed=f"{rate.per_second:.2f}/s")

            yield advance
    else:

        def line(images: int, *, made: bool = True) -> None:
            rate.count(images, made=made)
            if rate.due():
                say(rate.text())

        yield line
        if total is None and rate.done != rate.shown:  # else the last count would look like all
            say(rate.text())


@dataclass
class _Rate:
    """How many images are done, how many of them this run made, and how fast."""

    total: int | None
    what: str = "images"
    done: int = 0
    made: int = 0
    started: float = field(default_factory=time.monotonic)
    shown_at: float = 0.0
    shown: int = 0  # how many were done when it was shown

    def count(self, images: int, *, made: bool = True) -> None:
        self.done += images
        self.made += images if made else 0

    @property
    def per_second(self) -> float:
        return self.made / max(time.monotonic() - self.started, 1e-9)

    def due(self) -> bool:
        now = time.monotonic()
        if self.done != self.total and now - self.shown_at < _PLAIN_EVERY_S:
            return False
        self.shown_at, self.shown = now, self.done
        return True

    def text(self) -> str:
        speed = f"{self.what}, {self.per_second:.2f} images/s"
        if self.total is None:
            return f"{self.done} {speed}" if self.made else f"{self.done} {self.what}"
        if not self.made:  # nothing to estimate from yet, or nothing to do
            return f"{self.done}/{self.total} {self.what}"
        left = timedelta(seconds=round((self.total - self.done) / self.per_second))
        return f"{self.done}/{self.total} {speed}, {left} left"


def print_audit(summary: Mapping[str, Any], out: Path) -> None:
    """The results of an audit as tables on standard output; where the files are, on standard error."""
    output = Console(emoji=False, highlight=False, soft_wrap=True)
    kept, rejected = summary["kept"], summary["rejected"]
    damaged = summary["input"]["damaged_count"]
    output.print(f"{kept} of {kept + rejected} images kept" + (f", {damaged} could not be read" if damaged else ""))
    for one in summary["input"]["damaged"][:_DAMAGED_SHOWN]:
        output.print(f"  {': '.join(filter(None, (one['source'], one['member'], one['reason'])))}", markup=False)
    if damaged > _DAMAGED_SHOWN:
        output.print(f"  and {damaged - _DAMAGED_SHOWN} more, as summary.json lists them")
    if summary["reasons"]:
        output.print(
            _table("reason for rejection", ["images"], {name: [str(n)] for name, n in summary["reasons"].items()})
        )
    names = ("mean", "p5", "p50", "p95")
    rewards = {name: [_number(of[n]) for n in names] for name, of in summary["rewards"].items()}
    output.print(_table("reward", names, rewards))
    # Groups are left to the report: they are many, and lines are short.
    overall = next((row for row in summary["fidelity"] if row["group"] == "all"), None)
    which = "kept images" if summary["fidelity_all"] else "all images"
    if overall is not None and overall["compared"]:
        _print_fidelity(output, overall, which)
    elif overall is not None:
        output.print(f"compared with the reference, {which}: not measured: {overall['not_measured']['all']}")
    of_all = next((row for row in summary["fidelity_all"] or () if row["group"] == "all"), None)
    if of_all is not None and of_all["compared"]:
        # The floor stands above: it is of the reference alone.
        beside = {name: [_interval(of_all[name])] for name in _MEASURES if of_all[name] is not None}
        output.print(_table("all images, rejected ones included", [f"{of_all['compared']} images each"], beside))
    memorization = summary["memorization"]
    if memorization is not None:
        alarms = memorization["false_alarms"]
        output.print(f"near-duplicates of real images: {memorization['flagged']}")
        found = {name: [f"{one['caught']} of {one['of']}"] for name, one in memorization["sensitivity"].items()}
        found["false alarms on held-out real patients"] = [f"{alarms['caught']} of {alarms['of']}"]
        output.print(_table("planted near-duplicates of reference images", ["found"], found))
    elif (copies := summary.get("copies")) is not None:
        output.print(f"copies of real images: {copies['flagged']} (near-duplicates were not looked for)")
    if (patients := summary["reidentification"]) is not None:
        output.print(_recognized(patients))
    if (utility := summary["utility"]) is not None:
        output.print(_helped(utility))
    if (study := summary["reader_study"]) is not None:
        _print_study(output, study)
    if (protocol := summary["protocol"]) is not None:
        _print_protocol(output, protocol)
    membership = summary["membership"]
    if membership is not None:
        rows = {
            name: [_interval(one["auc"]), _interval(one["true_positives"]["0.01"])]
            for name, one in membership["attacks"].items()
        }
        output.print(_table("attack on the model", ["AUC (0.5: guessing)", "found at 1% false alarms"], rows))
    for miss in summary["failed"]:
        value = "not measured" if miss["value"] is None else f"{miss['value']:.4g}"
        said = f" {miss['metric']}: {value}, expected {miss['limit']} {miss['threshold']:g}"
        output.print(Text.assemble(("failed:", "red"), said))
    say(f"{out}: report.html, summary.json, scores.parquet, keep.csv")


def _recognized(found: Mapping[str, Any]) -> str:
    """How many images the verifier takes for a patient, beside its floor."""
    images, others = found["share"], found["reference"]["false_matches"]
    return (
        f"taken for a patient of the reference: {images['caught']} of {images['of']} images; of real images of other"
        f" patients, {others['caught']} of {others['of']}"
    )


def _helped(utility: Mapping[str, Any]) -> str:
    """Mean AUROC of real images alone, and what each other way of training adds to it."""
    lifts = {row["trained_on"]: row["lift"] for row in utility["mean"] if row["lift"]}
    alone = next((row["auroc"] for row in utility["mean"] if not row["lift"]), None)
    if alone is None or not lifts:
        return "utility: no finding could be measured with synthetic images and with real ones alone"
    changes = [
        f"{name} {lift['value']:+.3f} ({lift['low']:+.3f} to {lift['high']:+.3f})" for name, lift in lifts.items()
    ]
    return f"utility: mean AUROC of real images alone {_interval(alone)}; {', '.join(changes)}"


def _print_protocol(output: Console, found: Mapping[str, Any]) -> None:
    """The metrics of a benchmark, beside its rows where they may be compared. The page has the rest."""
    metrics, features = found["metrics"], found["features"]
    compared = "too few to compare" if found["compared"] is None else f"{found['compared']:,} of each compared"
    output.print(
        f"{found['title']} ({found['paper']}): all {counted(found['images'], 'image')} against"
        f" {counted(found['real'], 'real image')}, {compared}; features {features['name']}"
        f" (SHA-256 {features['digest'][:12]}, {features['width']} numbers per image)",
        markup=False,
    )
    if metrics:
        rows = {one["title"]: [_interval(one)] for one in metrics.values()}
        output.print(_table(found["title"], ["this audit"], rows))
    if published := found["published"]["overall"]:
        names = [name for name in metrics if any(name in row for row in published.values())]
        for first in range(0, len(names), _COLUMNS):
            some = names[first : first + _COLUMNS]
            beside = {"this audit": [_number(metrics[name]["value"]) for name in some]}
            beside |= {model: [_number(row[name]) for name in some] for model, row in published.items()}
            output.print(_table("model, published", some, beside))
    by_pathology = {name: [_number(one["value"]), str(one["compared"])] for name, one in found["pathologies"].items()}
    if by_pathology:
        output.print(_table("FID by pathology", ("this audit", "images each"), by_pathology))
    for why in found["refused"].values():
        output.print(f"  not compared: {why}", markup=False)
    few = [name for name in found["not_measured"] if name.startswith("FID of ")]
    if few:
        output.print(
            f"  FID of {counted(len(few), 'pathology', 'pathologies')}: not measured: too few images state them"
        )
    others = {name: why for name, why in found["not_measured"].items() if name not in few}
    for why, same in _by_reason(others).items():
        output.print(f"  {', '.join(same)}: not measured: {why}", markup=False)
    for note in found["notes"]:
        output.print(f"  {note}", markup=False)
    if published:
        output.print(f"  published rows: {found['sources']['overall']}", markup=False)
        if any("Avg. Latent Distance" in row for row in published.values()):
            output.print(f"  published distances: {found['sources']['privacy']}", markup=False)


def _print_study(output: Console, study: Mapping[str, Any]) -> None:
    """A reader study, and what its readers answered."""
    scores = study["scores"]
    named = f"reader study {study['study']}: {study['real']} real and {study['synthetic']} synthetic images"
    if scores is None:
        output.print(f"{named} in reader-study.html; --reader-answers FILE scores what readers save there")
        return
    output.print(f"{named}; guessing is right about {scores['chance']:g}")
    columns = ("images", "right", "quality gap", "s/image")
    rows = {"all": [str(scores["accuracy"]["answers"]), *_read(scores)]}
    rows |= {one["name"]: [f"{one['answered']} of {one['of']}", *_read(one)] for one in scores["readers"]}
    output.print(_table("reader", columns, rows))


def _read(scores: Mapping[str, Any]) -> list[str]:
    return [
        _interval(scores["accuracy"]),
        _interval(scores["quality"]["difference"]),
        _number(scores["seconds"]["p50"]),
    ]


def _print_fidelity(output: Console, overall: Mapping[str, Any], which: str) -> None:
    """Each measure, beside it the floor, and what is missing or means little."""
    floor = overall["floor"] or {}
    audited = floor["audited"] if floor and floor["images"] < overall["compared"] else {}
    columns = [f"{overall['compared']} images each"]
    if floor:
        columns += [f"real, {floor['images']} each"] + ([f"audited, {floor['images']} each"] if audited else [])
    rows = {}
    for name in _MEASURES:
        if overall[name] is None:  # the reason stands below
            continue
        beside = [_number((floor.get(name) or {}).get("value")), _number(audited.get(name))]
        rows[name] = [_interval(overall[name]), *beside[: len(columns) - 1]]
    output.print(_table(f"compared with the reference, {which}", columns, rows))
    for part, word in (("not_measured", "not measured: "), ("warnings", "")):
        for why, names in _by_reason(overall[part]).items():
            output.print(f"  {', '.join(names)}: {word}{why}", markup=False)


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """The names that have a reason in common, by the reason."""
    found: dict[str, list[str]] = {}
    for name, why in reasons.items():
        found.setdefault(why, []).append(name)
    return found


def print_recipes(recipes: Mapping[str, str], scripts: Mapping[str, str]) -> None:
    """Names of recipes and of job scripts and what they do, as tables on standard output."""
    _print_names("recipe", "what it does", recipes)
    _print_names("job script", "what it does", scripts)


def print_rewards(rewards: Mapping[str, str]) -> None:
    """Names of rewards and where they come from, as a table on standard output."""
    _print_names("reward", "where it comes from", rewards)


def print_finding(name: str, problem: str | None, detail: str = "") -> None:
    """One line on standard output: what was looked at, and `ok` or the problem."""
    word, style, said = ("ok", "green", detail) if problem is None else ("failed", "red", problem)
    _print(f"{name:16}", (word, style), f"{'':{7 - len(word)}}{said}".rstrip())


def _print_names(first: str, second: str, rows: Mapping[str, str]) -> None:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column(first, no_wrap=True)
    table.add_column(second)
    for name, summary in rows.items():
        table.add_row(Text(name), Text(summary))
    Console(emoji=False, highlight=False).print(table)


def _table(first: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    for name, cells in rows.items():
        table.add_row(Text(name), *cells)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _interval(measured: Mapping[str, float | None] | None) -> str:
    if measured is None or measured["value"] is None:
        return "-"
    if measured["low"] is None:
        return f"{measured['value']:.3g}"
    return f"{measured['value']:.3g} ({measured['low']:.3g} to {measured['high']:.3g})"


class ShowIteration(Protocol):
    """Shows the metrics after an iteration."""

    def __call__(self, iteration: int, row: Mapping[str, Any]) -> None: ...


@contextmanager
def tuning_view(total: int, *, quiet: bool = False) -> Iterator[ShowIteration]:
    """A live table on a terminal; one plain line per iteration when piped."""
    view = _TuningView(total)
    if quiet:
        yield lambda iteration, row: None
    elif is_terminal():
        with Live(view.table(), console=Console(stderr=True, emoji=False), auto_refresh=False) as live:

            def update(iteration: int, row: Mapping[str, Any]) -> None:
                view.update(iteration, row)
                live.update(view.table(), refresh=True)

            yield update
    else:

        def line(iteration: int, row: Mapping[str, Any]) -> None:
            view.update(iteration, row)
            say(view.line(row))

        yield line


@contextmanager
def training_view(total: int, *, quiet: bool = False) -> Iterator[ShowIteration]:
    """Steps of supervised training: a bar on a terminal, a plain line every ten seconds when piped."""
    started, shown_at, begun = time.monotonic(), float("-inf"), None

    def text(row: Mapping[str, Any]) -> str:
        speed, kind = row["time/images_per_s"], "sft" if "sft/loss" in row else "distill"
        return f"loss {row[f'{kind}/loss']:.4f}, gradient {row[f'{kind}/grad_norm']:.3g}, {speed:.2f} images/s"

    def line(iteration: int, row: Mapping[str, Any]) -> None:
        nonlocal shown_at, begun
        begun = iteration - 1 if begun is None else begun
        now = time.monotonic()
        if iteration == total or now - shown_at >= _PLAIN_EVERY_S:
            shown_at = now
            left = timedelta(seconds=round((now - started) / (iteration - begun) * (total - iteration)))
            say(f"step {iteration}/{total}: {text(row)}, {left} left")

    if quiet:
        yield lambda iteration, row: None
    elif is_terminal():
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True, emoji=False)) as bar:
            task = bar.add_task("", total=total)
            yield lambda iteration, row: bar.update(task, completed=iteration, description=text(row))
    else:
        yield line


class _TuningView:
    """The newest value of each metric of a run, and the time left."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.row: dict[str, Any] = {}
        self.iteration = 0
        self._begun: int | None = None
        self._started = time.monotonic()

    def update(self, iteration: int, row: Mapping[str, Any]) -> None:
        if self._begun is None:
            self._begun = iteration - 1
        self.iteration = iteration
        self.row |= row

    @property
    def left(self) -> str:
        done = self.iteration - (self._begun or 0)
        if done <= 0:
            return "unknown"
        seconds = (time.monotonic() - self._started) / done * (self.total - self.iteration)
        return str(timedelta(seconds=round(seconds)))

    def line(self, row: Mapping[str, Any]) -> str:
        """The newest row as one line."""
        head = f"iteration {self.iteration}/{self.total}"
        if any(name.startswith("evaluation/") for name in row):
            margins = ", ".join(
                f"{kind} {row[f'evaluation/{kind}/total/margin']:+.3f} (win rate"
                f" {row[f'evaluation/{kind}/total/win_rate']:.2f})"
                for kind in ("tuning", "evaluator")
            )
            return f"{head} on held-out reports: {margins}"
        rewards = ", ".join(
            f"{name.split('/')[1]} {value:+.3f}" for name, value in row.items() if _is_mean_reward(name)
        )
        return f"{head}: {rewards}{self._policy(row)}, {self.left} left"

    def _policy(self, row: Mapping[str, Any]) -> str:
        shown = {
            "win rate": "feedback/win_rate",
            "optimality": "feedback/optimality",
            "distance": "policy/baseline_distance",
            "norm": "policy/norm_ratio",
            "clip": "policy/clip_fraction",
            "KL": "policy/baseline_kl",
        }
        parts = [f", {name} {row[key]:.3g}" for name, key in shown.items() if key in row]
        return "".join(parts)

    def table(self) -> Table:
        table = Table(title=f"iteration {self.iteration}/{self.total}, {self.left} left", box=box.SIMPLE)
        table.add_column("reward")
        for name in ("policy", "baseline", "held-out margin", "evaluator margin"):
            table.add_column(name, justify="right")
        for name in (key.split("/")[1] for key in self.row if _is_mean_reward(key)):
            cells = [
                self.row.get(key)
                for key in (
                    f"reward/{name}/mean",
                    f"reward/{name}/baseline",
                    f"evaluation/tuning/{name}/margin",
                    f"evaluation/evaluator/{name}/margin",
                )
            ]
            table.add_row(Text(name), *(_number(cell) for cell in cells))
        times = sum(value for key, value in self.row.items() if key.startswith("time/"))
        images = self.row.get("images", 0)
        speed = f", {images / times:.2f} images/s" if times and images else ""
        table.caption = self._policy(self.row).removeprefix(", ") + speed
        return table


def _is_mean_reward(name: str) -> bool:
    return name.startswith("reward/") and name.endswith("/mean")
