"""Any CXR-text dual encoder in a transformers folder (CLIP, SigLIP and their kin) as a judge of consistency."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from cxrsynth.errors import ModelError
from cxrsynth.reports.deid.sanitize import sanitize
from cxrsynth.reports.prompt import cut_at_sentence
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.consistency import ConsistencyReward


def load_dual_encoder(folder: Path, *, device: torch.device) -> ConsistencyReward:
    """Consistency by a folder with model (safetensors), tokenizer and image processor.

    A report is judged by its impression, or by all its text where it has none: sanitised, cut at a sentence to what the
    tokenizer holds.

    Raises:
        ModelError: if the folder cannot be loaded, or its model does not encode images and texts.
    """
    try:
        model = AutoModel.from_pretrained(folder, use_safetensors=True).float().eval().to(device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        processor = AutoImageProcessor.from_pretrained(folder)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(
            f"{folder}: cannot be loaded as a dual encoder: {error}\n"
            "  expected: a transformers folder of a model with image and text features (CLIP, SigLIP), in safetensors"
        ) from None
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ModelError(f"{folder}: {type(model).__name__} does not encode images and texts\n  expected: CLIP, SigLIP")
    length = _text_length(model, tokenizer)
    # A tokenizer shared by threads gives wrong tokens, and no error.
    one_at_a_time = threading.Lock()

    def encode_images(images: Tensor) -> Tensor:
        # Their processors expect colours: the grey image three times.
        pixels = processor(
            images=[image.expand(3, -1, -1).cpu() for image in images], do_rescale=False, return_tensors="pt"
        ).pixel_values
        return _unit(model.get_image_features(pixel_values=pixels.to(device)))

    def encode_texts(texts: list[str]) -> Tensor:
        with one_at_a_time:
            tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        accepted = {name: value.to(device) for name, value in tokens.items() if name != "token_type_ids"}
        return _unit(model.get_text_features(**accepted))

    def fits(text: str) -> bool:
        with one_at_a_time:
            return len(tokenizer(text, verbose=False).input_ids) <= length

    return ConsistencyReward(encode_images, encode_texts, text_of=_text_of(fits))


def _text_of(fits: Callable[[str], bool]) -> Callable[[Report], str]:
    def text_of(report: Report) -> str:
        clean = sanitize(report.impression).text or sanitize(report.full_text).text
        return cut_at_sentence(clean, fits)[0]

    return text_of


def _text_length(model: Any, tokenizer: Any) -> int:
    """Tokens the text side takes: a tokenizer without a limit says a number too large to be one."""
    own = int(model.config.text_config.max_position_embeddings)
    return min(own, int(tokenizer.model_max_length))


def _unit(features: Any) -> Tensor:
    """Unit vectors [B, D]; some versions wrap the features in a model output."""
    vectors: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return F.normalize(vectors.float(), dim=-1)
