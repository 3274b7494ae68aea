"""Consistency with BioViL-T: CXR-BERT and a ResNet-50 in one space (Bannur et al., arXiv:2301.04558).

Names of tensors and the preparation of images and texts are those of its authors' code, hi-ml-multimodal 0.2.2
(github.com/microsoft/hi-ml, commit b67c1d27c6b17d8e8ff01f8c507f3cabdb307388), without its dependencies.
`cxrsynth convert` makes the folder of the published files, which hold pickled weights and ask for code of their own.
"""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.transforms.v2.functional import center_crop, resize
from transformers import BertConfig, BertModel, BertTokenizer

from cxrsynth.errors import ModelError
from cxrsynth.rewards.consistency import ConsistencyReward, text_of
from cxrsynth.runtime.files import check_regular, read_json
from cxrsynth.runtime.pretrained import (
    LOADING_ERRORS,
    Unmatched,
    check_size,
    load_tokenizer,
    quiet_libraries,
    reason,
    unusable,
)

MODEL_TYPE, PUBLISHED_TYPE = "biovil-t", "cxr-bert"
_ROLE = "BioViL-T"
_FILES = "a folder that cxrsynth convert made of the published one"
_SHORTER_SIDE, _SIDE = 512, 448
_MAPS = 256  # channels of an image's patches, and of what the comparison with an earlier image adds
_SENTENCE_ENDS = "!?."


class BioViLT(nn.Module):
    """Both halves of BioViL-T for one image without an earlier one, under the tensor names of the published files.

    The temporal transformer is not part of it: without an earlier image, the published network does not use it, and
    takes a learned vector in place of its result.

    Args:
        text: settings of BERT.
        projection_size: width of the shared space.
    """

    def __init__(self, text: Any, projection_size: int) -> None:
        super().__init__()
        self.encoder = _ImageEncoder()
        self.projector = nn.ModuleDict({"model": _image_projection(projection_size)})
        self.bert = BertModel(text, add_pooling_layer=False)
        self.cls_projection_head = nn.Sequential(
            OrderedDict(
                dense_to_hidden=nn.Linear(text.hidden_size, projection_size),
                activation=nn.GELU(),
                LayerNorm=nn.LayerNorm(projection_size, eps=1e-12),
                dense_to_output=nn.Linear(projection_size, projection_size),
            )
        )

    def encode_images(self, images: Tensor) -> Tensor:
        """Prepared images [B, 3, 448, 448] -> unit vectors [B, D]: the mean of all projected patches, normalized."""
        return F.normalize(self.projector["model"](self.encoder(images)).mean((2, 3)), dim=-1)

    def encode_texts(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Token ids and their attention mask [B, L] -> unit vectors [B, D], of the first token."""
        first = self.bert(tokens, attention_mask=mask).last_hidden_state[:, 0]
        return F.normalize(self.cls_projection_head(first), dim=-1)


class _ImageEncoder(nn.Module):
    """Prepared images [B, 3, 448, 448] -> maps [B, 512, 14, 14]: patches, and the vector for no earlier image."""

    def __init__(self) -> None:
        super().__init__()
        parts = resnet50(weights=None).named_children()
        self.encoder = nn.Sequential(OrderedDict((name, part) for name, part in parts if name not in ("avgpool", "fc")))
        self.backbone_to_vit = nn.Conv2d(2048, _MAPS, 1, bias=False)
        self.missing_previous_emb = nn.Parameter(torch.zeros(1, _MAPS, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.backbone_to_vit(self.encoder(images))
        return torch.cat([patches, self.missing_previous_emb.expand_as(patches)], dim=1)


def _image_projection(size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2 * _MAPS, size, 1, bias=False), nn.BatchNorm2d(size), nn.ReLU(), nn.Conv2d(size, size, 1)
    )


def model_type(folder: Path) -> str | None:
    """`model_type` in a folder's config.json; None where it has none."""
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):
        return None
    return str(config["model_type"]) if isinstance(config, dict) and "model_type" in config else None


def load_biovil_t(folder: Path, *, device: torch.device) -> ConsistencyReward:
    """A consistency reward from a converted folder.

    Text is that of `text_of`, without punctuation at its end, as its authors' code tokenizes it.

    Raises:
        ModelError: if the folder cannot be loaded.
    """
    # Refuses a folder that asks for code of its own, before anything else is read.
    tokenizer = load_tokenizer(BertTokenizer, folder, role=_ROLE)
    network = _load_network(folder).to(device)
    length = min(int(network.bert.config.max_position_embeddings), int(tokenizer.model_max_length))
    # A tokenizer shared by threads returns wrong tokens without an error.
    tokenizer_lock = threading.Lock()

    def encode_texts(texts: list[str]) -> Tensor:
        texts = [text.rstrip(_SENTENCE_ENDS) for text in texts]
        with tokenizer_lock:
            found = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return network.encode_texts(found.input_ids.to(device), found.attention_mask.to(device))

    def fits(text: str) -> bool:
        with tokenizer_lock:
            return len(tokenizer(text.rstrip(_SENTENCE_ENDS), verbose=False).input_ids) <= length

    return ConsistencyReward(
        lambda images: network.encode_images(prepared(images.to(device))), encode_texts, text_of=text_of(fits)
    )


def prepared(images: Tensor) -> Tensor:
    """Images as the authors' code prepares a file: [B, 1, H, W] in [0, 1] -> [B, 3, 448, 448] in [0, 1].

    Each is stretched from its darkest to its brightest pixel in 8 bits, resized to 512 pixels at the shorter side, and
    cropped to its center. There is no further normalization.
    """
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    stretched = (images - low) / (high - low).clamp(min=torch.finfo(images.dtype).tiny)
    # Levels are cut off, not rounded; the margin is for those that float32 leaves just below a whole one.
    levels = (stretched * 255 + 1e-3).to(torch.uint8)
    middle: Tensor = center_crop(resize(levels, [_SHORTER_SIDE], antialias=True), [_SIDE, _SIDE])
    return middle.float().div(255).expand(-1, 3, -1, -1)


def make_network(config: Any) -> BioViLT:
    """The network that a converted folder's config.json describes, with random weights.

    Raises:
        KeyError, TypeError, ValueError: if it describes none.
    """
    return BioViLT(BertConfig.from_dict(dict(config["text_config"])), int(config["projection_size"]))


def _load_network(folder: Path) -> BioViLT:
    try:
        config = read_json(folder / "config.json")
        check_size(folder, _ROLE, lambda: make_network(config))
        weights = folder / "model.safetensors"
        check_regular(weights)
        state = load_file(weights)
        with quiet_libraries():
            network = make_network(config)
    except ModelError:
        raise
    except LOADING_ERRORS as error:
        raise unusable(folder, _ROLE, reason(error), expected=_FILES) from None
    Unmatched.between(network.state_dict(), state).refuse(folder, _ROLE, expected=_FILES)
    network.load_state_dict(state)
    return network.eval()
