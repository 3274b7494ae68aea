"""BioViL-T as published, text model and pickled image model, to one folder with safetensors for `--judge consistency=`.

Names of files and tensors are those of hi-ml-multimodal, see `cxrsynth.rewards.biovil_t`.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cxrsynth.conversion.weights import read_weights, write_weights
from cxrsynth.errors import ModelError
from cxrsynth.rewards.biovil_t import (
    MODEL_TYPE,
    PUBLISHED_TYPE,
    BioViLT,
    load_biovil_t,
    make_network,
    model_type,
)
from cxrsynth.runtime.files import stable_json
from cxrsynth.runtime.pretrained import LOADING_ERRORS, Unmatched, quiet_libraries, read_settings, reason

IMAGE_WEIGHTS = "biovil_t_image_model_proj_size_128.pt"
TEXT_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER = "tokenizer_config.json"
_VOCABULARY = ("vocab.txt", "tokenizer.json", "special_tokens_map.json", "added_tokens.json")
# What cosines of one image and a text do not use: the comparison with an earlier image and the head of the ResNet that
# it was started from; the head and the pooler of BERT.
_UNUSED = ("encoder.vit_pooler.", "encoder.encoder.fc.", "cls.predictions.", "bert.pooler.", "embeddings.position_ids")
_IMAGE_HALF = ("encoder.", "projector.")
_EXPECTED = "the file as it is published; download it again"


def is_published(source: Path) -> bool:
    """Whether a folder is BioViL-T as published, or one of its two halves."""
    return source.is_dir() and (model_type(source) == PUBLISHED_TYPE or (source / IMAGE_WEIGHTS).is_file())


def convert_biovil_t(source: Path, out: Path) -> None:
    """Fill `out` with both halves, every tensor under its published name, and load the result.

    Tensors that scores do not need are left out.

    Args:
        source: the published folder; its code is neither needed nor read.
        out: an empty folder.

    Raises:
        ModelError: if a file is missing or cannot be read, or a tensor is missing, of another shape, or unknown.
        OSError: if a file cannot be copied or written.
    """
    text_weights = next((source / name for name in TEXT_WEIGHTS if (source / name).is_file()), None)
    missing = [name for name in (IMAGE_WEIGHTS, "config.json", "vocab.txt") if not (source / name).is_file()]
    if text_weights is None or missing:
        needed = [*missing, *([] if text_weights else [" or ".join(TEXT_WEIGHTS)])]
        raise ModelError(
            f"{source}: BioViL-T, but without {', '.join(needed)}\n"
            "  expected: all files of microsoft/BiomedVLP-BioViL-T, as its page on the Hugging Face Hub lists them"
        )
    config = _config(source / "config.json")
    network = _network(source, config).state_dict()
    halves = {
        source / IMAGE_WEIGHTS: {name: one for name, one in network.items() if name.startswith(_IMAGE_HALF)},
        text_weights: {name: one for name, one in network.items() if not name.startswith(_IMAGE_HALF)},
    }
    state: dict[str, Tensor] = {}
    for file, expected in halves.items():
        found = read_weights(file)
        Unmatched.between(expected, found).refuse(file, "a half of BioViL-T", may_hold=_UNUSED, expected=_EXPECTED)
        state |= {name: found[name] for name in expected}
    write_weights(out / "model.safetensors", state)
    (out / "config.json").write_bytes(stable_json(config))
    _copy_tokenizer(source, out)
    load_biovil_t(out, device=torch.device("cpu"))


def _config(file: Path) -> dict[str, Any]:
    """Settings of the converted folder: those of the text model within, without the name of its code."""
    published = read_settings(file, expected=_EXPECTED)
    code = ("auto_map", "architectures", "model_type", "projection_size")
    return {
        "architectures": [BioViLT.__name__],
        "model_type": MODEL_TYPE,
        "projection_size": published.get("projection_size", 128),  # the default of the published class
        "text_config": {name: value for name, value in published.items() if name not in code},
    }


def _network(source: Path, config: dict[str, Any]) -> BioViLT:
    try:
        with quiet_libraries(), torch.device("meta"):
            return make_network(config)
    except LOADING_ERRORS as error:
        raise ModelError(
            f"{source / 'config.json'}: no settings of BioViL-T's text model: {reason(error)}\n  expected: {_EXPECTED}"
        ) from None


def _copy_tokenizer(source: Path, out: Path) -> None:
    for name in _VOCABULARY:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    settings = read_settings(source / _TOKENIZER, expected=_EXPECTED) if (source / _TOKENIZER).is_file() else {}
    # The published class is BertTokenizer under another name, and its code lies in the folder.
    kept = {name: value for name, value in settings.items() if name != "auto_map"}
    (out / _TOKENIZER).write_bytes(stable_json(kept | {"tokenizer_class": "BertTokenizer"}))
