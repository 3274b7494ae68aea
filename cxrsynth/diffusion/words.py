"""Words of textual inversion: read from a file, and added to a tokenizer and its text encoder."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from cxrsynth.errors import ModelError
from cxrsynth.runtime.pretrained import LOADING_ERRORS, quiet_libraries, reason

# Names under which diffusers saves; a folder with one other file is taken, too.
WORDS_FILES = ("learned_embeds.safetensors",)
# The web interface of AUTOMATIC1111 names the word by its file.
_NAMED_BY_FILE = ("emb_params", "string_to_param", "string_to_param.*")
_OF_TWO_ENCODERS = ("clip_l", "clip_g")


def read_words(file: Path) -> dict[str, Tensor]:
    """Words in a file, with the vectors of each, [n, width].

    Raises:
        ModelError: if the file cannot be read, or holds something else.
    """
    try:
        state = load_file(file)
    except LOADING_ERRORS as error:
        raise ModelError(f"--embeddings {file}: cannot be loaded: {reason(error)}") from None
    if set(state) & set(_OF_TWO_ENCODERS):
        raise ModelError(
            f"--embeddings {file}: words for Stable Diffusion XL ({', '.join(sorted(state))})\n"
            "  expected: words that were learned with a Stable Diffusion model"
        )
    words = {file.stem if name in _NAMED_BY_FILE else name: vectors for name, vectors in state.items()}
    if len(words) < len(state) or not words:
        raise ModelError(f"--embeddings {file}: {len(state)} tensors, of which {len(words)} are words of their own")
    for word, vectors in words.items():
        problem = _problem(word, vectors)
        if problem:
            raise ModelError(
                f"--embeddings {file}: cannot be loaded: {word[:60]!r} {problem}\n"
                "  expected: words with one vector or a few each, as textual inversion learns them"
            )
    return {word: vectors.reshape(-1, vectors.shape[-1]).float() for word, vectors in words.items()}


def named_by_file(file: Path) -> str:
    """The word that a file's name is, empty where the file names its words itself, or cannot be read."""
    try:
        with safe_open(file, "pt") as opened:
            return "" if set(_NAMED_BY_FILE).isdisjoint(opened.keys()) else file.stem
    except LOADING_ERRORS:
        return ""


def _problem(word: str, vectors: Tensor) -> str | None:
    if not word.strip() or len(word.split()) > 1:
        return "is no single word; rename it (or the file, where the word is its name)"
    if "lora" in word:
        return "is a tensor of LoRA weights, which go with --lora"
    if vectors.ndim not in (1, 2) or not vectors.numel() or not vectors.is_floating_point():
        return f"is a tensor of shape {list(vectors.shape)}, which is no word's"
    if not torch.isfinite(vectors).all():
        return "has values that are not finite numbers"
    return None


def add_words(file: Path, pipeline: Any) -> None:
    """Add the words of a file to the pipeline's tokenizer and text encoder, in place.

    Raises:
        ModelError: if the file cannot be read, its vectors do not have the encoder's width, or the tokenizer knows a
            word already.
    """
    words, tokenizer = read_words(file), pipeline.tokenizer
    width = int(pipeline.text_encoder.get_input_embeddings().weight.shape[-1])
    for word, vectors in words.items():
        if vectors.shape[-1] != width:
            raise ModelError(
                f"--embeddings {file}: cannot be loaded: {word[:60]!r} has vectors of {vectors.shape[-1]} numbers,"
                f" those of the text encoder have {width}\n"
                "  expected: words that were learned with this model's text encoder"
            )
        # A word of n vectors is n tokens: the word, word_1, word_2, ...
        known = [f"{word}_{place}" if place else word for place in range(len(vectors))]
        if taken := set(known) & set(tokenizer.get_vocab()):
            raise ModelError(
                f"--embeddings {file}: the tokenizer has a token {min(taken)!r} already\n"
                "  expected: new words, each given once; rename the word (or the file, where the word is its name)"
            )
    try:
        with quiet_libraries():
            pipeline.load_textual_inversion([{word: vectors} for word, vectors in words.items()], local_files_only=True)
    except LOADING_ERRORS as error:
        raise ModelError(f"--embeddings {file}: cannot be loaded: {reason(error)}") from None
    for word, vectors in words.items():
        # Only the first vector would be used: the others are found by the word as the tokenizer gives it.
        if len(vectors) > 1 and tokenizer.tokenize(word) != [word]:
            raise ModelError(
                f"--embeddings {file}: the tokenizer reads {word!r} as {' '.join(tokenizer.tokenize(word))!r}, and"
                f" would use one of its {len(vectors)} vectors\n"
                "  rename the word (or the file, where the word is its name), in lower case and without punctuation"
            )
