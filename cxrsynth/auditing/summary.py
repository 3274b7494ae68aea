"""summary.json: everything an audit found, and the settings it found it with."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import TypeAdapter

from cxrsynth import console
from cxrsynth.address import Address
from cxrsynth.auditing.compare import compare
from cxrsynth.auditing.comparison import Comparison, fidelity_of_kept
from cxrsynth.auditing.decide import Reference, thresholds
from cxrsynth.auditing.examined import Examined
from cxrsynth.auditing.fail_under import known_metrics, missed
from cxrsynth.auditing.keyed import keyed_digest
from cxrsynth.auditing.protocol import apply_protocol, copies_counted
from cxrsynth.auditing.read import mixed_ranges, unclear_cells
from cxrsynth.auditing.reader_study.study import ReaderStudy
from cxrsynth.auditing.real_names import RealNames
from cxrsynth.auditing.reidentification import Reidentification
from cxrsynth.auditing.score_table import summaries
from cxrsynth.auditing.scored import Scored
from cxrsynth.auditing.setup import AuditRun, said_of
from cxrsynth.errors import ModelError, ReportsError, ShardError
from cxrsynth.images.image import Damaged
from cxrsynth.metrics.memorization.planted import ALTERATIONS
from cxrsynth.metrics.obedience import measure_obedience
from cxrsynth.metrics.utility.measure import measure_utility
from cxrsynth.settings import AuditSettings
from cxrsynth.shards.plan import as_generated

_DAMAGED_LISTED = 1000
_SCHEME = re.compile(r"(\w+:)?[A-Za-z][A-Za-z0-9+.-]+://")  # of an address, also in `kind:address`


def summarize(
    run: AuditRun,
    images: Scored,
    reference: Scored | None,
    comparison: Comparison | None,
    reidentification: Reidentification,
    decided: pa.Table,
    reference_rewards: Reference,
    names: RealNames,
    study: ReaderStudy,
    follow_ups: int,
) -> dict[str, Any]:
    """What summary.json holds; `failed` lists the thresholds of --fail-under that were missed.

    It may be handed on with the set: real images have keyed names, and of paths only the last part is there. Names of
    readers are for the owner's page alone: `number_readers` takes them out of what is handed on.
    """
    identity = run.scorer.identity
    not_measured = {} if comparison is None or comparison.problem is None else {"memorization": comparison.problem}
    if reidentification.problem is not None:
        not_measured["reidentification"] = reidentification.problem
    utility = None
    if reference is not None and run.settings.utility:
        try:
            utility = _utility(run, images, reference, decided)
        except (ReportsError, ModelError, ShardError) as error:
            # All images are scored by now: what cannot be measured costs itself alone.
            console.warn(f"utility was not measured: {error}")
            not_measured["utility"] = str(error)
    if study.problem is not None:
        not_measured["reader_study"] = study.problem
    membership = _membership(run, not_measured)
    summary: dict[str, Any] = {
        "version": identity["version"],
        "input": _collection(images) | {"manifest": run.images.collection.manifest},
        "reference": None
        if reference is None
        else _collection(reference, names) | {"digest": keyed_digest(reference.values("sha256"), run.scorer.id_key)},
        "settings": _without_folders(_settings(run)),
        "reward_models": _without_folders(identity["reward_models"]),
        "features": _without_folders(identity["features"]),
        "thresholds": thresholds(run.rules, reference_rewards),
        **summaries(decided),
        "follow_ups": follow_ups,
        **_obedience(run, images, decided),
        **_fidelity(run, images, reference, comparison, decided),
        "memorization": None if comparison is None else comparison.memorization,
        "copies": None if comparison is None else comparison.copies,
        "reidentification": _without_folder_of_verifier(reidentification.summary),
        "membership": membership,
        "utility": utility,
        "reader_study": study.summary,
        "not_measured": {part: _without_typed(why, run) for part, why in not_measured.items()},
        "caveats": [
            _without_typed(one, run) for one in (*_selection(run), *_caveats(images, reference), *study.caveats)
        ],
        "provenance": {
            "cxrsynth": identity["version"],
            "family": _without_folders(identity["family"]),
            "image_size": identity["image_size"],
            "labeler": identity.get("labeler"),
            "id_key": identity["id_key_fingerprint"],
        },
    }
    for caveat in unread_reports(summary["rewards"], summary["reward_models"], images.values("report")):
        console.warn(caveat)
        summary["caveats"].append(caveat)
    protocol = run.settings.protocol
    summary["protocol"] = None if protocol is None else apply_protocol(protocol, summary)
    if protocol is not None and (copies := copies_counted(summary)) is not None:
        console.warn(f"--protocol {protocol}: {copies}")
    known = known_metrics(tuple(run.settings.judges), ALTERATIONS)
    compared = None if run.other is None else compare(summary, run.other, known)
    return summary | {"compared": compared, "failed": missed(run.thresholds, summary)}


def _collection(scored: Scored, names: RealNames | None = None) -> dict[str, Any]:
    collection, damaged = scored.examined.collection, scored.examined.cache.damaged()
    matches = scored.examined.matches
    return {
        "path": collection.path.name,
        "kind": collection.kind,
        "layout": None if collection.layout is None else collection.layout.as_json(),
        "images": scored.rows.num_rows,
        "units": len(collection.units),
        "damaged_count": len(damaged),
        "columns": collection.columns_used or None,
        "table": None if matches is None else asdict(matches),
        "passed_over": dict(collection.passed_over),
        "ranges": dict(scored.examined.reading.ranges),
        "damaged": [_damage(one, names) for one in damaged[:_DAMAGED_LISTED]],
    }


def unknown_patients(reference: Scored) -> str | None:
    """What follows where patients of the reference are unknown; None where all are known."""
    count = reference.patients.count("")
    if not count:
        return None
    return (
        f"{count} of {len(reference.patients)} reference images have no known patient: images of one patient may be"
        " taken for two, which raises the threshold of the search and the AUROC of utility, and re-identification"
        " learns its threshold from the others alone"
    )


def _caveats(images: Scored, reference: Scored | None) -> list[str]:
    """What a reader of the numbers must know."""
    found: list[str] = []
    for name, scored in (("audited images", images), ("reference images", reference)):
        if scored is not None:
            found += _how_read(name, scored.examined)
        unclear = {} if scored is None else scored.examined.collection.unclear
        found += [f"table of the {name}: {what}" for what, _ in unclear_cells(unclear)]
        layout = None if scored is None else scored.examined.collection.layout
        if layout is not None:
            found += [f"{name}: {caveat}" for caveat in layout.caveats]
    if reference is not None and (caveat := unknown_patients(reference)) is not None:
        found.append(caveat)
    if reference is not None and reference.listed_twice:
        found.append(
            f"{reference.listed_twice} reference images are files listed under several patients, or several times"
            " without one: these patients count as one"
        )
    return found


def unread_reports(
    rewards: Mapping[str, Mapping[str, Any]], models: Mapping[str, Mapping[str, Any]], reports: Sequence[str]
) -> list[str]:
    """Which rewards no image has though images have reports: their reward model reads text, say, and these have none.

    Args:
        rewards: statistics by reward, as in summary.json.
        models: reward models by reward.
        reports: identifier of each image's report, empty where it has none.
    """
    count = len({report for report in reports if report})
    return [
        f"{name} was measured of no image, though they have {console.counted(count, 'report')}; where"
        f" {models[name]['backend']} reads text, images of `generate` need --include-text"
        for name, of in rewards.items()
        if count and of["mean"] is None and name in models
    ]


def _selection(run: AuditRun) -> list[str]:
    """What follows where the images were drawn until they passed: they, or those they were kept from."""
    made = as_generated(run.images.collection.manifest or {})
    rules = (made.get("plan") or {}).get("acceptance")
    if rules is None:
        return []
    total = made.get("acceptance", {}).get("total")
    rates = (
        f": of {total['images']}, {total['accepted_at_first']} passed at once, {total['accepted']} in the end"
        if total
        else ""
    )
    found = [
        "the audited images are no unfiltered sample of the model, which `generate --accept` drew again until they"
        f" passed its rules{rates}"
    ]
    measured = run.scorer.identity["reward_models"]
    again = [
        name
        for name, judge in rules["reward_models"].items()
        if name in measured and measured[name]["digest"] == judge["digest"]
    ]
    if again:
        found.append(
            f"{', '.join(again)}: measured by the networks that decided which images were accepted, so high scores are"
            " no evidence of quality"
        )
    return found


def _how_read(name: str, examined: Examined) -> Iterator[str]:
    """What is not read of a collection, or not as it seems."""
    collection, matches = examined.collection, examined.matches
    if collection.passed_over:
        yield f"{name}: passed over: {said_of(collection.passed_over)}"
    if matches is not None and not matches.is_whole:
        yield f"{name}: table: {matches}"
    elif matches is None and collection.described is not None and collection.described[1] < collection.described[0]:
        count, described = collection.described
        yield f"{count - described} of {count} {name} have no row in the table"
    if (mixed := mixed_ranges(examined.reading.ranges)) is not None:
        yield f"{name}: {mixed}"


def _damage(one: Damaged, names: RealNames | None) -> Mapping[str, str]:
    where = {"source": one.source, "member": one.member}
    if names is not None:
        where = {part: text and names.hide(text) for part, text in where.items()}
    return {**where, "reason": one.reason}


def _settings(run: AuditRun) -> dict[str, Any]:
    """Every option of the command, defaults and the device found included."""
    # Not where the results go: they may be moved.
    given = TypeAdapter(AuditSettings).dump_python(run.settings, mode="json", exclude={"out", "rules"})
    # Of paths and addresses the last part, of those that do not exist yet, too.
    paths = {name: value.name for name, value in vars(run.settings).items() if isinstance(value, Path | Address)}
    given |= {name: last for name, last in paths.items() if name in given}
    given["reader_answers"] = [path.name for path in run.settings.reader_answers]
    return dict(given) | {"device": run.scorer.device.type, "rules": run.rules.as_json()}


def _without_typed(text: str, run: AuditRun) -> str:
    """A message with the last part of every path and address that the user gave: messages quote them as they are."""
    values = [*vars(run.settings).values(), *run.settings.judges.values(), *run.settings.reader_answers]
    given = {str(value) for value in (*values, run.folder.path) if isinstance(value, str | Path | Address)}
    given |= {str(value.absolute()) for value in (*values, run.folder.path) if isinstance(value, Path)}
    given |= {path.partition(":")[2] for path in given if "://" not in path}  # features of a kind: `kind:folder`
    for path in sorted(filter(None, given), key=len, reverse=True):
        if "/" in path.rstrip("/"):
            text = text.replace(path, _without_folders(path) if "://" in path else PurePath(path).name)
    return text


def _without_folders(found: Any) -> Any:
    """The same with the last part of every local path in it, and of every address in an object store."""
    if isinstance(found, Mapping):
        return {key: _without_folders(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_without_folders(value) for value in found]
    if not isinstance(found, str):
        return found
    if _SCHEME.match(found):
        return found.rstrip("/").rpartition("/")[2]
    kind, colon, rest = found.partition(":")  # features of a kind: `kind:folder`
    if colon and "/" in rest:
        return f"{kind}:{PurePath(rest).name}"
    return PurePath(found).name if "/" in found and Path(found).exists() else found


def _without_folder_of_verifier(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Keys of images in it stay whole, as elsewhere, though they may look like paths."""
    if found is None or "verifier" not in found:
        return None if found is None else dict(found)
    return {**found, "verifier": _without_folders(found["verifier"])}


def _obedience(run: AuditRun, images: Scored, decided: pa.Table) -> dict[str, list[dict[str, Any]] | None]:
    """Of all images and, where some were rejected, of the kept ones; None where diagnosis is no classifier."""
    if not run.scorer.findings or not images.rows.num_rows:
        return {"obedience": None, "obedience_kept": None}
    present = [set(names) for names in images.values("present")]
    logits, patients = images.finding_logits, images.patients

    def measured(places: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
        return measure_obedience(
            [present[place] for place in places],
            logits[places],
            run.scorer.findings,
            [patients[place] for place in places],
            seed=run.settings.seed,
        )

    # What nobody asked for, no image can fail to show: without a text and labels, it is no negative. A report's number
    # asks for nothing, but `generate` makes every image of a prompt.
    ours = run.images.collection.manifest is not None
    asked = np.asarray(
        [
            ours or bool(any(row))
            for row in zip(present, images.values("absent"), images.values("has_text"), strict=True)
        ]
    )
    kept = np.asarray(decided["kept"].to_pylist(), dtype=bool)
    of_all = measured(np.flatnonzero(asked))
    return {"obedience": of_all, "obedience_kept": None if kept.all() else measured(np.flatnonzero(asked & kept))}


def _fidelity(
    run: AuditRun, images: Scored, reference: Scored | None, comparison: Comparison | None, decided: pa.Table
) -> dict[str, Any]:
    """Of the kept images, and beside it of all where some were rejected: copies of real images would look best."""
    if reference is None or comparison is None:
        return {"fidelity": [], "fidelity_all": None}
    of_kept = fidelity_of_kept(run, images, reference, comparison, _places(decided["kept"].to_pylist()))
    return {"fidelity": of_kept, "fidelity_all": None if of_kept is comparison.fidelity else comparison.fidelity}


def _membership(run: AuditRun, not_measured: dict[str, str]) -> dict[str, Any] | None:
    """What attacks on the model found; None without them, or where `not_measured` then says why."""
    if run.membership is None:
        return None
    console.say("comparing members with non-members")
    try:
        found = run.membership.measure(seed=run.settings.seed, workers=run.settings.workers)
    except ValueError as error:
        # As for utility: what cannot be measured costs itself alone.
        console.warn(f"membership was not measured: {error}")
        not_measured["membership"] = str(error)
        return None
    for caveat in found["caveats"]:
        console.warn(f"membership: {caveat}")
    return found


def _utility(run: AuditRun, images: Scored, reference: Scored, decided: pa.Table) -> dict[str, Any]:
    """Trained on the kept images, without those found to be copies, whatever the rules keep."""
    console.say("training on synthetic and on real images")
    rows = zip(decided["kept"].to_pylist(), decided["memorized"].to_pylist(), strict=True)
    chosen = _places([kept and not memorized for kept, memorized in rows])
    # The folder sweeps files of this name, which a killed run leaves.
    files = [run.folder.parts / f".{side}.pixels" for side in ("images", "reference")]
    try:
        made, real = (
            one.image_table(None if run.utility_model is None else one.pixels(path))
            for one, path in zip((images, reference), files, strict=True)
        )
        found = measure_utility(
            made.take(chosen), real, seed=run.settings.seed, network=run.utility_model, say=console.say
        )
        return found | {"model": _without_folders(found["model"])}
    finally:
        for path in files:
            path.unlink(missing_ok=True)


def _places(chosen: list[bool]) -> npt.NDArray[np.int64]:
    return np.flatnonzero(np.asarray(chosen, dtype=bool)).astype(np.int64)
