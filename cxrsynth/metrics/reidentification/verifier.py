"""A verifier: a network that tells whether two radiographs show the same patient, by the cosine of their embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxrsynth.errors import ModelError, in_words
from cxrsynth.metrics.features import Extractor, load_extractor
from cxrsynth.rewards.networks import SavedNetwork, Trunk
from cxrsynth.runtime.files import file_sha256
from cxrsynth.runtime.pretrained import LOADING_ERRORS, read_settings
from cxrsynth.settings import DEFAULT_VERIFIER

_WEIGHTS = "model.safetensors"


class PatientVerifier(nn.Module, SavedNetwork):
    """Embeddings of radiographs: those of one patient are closer to each other than to those of others.

    Args:
        trunk: arguments of `Trunk`.
        width: D, numbers of an embedding.
        held_out: how well it tells patients apart on whom it was not trained, as `measure_verifier` gives it.

    Source: a Siamese network, as Packhaeuser et al., Scientific Reports 12:14851 (2022), compare radiographs; trained
    by its build with a contrastive loss.
    """

    def __init__(self, trunk: dict[str, Any], width: int, held_out: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.trunk = Trunk(**trunk)
        self.head = nn.Linear(self.trunk.features, width)
        self.held_out = held_out

    def forward(self, images: Tensor) -> Tensor:
        """[B, 1, H, W] in [0, 1] -> [B, D], of length 1."""
        return F.normalize(self.head(self.trunk(images)), dim=-1)


@dataclass(frozen=True)
class Verifier:
    """Embeddings [B, D] of images, compared by cosine, and what is known of how well they tell patients apart.

    `settings` is the SHA-256 of the network's settings, on which embeddings depend as on the weights; empty where the
    digest of `embed` covers them.
    """

    embed: Extractor
    held_out: Mapping[str, Any] | None = None
    settings: str = ""


def packaged_verifier() -> Path:
    """Where the package has its verifier."""
    return Path(str(files("cxrsynth") / "nano" / "assets" / "verifier"))


def load_verifier(name: str, *, device: torch.device) -> Verifier:
    """Load a verifier.

    Args:
        name: `nano`, the package's; a folder that `PatientVerifier` saved; or any image encoder that `load_extractor`
            loads, whose features are then compared by cosine.
        device: where it runs.

    Raises:
        ModelError: if there is none of that name, or it cannot be loaded.
    """
    folder = packaged_verifier() if name == DEFAULT_VERIFIER else Path(name)
    if not _is_verifier(folder):
        return Verifier(load_extractor(name, device=device, role="--verifier"))
    try:
        network = PatientVerifier.from_pretrained(folder).float().eval().to(device)
    except LOADING_ERRORS as error:
        raise ModelError(f"{folder}: cannot be loaded as a verifier: {in_words(error)}") from None
    digest = file_sha256(folder / _WEIGHTS)
    width = network.head.out_features
    embed = Extractor(name, digest, width, lambda images: network(images.to(device)), network)
    return Verifier(embed, network.held_out, file_sha256(folder / "config.json"))


def _is_verifier(folder: Path) -> bool:
    """Whether a folder was saved by `PatientVerifier`."""
    config = folder / "config.json"
    if not (folder / _WEIGHTS).is_file() or not config.is_file():
        return False
    return {"trunk", "width"} <= read_settings(config, expected="those of a verifier").keys()
