"""What on a page depends on which image is real, made so that only the holder of the id key can compute it.

A permutation drawn from the seed alone could be drawn again by a reader, and a hash of an image by anyone who has it.
"""

import hashlib
import hmac
from dataclasses import dataclass, field

import numpy as np

_LETTERS = 16


@dataclass(frozen=True)
class Blinding:
    """Random numbers and names by HMAC-SHA256 of the id key: the same for the same key and seed."""

    id_key: bytes = field(repr=False)
    seed: int

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator for one purpose."""
        return np.random.default_rng(int.from_bytes(self._digest("rng", purpose)))

    def name(self, *parts: str) -> str:
        """16 hex digits that stand for the parts."""
        return self._digest("name", *parts).hex()[:_LETTERS]

    def _digest(self, *parts: str) -> bytes:
        written = "\0".join(("reader study", str(self.seed), *parts)).encode("utf-8", "surrogateescape")
        return hmac.new(self.id_key, written, hashlib.sha256).digest()
