"""Rewards by name: families, folders, and a user's own class found by its entry point."""

import inspect
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from cxrsynth.errors import ModelError
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.backends import load_reward
from cxrsynth.rewards.base import Reward
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


def test_the_example_in_the_protocol_works() -> None:
    """What a reader copies from the documentation runs as printed, and keeps the promises beside it."""
    example = inspect.getdoc(Reward)
    assert example is not None
    source = "    class " + example.split("    class ", 1)[1].split("\n\nMake it known", 1)[0]
    scope: dict[str, object] = {"torch": torch, "Tensor": torch.Tensor, "Sequence": list, "Report": Report}
    exec(textwrap.dedent(source), scope)
    made = scope["LungBrightness"]
    assert isinstance(made, type)
    reward: Reward = made("0.25-0.75", device=CPU)
    images = torch.zeros(2, 1, 8, 6)
    images[1, :, 2:6] = 1.0
    images[:, :, 7] = 1.0  # outside the rows
    values = reward(images, [])
    assert values.tolist() == [reward.low, reward.high]
    assert values.dtype == torch.float32
    assert reward.unit
    assert not reward.needs_report


@pytest.mark.parametrize(
    ("name", "known"), [("posture", "pspnet, or a folder"), ("consistency", "judge, a folder, or a hub id")]
)
def test_an_unknown_backend_is_refused_with_those_known(name: str, known: str) -> None:
    with pytest.raises(ModelError, match=f"{name}: no backend 'nowhere'\n.*{known}"):
        load_reward(name, "nowhere", device=CPU)


@pytest.mark.parametrize("folder", ["pspnet", "other"])
def test_the_name_of_the_released_lung_segmentation_comes_before_a_folder(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = released_segmentation()
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no weights")
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="not plain weights but a pickled"):
        load_reward("posture", "pspnet", device=CPU)


def test_the_contents_of_a_folder_decide_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "classifier").mkdir()
    with pytest.raises(ModelError, match="not a family of reward models"):
        load_reward("posture", str(tmp_path), device=CPU)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ModelError, match="lung segmentation"):
        load_reward("posture", str(other), device=CPU)
    with pytest.raises(ModelError, match="torchxrayvision classifier"):
        load_reward("diagnosis", str(other), device=CPU)
    with pytest.raises(ModelError, match="dual encoder"):
        load_reward("consistency", str(other), device=CPU)
