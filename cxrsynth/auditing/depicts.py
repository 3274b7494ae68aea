"""`--write-depicts`: the findings that a model was measured to show, into its description."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cxrsynth import console
from cxrsynth.auditing.autoencoder import recorded_model
from cxrsynth.console import counted
from cxrsynth.diffusion.resolve import model_digest
from cxrsynth.diffusion.spec import SPEC_FILE, read_spec
from cxrsynth.errors import ModelError, in_words
from cxrsynth.reports.prompt import Depicts
from cxrsynth.runtime.files import write_atomically
from cxrsynth.shards.plan import as_generated

# Lower end of the interval that the AUROC of a finding must reach.
PASSED = 0.6
# Restricts no request.
_ANYTHING = Depicts(
    views=("AP", "LATERAL", "PA"),
    age_groups=("adult", "child"),
    sexes=("F", "M"),
    findings={},
    sides=False,
    uncertain=False,
)


def check_model(folder: Path) -> None:
    """Refuse a folder that is no model's, before hours of scoring.

    Raises:
        ModelError: if it is none, or its description cannot be read.
    """
    if not (folder / "model_index.json").is_file():
        raise ModelError(
            f"--write-depicts {folder}: not a model folder, no model_index.json\n"
            "  expected: a folder of your own, where its cxrsynth.json can be written; not nano, and no hub id"
        )
    read_spec(folder)
    if not os.access(folder, os.W_OK):
        raise ModelError(f"--write-depicts {folder}: cannot be written to\n  expected: a folder of your own")


def check_origin(folder: Path, manifest: Mapping[str, Any] | None, record: Path) -> None:
    """Refuse a model that did not make the audited images, and images that were selected as they were made.

    It warns where these do not say which model made them.

    The model's digest covers its description. That may have changed by an earlier audit of the same images, or may not
    have been there when they were made.

    Args:
        folder: of the model.
        manifest: of the audited images, if they have one.
        record: from `write_depicts`, if an earlier audit wrote it.

    Raises:
        ModelError: if it is another one, or the images were selected as they were made.
    """
    if "acceptance" in (as_generated(manifest or {}).get("plan") or {}):
        raise ModelError(
            f"--write-depicts {folder}: the images were drawn until they passed (`generate --accept`), so they show"
            " more than the model does\n  audit images of the same model made without --accept"
        )
    made_by = recorded_model(manifest or {})
    wanted = made_by.get("digest")
    if wanted is None:
        console.warn(
            f"--write-depicts {folder}: the images do not say which model made them, so this is not checked; their"
            " findings will be those of this model"
        )
        return
    found = model_digest(folder)
    known = (found, model_digest(folder, described=False), read_spec(folder).depicts_from)
    if wanted in known or _read(record) == {"model": wanted, "now": found}:
        return
    raise ModelError(
        f"--write-depicts {folder}: not the model that made the images\n"
        f"  found: digest {found}\n"
        f"  expected: {made_by.get('name')}, digest {wanted}, as their manifest says\n"
        "  name the folder as it was then, its cxrsynth.json included; what was laid over it (--ace, --unet, --vae,"
        " --scheduler, --lora, --embeddings) makes another model, which has no folder to write to: leave"
        " --write-depicts out"
    )


def _read(record: Path) -> Any:
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_depicts(
    folder: Path,
    subjects: Mapping[str, Sequence[str | None]],
    obedience: Iterable[Mapping[str, Any]],
    *,
    manifest: Mapping[str, Any] | None,
    record: Path,
) -> list[str]:
    """Write what the audited images show into the model's `cxrsynth.json`, and return the findings that passed.

    Views, sexes and age groups are those of the audited images; where these state none, they stay as the description
    had them, or all count as shown. Sides and uncertain findings are not measured and count as not shown. The number
    beside a finding is that of the images that it was requested for.

    Args:
        folder: of the model that made the images.
        subjects: columns `view`, `age_group` and `sex` of the audited images.
        obedience: rows of `measure_obedience`.
        manifest: of the audited images, if they have one.
        record: file that remembers which model it was, because its digest changes with its description.

    Raises:
        ModelError: if no finding passed, or the description cannot be read or written.
    """
    passed = {row["finding"]: row["requested"] for row in obedience if row["auroc"] and row["auroc"]["low"] >= PASSED}
    if not passed:
        raise ModelError(
            f"--write-depicts {folder}: no finding has an AUROC whose interval lies above {PASSED}\n"
            "  the model's description stays as it was, the audit is complete; audit more images, of reports with more"
            " findings"
        )
    seen = {name: tuple(sorted(filter(None, set(values)))) for name, values in subjects.items()}
    had = read_spec(folder).depicts or _ANYTHING
    depicts = Depicts(
        views=seen["view"] or had.views,
        age_groups=seen["age_group"] or had.age_groups,
        sexes=seen["sex"] or had.sexes,
        findings=passed,
        sides=False,
        uncertain=False,
    )
    path = folder / SPEC_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        before, now = content.get("depicts"), depicts.model_dump(mode="json")
        if before == now:
            return list(passed)
        if before is not None:
            console.say(f"{path}: replaces the depicts it had, with {counted(_findings_in(before), 'finding')}")
        made_by = recorded_model(manifest or {}).get("digest")
        content |= {"depicts": now} | ({"depicts_from": made_by} if made_by else {})
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
        write_atomically(record, json.dumps({"model": made_by, "now": model_digest(folder)}).encode())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be written ({in_words(error)})") from None
    return list(passed)


def _findings_in(depicts: Any) -> int:
    findings = depicts.get("findings") if isinstance(depicts, dict) else None
    return len(findings) if isinstance(findings, dict | list) else 0
