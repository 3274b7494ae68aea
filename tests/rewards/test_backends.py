"""Rewards by name: families, folders, and a user's own class found by its entry point."""

import sys
from pathlib import Path

import pytest
import torch

from cxrsynth.errors import ModelError
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.backends import load_reward
from cxrsynth.rewards.xrv_posture import released_segmentation

CPU = torch.device("cpu")
OWN = """
import torch


class Brightness:
    unit, low, high, needs_report = "mean grey level", 0.0, 1.0, False

    def __init__(self, backend, *, device):
        self.factor = float(backend)

    def __call__(self, images, reports):
        return images.mean((1, 2, 3)) * self.factor
"""


def test_a_users_own_reward_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_reward.py").write_text(OWN)
    installed = tmp_path / "own_reward-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: own-reward\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[cxrsynth.rewards]\nbrightness = own_reward:Brightness\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    reward = load_reward("brightness", "0.5", device=CPU)
    assert reward(torch.ones(2, 1, 4, 4), [Report("a", 2)] * 2).tolist() == [0.5, 0.5]
    with pytest.raises(ModelError, match="expected: posture, diagnosis, consistency, brightness"):
        load_reward("sharpness", "nano", device=CPU)
    sys.modules.pop("own_reward", None)


@pytest.mark.parametrize(("name", "known"), [("posture", "pspnet, or a folder"), ("consistency", "judge, or a folder")])
def test_an_unknown_backend_is_told(name: str, known: str) -> None:
    with pytest.raises(ModelError, match=f"{name}: no backend 'nowhere'\n.*{known}"):
        load_reward(name, "nowhere", device=CPU)


@pytest.mark.parametrize("folder", ["pspnet", "other"])
def test_released_lung_segmentation_is_known_by_its_name(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = released_segmentation()
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no weights")
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="torchxrayvision could not load its PSPNet"):
        load_reward("posture", "pspnet", device=CPU)


def test_a_folder_is_taken_for_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "classifier").mkdir()
    with pytest.raises(ModelError, match="not a family of judges"):
        load_reward("posture", str(tmp_path), device=CPU)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ModelError, match="segmentation of lungs"):
        load_reward("posture", str(other), device=CPU)
    with pytest.raises(ModelError, match="torchxrayvision classifier"):
        load_reward("diagnosis", str(other), device=CPU)
    with pytest.raises(ModelError, match="dual encoder"):
        load_reward("consistency", str(other), device=CPU)
