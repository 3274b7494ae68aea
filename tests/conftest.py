"""A model a few channels wide, built in code: real classes, random weights, a second to sample."""

import os

# Two test processes share the cores; read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Collecting garbage takes a third of the time that imports take, and finds next to nothing: what they leave stays.
gc.disable()

# Processes that tests start import `tests` too: first in line, since other packages install a folder of that name, and
# from a folder that holds nothing else, so that the installed cxrsynth is imported rather than the checkout.
_ONLY_TESTS = tempfile.TemporaryDirectory()
(Path(_ONLY_TESTS.name) / "tests").symlink_to(Path(__file__).parent, target_is_directory=True)
sys.path.insert(0, _ONLY_TESTS.name)

# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


def pytest_collection_finish() -> None:
    """All that is imported and collected is looked through no more; from here on garbage is collected."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Stable-Diffusion-layout model of 32 x 32 pixels, three channels, asked by impression."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def _own_user_data(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id key of a test run never touches the user's own."""
    home = tmp_path_factory.getbasetemp() / "user-data"
    monkeypatch.setenv("XDG_DATA_HOME", str(home))


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens and merges that know a few words whole; learned, they would differ from process to process."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    words = "heart size is normal no effusion left right lower lobe pneumonia clear lungs impression"
    merges = {}
    for word in words.split(" "):
        start, *rest = [*word[:-1], word[-1] + "</w>"]
        for letter in rest:
            merges[start, letter] = start + letter
            start += letter
    return {token: number for number, token in enumerate([*tokens, *merges.values()])}, list(merges)


def make_tokenizer(max_tokens: int) -> Any:
    """CLIP's tokenizer with the vocabulary above, from files that every release of transformers reads."""
    from transformers import CLIPTokenizerFast

    tokens, merges = _vocabulary()
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(tokens), encoding="utf-8")
        Path(folder, "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        Path(folder, "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}', encoding="utf-8")
        return CLIPTokenizerFast.from_pretrained(folder, model_max_length=max_tokens)


def build_tiny_model(
    folder: Path, *, channels: int = 3, max_tokens: int = 24, spec: dict[str, object] | None = None
) -> Path:
    """Save an untrained model with fixed weights; `spec` becomes its cxrsynth.json."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = make_tokenizer(max_tokens)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=max_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            latent_channels=4,
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=32,
            mid_block_add_attention=False,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        scheduler=DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    if spec is not None:
        (folder / "cxrsynth.json").write_text(json.dumps(spec), encoding="utf-8")
    return folder
