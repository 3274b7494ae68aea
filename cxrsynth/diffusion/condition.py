"""What a denoiser is conditioned on besides the noise level: text embeddings, and whatever else its family needs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TEXT = "text"
MASK = "encoder_attention_mask"


@dataclass(frozen=True)
class Condition:
    """Conditions of B samples: tensors by name, each with B as its first dimension.

    `text` are embeddings of tokens, [B, L, D], to which adaptive condition embeddings are added. A mask
    `encoder_attention_mask`, [B, L], says which of them the denoiser attends to; without one, all. Pooled embeddings,
    sizes and labels are the family's own, under the names its denoiser is called with.
    """

    tensors: Mapping[str, Tensor]

    @property
    def text(self) -> Tensor:
        """Embeddings of the prompts' tokens, [B, L, D]."""
        return self.tensors[TEXT]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: Tensor | Sequence[int] | slice) -> "Condition":
        return self._each(lambda tensor: tensor[rows])

    def words_last(self) -> Tensor:
        """The text embeddings with those that the denoiser attends to at the end, [B, L, D].

        Adaptive condition embeddings are added from the end. Without a mask that is the padding after most prompts,
        which is attended to; behind a mask it would have no effect.
        """
        return self._rolled(self.text, 1)

    def with_words_last(self, text: Tensor) -> "Condition":
        """The same with other text embeddings, in the order of `words_last`."""
        return Condition({**self.tensors, TEXT: self._rolled(text, -1)})

    def _rolled(self, text: Tensor, direction: int) -> Tensor:
        """Each row moved by its number of masked positions: to the end (1), or back (-1)."""
        mask = self.tensors.get(MASK)
        if mask is None:
            return text
        length = text.shape[1]
        shift = direction * (length - mask.long().sum(1, keepdim=True))
        places = (torch.arange(length, device=text.device) - shift) % length
        return text.gather(1, places[:, :, None].expand_as(text))

    def expand(self, count: int) -> "Condition":
        """One sample's condition, for `count` samples."""
        return self._each(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def to(self, device: torch.device) -> "Condition":
        """On another device."""
        return self._each(lambda tensor: tensor.to(device))

    def clone(self) -> "Condition":
        """Copies: tensors of inference mode cannot take part in what learns."""
        return self._each(torch.clone)

    @staticmethod
    def cat(parts: Sequence["Condition"]) -> "Condition":
        """Conditions of all parts, in their order."""
        return Condition({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        return Condition({name: change(tensor) for name, tensor in self.tensors.items()})
