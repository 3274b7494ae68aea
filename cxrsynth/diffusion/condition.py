"""What a denoiser is conditioned on besides the noise level: text embeddings, and whatever else its family needs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TEXT = "text"
MASK = "encoder_attention_mask"
GUIDANCE = "guidance"


@dataclass(frozen=True)
class Condition:
    """Conditions of B samples: tensors by name, each with B as its first dimension.

    `text` are embeddings of tokens, [B, L, D], to which adaptive condition embeddings are added. Families that read
    only the first n positions of each prompt have a mask of them, [B, L], n ones and then zeros. Pooled embeddings,
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

    def aligned_text(self) -> Tensor:
        """Text embeddings with those that the network reads at the end, and zeros before them, [B, L, D].

        Without a mask it reads all of them, padding too.
        """
        mask = self.tensors.get(MASK)
        if mask is None:
            return self.text
        read = self.text * mask.to(self.text)[..., None]
        return _rotated(read, -mask.sum(1).long())

    def with_aligned_text(self, text: Tensor) -> "Condition":
        """The same with other text embeddings, [B, L, D], aligned as `aligned_text` gives them."""
        mask = self.tensors.get(MASK)
        return Condition({**self.tensors, TEXT: text if mask is None else _rotated(text, mask.sum(1).long())})

    def with_guidance(self, guidance: float) -> "Condition":
        """The same with a guidance scale for each sample, [B], for networks that take it as an input."""
        scales = torch.full((len(self),), guidance, dtype=torch.float32, device=self.text.device)
        return Condition({**self.tensors, GUIDANCE: scales})

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


def _rotated(text: Tensor, shift: Tensor) -> Tensor:
    """Positions of each row moved to the right by its shift, int64 [B]; those at the end come in at the start."""
    length = text.shape[1]
    places = torch.arange(length, device=text.device)[None] - shift[:, None]
    return text.gather(1, (places % length)[..., None].expand_as(text))
