"""What a summary says of rewards that were not measured."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cxrsynth.auditing.summary import _obedience, _without_folder_of_verifier, unread_reports

MODELS = {name: {"backend": f"{name}-net"} for name in ("posture", "consistency")}


def test_a_reward_model_that_reads_no_report_is_named() -> None:
    rewards = {"posture": {"mean": -0.8}, "consistency": {"mean": None}}
    [said] = unread_reports(rewards, MODELS, ["one", "", "one"])
    assert said.startswith(
        "consistency was measured of no image, though they have 1 report; where consistency-net reads"
    )
    assert "--include-text" in said
    assert unread_reports(rewards, MODELS, ["", ""]) == []  # pictures without reports
    assert unread_reports({"posture": {"mean": 0.0}}, MODELS, ["one"]) == []


def test_keys_of_images_that_look_like_paths_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").touch()
    monkeypatch.chdir(tmp_path)
    given = {"nearest": [{"key": "a/1.png"}], "verifier": {"name": "a/1.png", "digest": "x"}}
    assert _without_folder_of_verifier(given) == {
        "nearest": [{"key": "a/1.png"}],
        "verifier": {"name": "1.png", "digest": "x"},
    }
    assert _without_folder_of_verifier(None) is None


@pytest.mark.parametrize("manifest", [None, {"plan": {}}])
def test_an_image_of_which_nothing_was_asked_is_no_negative(manifest: dict[str, Any] | None) -> None:
    """Neither text nor labels: the classifier may see any finding there, and says nothing about obedience."""
    columns: dict[str, list[Any]] = {
        "present": [["Edema"]] * 12 + [[]] * 12 + [[]] * 40,
        "absent": [[]] * 12 + [["Edema"]] * 11 + [[]] + [[]] * 40,
        "has_text": [False] * 23 + [True] + [False] * 40,
        "report": ["a number"] * 64,
    }
    logits = np.concatenate([np.full(12, 1.0), np.full(12, -1.0), np.full(40, 5.0)])[:, None]
    images: Any = SimpleNamespace(
        rows=pa.table({"key": range(64)}), values=columns.get, finding_logits=logits, patients=[""] * 64
    )
    run: Any = SimpleNamespace(
        scorer=SimpleNamespace(findings=["Edema"]),
        settings=SimpleNamespace(seed=0),
        images=SimpleNamespace(collection=SimpleNamespace(manifest=manifest)),
    )
    found = _obedience(run, images, pa.table({"kept": [place != 0 for place in range(64)]}))
    every, kept = (found[name] for name in ("obedience", "obedience_kept"))
    assert every is not None
    assert kept is not None
    # `generate` made every image of a prompt, which asked for no edema.
    others, area = (12, 1.0) if manifest is None else (52, pytest.approx(12 / 52))
    assert (every[0]["requested"], every[0]["not_requested"]) == (12, others)
    assert (kept[0]["requested"], kept[0]["not_requested"]) == (11, others)
    assert every[0]["auroc"]["value"] == area
