"""The image-text dual encoder of a reward family: images against texts made from their labels."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer

from cxrsynth.nano.build.config import FitSettings, TextSettings
from cxrsynth.nano.build.fitting import augmented, fit, sample_batch, seeded, teaching_thread
from cxrsynth.nano.build.images import Radiograph, caption
from cxrsynth.nano.build.phrases import every_phrase, varied_text
from cxrsynth.nano.build.training import forward_context
from cxrsynth.reports.prompt import every_canonical_sentence
from cxrsynth.rewards.networks import DualEncoder, FindingClassifier

_TRIES = 100  # attempts to find a contradicting image


def make_report_tokenizer(settings: TextSettings) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer with merges learned from canonical sentences and the grammar's phrases."""
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
    teachers: Sequence[DualEncoder] = (),
) -> DualEncoder:
    """Train with a contrastive loss in which images with equal labels share their positives.

    Many images of a batch are normal, so their texts are interchangeable (UniCL, Yang et al., arXiv:2204.03610). A
    second loss separates each image's text from one with the same view and person but with contradicting findings: most
    texts of a batch differ in view or age too, and those differences are learned first. The image encoder starts from
    the family's classifier, because 1,000 images are too few to learn both encoders from scratch.

    With `teachers`, which read the same tokens, their mean similarities in the batch are the targets of both losses.
    """
    with seeded(seed):
        network = DualEncoder(trunk | {"size": settings.size}, _text_config(text, tokenizer), text.width)
    network.trunk.load_state_dict(classifier.trunk.state_dict())
    rng = random.Random(seed)
    tokens = _texts(radiographs, tokenizer, rng)
    others = [_with_other_findings(radiograph, radiographs, rng) for radiograph in radiographs]
    wrong = _texts([other or radiograph for radiograph, other in zip(radiographs, others, strict=True)], tokenizer, rng)
    contradicted = torch.tensor([other is not None for other in others]).float()
    content = [(radiograph.subject, radiograph.present) for radiograph in radiographs]
    group = torch.tensor([content.index(one) for one in content])
    even = torch.ones(len(radiographs))
    frames = torch.eye(2, 3)[None]

    def loss(step: torch.Generator) -> Tensor:
        chosen = sample_batch(even, settings, step)
        phrase = torch.randint(tokens.shape[1], (len(chosen),), generator=step)
        images = augmented(pixels[chosen], frames.expand(len(chosen), -1, -1), settings, step)
        both = torch.cat((tokens[chosen, phrase], wrong[chosen, phrase]))
        taught = aside.submit(_mean_similarities, teachers, images, both) if teachers else None
        logits, wrong_logits = _similarities(network, images, both)
        if taught is not None:
            target, margin = taught.result()
            distance = F.cross_entropy(logits, target.softmax(1)) + F.cross_entropy(logits.T, target.T.softmax(1))
            right = (target.diagonal() - margin).sigmoid()
            return distance / 2 + F.binary_cross_entropy_with_logits(logits.diagonal() - wrong_logits, right)
        same = (group[chosen][:, None] == group[chosen][None]).float()
        wanted = same / same.sum(1, keepdim=True)
        mistaken = contradicted[chosen] * F.softplus(wrong_logits - logits.diagonal())
        return (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2 + mistaken.mean()

    with teaching_thread() as aside:
        fit(network, loss, checkpoint, settings=settings, seed=seed, save_every=save_every)
    return network


def _similarities(network: DualEncoder, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled cosines of images [B] with their texts, [B, B], and of each with its contradicting text, [B].

    `tokens` holds the B texts, then the B contradicting ones.
    """
    seen, (read, misread) = network.encode_images(images).float(), network.encode_texts(tokens).float().chunk(2)
    scale = network.log_scale.exp().clamp(max=50.0)
    return scale * seen @ read.T, scale * (seen * misread).sum(1)


@torch.no_grad()
def _mean_similarities(members: Sequence[DualEncoder], images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    with forward_context():
        found = [_similarities(member, images, tokens) for member in members]
    logits, wrong_logits = zip(*found, strict=True)
    return torch.stack(logits).mean(0), torch.stack(wrong_logits).mean(0)


def _texts(radiographs: list[Radiograph], tokenizer: CLIPTokenizer, rng: random.Random) -> Tensor:
    """Token ids of eight texts that describe each image, the first in canonical form: [N, 8, L]."""
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
    """The image's metadata with contradicting findings of another image; None where no such image was found."""
    for _ in range(_TRIES):
        other = rng.choice(radiographs)
        if _contradict(radiograph, other):
            return replace(radiograph, present=other.present, absent=other.absent)
    return None


def _contradict(radiograph: Radiograph, other: Radiograph) -> bool:
    """Whether a finding of `other` is known to be absent here, or exactly one of the two is normal."""
    own, others = set(radiograph.present), set(other.present)
    one_is_normal = bool(own and others) and ("No Finding" in own) != ("No Finding" in others)
    return one_is_normal or bool(others & set(radiograph.absent))


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
