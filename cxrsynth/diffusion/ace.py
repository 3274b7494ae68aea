"""Adaptive condition embeddings (ACE): learnable vectors added to the text embeddings of a report.

CXRL (Han et al., arXiv:2403.06516) tunes such embeddings with the generator; where they enter is not on public record,
so both forms here are our own: a block of vectors for the view, the age group and every finding stated or denied. In
one the blocks are added to the last positions of the condition, where the prompt is mostly padding, so that they act as
tokens of their own. In the other they lie in the few directions in which prompts themselves differ, so that there is
little to learn. Both start at zero: the first images are those of the baseline.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cxrsynth.errors import ModelError, in_words
from cxrsynth.reports.conditions import CONDITIONS
from cxrsynth.runtime.files import read_json

ACE_FILE = "ace.safetensors"
ACE_CONFIG = "ace.json"


class ConditionEmbedding(nn.Module, ABC):
    """Vectors added to the text embeddings of a report, chosen by the names of its conditions."""

    def __init__(self, conditions: Sequence[str]) -> None:
        super().__init__()
        self.conditions = tuple(conditions)
        self._places = {name: place for place, name in enumerate(self.conditions)}

    def mask(self, conditions: Sequence[Sequence[str]]) -> Tensor:
        """Which blocks each report gets, float32 [B, K]; conditions without a block are ignored."""
        mask = torch.zeros(len(conditions), len(self.conditions))
        for row, names in enumerate(conditions):
            mask[row, [self._places[name] for name in names if name in self._places]] = 1.0
        return mask

    @abstractmethod
    def forward(self, condition: Tensor, mask: Tensor, shift: Tensor | None = None) -> Tensor:
        """[B, L, D] text embeddings and [B, K] mask -> [B, L, D], the same type."""

    @abstractmethod
    def plain(self) -> "AdaptiveConditionEmbedding":
        """The same embeddings as blocks of vectors, the form that is saved."""


class AdaptiveConditionEmbedding(ConditionEmbedding):
    """One block [tokens, D] for each condition, starting at zero.

    Args:
        width: D of the text embeddings.
        tokens: positions, from the end of the condition, that blocks are added to. Where the network does not read
            padding, these are the prompt's last tokens (`Condition.aligned_text`).
        conditions: names of the blocks.
    """

    def __init__(self, width: int, *, tokens: int, conditions: Sequence[str] = CONDITIONS) -> None:
        super().__init__(conditions)
        self.tokens = tokens
        self.blocks = nn.Parameter(torch.zeros(len(self.conditions), tokens, width))

    def forward(self, condition: Tensor, mask: Tensor, shift: Tensor | None = None) -> Tensor:
        """[B, L, D] text embeddings and [B, K] mask -> [B, L, D], the same type.

        Raises:
            ValueError: if the condition has fewer than `tokens` positions or another width, or a shift is given.
        """
        if shift is not None:
            raise ValueError("a shift needs embeddings in a subspace")
        length, width = condition.shape[1:]
        if length < self.tokens or width != self.blocks.shape[2]:
            raise ValueError(
                f"condition of {length} positions of width {width}, expected at least {self.tokens} of"
                f" {self.blocks.shape[2]}"
            )
        blocks = self.blocks.float()
        added = (mask.to(blocks) @ blocks.flatten(1)).view(-1, *blocks.shape[1:])  # [B, tokens, D]
        padded = nn.functional.pad(added, (0, 0, length - self.tokens, 0))
        return (condition.float() + padded).to(condition.dtype)

    def plain(self) -> "AdaptiveConditionEmbedding":
        """Itself."""
        return self


class SubspaceEmbedding(ConditionEmbedding):
    """Blocks that are coordinates [K, r] in a basis [r, L, D], starting at zero.

    Args:
        basis: directions, as `prompt_directions` finds them; not trained.
        start: embeddings that the new ones are added to; they stay as they are.
        conditions: names of the blocks; unused with a `start`.
    """

    basis: Tensor

    def __init__(
        self,
        basis: Tensor,
        *,
        start: AdaptiveConditionEmbedding | None = None,
        conditions: Sequence[str] = CONDITIONS,
    ) -> None:
        super().__init__(conditions if start is None else start.conditions)
        self.start = start
        self.register_buffer("basis", basis, persistent=False)
        self.coordinates = nn.Parameter(torch.zeros(len(self.conditions), len(basis)))

    def mean(self, mask: Tensor) -> Tensor:
        """How far each report's condition is moved: the sum of its blocks, [B, K] -> [B, r]."""
        moved: Tensor = mask.to(self.coordinates) @ self.coordinates
        return moved

    def forward(self, condition: Tensor, mask: Tensor, shift: Tensor | None = None) -> Tensor:
        """[B, L, D] text embeddings and [B, K] mask -> [B, L, D]; a `shift` [B, r] takes the place of the mean."""
        if self.start is not None:
            condition = self.start(condition, mask)
        moved = self.mean(mask) if shift is None else shift.to(self.coordinates)
        added: Tensor = (moved @ self.basis.flatten(1)).view(-1, *self.basis.shape[1:])
        return (condition.float() + added).to(condition.dtype)

    @torch.no_grad()
    def plain(self) -> AdaptiveConditionEmbedding:
        """Blocks [K, L, D], with those of `start` added."""
        _, length, width = self.basis.shape
        plain = AdaptiveConditionEmbedding(width, tokens=length, conditions=self.conditions).to(self.basis.device)
        plain.blocks.copy_((self.coordinates @ self.basis.flatten(1)).view_as(plain.blocks))
        if self.start is not None:
            plain.blocks[:, length - self.start.tokens :] += self.start.blocks
        return plain.requires_grad_(False)


def prompt_directions(embeddings: Tensor, count: int) -> Tensor:
    """The directions in which the embeddings of prompts differ most, each as long as the standard deviation along it.

    Args:
        embeddings: of N prompts, [N, L, D].
        count: the most directions to return.

    Returns:
        [r, L, D] float32, r at most `count` and below N; on the CPU. Principal components times standard deviation.

    Raises:
        ValueError: if all prompts have the same embedding.
    """
    flat = embeddings.double().cpu().flatten(1)
    centered = flat - flat.mean(0)
    # Through the Gram matrix: there are few prompts, but many positions times width.
    values, vectors = torch.linalg.eigh(centered @ centered.T)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = int((values > 1e-9 * values.abs().max()).sum()) if bool(values[0] > 0) else 0
    if not kept:
        raise ValueError("all prompts have the same embedding")
    kept = min(kept, count, len(flat) - 1)
    # Component times standard deviation: V^T X = S U^T, and the standard deviation is S / sqrt(N).
    found = vectors[:, :kept].T @ centered / len(flat) ** 0.5
    return _signed(found).view(-1, *embeddings.shape[1:])


def word_directions(embeddings: Tensor, count: int) -> Tensor:
    """The directions in which single positions differ from prompt to prompt, the same at every position.

    Args:
        embeddings: of N prompts, [N, L, D].
        count: the most directions to return.

    Returns:
        [r, L, D] float32, r at most `count` and D; on the CPU. Principal components times standard deviation.
    """
    words = embeddings.double().cpu()
    words = (words - words.mean(0)).flatten(0, 1)  # [N * L, D]
    values, vectors = torch.linalg.eigh(words.T @ words / len(words))
    values, vectors = values.flip(0), vectors.flip(1)
    kept = min(int((values > 1e-9 * values[0]).sum()), count)
    found = _signed(vectors[:, :kept].T * values[:kept].sqrt()[:, None])
    return found[:, None].repeat(1, embeddings.shape[1], 1)


def _signed(found: Tensor) -> Tensor:
    """Components [r, n] float32 with their largest entry made positive: their sign is arbitrary otherwise."""
    largest = found.gather(1, found.abs().argmax(1, keepdim=True))
    signed: Tensor = (found * largest.sign()).float()
    return signed


def save_ace(ace: AdaptiveConditionEmbedding, folder: Path) -> None:
    """Write `ace.safetensors` and `ace.json`."""
    save_file({"blocks": ace.blocks.detach().float().cpu().contiguous()}, folder / ACE_FILE)
    config = {"width": ace.blocks.shape[2], "tokens": ace.tokens, "conditions": list(ace.conditions)}
    (folder / ACE_CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def load_ace(path: Path) -> AdaptiveConditionEmbedding:
    """Read `ace.safetensors`, or the folder that holds it, with the config beside it.

    Raises:
        ModelError: if a file is missing or does not hold what it should.
    """
    weights = path / ACE_FILE if path.is_dir() else path
    config_path = weights.with_name(ACE_CONFIG)
    for needed in (weights, config_path):
        if not needed.is_file():
            raise ModelError(
                f"{path}: no adaptive condition embeddings, missing {needed}\n"
                f"  expected: {ACE_FILE} with {ACE_CONFIG} beside it, as cxrsynth tune writes them"
            )
    try:
        config = read_json(config_path)
        ace = AdaptiveConditionEmbedding(config["width"], tokens=config["tokens"], conditions=config["conditions"])
        ace.load_state_dict(load_file(weights))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{weights}: cannot be loaded ({in_words(error)})\n  expected: embeddings saved by cxrsynth tune"
        ) from None
    return ace.eval().requires_grad_(False)


def check_ace(embeddings: AdaptiveConditionEmbedding, source: Path, length: int, width: int) -> None:
    """Refuse embeddings that were not made for a model's text embeddings.

    Args:
        embeddings: from `load_ace`.
        source: where they come from, for messages.
        length: positions of the model's text embeddings.
        width: their width.

    Raises:
        ModelError: if they have another width, or more positions.
    """
    if embeddings.blocks.shape[2] != width or embeddings.tokens > length:
        raise ModelError(
            f"{source}: embeddings of {embeddings.tokens} positions and width {embeddings.blocks.shape[2]}, but the"
            f" model's text encoder has {length} and {width}\n  expected: embeddings tuned with this model"
        )
