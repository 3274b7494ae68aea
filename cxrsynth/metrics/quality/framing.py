"""How a chest is framed: a network for images that are mirrored, rotated, cropped or no frontal view."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cxrsynth.rewards.networks import SavedNetwork, Trunk
from cxrsynth.runtime.files import file_sha256

FRAMING_FAULTS = ("mirrored", "rotated", "cropped", "not_frontal")


class FramingNetwork(nn.Module, SavedNetwork):
    """Logits of `FRAMING_FAULTS` [B, 4]. A mirror image has the opposite logit of `mirrored` and the same others.

    Trained on real images with these faults made in them (`cxrsynth.nano.build.framing`): no labels are needed.

    Args:
        trunk: arguments of `Trunk`.
    """

    def __init__(self, trunk: dict[str, Any]) -> None:
        super().__init__()
        self.trunk = Trunk(**trunk)
        self.head = nn.Linear(self.trunk.features, len(FRAMING_FAULTS))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 1, H, W] in [0, 1] -> [B, 4]."""
        there, mirrored = (self.head(features) for features in self.trunk.both_ways(images))
        return torch.cat((there[:, :1] - mirrored[:, :1], (there + mirrored)[:, 1:] / 2), 1)


def framing_folder() -> Path:
    """Where the package has the network."""
    return Path(str(files("cxrsynth") / "nano" / "assets" / "framing"))


def framing_digest() -> str:
    """SHA-256 of its weights."""
    return file_sha256(framing_folder() / "model.safetensors")


def load_framing(device: torch.device) -> FramingNetwork:
    """The package's network, in float32."""
    return FramingNetwork.from_pretrained(framing_folder()).float().eval().to(device)
