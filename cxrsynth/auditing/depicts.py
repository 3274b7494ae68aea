"""`--write-depicts`: the findings that a model was measured to show, into its description."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cxrsynth.diffusion.spec import SPEC_FILE, read_spec
from cxrsynth.errors import ModelError
from cxrsynth.reports.prompt import Depicts
from cxrsynth.runtime.files import write_atomically

# Lower end of the interval that the AUROC of a finding must reach.
PASSED = 0.6


def check_model(folder: Path) -> None:
    """Refuse a folder that is no model's, before hours of scoring.

    Raises:
        ModelError: if it is none, or its description cannot be read.
    """
    if not (folder / "model_index.json").is_file():
        raise ModelError(
            f"--write-depicts {folder}: not a model folder, no model_index.json\n  name the model's folder"
        )
    read_spec(folder)


def write_depicts(
    folder: Path, subjects: Mapping[str, Sequence[str | None]], obedience: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Write what the audited images show into the model's `cxrsynth.json`, and return the findings that passed.

    Views, sexes and age groups are those of the audited images; sides and uncertain findings are not measured and count
    as not shown. The number beside a finding is that of the images that were asked for it.

    Args:
        folder: of the model that made the images.
        subjects: columns `view`, `age_group` and `sex` of the audited images.
        obedience: rows of `measure_obedience`.

    Raises:
        ModelError: if no finding passed, or the description cannot be read or written.
    """
    passed = {row["finding"]: row["asked"] for row in obedience if row["auroc"] and row["auroc"]["low"] >= PASSED}
    if not passed:
        raise ModelError(
            f"--write-depicts {folder}: no finding has an AUROC whose interval lies above {PASSED}\n"
            "  nothing is written; audit more images, of reports with more findings"
        )
    seen = {name: tuple(sorted(filter(None, set(values)))) for name, values in subjects.items()}
    depicts = Depicts(
        views=seen["view"],
        age_groups=seen["age_group"],
        sexes=seen["sex"],
        findings=passed,
        sides=False,
        uncertain=False,
    )
    path = folder / SPEC_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        content["depicts"] = depicts.model_dump(mode="json")
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be written ({error})") from None
    return list(passed)
