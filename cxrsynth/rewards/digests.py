"""Identity of a reward's networks as a digest: results compare only where the same networks scored both."""

import hashlib
from pathlib import Path

from cxrsynth.errors import ModelError
from cxrsynth.rewards.backends import REWARDS, family_folder, transformers_folder
from cxrsynth.rewards.installed import own_reward, unknown_backend
from cxrsynth.runtime.files import file_sha256

# The folder of a family that a reward uses.
_PARTS = {"posture": "posture", "diagnosis": "classifier", "consistency": "dual_encoder"}
# The files that loading can read: settings, weights, vocabularies. A README may change.
_COUNTED = (".json", ".safetensors", ".txt", ".model")


def backend_digest(name: str, backend: str, *, cache: Path | None = None) -> str:
    """SHA-256, in hexadecimal, over the names and contents of a reward's files, wherever they are stored.

    Args:
        name: of a reward, as for `load_reward`.
        backend: as for `load_reward`. Released torchxrayvision weights must be in the cache, as loading leaves them;
            their name counts too, because targets and thresholds depend on it. A user's own reward is identified by the
            name and version of its distribution, its entry point and its backend: the text, or the files where it is a
            path.
        cache: where torchxrayvision keeps released weights; its own place where None.

    Raises:
        ModelError: if there is no such reward or backend, or its files are missing or cannot be read.
    """
    if name not in REWARDS:
        return _own(name, backend)
    family = family_folder(backend)
    if family is not None:
        return _files(name, family / _PARTS[name])
    released = _released(name, backend, cache)
    # As in `load_reward`: the released segmentation comes before a folder of its name, a folder before other weights.
    if released is not None and (name == "posture" or not Path(backend).is_dir()):
        identity, file = released
        if not file.is_file():
            raise ModelError(
                f"{name}: no weights of {backend!r} in torchxrayvision's cache\n"
                f"  expected: {file.name}, which loading the reward downloads"
            )
        return _of([(identity, _sha256(file))])
    folder = transformers_folder(backend) if name == "consistency" else Path(backend)
    if folder is None or not folder.is_dir():
        raise unknown_backend(name, backend)
    return _files(name, folder)


def _own(name: str, backend: str) -> str:
    found = own_reward(name)
    if found.dist is None:
        raise ModelError(
            f"reward {name!r}: its entry point belongs to no installed distribution\n  expected: an installed package"
        )
    # Its class may read any file of the folder.
    path = Path(backend)
    parts = [("backend", backend)]
    if path.is_file():
        parts = [("backend", _sha256(path))]
    elif path.is_dir():
        below = sorted(file for file in path.rglob("*") if file.is_file())
        parts = [(file.relative_to(path).as_posix(), _sha256(file)) for file in below]
    return _of([(found.dist.name, found.dist.version), (found.name, found.value), *parts])


def _released(name: str, backend: str, cache: Path | None) -> tuple[str, Path] | None:
    """Name and file of released torchxrayvision weights; None where the backend is something else."""
    if name == "diagnosis":
        from cxrsynth.rewards.xrv import released_weights
        from cxrsynth.rewards.xrv_weights import ReleasedName

        weights = ReleasedName.parse(backend).name
        file = released_weights(weights, cache)
        return None if file is None else (weights, file)
    if name == "posture":
        from cxrsynth.rewards.xrv_posture import RELEASED, released_segmentation
        from cxrsynth.rewards.xrv_weights import ReleasedName

        return (RELEASED, released_segmentation(cache)) if ReleasedName.parse(backend).name == RELEASED else None
    return None


def _files(name: str, folder: Path) -> str:
    paths = sorted(path for path in folder.glob("*") if path.suffix in _COUNTED and path.is_file())
    if not any(path.suffix == ".safetensors" for path in paths):
        raise ModelError(f"{name}: {folder} has no weights\n  expected: a folder with config.json and safetensors")
    return _of([(path.name, _sha256(path)) for path in paths])


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}\n  expected: a readable file") from None


def _of(parts: list[tuple[str, str]]) -> str:
    return hashlib.sha256("".join(f"{key}\0{value}\n" for key, value in parts).encode()).hexdigest()
