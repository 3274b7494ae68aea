"""torchxrayvision's classes with random weights: operating points, untrained heads, loading."""

import hashlib
import json
import math
import os
import pickle
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
from cxrsynth.rewards.xrv_posture import load_lung_posture, released_segmentation

TARGETS = ["Atelectasis", "", "Effusion", "Nodule", "Mass", "Hernia", "Edema"]
THRESHOLDS = [0.2, float("nan"), 0.6, 0.5, 0.7, 0.5, float("nan")]  # named, but without a point: never trained
RELEASED = "resnet50-res512-all"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the file that torchxrayvision downloads for its ResNet, in its own format."""
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


def stating(*findings: str) -> list[Report]:
    """One report for each finding, which it states."""
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
    heads = [TARGETS.index(name) for name in ("Mass", "Atelectasis", "Effusion")]
    assert torch.equal(logits > 0, theirs[:, heads] > 0.5)
    threshold = torch.tensor(THRESHOLDS)[heads]
    probability = (logits + threshold.logit()).sigmoid()
    below = probability < threshold
    mapped = torch.where(below, probability / threshold / 2, 1 - (1 - probability) / (1 - threshold) / 2)
    assert torch.allclose(mapped, theirs[:, heads], atol=1e-4)


def test_a_folder_gives_the_same_reward(network: DenseNet, folder: Path) -> None:
    copied = DenseNet(num_classes=len(TARGETS), op_threshs=torch.tensor(THRESHOLDS))
    copied.load_state_dict(network.state_dict())
    copied.targets, copied.input_resolution = TARGETS, 224
    logits = XrvClassifier(copied, device=CPU).logits(images())[0]
    reports = stating("Pleural Effusion", "Edema", "Fracture")  # the latter two: no trained head, masked
    values = load_xrv(str(folder), device=CPU)(images()[[0, 0, 0]], reports)
    assert values[0] == pytest.approx(math.log(torch.sigmoid(logits[2]).item()), abs=1e-5)
    assert values[1:].isnan().all()


@pytest.mark.slow
def test_only_trained_heads_of_the_librarys_resnet_are_used(cache: Path, tmp_path: Path) -> None:
    theirs = ResNet(RELEASED, cache_dir=str(cache))
    settings = {"architecture": "resnet50", "targets": theirs.targets, "op_threshs": theirs.op_threshs.tolist()}
    radiograph = torch.rand(1, 1, 64, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        answers = theirs(xrv_images(radiograph, 512))
    ours = XrvClassifier(theirs, device=CPU)  # from here on `theirs` returns logits
    # Without an operating point for Lung Lesion the library returns 0.5 for every image, so the next head is used. The
    # mediastinum has no operating point either, and no other head.
    assert "Enlarged Cardiomediastinum" not in ours.heads
    places = [
        theirs.targets.index({"Lung Lesion": "Mass", "Pleural Effusion": "Effusion"}.get(h, h))
        for h in ours.heads
        if h != "Pleural Other"
    ]
    answers = answers[:, places]
    kept = [place for place, head in enumerate(ours.heads) if head != "Pleural Other"]
    logits = ours.logits(radiograph)[0]
    assert len(kept) == 10
    assert ((logits[kept] > 0) == (answers[0] > 0.5)).all()
    assert answers.unique().numel() == 10
    # From the name, and from a folder made of the library's own state: the same reward.
    (tmp_path / "config.json").write_text(json.dumps(settings))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    released, from_folder = (load_xrv(name, device=CPU, cache=cache) for name in (RELEASED, str(tmp_path)))
    mass = logits[ours.heads.index("Lung Lesion")]
    expected = pytest.approx(math.log(torch.sigmoid(mass).item()), abs=1e-5)
    assert released(radiograph, stating("Lung Lesion")).item() == expected
    assert from_folder(radiograph, stating("Lung Lesion")).item() == expected


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
    reward(torch.full((1, 1, 64, 64), 0.5), stating("Atelectasis"))  # of another size, and without contrast
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
def test_a_wrong_configuration_is_refused(folder: Path, tmp_path: Path, config: object, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        load_xrv(str(tmp_path), device=CPU)


def test_a_folder_that_cannot_be_loaded_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder, and no released torchxrayvision weights"):
        load_xrv("no-such-weights", device=CPU, cache=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"targets": TARGETS}))
    save_file({"features.conv0.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="cannot be loaded as a torchxrayvision classifier"):
        load_xrv(str(tmp_path), device=CPU)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_xrv(str(tmp_path), device=CPU)


DENSENET = "densenet121-res224-all"


class _Exploit:
    """A pickle of this runs a shell command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def pickled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a whole DenseNet object, which is how torchxrayvision releases its own."""
    cache = tmp_path_factory.mktemp("densenet")
    torch.manual_seed(0)
    whole = DenseNet(num_classes=18)
    whole.features.conv0.weight.data /= 1024
    file = released_weights(DENSENET, cache)
    assert file is not None
    torch.save(whole, file)
    return cache


def test_a_pickled_object_loads_only_with_its_stated_hash(pickled: Path) -> None:
    file = released_weights(DENSENET, pickled)
    assert file is not None
    with pytest.raises(
        ModelError, match=f"pickled Python object.*\n.*safetensors.*\n.*{DENSENET}@sha256:{sha256(file)}"
    ):
        load_xrv(DENSENET, device=CPU, cache=pickled)
    with pytest.raises(ModelError, match=f"SHA-256 is {sha256(file)}\n.*{'0' * 64}"):
        load_xrv(f"{DENSENET}@sha256:{'0' * 64}", device=CPU, cache=pickled)
    reward = load_xrv(f"{DENSENET}@sha256:{sha256(file)}", device=CPU, cache=pickled)
    theirs = DenseNet(weights=DENSENET, cache_dir=str(pickled))
    ours = XrvClassifier(theirs, device=CPU)
    effusion = ours.logits(images())[:, ours.heads.index("Pleural Effusion")]
    values = reward(images(), stating("Pleural Effusion", "Pleural Effusion"))
    assert torch.allclose(values, torch.nn.functional.logsigmoid(effusion), atol=1e-5)


@pytest.mark.parametrize("pin", ["", f"@sha256:{'0' * 64}"])
@pytest.mark.parametrize("name", [DENSENET, RELEASED, "pspnet"])
def test_code_in_a_downloaded_file_never_runs(name: str, pin: str, tmp_path: Path) -> None:
    planted, ran = tmp_path / "cache", tmp_path / "ran"
    planted.mkdir()
    file = released_segmentation(planted) if name == "pspnet" else released_weights(name, planted)
    assert file is not None
    file.write_bytes(pickle.dumps(_Exploit(f"touch {ran}"), protocol=2))
    with pytest.raises(ModelError, match=r"pickled Python object|SHA-256 is"):
        (load_lung_posture if name == "pspnet" else load_xrv)(name + pin, device=CPU, cache=planted)
    assert not ran.exists()


def test_a_stated_hash_is_checked_for_plain_weights_too(cache: Path) -> None:
    file = released_weights(RELEASED, cache)
    assert file is not None
    assert load_xrv(f"{RELEASED}@sha256:{sha256(file).upper()}", device=CPU, cache=cache)
    with pytest.raises(ModelError, match="SHA-256 is"):
        load_xrv(f"{RELEASED}@sha256:{'1' * 64}", device=CPU, cache=cache)
    with pytest.raises(ModelError, match="not a SHA-256"):
        load_xrv(f"{RELEASED}@sha256:abc", device=CPU, cache=cache)
