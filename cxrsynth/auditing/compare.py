"""`--compare`: the numbers of this audit beside those of another, before and after tuning, say."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from cxrsynth.auditing.decide import ALL_REWARDS
from cxrsynth.auditing.fail_under import Metric, measured_interval
from cxrsynth.auditing.folder import SUMMARY
from cxrsynth.console import counted
from cxrsynth.errors import ShardError
from cxrsynth.runtime.files import read_json

Summary = Mapping[str, Any]

OPTION = "--compare"
_LONGEST = 1 << 28  # bytes
_EXPECTED = "expected the summary.json of another audit, or its folder"
_COUNTS = ("images", "kept", "kept_fraction")
_OUR_KEY = "made with another id key (--id-key)"
# Counts, which grow with the set; beside most of them stands a fraction that does not.
_NUMBERS = ("kept", "damaged", "flagged", "matched", "unscored", "images")
_SIZED = ("frechet", "precision", "recall", "density", "coverage", "floor")  # depend on the number of images
_FEATURES, _REFERENCE, _SIZE = "features", "reference", "number of images"
_LABELER, _MODEL, _VERIFIER, _AUTOENCODER = "labeler", "model of utility", "verifier", "autoencoder"
_AUDITED, _RULES, _CHECKS = "number of audited images", "rules of what is kept", "version and quality checks"
_ATTACKED, _READERS = "members and non-members", "readers and images they saw"
_TRAINING = "images of utility"
_LIKE = 0.1  # relative difference of two numbers of synthetic images below which what they teach is compared


# Whatever rejects an image: rules, quality checks, near-duplicates of the reference.
_DECIDING = {_RULES, _CHECKS, _REFERENCE}


@dataclass(frozen=True, slots=True)
class Compared:
    """A metric in both audits, each with value, low and high (None where there is no interval).

    `limit` says which way is good, `at least` or `at most`; `apart` whether the intervals do not meet, None where one
    of the two has none.
    """

    metric: str
    this: dict[str, float | None]
    other: dict[str, float | None]
    limit: str
    apart: bool | None


def read_summary(path: Path, known: Mapping[str, Metric]) -> dict[str, Any]:
    """The summary of another audit: its summary.json, or the folder that holds it.

    Args:
        path: of it.
        known: metrics that will be compared: the summary is compared with itself, so that damage shows before hours of
            scoring.

    Raises:
        ShardError: if it cannot be read, or is no summary.
    """
    file = path / SUMMARY if path.is_dir() else path
    try:
        found = read_json(file, longest=_LONGEST)
    except OSError as error:
        raise ShardError(f"{OPTION} {file}: cannot be read ({error.strerror})\n  {_EXPECTED}") from None
    except ValueError:
        raise ShardError(f"{OPTION} {file}: damaged, not JSON\n  {_EXPECTED}") from None
    if not isinstance(found, dict) or not isinstance(found.get("input"), dict) or "kept" not in found:
        raise ShardError(f"{OPTION} {file}: not the summary of an audit\n  {_EXPECTED}")
    try:
        compare(found, found, known)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise ShardError(f"{OPTION} {file}: damaged, parts of it are not what an audit writes\n  {_EXPECTED}") from None
    return found


def compare(this: Summary, other: Summary, known: Mapping[str, Metric]) -> dict[str, Any]:
    """What summary.json says of both audits.

    Args:
        this: its summary.
        other: that of the other audit.
        known: metrics that are looked for in both.

    Returns:
        `with`: name and version of the other; `rows`: `Compared` as mappings, of the metrics that both have measured
        alike; `refused`: what differs between the audits, so that what depends on it was left out, and how.
    """
    differs = dict(_differences(this, other))
    resized = _other_sizes(this, other)
    rows = []
    for name, metric in known.items():
        one, two = (measured_interval(metric.path, summary) for summary in (this, other))
        if one is None or two is None or (_is_sized(metric) and metric.path[1] in resized):
            continue
        if not _depends_on(metric) & differs.keys():
            rows.append(asdict(Compared(name, one, two, metric.limit, _apart(one, two))))
    return {
        "with": {"path": PurePath(str(other["input"].get("path", ""))).name, "version": other.get("version")},
        "rows": rows,
        "refused": [{"differs": what, "why": why} for what, why in differs.items()],
    }


def _is_sized(metric: Metric) -> bool:
    """Whether a metric depends on the number of images of its group."""
    return metric.path[0] == "fidelity" and metric.path[2] in _SIZED


def _depends_on(metric: Metric) -> set[str]:
    """What has to be the same in both audits for a metric to be compared."""
    first, *rest = metric.path
    counted = {_AUDITED} if metric.path[-1] in _NUMBERS else set()
    match first:
        case "kept" | "kept_fraction":
            return counted | _DECIDING
        case "damaged":
            return counted
        case "rewards":
            return counted | {f"reward {rest[0]}", _LABELER}
        case "rewards_kept":
            return {f"reward {rest[0]}", _LABELER, *_DECIDING}
        case "findings":
            if rest[1] not in _COUNTS:
                return {f"reward {rest[1]}", _LABELER}
            return counted | {_LABELER} | (set() if rest[1] == "images" else _DECIDING)
        case "fidelity":
            # Of the kept images, as utility is.
            group = {_LABELER, *_DECIDING} if rest[0].startswith("finding") else set(_DECIDING)
            return group if rest[1].startswith("ms_ssim") else group | {_FEATURES, _REFERENCE}
        case "utility":
            return {_FEATURES, _REFERENCE, _LABELER, _MODEL, _TRAINING, *_DECIDING}
        case "copies":
            return counted | {_REFERENCE, _CHECKS}
        case "memorization":
            # Versions search in other ways; a family's posture network brings images to one frame first.
            planted = {_AUTOENCODER} if metric.path[-1] == "autoencoded" else set()
            return counted | planted | {_REFERENCE, _CHECKS}
        case "reidentification":
            return counted | {_REFERENCE, _VERIFIER}
        case "membership":
            return {_ATTACKED}
        case "reader_study":
            return {_READERS, _REFERENCE}
    raise ValueError(f"{first}: nobody said what has to be the same to compare it")


def _differences(this: Summary, other: Summary) -> Iterator[tuple[str, str]]:
    """What differs between the audits, and how."""
    judges, others = (summary.get("reward_models") or {} for summary in (this, other))
    for name in [name for name in judges if name in others]:
        if judges[name].get("digest") != others[name].get("digest"):
            yield f"reward {name}", f"{judges[name].get('backend')} here, {others[name].get('backend')} there"
    labelers = [(summary.get("provenance") or {}).get("labeler") for summary in (this, other)]
    if labelers[0] != labelers[1]:
        yield _LABELER, " here, ".join("rules" if one is None else str(one)[:12] for one in labelers) + " there"
    features = [summary.get("features") or {} for summary in (this, other)]
    if features[0].get("digest") != features[1].get("digest"):
        yield _FEATURES, f"{features[0].get('name')} here, {features[1].get('name')} there"
    if both := _both(this, other, lambda summary: (summary.get("reidentification") or {}).get("verifier")):
        here, there = both
        if here.get("digest") != there.get("digest"):
            yield _VERIFIER, f"{here.get('name')} here, {there.get('name')} there"
    if both := _both(this, other, lambda summary: (summary.get("memorization") or {}).get("autoencoder")):
        here, there = both
        if here.get("digest") != there.get("digest"):
            yield _AUTOENCODER, f"{here.get('model')} here, {there.get('model')} there"
    if both := _both(this, other, lambda summary: summary.get("reference")):
        here, there = both
        if why := _not_the_same(this, other, [here], [there]):
            yield _REFERENCE, why
    yield from _other_decisions(this, other)
    if (both := _both(this, other, lambda summary: summary.get("membership"))) and (
        why := _other_attack(this, other, *both)
    ):
        yield _ATTACKED, why
    if (both := _both(this, other, _answered)) and (why := _other_readers(this, other, *both)):
        yield _READERS, why
    models = [_trained(summary) for summary in (this, other)]
    if None not in models and models[0] != models[1]:
        yield _MODEL, f"{models[0]} here, {models[1]} there"
    if (both := _both(this, other, lambda summary: summary.get("utility"))) and (
        why := _other_training(this, other, *both)
    ):
        yield _TRAINING, why
    if sizes := _other_sizes(this, other):
        group, (here_count, there_count) = next(iter(sizes.items()))
        of = "" if group == "all" else f" of {group}"
        others = f", and other numbers in {counted(len(sizes) - 1, 'more group')}" if len(sizes) > 1 else ""
        yield _SIZE, f"fidelity on {here_count} images{of} here, on {there_count} there{others}"


def _both(this: Summary, other: Summary, part: Callable[[Summary], Summary | None]) -> tuple[Summary, Summary] | None:
    """A part of both summaries; None where one of them has none: then nothing of it is compared anyway."""
    one, two = part(this), part(other)
    return (one, two) if one and two else None


def _answered(summary: Summary) -> Summary | None:
    study: Summary | None = summary.get("reader_study")
    return study if study and study.get("scores") else None


def _other_decisions(this: Summary, other: Summary) -> Iterator[tuple[str, str]]:
    """What differs in how images were chosen, and in how many there were to choose from."""
    audited = [summary["input"].get("images") for summary in (this, other)]
    if audited[0] != audited[1]:
        yield _AUDITED, f"{audited[0]} here, {audited[1]} there"
    rules = [(summary.get("settings") or {}).get("rules") for summary in (this, other)]
    if rules[0] != rules[1]:
        yield _RULES, "their thresholds, fractions or ignored checks are not the same"
    elif bool(this.get("reference")) != bool(other.get("reference")):
        yield (
            _RULES,
            f"near-duplicates of a reference were rejected {'here' if this.get('reference') else 'there'} alone",
        )
    elif (judges := _ruling(this)) != _ruling(other):
        yield _RULES, f"they are on other networks of {', '.join(judges)}"
    made = [
        (summary.get("version"), (summary.get("provenance") or {}).get("family") or {}) for summary in (this, other)
    ]
    if made[0] != made[1]:
        here, there = (f"{version} ({family.get('backend')})" for version, family in made)
        yield _CHECKS, f"{here} here, {there} there"


def _ruling(summary: Summary) -> dict[str, Any]:
    """Networks of the rewards that rules are on."""
    judges = summary.get("reward_models") or {}
    on = {name for rule in summary.get("thresholds") or () for name in str(rule.get("on")).split(", ")}
    names = sorted(judges if ALL_REWARDS in on else on & judges.keys())
    return {name: judges[name].get("digest") for name in names}


def _not_the_same(this: Summary, other: Summary, ours: Sequence[Summary], theirs: Sequence[Summary]) -> str | None:
    """Why collections are not known to hold the same images; None where they do. Names and counts do not show it."""
    keys = [(summary.get("provenance") or {}).get("id_key") for summary in (this, other)]
    digests = [[one.get("digest") for one in several] for several in (ours, theirs)]
    if None in digests[0] or None in digests[1]:
        where = "there" if None in digests[1] else "here"
        return f"it is not known which images they are {where}: audit once more with this version"
    if keys[0] != keys[1]:
        return f"whether the images are the same cannot be known: {_OUR_KEY} there"
    if digests[0] == digests[1]:
        return None
    here, there = (" and ".join(map(_which, several)) for several in (ours, theirs))
    return f"{here} here, {there} there" if here != there else f"{here} in both, but other images"


def _which(collection: Summary) -> str:
    return f"{PurePath(str(collection.get('path'))).name} ({collection.get('images')} images)"


def _other_attack(this: Summary, other: Summary, ours: Summary, theirs: Summary) -> str | None:
    """Why two attacks are not comparable, if they are not."""
    sides = [[one.get(name) or {} for name in ("members", "non_members")] for one in (ours, theirs)]
    if why := _not_the_same(this, other, *sides):
        return why
    ways = [(one.get("prompted"), one.get("passes_per_image")) for one in (ours, theirs)]
    return None if ways[0] == ways[1] else "attacked with other prompts or another number of passes"


def _other_readers(this: Summary, other: Summary, ours: Summary, theirs: Summary) -> str | None:
    """Why two reader studies are not comparable, if they are not."""
    keys = [(summary.get("provenance") or {}).get("id_key") for summary in (this, other)]
    if keys[0] != keys[1]:
        return f"whether the readers are the same cannot be known: {_OUR_KEY} there"
    if ours.get("readers") is None or ours.get("readers") != theirs.get("readers"):
        return "the readers are not the same"
    shown = [(one.get("side"), one.get("text")) for one in (ours, theirs)]
    return None if shown[0] == shown[1] else "the images were shown in another size, or with another text"


def _trained(summary: Summary) -> str | None:
    """What utility trained; None where it was not measured."""
    utility = summary.get("utility")
    model = (utility or {}).get("model")
    if not utility:
        return None
    return f"{model['name']} ({model['digest'] or model['starts_from']})" if model else "a linear probe"


def _other_training(this: Summary, other: Summary, ours: Summary, theirs: Summary) -> str | None:
    """Why two measures of utility are not comparable, if they are not: other numbers of images, or other patients."""
    seeds = [(summary.get("settings") or {}).get("seed") for summary in (this, other)]
    if seeds[0] != seeds[1]:
        return f"--seed {seeds[0]} here, {seeds[1]} there: it says which patients are tested on"
    here, there = (one.get("split") or {} for one in (ours, theirs))
    real = [[split.get(name) for name in ("train", "test")] for split in (here, there)]
    if real[0] != real[1]:
        return "{} real images to train on and {} to test on here, {} and {} there".format(*real[0], *real[1])
    made = [split.get("synthetic") or 0 for split in (here, there)]
    few, many = sorted(made)
    return None if many - few <= _LIKE * many else f"{made[0]} synthetic images here, {made[1]} there"


def _other_sizes(this: Summary, other: Summary) -> dict[str, tuple[int, int]]:
    """Groups whose fidelity was measured on another number of images, and both numbers; the group of all is first."""
    here, there = (
        {row.get("group"): row.get("compared") for row in summary.get("fidelity") or ()} for summary in (this, other)
    )
    both = {group: (count, there[group]) for group, count in here.items() if group in there}
    return {group: sizes for group, sizes in both.items() if None not in sizes and sizes[0] != sizes[1]}


def _apart(one: Mapping[str, float | None], two: Mapping[str, float | None]) -> bool | None:
    """Whether two intervals do not meet; None where one of them is none."""
    (low, high), (other_low, other_high) = ((each["low"], each["high"]) for each in (one, two))
    if low is None or high is None or other_low is None or other_high is None:
        return None
    return low > other_high or other_low > high
