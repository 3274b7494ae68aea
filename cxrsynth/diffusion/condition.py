"""What a denoiser is conditioned on besides the noise level: text embeddings, and whatever else its family needs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TEXT = "text"


@dataclass(frozen=True)
class Condition:
    """Conditions of B samples: tensors by name, each with B as its first dimension.

    `text` are embeddings of tokens, [B, L, D], to which adaptive condition embeddings are added. Attention masks,
    pooled embeddings, sizes and labels are the family's own, under the names its denoiser is called with.
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

    def with_text(self, text: Tensor) -> "Condition":
        """The same with other text embeddings, [B, L, D]."""
        return Condition({**self.tensors, TEXT: text})

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
