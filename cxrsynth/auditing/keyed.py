"""Digests that tell whether two audits used the same images or readers, and to others nothing about which."""

import hashlib
import hmac
from collections.abc import Iterable


def keyed_digest(names: Iterable[str], id_key: bytes) -> str:
    """HMAC-SHA256 of a set of names in any order, as 64 hexadecimal digits.

    Args:
        names: hashes of images, say; each counts as often as it comes.
        id_key: of this user. With another key the same names have another digest.
    """
    message = "\n".join(sorted(names)).encode("utf-8", "surrogateescape")
    return hmac.new(id_key, message, hashlib.sha256).hexdigest()
