"""Which judge it was, as a number: two results can be compared only where the same judge scored both."""

import hashlib
from pathlib import Path

from cxrsynth.errors import ModelError
from cxrsynth.rewards.backends import REWARDS, family_folder, no_backend, own_reward
from cxrsynth.runtime.files import file_sha256

# The part of a family that a reward asks.
_PARTS = {"posture": "posture", "diagnosis": "classifier", "consistency": "dual_encoder"}
# What loading a folder can read: settings, weights, vocabularies. A README may change.
_READ = (".json", ".safetensors", ".txt", ".model")


def backend_digest(name: str, backend: str, *, cache: Path | None = None) -> str:
    """SHA-256 over what judges, in hexadecimal: names and contents of its files, wherever they lie.

    Args:
        name: of a reward, as for `load_reward`.
        backend: as for `load_reward`. Released torchxrayvision weights must have been fetched, as loading does; their
            name counts too, because targets and thresholds come with it. A user's own reward is known by its
            distribution's name and version, its entry point and its backend: the text, or the files where it is a path.
        cache: where torchxrayvision keeps released weights; its own place where None.

    Raises:
        ModelError: if there is no such reward or backend, or its files are missing or cannot be read.
    """
    if name not in REWARDS:
        return _own(name, backend)
    family = family_folder(backend)
    if family is not None:
        return _files(name, family / _PARTS[name])
    # As in `load_reward`, the released segmentation comes before a folder of its name.
    if Path(backend).is_dir() and (name, backend) != ("posture", "pspnet"):
        return _files(name, Path(backend))
    released = _released(name, backend, cache)
    if released is None:
        raise no_backend(name, backend)
    if not released.is_file():
        raise ModelError(
            f"{name}: no weights of {backend!r} in the cache of torchxrayvision\n"
            f"  expected: {released.name}, which loading the reward fetches"
        )
    return _of([(backend, _sha256(released))])


def _own(name: str, backend: str) -> str:
    found = own_reward(name)
    if found.dist is None:
        raise ModelError(
            f"reward {name!r}: its entry point belongs to no installed distribution\n  expected: a package"
        )
    # What its class reads is not known: every file there is.
    path = Path(backend)
    asked = [("backend", backend)]
    if path.is_file():
        asked = [("backend", _sha256(path))]
    elif path.is_dir():
        below = sorted(file for file in path.rglob("*") if file.is_file())
        asked = [(file.relative_to(path).as_posix(), _sha256(file)) for file in below]
    return _of([(found.dist.name, found.dist.version), (found.name, found.value), *asked])


def _released(name: str, backend: str, cache: Path | None) -> Path | None:
    """The file of torchxrayvision's released weights, None where they go by another name."""
    if name == "diagnosis":
        from cxrsynth.rewards.xrv import released_weights

        return released_weights(backend, cache)
    if name == "posture":
        from cxrsynth.rewards.xrv_posture import RELEASED, released_segmentation

        return released_segmentation(cache) if backend == RELEASED else None
    return None


def _files(name: str, folder: Path) -> str:
    paths = sorted(path for path in folder.glob("*") if path.suffix in _READ and path.is_file())
    if not any(path.suffix == ".safetensors" for path in paths):
        raise ModelError(f"{name}: {folder} holds no judge\n  expected: a folder with config.json and safetensors")
    return _of([(path.name, _sha256(path)) for path in paths])


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}\n  expected: a readable file") from None


def _of(told: list[tuple[str, str]]) -> str:
    return hashlib.sha256("".join(f"{key}\0{value}\n" for key, value in told).encode()).hexdigest()
