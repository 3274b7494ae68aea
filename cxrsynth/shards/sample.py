"""Samples and their keys."""

import codecs
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from cxrsynth.errors import ShardError
from cxrsynth.runtime.files import is_regular, what_it_is, write_atomically

_KEY_BYTES = 32
_FIT_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_HOW_TO_MAKE = "create one: (umask 077; python -c 'import secrets; print(secrets.token_hex(32))' > FILE)"
_LONGEST_KEY = 1 << 20  # bytes
_LEAST_DIFFERENT = 6  # bytes; of 32 random hexadecimal digits, 13 or 14 are different
_KEPT_CHARS, _HASH_CHARS = 48, 12


@dataclass(frozen=True)
class Sample:
    """One generated image. `image` is [H, W] float32 in [0, 1]; `metadata` becomes the JSON member.

    `comment` is added to the comment of a DICOM object.
    """

    key: str
    subject_key: str
    image_index: int
    image: npt.NDArray[np.float32] = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)
    view: str | None = None
    sex: str | None = None
    text: str | None = field(default=None, repr=False)
    comment: str = ""


def subject_key(id_key: bytes, report_id: str) -> str:
    """Keyed hash of a report ID: 20 hex digits, HMAC-SHA256 (RFC 2104) truncated to 80 bits.

    Without the key, no one can test whether a guessed ID is in the data set.
    """
    # In one call: a table has many rows, and an HMAC object takes five times as long to make.
    return hmac.digest(id_key, report_id.encode("utf-8", "surrogateescape"), "sha256").hex()[:20]


def sample_key(subject: str, image_index: int) -> str:
    """`<subject key>-<image index>`, without a dot: WebDataset splits names at the first one."""
    return f"{subject}-{image_index:02d}"


def key_fingerprint(id_key: bytes) -> str:
    """Distinguishes keys without revealing them: 16 hex digits."""
    return hmac.new(id_key, b"cxrsynth id key fingerprint", hashlib.sha256).hexdigest()[:16]


def fit_keys(keys: Iterable[str]) -> dict[str, str]:
    """A distinct sample name for each key, independent of their order.

    Keys of up to 80 characters of [A-Za-z0-9_-] stay as they are. Others are shortened, since WebDataset splits names
    at the first dot and a tar header has 100 bytes for a name: the last 48 characters remain, with unsuitable ones
    replaced by `_`, followed by part of the key's SHA-256 to keep them distinct.
    """
    keys = sorted(keys)
    names = {key: key for key in keys if _FIT_KEY.fullmatch(key)}
    taken = set(names)
    for key in keys:
        if key not in names:
            digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
            stem = re.sub(r"[^A-Za-z0-9_-]+", "_", key)[-_KEPT_CHARS:].strip("_-") or "image"
            chars = _HASH_CHARS
            while (name := f"{stem}-{digest[:chars]}") in taken:
                chars += 1
            names[key] = name
            taken.add(name)
    return names


def default_id_key() -> Path:
    """Path of the key that is created when none is given."""
    from platformdirs import user_data_path

    return user_data_path("cxrsynth") / "id.key"


def load_id_key(path: Path | None, *, create: bool = True) -> bytes:
    """Read the key; without a path, create one in the per-user data folder (mode 0600) on first use.

    Where nothing may be created (`create`), one that is kept nowhere takes its place. White space around it and a byte
    order mark are not part of it.

    Raises:
        ShardError: if the named file is missing, unreadable, readable for everyone, shorter than 16 bytes, or of so few
            different ones that it cannot be random.
    """
    if path is None:
        path = default_id_key()
        if not path.exists():
            if not create:
                return secrets.token_hex(_KEY_BYTES).encode()
            _make_key(path)
    try:
        if not is_regular(path):
            raise ShardError(
                f"--id-key {path}: {what_it_is(path)}, expected a file with a secret key\n  {_HOW_TO_MAKE}"
            )
        if (size := path.stat().st_size) > _LONGEST_KEY:
            raise ShardError(f"--id-key {path}: {size:,} bytes, which is no key\n  {_HOW_TO_MAKE}")
        key = path.read_bytes().removeprefix(codecs.BOM_UTF8).strip()
        mode = path.stat().st_mode
    except OSError as error:
        raise ShardError(f"--id-key {path}: cannot be read ({error.strerror})\n  {_HOW_TO_MAKE}") from None
    if len(key) < 16:
        raise ShardError(f"--id-key {path}: {len(key)} bytes, expected at least 16\n  {_HOW_TO_MAKE}")
    if len(set(key)) < _LEAST_DIFFERENT:
        raise ShardError(
            f"--id-key {path}: only {len(set(key))} different bytes, so it is no random key\n  {_HOW_TO_MAKE}"
        )
    if os.name == "posix" and mode & stat.S_IROTH:
        raise ShardError(
            f"--id-key {path}: everyone on this machine can read it, and with it test which reports are in a data set\n"
            f"  chmod 600 {path}"
        )
    return key


def _make_key(path: Path) -> None:
    """Write a new key; if several processes start at once, the first one's key is everyone's."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                write_atomically(path, f"{secrets.token_hex(_KEY_BYTES)}\n".encode(), mode=0o600)
    except OSError as error:
        raise ShardError(
            f"{path}: the ID key cannot be created there ({error.strerror})\n  give one with --id-key FILE"
        ) from None
