"""Consistency with any image-text dual encoder of transformers: CLIP, SigLIP and their relatives."""

import threading
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from cxrsynth.errors import ModelError
from cxrsynth.rewards.consistency import ConsistencyReward, text_of
from cxrsynth.runtime.pretrained import load_pretrained, load_processor, load_tokenizer

_ROLE = "a dual encoder of images and texts (CLIP, SigLIP)"


def load_dual_encoder(folder: Path, *, device: torch.device) -> ConsistencyReward:
    """A consistency reward from a folder with a model (safetensors), a tokenizer and an image processor.

    The text of a report is its impression, or the whole report where it has none: de-identified, then cut at a sentence
    to the tokenizer's length.

    Raises:
        ModelError: if the folder cannot be loaded, or its model does not encode images and texts.
    """
    model, _ = load_pretrained(AutoModel, folder, role=_ROLE)
    model.to(device)
    tokenizer = load_tokenizer(AutoTokenizer, folder, role=_ROLE)
    processor = load_processor(AutoImageProcessor, folder, role=_ROLE)
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ModelError(
            f"{folder}: a model of type {model.config.model_type} does not encode images and texts\n"
            "  expected: CLIP, SigLIP"
        )
    length = _text_length(model, tokenizer)
    # A tokenizer shared by threads returns wrong tokens without an error.
    tokenizer_lock = threading.Lock()

    def encode_images(images: Tensor) -> Tensor:
        # The processors expect RGB: the gray image three times.
        pixels = processor(
            images=[image.expand(3, -1, -1).cpu() for image in images], do_rescale=False, return_tensors="pt"
        ).pixel_values
        return _unit(model.get_image_features(pixel_values=pixels.to(device)))

    def encode_texts(texts: list[str]) -> Tensor:
        with tokenizer_lock:
            tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        accepted = {name: value.to(device) for name, value in tokens.items() if name != "token_type_ids"}
        return _unit(model.get_text_features(**accepted))

    def fits(text: str) -> bool:
        with tokenizer_lock:
            return len(tokenizer(text, verbose=False).input_ids) <= length

    return ConsistencyReward(encode_images, encode_texts, text_of=text_of(fits))


def _text_length(model: Any, tokenizer: Any) -> int:
    """Tokens that the text encoder accepts; a tokenizer without a limit reports an absurdly large one."""
    own = int(model.config.text_config.max_position_embeddings)
    return min(own, int(tokenizer.model_max_length))


def _unit(features: Any) -> Tensor:
    """Unit vectors [B, D]; some versions of transformers wrap the features in a model output."""
    vectors: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return F.normalize(vectors.float(), dim=-1)
