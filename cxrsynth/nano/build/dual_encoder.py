"""The CXR-text dual encoder of a judge family: images against texts made from what is known of them."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer

from cxrsynth.nano.build.config import FitSettings, TextSettings
from cxrsynth.nano.build.fitting import augmented, draw, fit, seeded
from cxrsynth.nano.build.images import Radiograph, caption
from cxrsynth.nano.build.phrases import every_phrase, varied_text
from cxrsynth.reports.prompt import every_canonical_sentence
from cxrsynth.rewards.networks import DualEncoder, FindingClassifier

_TRIES = 100  # draws of another image before one is given up


def make_report_tokenizer(settings: TextSettings) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer with merges of the canonical sentences and of the grammar's phrases."""
    base = CLIPTokenizer(model_max_length=settings.max_tokens)
    return base.train_new_from_iterator(
        [every_canonical_sentence(), every_phrase()], vocab_size=settings.vocab_size, show_progress=False
    )


def train_dual_encoder(
    radiographs: list[Radiograph],
    pixels: Tensor,
    classifier: FindingClassifier,
    tokenizer: CLIPTokenizer,
    checkpoint: Path,
    *,
    trunk: dict[str, Any],
    text: TextSettings,
    settings: FitSettings,
    seed: int,
    save_every: int,
) -> DualEncoder:
    """Contrastive loss in which all texts that say the same of an image count as its own.

    Beside it each image's text is told from one of the same view and person with findings of another image that cannot
    be
    true of it: in a batch most texts differ in view or age too, and those are learned first.
    The image side starts as the family's classifier: 1,000 images are few to learn seeing and reading from at once.
    Images of equal labels share their positives (UniCL, Yang et al., arXiv:2204.03610): in a batch many are normal.
    """
    with seeded(seed):
        network = DualEncoder(trunk | {"size": settings.size}, _text_config(text, tokenizer), text.width)
    network.trunk.load_state_dict(classifier.trunk.state_dict())
    rng = random.Random(seed)
    tokens = _texts(radiographs, tokenizer, rng)
    others = [_with_other_findings(radiograph, radiographs, rng) for radiograph in radiographs]
    wrong = _texts([other or radiograph for radiograph, other in zip(radiographs, others, strict=True)], tokenizer, rng)
    contradicted = torch.tensor([other is not None for other in others]).float()
    said = [(radiograph.subject, radiograph.present) for radiograph in radiographs]
    group = torch.tensor([said.index(one) for one in said])
    even = torch.ones(len(radiographs))
    frames = torch.eye(2, 3)[None]

    def loss(step: torch.Generator) -> Tensor:
        chosen = draw(even, settings, step)
        phrase = torch.randint(tokens.shape[1], (len(chosen),), generator=step)
        images = augmented(pixels[chosen], frames.expand(len(chosen), -1, -1), settings, step)
        both = torch.cat((tokens[chosen, phrase], wrong[chosen, phrase]))
        seen, (read, misread) = network.encode_images(images).float(), network.encode_texts(both).float().chunk(2)
        scale = network.log_scale.exp().clamp(max=50.0)
        logits = scale * seen @ read.T  # [B, B]
        same = (group[chosen][:, None] == group[chosen][None]).float()
        wanted = same / same.sum(1, keepdim=True)
        mistaken = contradicted[chosen] * F.softplus(scale * (seen * (misread - read)).sum(1))
        return (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2 + mistaken.mean()

    fit(network, loss, checkpoint, settings=settings, seed=seed, save_every=save_every)
    return network


def _texts(radiographs: list[Radiograph], tokenizer: CLIPTokenizer, rng: random.Random) -> Tensor:
    """Token ids of eight texts that say what is given of each image, the first in canonical form: [N, 8, L]."""
    flat = [
        text
        for radiograph in radiographs
        for text in (caption(radiograph, rng), *(varied_text(radiograph, rng) for _ in range(7)))
    ]
    tokens: Tensor = tokenizer(flat, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return tokens.view(len(radiographs), 8, -1)


def _with_other_findings(
    radiograph: Radiograph, radiographs: list[Radiograph], rng: random.Random
) -> Radiograph | None:
    """The image as it would be told with the findings of another that cannot be true of it; None where none is
    found.
    """
    for _ in range(_TRIES):
        other = rng.choice(radiographs)
        if _contradict(radiograph, other):
            return replace(radiograph, present=other.present, absent=other.absent)
    return None


def _contradict(radiograph: Radiograph, other: Radiograph) -> bool:
    """Whether what the other shows is known to be absent here, or one of the two is normal and the other is not."""
    shown, told = set(radiograph.present), set(other.present)
    one_is_normal = bool(shown and told) and ("No Finding" in shown) != ("No Finding" in told)
    return one_is_normal or bool(told & set(radiograph.absent))


def _text_config(settings: TextSettings, tokenizer: CLIPTokenizer) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": settings.width,
        "intermediate_size": 2 * settings.width,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "max_position_embeddings": settings.max_tokens,
        "projection_dim": settings.width,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
