"""summary.json: everything an audit found, and the settings it found it with."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter

from cxrsynth import console
from cxrsynth.address import Address
from cxrsynth.auditing.comparison import Comparison
from cxrsynth.auditing.decide import Reference, thresholds
from cxrsynth.auditing.fail_under import missed
from cxrsynth.auditing.score_table import summaries
from cxrsynth.auditing.scored import Scored
from cxrsynth.auditing.setup import AuditRun
from cxrsynth.images.image import Damaged
from cxrsynth.metrics.obedience import measure_obedience
from cxrsynth.metrics.utility import measure_utility
from cxrsynth.settings import AuditSettings

_DAMAGED_LISTED = 1000


def summarize(
    run: AuditRun,
    images: Scored,
    reference: Scored | None,
    comparison: Comparison | None,
    decided: pa.Table,
    reference_rewards: Reference,
) -> dict[str, Any]:
    """What summary.json holds; `failed` lists the thresholds of --fail-under that were missed."""
    identity = run.scorer.identity
    summary: dict[str, Any] = {
        "version": identity["version"],
        "input": _collection(images) | {"manifest": run.images.collection.manifest},
        "reference": None if reference is None else _collection(reference),
        "settings": _settings(run),
        "reward_models": identity["reward_models"],
        "features": identity["features"],
        "thresholds": thresholds(run.rules, reference_rewards),
        **summaries(decided),
        "obedience": _obedience(run, images),
        "fidelity": [] if comparison is None else comparison.fidelity,
        "memorization": None if comparison is None else comparison.memorization,
        "utility": None if reference is None else _utility(run, images, reference),
        "provenance": {
            "cxrsynth": identity["version"],
            "family": identity["family"],
            "image_size": identity["image_size"],
        },
    }
    return summary | {"failed": missed(run.thresholds, summary)}


def _collection(scored: Scored) -> dict[str, Any]:
    collection, damaged = scored.examined.collection, scored.examined.cache.damaged()
    return {
        "path": collection.path.name,
        "kind": collection.kind,
        "images": scored.rows.num_rows,
        "units": len(collection.units),
        "damaged_count": len(damaged),
        "damaged": [_damage(one) for one in damaged[:_DAMAGED_LISTED]],
    }


def _damage(one: Damaged) -> Mapping[str, str]:
    return {"source": one.source, "member": one.member, "reason": one.reason}


def _settings(run: AuditRun) -> dict[str, Any]:
    """Every option of the command, defaults and the device found included; paths as given."""
    # Not where the results go: they may be moved.
    given = TypeAdapter(AuditSettings).dump_python(run.settings, mode="json", exclude={"out", "rules"})
    addresses = {name: str(value) for name, value in vars(run.settings).items() if isinstance(value, Address)}
    return dict(given) | addresses | {"device": run.scorer.device.type, "rules": run.rules.as_json()}


def _obedience(run: AuditRun, images: Scored) -> list[dict[str, Any]] | None:
    """None where the diagnosis reward is no classifier of findings."""
    if not run.scorer.findings or not images.rows.num_rows:
        return None
    present = [set(names) for names in images.values("present")]
    logits, seed = images.finding_logits, run.settings.seed
    return measure_obedience(present, logits, run.scorer.findings, images.patients, seed=seed)


def _utility(run: AuditRun, images: Scored, reference: Scored) -> dict[str, Any] | None:
    if not run.settings.utility:
        return None
    console.say("training on synthetic and on real images")
    return measure_utility(images.image_table(), reference.image_table(), seed=run.settings.seed)
