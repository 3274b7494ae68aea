"""torchxrayvision's pathology classifiers as a judge of diagnosis."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torchxrayvision.models import DenseNet, get_model

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
    that were never trained. Here untrained heads are left out, and a logit of 0 is the operating point.

    Args:
        network: `torchxrayvision.models.DenseNet` or `ResNet`, with `targets` (empty names were never trained).
        device: where it runs.
    """

    def __init__(self, network: Any, *, device: torch.device) -> None:
        self._network = network.eval().to(device)
        self._device = device
        targets = list(network.targets)
        thresholds = getattr(network, "op_threshs", None)
        network.op_threshs, network.apply_sigmoid = None, False
        found = {name: next((t for t in heads if t in targets), None) for name, heads in _HEADS.items()}
        self.heads = tuple(name for name, target in found.items() if target)
        self._places = torch.tensor([targets.index(target) for target in found.values() if target])
        points = torch.full((len(targets),), 0.5) if thresholds is None else thresholds.float().cpu()
        # A head without a threshold on record is taken at probability one half.
        self._offset = points.nan_to_num(0.5).logit()[self._places]

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """[B, 1, H, W] in [0, 1] -> [B, len(heads)], 0 at each head's operating point."""
        # Its films are square and in [-1024, 1024]; it resamples to its own resolution itself.
        scores: Tensor = self._network((images.to(self._device) * 2 - 1) * 1024)
        return scores.float().cpu()[:, self._places] - self._offset


def load_xrv(name: str, *, device: torch.device, cache: Path | None = None) -> DiagnosisReward:
    """A diagnosis reward by the name of released weights, or from a folder with safetensors.

    Args:
        name: as `densenet121-res224-all` (fetched by torchxrayvision into `cache`), or a folder of `config.json`
            (`{"targets": [...], "op_threshs": [...]}`) and `model.safetensors`, the state of a DenseNet-121.
        device: where it runs.
        cache: torchxrayvision's own cache where None.

    Raises:
        ModelError: if there is no such name or folder, or it cannot be loaded.
    """
    network = _from_folder(Path(name)) if Path(name).is_dir() else _released(name, cache)
    classifier = XrvClassifier(network, device=device)
    return DiagnosisReward(classifier.logits, classifier.heads)


def _from_folder(folder: Path) -> Any:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        targets = [str(target) for target in config["targets"]]
        thresholds = config.get("op_threshs")
        network = DenseNet(
            num_classes=len(targets), op_threshs=None if thresholds is None else torch.tensor(thresholds).float()
        )
        # The thresholds are the configuration's: a state dict that holds them too says nothing new.
        state = {key: value for key, value in load_file(folder / "model.safetensors").items() if key != "op_threshs"}
        missing, unexpected = network.load_state_dict(state, strict=False)
        if [key for key in missing if key != "op_threshs"] or unexpected:
            raise ValueError("its tensors are not those of torchxrayvision's DenseNet-121")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(
            f"{folder}: cannot be loaded as a torchxrayvision classifier: {error}\n"
            '  expected: config.json with "targets" (and "op_threshs"), model.safetensors of a DenseNet-121'
        ) from None
    network.targets = targets
    network.input_resolution = int(config.get("input_resolution", 224))
    return network


def _released(name: str, cache: Path | None) -> Any:
    try:
        return get_model(name, **({} if cache is None else {"cache_dir": str(cache)}))
    except Exception as error:  # the library raises bare Exception, and whatever a failed download gives
        raise ModelError(
            f"{name}: no such folder, and torchxrayvision could not load it ({type(error).__name__})\n"
            "  expected: a folder with safetensors, or released weights such as densenet121-res224-all"
        ) from None
