"""The networks of nano's reward models: finding classifier, posture regressor, image-text dual encoder.

Each is saved as a folder of `config.json` and `model.safetensors` (huggingface_hub's `PyTorchModelHubMixin`). All take
gray images [B, 1, H, W] float32 in [0, 1] of any size and resample them to their own.
"""

import contextlib
import io
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torchxrayvision.models import DenseNet
from transformers import CLIPTextConfig, CLIPTextModel, ResNetConfig, ResNetModel

from cxrsynth.runtime.clip import accept_any_names
from cxrsynth.runtime.files import file_sha256
from cxrsynth.runtime.pretrained import refuse_own_code

# Heads beside the findings: is the view AP (rather than PA), is the subject a child, is the subject female.
SUBJECT_HEADS = ("AP view", "Child", "Female")
_BLACK = 5  # gray level of 255 below which a pixel counts as black
POSTURE = ("shift_x", "shift_y", "log_scale_x", "log_scale_y", "rotation_rad")


# By the digest of a trunk's weights, or the side of its input, and the images' id: the images, and what became of them.
_KNOWN: ContextVar[dict[tuple[str | int, int], tuple[Tensor, Tensor]] | None] = ContextVar("known", default=None)


@contextlib.contextmanager
def features_once() -> Iterator[None]:
    """Inside, in one thread and without gradients, trunks loaded from the same weights see the same images once.

    The images of a batch are scored by networks that were loaded for different purposes from the same file. Trunks of
    other weights, but the same size, share the resampled images.
    """
    token = _KNOWN.set({})
    try:
        yield
    finally:
        _KNOWN.reset(token)


class Trunk(nn.Module):
    """Image to features [B, F]: a small DenseNet (torchxrayvision's class) or ResNet (transformers' class)."""

    def __init__(self, kind: str, *, size: int, widths: list[int], depths: list[int]) -> None:
        super().__init__()
        self.size = size
        self.digest: str | None = None  # of the weights, where these were loaded and are not trained any more
        if kind == "densenet":
            # `widths`: first convolution, growth rate.
            network = DenseNet(
                growth_rate=widths[1], block_config=tuple(depths), num_init_features=widths[0], num_classes=1
            )
            self.network: nn.Module = network.features
            self.features = int(network.classifier.in_features)
        elif kind == "resnet":
            config = ResNetConfig(
                num_channels=1,
                embedding_size=widths[0],
                hidden_sizes=widths,
                depths=depths,
                layer_type="basic",
            )
            self.network = ResNetModel(config)
            self.features = widths[-1]
        else:
            raise ValueError(f"trunk {kind!r}: expected densenet or resnet")

    def forward(self, images: Tensor) -> Tensor:
        """[B, 1, H, W] in [0, 1] -> [B, F]; see `features_once`."""
        known = _KNOWN.get()
        if known is None or self.digest is None or torch.is_grad_enabled():
            return self._features(images)
        if (self.digest, id(images)) not in known:
            known[self.digest, id(images)] = images, self._features(images)  # kept, so that no other gets its id
        return known[self.digest, id(images)][1]

    def both_ways(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, F] of [B, 1, H, W] in [0, 1], and of the same images left for right; resampled once."""
        inputs = _inputs(images, self.size)
        there, mirrored = self._pooled(torch.cat((inputs, inputs.flip(-1)))).chunk(2)
        return there, mirrored

    def _features(self, images: Tensor) -> Tensor:
        return self._pooled(_inputs(images, self.size))

    def _pooled(self, inputs: Tensor) -> Tensor:
        maps = self.network(inputs)
        if not isinstance(maps, Tensor):
            maps = maps.last_hidden_state
        return F.relu(maps).mean((2, 3))


def _inputs(images: Tensor, size: int) -> Tensor:
    """What trunks of a size see of [B, 1, H, W] in [0, 1]: [B, 1, size, size] in [-1, 1]; see `features_once`."""
    known = _KNOWN.get()
    if known is None or torch.is_grad_enabled():
        return stretch_contrast(_resize(images, size)) * 2 - 1
    if (size, id(images)) not in known:
        known[size, id(images)] = images, stretch_contrast(_resize(images, size)) * 2 - 1
    return known[size, id(images)][1]


def _resize(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size and images.shape[-2] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)


def stretch_contrast(images: Tensor, *, tail: float = 0.005) -> Tensor:
    """Stretch each image's gray levels to the full range, as in training; `tail` of its pixels saturate at either end.

    Sources differ in contrast, not in meaning. Black pixels (below 5 of 255: collimation, padding) are not counted; an
    all-black image is returned unchanged.

    Args:
        images: [B, 1, H, W] in [0, 1].
        tail: share of pixels that may saturate at each end.
    """
    levels = (images.float() * 255.0).clamp(0, 255)
    counts = torch.zeros(len(images), 256, device=images.device)
    places = levels.round().long().flatten(1)
    counts.scatter_add_(1, places, torch.ones_like(places, dtype=counts.dtype))
    counts[:, :_BLACK] = 0
    share = counts.cumsum(1) / counts.sum(1, keepdim=True).clamp(min=1)
    low, high = ((share < edge).sum(1).float()[:, None, None, None] for edge in (tail, 1 - tail))
    wide = ((levels - low) / (high - low).clamp(min=1)).clamp(0, 1)
    return torch.where((high < 256) & (high > low), wide, levels / 255.0).to(images.dtype)


class SavedNetwork(PyTorchModelHubMixin):
    """A network that is saved as a folder."""

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:  # type: ignore[override]
        """Load a local folder.

        The library would look for a missing folder at a hub, and leave tensors that the file lacks at random values;
        both are errors here.

        Raises:
            FileNotFoundError: if there is no such folder.
            ModelError: if its settings ask for code of their own.
            RuntimeError: if the weights do not match the network.
        """
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        refuse_own_code(Path(folder) / "config.json")
        with contextlib.redirect_stdout(io.StringIO()):  # the library prints where it loads from
            network: Any = super().from_pretrained(folder, local_files_only=True, strict=True)
        # On the CPU 1.4 to 1.7 times as fast.
        network.to(memory_format=torch.channels_last)
        for module in network.modules():
            if isinstance(module, Trunk):
                module.digest = file_sha256(Path(folder) / "model.safetensors")
        return network  # type: ignore[no-any-return]


class FindingClassifier(nn.Module, SavedNetwork):
    """Findings, view, age group and sex, one logit each.

    Args:
        heads: names of the outputs, observations and `SUBJECT_HEADS`.
        trunk: arguments of `Trunk`.
    """

    temperature: Tensor
    offset: Tensor

    def __init__(self, heads: list[str], trunk: dict[str, Any]) -> None:
        super().__init__()
        self.heads = tuple(heads)
        self.trunk = Trunk(**trunk)
        self.head = nn.Linear(self.trunk.features, len(heads))
        self.register_buffer("temperature", torch.ones(len(heads)))
        self.register_buffer("offset", torch.zeros(len(heads)))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 1, H, W] in [0, 1] -> logits [B, len(heads)], calibrated by each head's temperature and offset.

        Source: Guo et al., arXiv:1706.04599 (vector scaling); the offset undoes the weight of rare findings.
        """
        return self.head(self.trunk(images)) / self.temperature + self.offset  # type: ignore[no-any-return]


class PostureRegressor(nn.Module, SavedNetwork):
    """Warp between a chest and the canonical frame: shift, log scale, rotation.

    Source: spatial transformer (Jaderberg et al., arXiv:1506.02025), trained on known warps from a zero initialization.
    """

    reach: Tensor

    def __init__(self, trunk: dict[str, Any], reach: list[float]) -> None:
        super().__init__()
        self.trunk = Trunk(**trunk)
        self.head = nn.Linear(self.trunk.features, len(POSTURE))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("reach", torch.tensor(reach))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 1, H, W] in [0, 1] -> [B, 5]: shifts in half widths, log scales, radians; zero is canonical."""
        return self.head(self.trunk(images)) * self.reach  # type: ignore[no-any-return]


class DualEncoder(nn.Module, SavedNetwork):
    """Images and texts in a shared space, compared by cosine similarity.

    Source: CLIP (Radford et al., arXiv:2103.00020), on `CLIPTextModel` and a `Trunk`.
    """

    def __init__(self, trunk: dict[str, Any], text: dict[str, Any], width: int) -> None:
        super().__init__()
        self.trunk = Trunk(**trunk)
        self.text_model = CLIPTextModel(CLIPTextConfig(**text))
        accept_any_names(self.text_model)
        self.image_projection = nn.Linear(self.trunk.features, width, bias=False)
        self.text_projection = nn.Linear(int(self.text_model.config.hidden_size), width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def encode_images(self, images: Tensor) -> Tensor:
        """[B, 1, H, W] in [0, 1] -> unit vectors [B, D]."""
        return F.normalize(self.image_projection(self.trunk(images)), dim=-1)

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L] -> unit vectors [B, D]."""
        pooled = self.text_model(tokens).pooler_output
        return F.normalize(self.text_projection(pooled), dim=-1)
