"""From a model's name to its folder, description, digest and embeddings: found, checked and hashed once."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from cxrsynth.diffusion.ace import ACE_CONFIG, ACE_FILE, AdaptiveConditionEmbedding, load_ace
from cxrsynth.diffusion.spec import SPEC_FILE, ModelSpec, read_spec
from cxrsynth.errors import ModelError
from cxrsynth.runtime.files import file_sha256
from cxrsynth.runtime.pretrained import hub_folder

_NETWORKS = ("unet", "vae", "text_encoder")
_PARTS = (*_NETWORKS, "tokenizer", "scheduler")
_SUFFIXES = (".json", ".txt", ".safetensors")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class ResolvedModel:
    """A model that was found and checked, but not loaded.

    `name` is the one its `cxrsynth.json` gives, else the hub repository's, else the folder's. `digest` is the SHA-256
    over all files that decide the images. `ace` holds the adaptive condition embeddings, if there are any.
    `revision` is the commit of a hub repository; None for a local folder.
    """

    name: str
    folder: Path
    spec: ModelSpec
    digest: str
    ace: AdaptiveConditionEmbedding | None = field(default=None, repr=False)
    revision: str | None = None


def resolve_model(name: str, *, ace: Path | None = None, option: str = "--model") -> ResolvedModel:
    """Find a model, read its description, check its embeddings and hash its files.

    Args:
        name: `nano`, a folder in Stable Diffusion layout, or a hub id `owner/name` or `owner/name@revision`.
        ace: file or folder of adaptive condition embeddings; None uses those in the model's folder, if any.
        option: what names the model, for messages: an option, or the key of a recipe.

    Raises:
        ModelError: if there is no such model, or its files cannot be used.
    """
    folder = find_model(name, option=option)
    spec = read_spec(folder)
    from_hub = name != "nano" and not Path(name).is_dir()
    hub_name, _, revision = name.partition("@")
    called = hub_name.rpartition("/")[2] if from_hub else folder.resolve().name
    return ResolvedModel(
        name=spec.name or called,
        folder=folder,
        spec=spec,
        digest=model_digest(folder, ace),
        ace=_find_ace(folder, ace),
        revision=(_commit(folder) or revision or None) if from_hub else None,
    )


def find_model(name: str, *, option: str = "--model") -> Path:
    """Folder of a model, by the names `resolve_model` takes; a hub repository is downloaded (safetensors only).

    Raises:
        ModelError: if there is no such model, or its layout or weights cannot be used.
    """
    folder = Path(str(files("cxrsynth") / "nano" / "assets")) if name == "nano" else Path(name)
    if not folder.is_dir():
        folder = _from_hub(name, option)
    missing = [f"{part}/" for part in _PARTS if not (folder / part).is_dir()]
    if missing or not (folder / "model_index.json").is_file():
        raise ModelError(
            f"{folder}: not a Stable Diffusion folder, missing {', '.join(missing) or 'model_index.json'}\n"
            f"  expected: model_index.json and {', '.join(f'{p}/' for p in _PARTS)}"
        )
    for part in _NETWORKS:
        if not list((folder / part).glob("*.safetensors")):
            raise ModelError(
                f"{folder / part}: no safetensors weights\n"
                "  weights load from safetensors only; convert pickled weights (.bin, .ckpt) with diffusers first"
            )
    return folder


def _from_hub(name: str, option: str) -> Path:
    """Download the configs and safetensors of a hub repository. Names that look like local paths are refused."""
    wanted = [f"{part}/*{suffix}" for part in _PARTS for suffix in _SUFFIXES]
    folder = hub_folder(name, patterns=["*.json", *wanted], needs_revision=False, folders="nano, a model folder")
    if folder is None:
        raise ModelError(
            f"{option} {name}: no such folder\n  expected: nano, a model folder, or a hub id owner/name[@revision]"
        )
    return folder


def _commit(snapshot: Path) -> str | None:
    """Commit of a hub snapshot: the hub's cache names the folder after it."""
    return snapshot.name if _COMMIT.fullmatch(snapshot.name) else None


def model_digest(folder: Path, ace: Path | None = None) -> str:
    """SHA-256 over names and contents of all files that decide which images a model makes.

    Args:
        folder: of the model.
        ace: embeddings used in place of those in the folder.

    Raises:
        ModelError: if a file cannot be read.
    """
    paths = [p for part in _PARTS for p in (folder / part).iterdir() if p.suffix in _SUFFIXES]
    paths += [p for p in (folder / "model_index.json", folder / SPEC_FILE) if p.exists()]
    named = [(path.relative_to(folder).as_posix(), path) for path in sorted(paths)]
    embeddings = ace if ace is not None else folder
    embeddings = embeddings if embeddings.is_dir() else embeddings.parent
    named += [(name, embeddings / name) for name in (ACE_FILE, ACE_CONFIG) if (embeddings / name).is_file()]
    total = hashlib.sha256()
    for name, path in named:
        total.update(f"{name} {_sha256(path)}\n".encode())
    return total.hexdigest()


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None


def _find_ace(folder: Path, ace: Path | None) -> AdaptiveConditionEmbedding | None:
    """The embeddings that were asked for, else those in the model's folder; None if there are none.

    Raises:
        ModelError: if they cannot be read, or do not have the size of the model's text embeddings.
    """
    if ace is None and not (folder / ACE_FILE).is_file():
        return None
    found = load_ace(folder if ace is None else ace)
    try:
        text = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
        width, length = int(text["hidden_size"]), int(text["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{folder / 'text_encoder'}: config.json does not give the text encoder's size") from None
    if found.blocks.shape[2] != width or found.tokens > length:
        raise ModelError(
            f"{ace or folder}: embeddings of {found.tokens} positions and width {found.blocks.shape[2]}, but the"
            f" model's text encoder has {length} and {width}\n  expected: embeddings tuned with this model"
        )
    return found
