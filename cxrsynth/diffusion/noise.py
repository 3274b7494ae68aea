"""Per-sample noise, independent of batch size, process and device."""

import hashlib

import torch
from torch import Tensor


def sample_noise(seed: int, sample_key: str, shape: tuple[int, ...]) -> Tensor:
    """Initial latent x_T of one sample, float32 standard normal of `shape`, on the CPU.

    It depends on the run's seed and the sample key alone. The key is a keyed hash of the report id: were the noise
    made from the bare id, anyone could test a guessed id (an accession number, say) against a published image
    by inverting the sampler. So the noise can be made again from what is published, and tells nothing of the id.
    """
    digest = hashlib.sha256(f"{seed}\0{sample_key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return torch.randn(shape, generator=generator)


def noise(shape: tuple[int, ...], *key: object) -> Tensor:
    """Standard normal noise that depends on the key alone: float32 on the CPU, whatever batch or process asks."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return torch.randn(shape, generator=generator)
