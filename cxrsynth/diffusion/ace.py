"""Adaptive condition embeddings (ACE): learnable vectors added to the text embeddings of a report.

CXRL (Han et al., arXiv:2403.06516) tunes such embeddings with the generator; where they enter is not on public record,
so this form is ours: a block of vectors for the view and one for each finding stated or denied, added to the last
positions of the condition. There the prompt is mostly padding, so the blocks act as tokens of their own; and they
start at zero, so the first images are the baseline's.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cxrsynth.errors import ModelError
from cxrsynth.reports.conditions import CONDITIONS

ACE_FILE = "ace.safetensors"
ACE_CONFIG = "ace.json"


class AdaptiveConditionEmbedding(nn.Module):
    """One block [tokens, D] for each condition, starting at zero.

    Args:
        width: D of the text embeddings.
        tokens: positions, from the end of the condition, that blocks are added to.
        conditions: names of the blocks.
    """

    def __init__(self, width: int, *, tokens: int, conditions: Sequence[str] = CONDITIONS) -> None:
        super().__init__()
        self.conditions = tuple(conditions)
        self.tokens = tokens
        self.blocks = nn.Parameter(torch.zeros(len(self.conditions), tokens, width))
        self._places = {name: place for place, name in enumerate(self.conditions)}

    def mask(self, asked: Sequence[Sequence[str]]) -> Tensor:
        """Which blocks each report gets, float32 [B, K]; conditions without a block are passed over."""
        mask = torch.zeros(len(asked), len(self.conditions))
        for row, names in enumerate(asked):
            mask[row, [self._places[name] for name in names if name in self._places]] = 1.0
        return mask

    def forward(self, condition: Tensor, mask: Tensor) -> Tensor:
        """[B, L, D] text embeddings and [B, K] mask -> [B, L, D], the same type.

        Raises:
            ValueError: if the condition has fewer than `tokens` positions or another width.
        """
        length, width = condition.shape[1:]
        if length < self.tokens or width != self.blocks.shape[2]:
            raise ValueError(
                f"condition of {length} positions of width {width}, expected at least {self.tokens} of"
                f" {self.blocks.shape[2]}"
            )
        blocks = self.blocks.float()
        added = (mask.to(blocks) @ blocks.flatten(1)).view(-1, *blocks.shape[1:])  # [B, tokens, D]
        spread = nn.functional.pad(added, (0, 0, length - self.tokens, 0))
        return (condition.float() + spread).to(condition.dtype)


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
            raise ModelError(f"{needed}: no such file\n  expected: {ACE_FILE} with {ACE_CONFIG} beside it")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        ace = AdaptiveConditionEmbedding(config["width"], tokens=config["tokens"], conditions=config["conditions"])
        ace.load_state_dict(load_file(weights))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{weights}: cannot be loaded ({type(error).__name__})\n  expected: embeddings saved by cxrsynth tune"
        ) from None
    return ace.eval().requires_grad_(False)
