"""Feature extractors: a reward model's trunk, a torchxrayvision network, or any image encoder of transformers."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchxrayvision.models import DenseNet
from transformers import AutoImageProcessor, AutoModel

from cxrsynth.errors import ModelError, in_words
from cxrsynth.rewards.backends import FAMILIES, family_folder, transformers_folder
from cxrsynth.rewards.networks import FindingClassifier
from cxrsynth.rewards.xrv import load_network, released_weights, xrv_images
from cxrsynth.rewards.xrv_weights import ReleasedName
from cxrsynth.runtime.files import read_json
from cxrsynth.runtime.pretrained import LOADING_ERRORS, load_pretrained, load_processor

_XRV = "xrv:"
_ENCODER = "an image encoder"
_Loaded = tuple[nn.Module, Callable[[Tensor], Tensor], list[Path]]
_EXPECTED = (
    f"{', '.join(FAMILIES)}, xrv:<released weights, or a folder of them>, a folder laid out like a reward family, "
    "or an image encoder of transformers: a folder, or a hub id owner/name@revision"
)


@dataclass(frozen=True)
class Extractor:
    """Images to features, without gradient; an image's features do not depend on its batch, up to rounding.

    `name` is the name it was loaded by, `digest` the SHA-256 of weights and settings, `width` the number of features.
    To train it on, `encode` does the same with gradient, through the weights of `network`, which may hold more.
    """

    name: str
    digest: str
    width: int
    encode: Callable[[Tensor], Tensor] = field(repr=False)
    network: nn.Module = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """Name, digest and width, as in summary.json."""
        return {"name": self.name, "digest": self.digest, "width": self.width}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, 1, H, W] float32 in [0, 1] -> [B, D] float32, on the CPU.

        Raises:
            ValueError: for any other images.
            ModelError: if features are not finite.
        """
        if images.dim() != 4 or images.shape[1] != 1 or images.dtype != torch.float32:
            raise ValueError(f"images {tuple(images.shape)} of {images.dtype}, expected [B, 1, H, W] float32")
        if len(images) and not (images.amin() >= 0 and images.amax() <= 1):
            raise ValueError("images contain values outside [0, 1], or values that are not numbers")
        features = self.encode(images).float().cpu()
        check_finite(features, f"the features of {self.name}")
        return features


def check_finite(outputs: Tensor, what: str) -> None:
    """Raises ModelError for outputs [B, D] of a network that are not finite: no measure can be made of them."""
    bad = int((~outputs.isfinite().all(1)).sum())
    if bad:
        raise ModelError(
            f"{what}: not finite for {bad} of {len(outputs)} images\n"
            "  expected: finite numbers for every image. The weights may be damaged, or overflow in half precision"
        )


def load_extractor(name: str, *, device: torch.device, role: str = "features") -> Extractor:
    """Load an extractor.

    Args:
        name: a reward family (`nano`, `nano-judge`, or a folder laid out like one): its classifier's trunk; `xrv:` and
            released torchxrayvision DenseNet weights, with the SHA-256 of their file
            (`xrv:densenet121-res224-all@sha256:<digest>`), or a folder of them; a transformers folder or hub id
            `owner/name@revision` of an image encoder (`AutoModel` with `AutoImageProcessor`: RAD-DINO, CLIP, SigLIP),
            in safetensors.
        device: where it runs.
        role: what it is to be, for messages.

    Raises:
        ModelError: if there is none of that name, or it cannot be loaded, or the same image gives other features each
            time.
    """
    family = family_folder(name)
    if family is not None:
        network, encode, weights = _of_family(family / "classifier", device)
    elif name.startswith(_XRV) or _has_targets(Path(name)):
        network, encode, weights = _of_xrv(name.removeprefix(_XRV), device)
    else:
        folder = transformers_folder(name)
        if folder is None:
            raise ModelError(f"{role} {name!r}: unknown, and no such folder\n  expected: {_EXPECTED}")
        network, encode, weights = _of_transformers(folder, device)
    digest = _digest(weights + _settings_beside(weights[0]))
    return Extractor(name, digest, _probed_width(f"{role} {name!r}", encode), encode, network)


def _of_family(folder: Path, device: torch.device) -> _Loaded:
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ModelError(f"{folder}: no model.safetensors\n  expected: a finding classifier, with config.json")
    try:
        classifier = FindingClassifier.from_pretrained(folder).eval().to(device)
    except LOADING_ERRORS as error:
        raise ModelError(f"{folder}: cannot be loaded as a finding classifier: {in_words(error)}") from None
    return classifier.trunk, lambda images: classifier.trunk(images.to(device)), [weights]


def _of_xrv(name: str, device: torch.device) -> _Loaded:
    folder = Path(name)
    network = load_network(name)
    if not isinstance(network, DenseNet):
        raise ModelError(
            f"{name}: another network of torchxrayvision\n  expected: weights of a torchxrayvision DenseNet"
        )
    released = released_weights(ReleasedName.parse(name).name)
    weights = folder / "model.safetensors" if folder.is_dir() or released is None else released
    network.eval().to(device)
    side = int(network.input_resolution)

    def encode(images: Tensor) -> Tensor:
        # The library's `features2`, which also prints.
        return F.relu(network.features(xrv_images(images.to(device), side))).mean((2, 3))

    return network, encode, [weights]


def _of_transformers(folder: Path, device: torch.device) -> _Loaded:
    # A pooler is a head that pretraining may leave out; so is all of a classifier beyond its encoder.
    model, missing = load_pretrained(AutoModel, folder, role=_ENCODER, may_miss=("pooler",), may_hold=None)
    processor = load_processor(AutoImageProcessor, folder, role=_ENCODER)
    # CLIP and SigLIP hold their image encoder as a part.
    encoder = getattr(model, "vision_model", model).to(device)

    def encode(images: Tensor) -> Tensor:
        # The processors expect RGB: the gray image three times, already scaled to [0, 1].
        rgb = [image.expand(3, -1, -1).cpu() for image in images]
        pixels = processor(images=rgb, do_rescale=False, return_tensors="pt").pixel_values
        return _pooled(encoder(pixel_values=pixels.to(device)), trained=not missing)

    return encoder, encode, _weight_files(folder)


def _pooled(output: Any, *, trained: bool) -> Tensor:
    """Pooled output [B, D]; the class token where there is no pooling, or where its weights were never trained."""
    pooled = getattr(output, "pooler_output", None)
    chosen: Tensor = pooled if pooled is not None and trained else output.last_hidden_state
    if chosen.dim() == 3:
        return chosen[:, 0]
    return chosen.mean((2, 3)) if chosen.dim() == 4 else chosen


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads: one, or all, where these are the parts that an index names or a variant."""
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))


def _has_targets(folder: Path) -> bool:
    """Whether a folder's configuration is that of a torchxrayvision classifier, not of a transformers model."""
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "targets" in config


def _settings_beside(weights: Path) -> list[Path]:
    """Settings that decide the features: the same weights with another input size or mean give others."""
    named = (weights.with_name(name) for name in ("config.json", "preprocessor_config.json"))
    return [path for path in named if path.is_file()]


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _probed_width(what: str, encode: Callable[[Tensor], Tensor]) -> int:
    """Number of features, by a test image; refuses encoders that mask at random (MAE) or return no vector."""
    radiograph = torch.linspace(0, 1, 64 * 64).reshape(1, 1, 64, 64)
    try:
        with torch.inference_mode():
            first, again = encode(radiograph), encode(radiograph)
    except LOADING_ERRORS as error:
        raise ModelError(f"{what}: cannot encode an image: {in_words(error)}\n  expected: {_EXPECTED}") from None
    if first.dim() != 2 or not first.isfinite().all():
        raise ModelError(f"{what}: {tuple(first.shape)} for one image, expected one finite vector")
    if not torch.equal(first, again):
        raise ModelError(
            f"{what}: the same image has other features each time\n"
            "  expected: an encoder without random masks, such as RAD-DINO, CLIP or SigLIP"
        )
    return int(first.shape[1])
