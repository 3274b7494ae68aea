"""torchxrayvision's classes at random weights: operating points, untrained heads, loading."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50
from torchxrayvision.models import DenseNet, ResNet

from cxrsynth.errors import ModelError
from cxrsynth.reports.labels import FindingLabel, Status
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.xrv import XrvClassifier, load_xrv, released_weights, xrv_images

TARGETS = ["Atelectasis", "", "Effusion", "Nodule", "Mass", "Hernia", "Edema"]
THRESHOLDS = [0.2, float("nan"), 0.6, 0.5, 0.7, 0.5, float("nan")]  # named, but without a point: never trained
RELEASED = "resnet50-res512-all"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the file that torchxrayvision would fetch for its ResNet, in its own format."""
    path = tmp_path_factory.mktemp("cache")
    torch.manual_seed(0)
    network = resnet50(num_classes=18)
    network.conv1 = torch.nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    file = released_weights(RELEASED, path)
    assert file is not None
    network.conv1.weight.data /= 1024
    torch.save(network.state_dict(), file)
    return path


@pytest.fixture(scope="module")
def network() -> DenseNet:
    torch.manual_seed(0)
    made = DenseNet(num_classes=len(TARGETS), op_threshs=torch.tensor(THRESHOLDS))
    made.features.conv0.weight.data /= 1024  # untrained, it would answer 0 or 1 to values that large
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


def said(*findings: str) -> list[Report]:
    """One report a finding, which it states."""
    return [Report(name, 2, labels={name: FindingLabel(Status.PRESENT)}) for name in findings]


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


def test_a_folder_gives_the_same_reward(network: DenseNet, folder: Path) -> None:
    copied = DenseNet(num_classes=len(TARGETS), op_threshs=torch.tensor(THRESHOLDS))
    copied.load_state_dict(network.state_dict())
    copied.targets, copied.input_resolution = TARGETS, 224
    logits = XrvClassifier(copied, device=CPU).logits(images())[0]
    reports = said("Pleural Effusion", "Edema", "Fracture")  # the latter two: no trained head, masked
    values = load_xrv(str(folder), device=CPU)(images()[[0, 0, 0]], reports)
    assert values[0] == pytest.approx(math.log(torch.sigmoid(logits[2]).item()), abs=1e-5)
    assert values[1:].isnan().all()


def test_the_librarys_resnet_is_asked_for_what_it_was_trained_on(cache: Path, tmp_path: Path) -> None:
    theirs = ResNet(RELEASED, cache_dir=str(cache))
    settings = {"architecture": "resnet50", "targets": theirs.targets, "op_threshs": theirs.op_threshs.tolist()}
    radiograph = torch.rand(1, 1, 64, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        answers = theirs(xrv_images(radiograph, 512))
    asked = XrvClassifier(theirs, device=CPU)  # from here on it answers logits
    # Without an operating point for Lung Lesion it answers 0.5 whatever it sees: the next head is asked. Likewise, but
    # without another head, for the mediastinum.
    assert "Enlarged Cardiomediastinum" not in asked.heads
    places = [
        theirs.targets.index({"Lung Lesion": "Mass", "Pleural Effusion": "Effusion"}.get(h, h))
        for h in asked.heads
        if h != "Pleural Other"
    ]
    answers = answers[:, places]
    kept = [place for place, head in enumerate(asked.heads) if head != "Pleural Other"]
    logits = asked.logits(radiograph)[0]
    assert len(kept) == 10
    assert ((logits[kept] > 0) == (answers[0] > 0.5)).all()
    assert answers.unique().numel() == 10
    # From the name, and from a folder made of the library's own state: the same reward.
    (tmp_path / "config.json").write_text(json.dumps(settings))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    released, from_folder = (load_xrv(name, device=CPU, cache=cache) for name in (RELEASED, str(tmp_path)))
    mass = logits[asked.heads.index("Lung Lesion")]
    expected = pytest.approx(math.log(torch.sigmoid(mass).item()), abs=1e-5)
    assert released(radiograph, said("Lung Lesion")).item() == expected
    assert from_folder(radiograph, said("Lung Lesion")).item() == expected


def test_images_are_square_and_in_the_librarys_range() -> None:
    radiographs = xrv_images(torch.tensor([0.0, 0.5, 1.0]).expand(2, 1, 6, 3), 6)
    assert radiographs.shape == (2, 1, 6, 6)
    assert radiographs.amin() == -1024
    assert radiographs.amax() == 1024
    with pytest.raises(ValueError, match="outside"):
        xrv_images(torch.full((1, 1, 4, 4), 1.1), 4)


def test_nothing_is_printed(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchxrayvision.utils.warning_log", {})  # it warns once a process
    reward = load_xrv(str(folder), device=CPU)
    reward(torch.full((1, 1, 64, 64), 0.5), said("Atelectasis"))  # of another size, and without contrast
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"targets": TARGETS, "architecture": "vgg"}, "vgg"),
        ({"targets": TARGETS, "architecture": "resnet50"}, "conv1"),
        ({"targets": TARGETS, "op_threshs": [0.5]}, "7 probabilities"),
        ({"targets": TARGETS, "op_threshs": [1.5] * 7}, "7 probabilities"),
        ([], "cannot be loaded"),
        ({"targets": ["Hernia"] * 7}, "none of its targets"),
    ],
)
def test_a_wrong_configuration_is_told(folder: Path, tmp_path: Path, config: object, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        load_xrv(str(tmp_path), device=CPU)


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
