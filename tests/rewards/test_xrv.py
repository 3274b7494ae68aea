"""torchxrayvision's class at random weights: operating points, untrained heads, loading."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchxrayvision.models import DenseNet

from cxrsynth.errors import ModelError
from cxrsynth.reports.labels import FindingLabel, Status
from cxrsynth.reports.rows import Report
from cxrsynth.rewards.xrv import XrvClassifier, load_xrv

TARGETS = ["Atelectasis", "", "Effusion", "Nodule", "Mass", "Hernia"]
THRESHOLDS = [0.2, float("nan"), 0.6, 0.5, 0.7, 0.5]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> DenseNet:
    torch.manual_seed(0)
    made = DenseNet(num_classes=len(TARGETS), op_threshs=torch.tensor(THRESHOLDS))
    made.targets, made.input_resolution = TARGETS, 224
    return made.eval()


@pytest.fixture(scope="module")
def folder(network: DenseNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("xrv")
    (path / "config.json").write_text(json.dumps({"targets": TARGETS, "op_threshs": THRESHOLDS}))
    save_file(network.state_dict(), path / "model.safetensors")
    return path


def images() -> torch.Tensor:
    return torch.rand(2, 1, 256, 256, generator=torch.Generator().manual_seed(1))


def test_logits_are_zero_where_the_library_says_one_half(network: DenseNet) -> None:
    """The library's own forward is the reference: same side of the operating point, same order."""
    with torch.inference_mode():
        theirs = network((images() * 2 - 1) * 1024)  # mapped so that 0.5 is the operating point
    copied = DenseNet(num_classes=len(TARGETS), op_threshs=torch.tensor(THRESHOLDS))
    copied.load_state_dict(network.state_dict())
    copied.targets, copied.input_resolution = TARGETS, 224
    ours = XrvClassifier(copied, device=CPU)
    logits = ours.logits(images())
    assert ours.heads == ("Lung Lesion", "Atelectasis", "Pleural Effusion")
    places = [TARGETS.index(name) for name in ("Mass", "Atelectasis", "Effusion")]
    assert torch.equal(logits > 0, theirs[:, places] > 0.5)
    threshold = torch.tensor(THRESHOLDS)[places]
    probability = (logits + threshold.logit()).sigmoid()
    below = probability < threshold
    mapped = torch.where(below, probability / threshold / 2, 1 - (1 - probability) / (1 - threshold) / 2)
    assert torch.allclose(mapped, theirs[:, places], atol=1e-4)


def test_a_folder_gives_the_same_reward(folder: Path) -> None:
    reward = load_xrv(str(folder), device=CPU)
    said = [Report("a", 2, labels={"Pleural Effusion": FindingLabel(Status.PRESENT)}), Report("b", 3)]
    said[1].labels["Fracture"] = FindingLabel(Status.PRESENT)  # no trained head: masked
    values = reward(images(), said)
    assert values[0].isfinite()
    assert values[0] < 0
    assert values[1].isnan()


def test_what_cannot_be_loaded_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder, and torchxrayvision could not load it"):
        load_xrv("no-such-weights", device=CPU, cache=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"targets": TARGETS}))
    save_file({"features.conv0.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="cannot be loaded as a torchxrayvision classifier"):
        load_xrv(str(tmp_path), device=CPU)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_xrv(str(tmp_path), device=CPU)
