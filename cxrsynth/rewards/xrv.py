"""torchxrayvision's pathology classifiers as a judge of diagnosis."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torchxrayvision.models import DenseNet, get_model, model_urls
from torchxrayvision.utils import get_cache_dir

from cxrsynth.errors import ModelError
from cxrsynth.rewards.diagnosis import DiagnosisReward

# Several of its heads answer for one observation: the first that was trained is asked.
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
    """A torchxrayvision classifier, its trained heads renamed to observations.

    Its own forward maps scores so that 0.5 is a head's operating point, not a probability, and answers 0.5 for heads
    without a point, which were never trained. Here those are left out, and a logit of 0 is the operating point.

    Args:
        network: `torchxrayvision.models.DenseNet` or `ResNet`, or the torchvision network within the latter; with
            `targets` (empty names were never trained), `input_resolution`, and `op_threshs` or None: then every named
            head was trained, and its point is probability one half.
        device: where it runs.
    """

    def __init__(self, network: Any, *, device: torch.device) -> None:
        self._network = network.eval().to(device)
        self._device = device
        targets = list(network.targets)
        thresholds = getattr(network, "op_threshs", None)
        network.op_threshs, network.apply_sigmoid = None, False
        # Without a resolution of its own it neither resamples nor prints about it: `xrv_images` does the former.
        self._size = int(network.input_resolution)
        del network.input_resolution
        points = torch.full((len(targets),), 0.5) if thresholds is None else thresholds.float().cpu()
        trained = [target for target, point in zip(targets, points.tolist(), strict=True) if point == point]
        found = {name: next((t for t in heads if t in trained), None) for name, heads in _HEADS.items()}
        self.heads = tuple(name for name, target in found.items() if target)
        self._places = torch.tensor([targets.index(target) for target in found.values() if target], dtype=torch.long)
        self._offset = points.logit()[self._places]

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """[B, 1, H, W] in [0, 1] -> [B, len(heads)], 0 at each head's operating point."""
        scores: Tensor = self._network(xrv_images(images.to(self._device), self._size))
        return scores.float().cpu()[:, self._places] - self._offset


def xrv_images(images: Tensor, size: int) -> Tensor:
    """Images [B, 1, H, W] in [0, 1] as torchxrayvision wants its images: [B, 1, size, size] in [-1024, 1024].

    Raises:
        ValueError: if values lie outside [0, 1].
    """
    if len(images) and not (images.amin() >= 0 and images.amax() <= 1):
        raise ValueError("images hold values outside [0, 1], or none that are numbers")
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return (images * 2 - 1) * 1024


def load_xrv(name: str, *, device: torch.device, cache: Path | None = None) -> DiagnosisReward:
    """A diagnosis reward by the name of released weights, or from a folder with safetensors.

    Args:
        name: as `densenet121-res224-all` or `resnet50-res512-all` (fetched by torchxrayvision into `cache`, in its own
            file format), or a folder of `config.json` (`{"architecture": "densenet121" or "resnet50", "targets": [...],
            "op_threshs": [...], "input_resolution": 224}`) and `model.safetensors`, the `state_dict()` of
            torchxrayvision's `DenseNet` or `ResNet`.
        device: where it runs.
        cache: torchxrayvision's own cache where None.

    Raises:
        ModelError: if there is no such name or folder, or it cannot be loaded.
    """
    classifier = XrvClassifier(load_network(name, cache=cache), device=device)
    if not classifier.heads:
        raise ModelError(f"{name}: none of its targets is a finding of the reports\n  expected: {', '.join(_HEADS)}")
    return DiagnosisReward(classifier.logits, classifier.heads)


def load_network(name: str, *, cache: Path | None = None) -> Any:
    """A torchxrayvision classifier itself, on the CPU, by name or folder as for `load_xrv`.

    Its own `DenseNet` or `ResNet`, or from a folder what the latter holds, torchvision's; with `targets`, `op_threshs`
    and `input_resolution`.

    Raises:
        ModelError: if there is no such name or folder, or it cannot be loaded.
    """
    return _from_folder(Path(name)) if Path(name).is_dir() else _released(name, cache)


def released_weights(name: str, cache: Path | None = None) -> Path | None:
    """The file into which torchxrayvision fetches these weights, None where it knows no such name."""
    if name not in model_urls:
        return None
    return (cache or Path(get_cache_dir())) / str(model_urls[name]["weights_url"]).rsplit("/", 1)[-1]


def network_state(path: Path) -> dict[str, Tensor]:
    """A network's weights from safetensors, float32, named as in the network that torchxrayvision's class holds."""
    # Its ResNet and PSPNet keep theirs as `model`. Operating points are the configuration's to say.
    state = {key.removeprefix("model."): value for key, value in load_file(path).items() if key != "op_threshs"}
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _densenet121(heads: int) -> nn.Module:
    network: nn.Module = DenseNet(num_classes=heads)
    return network


def _resnet50(heads: int) -> nn.Module:
    """What torchxrayvision's `ResNet` holds: its constructor takes released weights only."""
    network: nn.Module = torchvision.models.resnet50(num_classes=heads)
    network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return network


# How each is made for so many heads, and the pixels on a side its released weights were trained on.
_ARCHITECTURES: dict[str, tuple[Callable[[int], nn.Module], int]] = {
    "densenet121": (_densenet121, 224),
    "resnet50": (_resnet50, 512),
}


def _from_folder(folder: Path) -> Any:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        make, resolution = _ARCHITECTURES[config.get("architecture", "densenet121")]
        targets = [str(target) for target in config["targets"]]
        with torch.device("meta"):  # the file has all weights there are
            network: Any = make(len(targets))
        network.load_state_dict(network_state(folder / "model.safetensors"), assign=True)
        thresholds = config.get("op_threshs")
        network.op_threshs = None if thresholds is None else _thresholds(thresholds, len(targets))
        network.input_resolution = int(config.get("input_resolution", resolution))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelError(
            f"{folder}: cannot be loaded as a torchxrayvision classifier: {error}\n"
            f'  expected: config.json with "targets" (and "architecture": {" or ".join(_ARCHITECTURES)}, "op_threshs"),'
            " and model.safetensors of that architecture"
        ) from None
    network.targets = targets
    return network


def _thresholds(values: list[float | None], heads: int) -> Tensor:
    """Operating points as probabilities, nan or null for heads that were never trained; [heads]."""
    points = torch.tensor([torch.nan if value is None else float(value) for value in values])
    if len(points) != heads or ((points <= 0) | (points >= 1)).any():
        raise ValueError(f'"op_threshs" must be {heads} probabilities between 0 and 1, one for each target, or null')
    return points


def _released(name: str, cache: Path | None) -> Any:
    try:
        return get_model(name, **({} if cache is None else {"cache_dir": str(cache)}))
    except Exception as error:  # the library raises bare Exception, and whatever a failed download gives
        raise ModelError(
            f"{name}: no such folder, and torchxrayvision could not load it ({type(error).__name__})\n"
            "  expected: a folder with safetensors, or released weights such as densenet121-res224-all"
        ) from None
