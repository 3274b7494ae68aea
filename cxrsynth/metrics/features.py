"""Features to compare images in: of a reward model, a torchxrayvision network, or a transformers image encoder."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchxrayvision.models import DenseNet
from transformers import AutoImageProcessor, AutoModel

from cxrsynth.errors import ModelError
from cxrsynth.rewards.backends import FAMILIES, family_folder
from cxrsynth.rewards.networks import FindingClassifier
from cxrsynth.rewards.xrv import load_network, xrv_images

_XRV = "xrv:"
_EXPECTED = (
    f"{', '.join(FAMILIES)}, xrv:<released weights, or a folder of them>, a folder laid out like a family of reward "
    "models, or a transformers folder of an image encoder"
)
_UNUSABLE = (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError)


@dataclass(frozen=True)
class Extractor:
    """Images to features, without gradient; up to rounding, an image's features do not depend on its batch.

    `name` is the one given to `load_extractor`, `digest` the SHA-256 of weights and settings, `width` the number of
    features.
    """

    name: str
    digest: str
    width: int
    _encode: Callable[[Tensor], Tensor] = field(repr=False)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, 1, H, W] float32 in [0, 1] -> [B, D] float32, on the CPU.

        Raises:
            ValueError: for any other images.
        """
        if images.dim() != 4 or images.shape[1] != 1 or images.dtype != torch.float32:
            raise ValueError(f"images {tuple(images.shape)} of {images.dtype}, expected [B, 1, H, W] float32")
        if len(images) and not (images.amin() >= 0 and images.amax() <= 1):
            raise ValueError("images hold values outside [0, 1], or none that are numbers")
        return self._encode(images).float().cpu()


def load_extractor(name: str, *, device: torch.device) -> Extractor:
    """Load an extractor.

    Args:
        name: a family of reward models (`nano`, `nano-judge`, or a folder laid out like one): its classifier's trunk;
            `xrv:` and the name of released torchxrayvision DenseNet weights, or a folder of them; a transformers folder
            of an image encoder (`AutoModel` with `AutoImageProcessor`: RAD-DINO, CLIP, SigLIP), in safetensors.
        device: where it runs.

    Raises:
        ModelError: if there is none of that name, or it cannot be loaded, or its features are random or not finite.
    """
    family = family_folder(name)
    if family is not None:
        encode, weights = _of_family(family / "classifier", device)
    elif name.startswith(_XRV) or _has_targets(Path(name)):
        encode, weights = _of_xrv(name.removeprefix(_XRV), device)
    elif Path(name).is_dir():
        encode, weights = _of_transformers(Path(name), device)
    else:
        raise ModelError(f"features {name!r}: unknown, and no such folder\n  expected: {_EXPECTED}")
    return Extractor(name, _digest(weights + _settings_beside(weights[0])), _probed_width(name, encode), encode)


def _of_family(folder: Path, device: torch.device) -> tuple[Callable[[Tensor], Tensor], list[Path]]:
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ModelError(
            f"{folder}: no model.safetensors\n  expected: the classifier of a reward model, with config.json"
        )
    try:
        # Strict: otherwise tensors missing from the file would keep their random initial values.
        classifier = FindingClassifier.from_pretrained(folder, local_files_only=True, strict=True).eval().to(device)
    except _UNUSABLE as error:
        raise ModelError(f"{folder}: cannot be loaded as the classifier of a reward model: {error}") from None
    return lambda images: classifier.trunk(images.to(device)), [weights]


def _of_xrv(name: str, device: torch.device) -> tuple[Callable[[Tensor], Tensor], list[Path]]:
    folder = Path(name)
    network = load_network(name)
    if not isinstance(network, DenseNet):
        raise ModelError(f"{name}: {type(network).__name__}\n  expected: weights of a torchxrayvision DenseNet")
    weights = folder / "model.safetensors" if folder.is_dir() else Path(network.weights_filename_local)
    network.eval().to(device)
    side = int(network.input_resolution)

    def encode(images: Tensor) -> Tensor:
        # The library's `features2`, without its prints.
        return F.relu(network.features(xrv_images(images.to(device), side))).mean((2, 3))

    return encode, [weights]


def _of_transformers(folder: Path, device: torch.device) -> tuple[Callable[[Tensor], Tensor], list[Path]]:
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        model, loading = AutoModel.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **local
        )
        processor = AutoImageProcessor.from_pretrained(folder, **local)
    except _UNUSABLE as error:
        raise ModelError(
            f"{folder}: cannot be loaded as an image encoder: {error}\n"
            "  expected: a transformers folder of config.json, preprocessor_config.json and weights in safetensors"
        ) from None
    missing = set(loading["missing_keys"])
    untrained = sorted(name for name in missing if "pooler" not in name)
    if untrained:
        raise ModelError(f"{folder}: {len(untrained)} tensors are not in its weights, such as {untrained[0]}")
    # CLIP and SigLIP have their image encoder in a submodule.
    encoder = getattr(model, "vision_model", model).eval().to(device)

    def encode(images: Tensor) -> Tensor:
        # Their processors expect RGB: the gray image three times, already scaled to [0, 1].
        colored = [image.expand(3, -1, -1).cpu() for image in images]
        pixels = processor(images=colored, do_rescale=False, return_tensors="pt").pixel_values
        return _pooled(encoder(pixel_values=pixels.to(device)), trained=not missing)

    return encode, _weight_files(folder)


def _pooled(output: Any, *, trained: bool) -> Tensor:
    """Pooled output [B, D]; the class token if there is none, or if the pooling was never trained."""
    pooled = getattr(output, "pooler_output", None)
    chosen: Tensor = pooled if pooled is not None and trained else output.last_hidden_state
    if chosen.dim() == 3:
        return chosen[:, 0]
    return chosen.mean((2, 3)) if chosen.dim() == 4 else chosen


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads: one, or the parts that its index names."""
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("model-*.safetensors"))


def _has_targets(folder: Path) -> bool:
    """Whether a folder's configuration is that of a torchxrayvision classifier, not of a transformers model."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "targets" in config


def _settings_beside(weights: Path) -> list[Path]:
    """The files that say how the weights are used: another size or mean gives other features."""
    named = (weights.with_name(name) for name in ("config.json", "preprocessor_config.json"))
    return [path for path in named if path.is_file()]


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _probed_width(name: str, encode: Callable[[Tensor], Tensor]) -> int:
    """Width of the features, by a trial; refuses encoders with random masks (masked autoencoders)."""
    trial = torch.linspace(0, 1, 64 * 64).reshape(1, 1, 64, 64)
    try:
        with torch.inference_mode():
            first, again = encode(trial), encode(trial)
    except (*_UNUSABLE, AttributeError) as error:
        raise ModelError(f"features {name!r}: it cannot encode an image: {error}\n  expected: {_EXPECTED}") from None
    if first.dim() != 2 or not first.isfinite().all():
        raise ModelError(f"features {name!r}: {tuple(first.shape)} for one image, expected one finite vector")
    if not torch.equal(first, again):
        raise ModelError(
            f"features {name!r}: different features each time for the same image\n"
            "  expected: an encoder without random masks, such as RAD-DINO, CLIP or SigLIP"
        )
    return int(first.shape[1])
