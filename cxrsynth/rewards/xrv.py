"""torchxrayvision's pathology classifiers as reward models for diagnosis."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from safetensors import SafetensorError
from torch import Tensor, nn
from torchxrayvision.models import DenseNet, model_urls

from cxrsynth.errors import ModelError, in_words
from cxrsynth.rewards.diagnosis import DiagnosisReward
from cxrsynth.rewards.xrv_weights import ReleasedName, cached_file, folder_state, released_state
from cxrsynth.runtime.files import read_json

# Where several heads stand for one observation, the first trained one is used.
_HEADS = {
    "Enlarged Cardiomediastinum": ("Enlarged Cardiomediastinum",),
    "Cardiomegaly": ("Cardiomegaly",),
    "Lung Opacity": ("Lung Opacity", "Infiltration"),
    "Lung Lesion": ("Lung Lesion", "Mass", "Nodule"),
    "Edema": ("Edema",),
    "Consolidation": ("Consolidation",),
    "Pneumonia": ("Pneumonia",),
    "Atelectasis": ("Atelectasis",),
    "Pneumothorax": ("Pneumothorax",),
    "Pleural Effusion": ("Effusion",),
    "Pleural Other": ("Pleural_Thickening",),
    "Fracture": ("Fracture",),
}


class XrvClassifier:
    """A torchxrayvision classifier whose trained heads are renamed to observations.

    The library's own forward pass maps scores so that 0.5 is a head's operating point, not a probability, and returns
    0.5 for heads without an operating point, which were never trained. Here untrained heads are dropped, and a logit of
    0 is the operating point.

    Args:
        network: `torchxrayvision.models.DenseNet` or `ResNet`, or the torchvision network within the latter; with
            `targets` (empty names were never trained), `input_resolution`, and `op_threshs`. Where `op_threshs` is
            None, every named head counts as trained, with its operating point at probability one half.
        device: where it runs.
    """

    def __init__(self, network: Any, *, device: torch.device) -> None:
        self._network = network.eval().to(device)
        self._device = device
        targets = list(network.targets)
        thresholds = getattr(network, "op_threshs", None)
        network.op_threshs, network.apply_sigmoid = None, False
        # With a resolution of its own it would resample, and print that it does; `xrv_images` has resampled already.
        self._size = int(network.input_resolution)
        del network.input_resolution
        points = torch.full((len(targets),), 0.5) if thresholds is None else thresholds.float().cpu()
        trained = [target for target, point in zip(targets, points.tolist(), strict=True) if point == point]
        found = {name: next((t for t in heads if t in trained), None) for name, heads in _HEADS.items()}
        self.heads = tuple(name for name, target in found.items() if target)
        self._head_indices = torch.tensor(
            [targets.index(target) for target in found.values() if target], dtype=torch.long
        )
        self._offset = points.logit()[self._head_indices]

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """[B, 1, H, W] in [0, 1] -> [B, len(heads)], 0 at each head's operating point."""
        scores: Tensor = self._network(xrv_images(images.to(self._device), self._size))
        return scores.float().cpu()[:, self._head_indices] - self._offset


def xrv_images(images: Tensor, size: int) -> Tensor:
    """Normalize images [B, 1, H, W] in [0, 1] to torchxrayvision's range and size: [B, 1, size, size], [-1024, 1024].

    Raises:
        ValueError: if values lie outside [0, 1].
    """
    if len(images) and not (images.amin() >= 0 and images.amax() <= 1):
        raise ValueError("images hold values outside [0, 1], or none that are numbers")
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return (images * 2 - 1) * 1024


def load_xrv(name: str, *, device: torch.device, cache: Path | None = None) -> DiagnosisReward:
    """A diagnosis reward from released weights or from a folder with safetensors.

    Args:
        name: released weights such as `resnet50-res512-all` or `densenet121-res224-all@sha256:<digest of the file>`
            (downloaded by torchxrayvision into `cache`; DenseNets are pickled, so they need the digest), or a folder
            of `config.json` (`{"architecture": "densenet121" or "resnet50", "targets": [...], "op_threshs": [...],
            "input_resolution": 224}`) and `model.safetensors`, the `state_dict()` of torchxrayvision's `DenseNet` or
            `ResNet`.
        device: where it runs.
        cache: torchxrayvision's own cache where None.

    Raises:
        ModelError: if there is no such name or folder, or it cannot be loaded or trusted.
    """
    classifier = XrvClassifier(load_network(name, cache=cache), device=device)
    if not classifier.heads:
        raise ModelError(f"{name}: none of its targets is a finding of the reports\n  expected: {', '.join(_HEADS)}")
    return DiagnosisReward(classifier.logits, classifier.heads)


def load_network(name: str, *, cache: Path | None = None) -> Any:
    """The torchxrayvision classifier itself, on the CPU, by name or folder as for `load_xrv`.

    Its `DenseNet`, or the torchvision network within its `ResNet`; with `targets`, `op_threshs` and
    `input_resolution`.

    Raises:
        ModelError: if there is no such name or folder, or it cannot be loaded or trusted.
    """
    return _from_folder(Path(name)) if Path(name).is_dir() else _released(ReleasedName.parse(name), cache)


def released_weights(name: str, cache: Path | None = None) -> Path | None:
    """The file into which torchxrayvision downloads these weights; None where it has no such name."""
    return cached_file(str(model_urls[name]["weights_url"]), cache) if name in model_urls else None


def _densenet121(heads: int) -> nn.Module:
    network: nn.Module = DenseNet(num_classes=heads)
    return network


def _resnet50(heads: int) -> nn.Module:
    """The network within torchxrayvision's `ResNet`, whose constructor takes released weights only."""
    network: nn.Module = torchvision.models.resnet50(num_classes=heads)
    network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return network


# Each constructor takes the number of heads; beside it, the side in pixels its released weights were trained on.
_ARCHITECTURES: dict[str, tuple[Callable[[int], nn.Module], int]] = {
    "densenet121": (_densenet121, 224),
    "resnet50": (_resnet50, 512),
}


def _from_folder(folder: Path) -> Any:
    try:
        config: dict[str, Any] = read_json(folder / "config.json")
        make, resolution = _ARCHITECTURES[config.get("architecture", "densenet121")]
        targets = [str(target) for target in config["targets"]]
        network = _network(make, len(targets), folder_state(folder))
        thresholds = config.get("op_threshs")
        network.op_threshs = None if thresholds is None else _thresholds(thresholds, len(targets))
        network.input_resolution = int(config.get("input_resolution", resolution))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: cannot be loaded as a torchxrayvision classifier: {in_words(error)}\n"
            f'  expected: config.json with "targets" (and "architecture": {" or ".join(_ARCHITECTURES)}, "op_threshs"),'
            " and model.safetensors of that architecture"
        ) from None
    network.targets = targets
    return network


def _thresholds(values: list[float | None], heads: int) -> Tensor:
    """Operating points as probabilities [heads]; nan or null in the file for heads that were never trained."""
    points = torch.tensor([torch.nan if value is None else float(value) for value in values])
    if len(points) != heads or ((points <= 0) | (points >= 1)).any():
        raise ValueError(f'"op_threshs" must be {heads} probabilities between 0 and 1, one for each target, or null')
    return points


def _released(released: ReleasedName, cache: Path | None) -> Any:
    kind = next((kind for kind in _ARCHITECTURES if released.name.startswith(f"{kind}-")), None)
    if kind is None or released.name not in model_urls:
        known = [name for name in model_urls if name.startswith(tuple(_ARCHITECTURES))]
        raise ModelError(
            f"{released.name}: no such folder, and no released torchxrayvision weights\n"
            f"  expected: a folder with safetensors, or one of {', '.join(known)}"
        )
    entry, (make, resolution) = model_urls[released.name], _ARCHITECTURES[kind]
    state = released_state(released, str(entry["weights_url"]), cache=cache)
    try:
        network = _network(make, len(entry["labels"]), state)
    except RuntimeError as error:
        raise ModelError(f"{released.name}: the released file does not fit {kind}: {in_words(error)}") from None
    network.targets = list(entry["labels"])
    thresholds = entry.get("op_threshs")
    network.op_threshs = None if thresholds is None else torch.tensor(thresholds)
    network.input_resolution = int(entry.get("input_resolution", resolution))
    return network


def _network(make: Callable[[int], nn.Module], heads: int, state: dict[str, Tensor]) -> Any:
    with torch.device("meta"):  # the state holds every weight
        network = make(heads)
    network.load_state_dict(state, assign=True)
    return network.eval()
