"""`convert`, top to bottom: a model as it was published in, a folder with safetensors out."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cxrsynth.conversion.base import check_base
from cxrsynth.conversion.biovil_t import convert_biovil_t, is_published
from cxrsynth.conversion.folder import convert_folder
from cxrsynth.conversion.monai import convert_bundle, is_bundle
from cxrsynth.conversion.single_file import convert_single_file
from cxrsynth.conversion.weights import PICKLED, SUFFIXES, read_weights, write_weights
from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.resolve import ResolvedModel, resolve_model
from cxrsynth.diffusion.spec import SPEC_FILE
from cxrsynth.errors import ModelError, ShardError
from cxrsynth.rewards.digests import backend_digest
from cxrsynth.runtime.files import file_sha256, folder_atomically, read_json, stable_json, system_errors, what_it_is
from cxrsynth.runtime.memory import memory_advice
from cxrsynth.settings import ConvertSettings, Precision


@dataclass(frozen=True)
class Converted:
    """A model that was converted and loaded once, or one file of weights.

    `model` is its folder, `family` the kind of model it is, `digest` the SHA-256 over all files that decide its
    images or scores, as data sets and audits record it, and `use` the command and option that take it. Of a file of
    weights, `model` is the file, `family` and `use` empty, and `digest` its SHA-256.
    """

    model: Path
    family: str
    digest: str
    use: str = ""


def convert(settings: ConvertSettings) -> Converted:
    """Convert a model, load the result on the CPU, and give it its name only then.

    Raises:
        ModelError: if the source cannot be converted, or the result does not load.
        ShardError: if the output folder exists, or cannot be written.
    """
    with memory_advice("free some: all weights of a file must fit"):
        return _convert(settings)


def _convert(settings: ConvertSettings) -> Converted:
    source, out = settings.source, settings.out
    _check(settings)
    try:
        if out.suffix == ".safetensors":
            out.parent.mkdir(parents=True, exist_ok=True)
            write_weights(out, read_weights(source))
            return Converted(model=out, family="", digest=file_sha256(out))
        with folder_atomically(out) as partial, system_errors(partial):
            if is_published(source):
                convert_biovil_t(source, partial)
                digest = backend_digest("consistency", str(partial))
                return Converted(out, "BioViL-T", digest, use=f"cxrsynth audit SET --judge consistency={out}")
            if source.is_dir() and is_bundle(source):
                convert_bundle(source, settings.base, partial)
            elif source.is_dir():
                convert_folder(source, partial)
            else:
                convert_single_file(settings, partial)
            _name(partial, settings.name)
            found = _load(source, partial)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ShardError(f"{error.filename or out}: {reason}\n  nothing was written to {out}") from None
    return Converted(out, found.family.title, found.digest, use=f"cxrsynth generate --model {out}")


def _check(settings: ConvertSettings) -> None:
    """Refuse what cannot work before anything is read."""
    source, out = settings.source, settings.out
    if out.exists():
        raise ShardError(f"{out}: exists\n  expected: a new folder; convert replaces nothing")
    if not source.exists():
        raise ModelError(f"{source}: no such file or folder; download the model first")
    if not source.is_dir() and not source.is_file():
        raise ModelError(f"{source}: {what_it_is(source)}\n  expected: a model folder, or a file of weights")
    for what, folder in (("the folder that is converted", source), ("--base", settings.base)):
        if folder is not None and folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise ShardError(f"{out}: lies inside {what}, {folder}, which is only read\n  choose a folder elsewhere")
    if settings.base is not None:
        check_base(settings.base)
    if source.is_file() and source.suffix not in SUFFIXES:
        raise ModelError(f"{source}: expected a model folder, or a file that ends in {', '.join(SUFFIXES)}")
    if settings.name is not None and not (0 < len(settings.name.strip()) <= 64 and settings.name.isprintable()):
        raise ModelError(f"--name {settings.name!r}: expected 1 to 64 printable characters")
    if out.suffix == ".safetensors":
        _check_file(settings)
    if source.is_dir():
        for option, given in (("--original-config", settings.original_config), ("--ema", settings.ema or None)):
            if given is not None:
                raise ModelError(f"{option}: belongs to a single file, and {source} is a folder")
    if is_published(source):
        for option, other in (("--base", settings.base), ("--name", settings.name)):
            if other is not None:
                raise ModelError(f"{option}: belongs to a model that makes images, and {source} is BioViL-T")


def _check_file(settings: ConvertSettings) -> None:
    """Refuse what does not go with an output that is one file: tensors as they are, without a model around them."""
    if not settings.source.is_file() or settings.source.suffix not in PICKLED:
        raise ModelError(
            f"{settings.source}: to write one file, {settings.out.name}, expected one pickled file"
            f" ({', '.join(PICKLED)})\n  name a folder as OUT for a model"
        )
    given = {"--base": settings.base, "--original-config": settings.original_config, "--name": settings.name}
    for option, value in (given | {"--ema": settings.ema or None}).items():
        if value is not None:
            raise ModelError(f"{option}: belongs to a model, and {settings.out.name} is a file of weights")


def _name(folder: Path, name: str | None) -> None:
    """State a name in cxrsynth.json, beside what it may already say."""
    if name is None:
        return
    path = folder / SPEC_FILE
    spec: dict[str, Any] = {}
    if path.is_file():
        try:
            spec = dict(read_json(path))
        except (ValueError, TypeError) as error:
            raise ModelError(f"{path.name}: not a valid model description\n  {error}") from None
    path.write_bytes(stable_json(spec | {"name": name}))


def _load(source: Path, folder: Path) -> ResolvedModel:
    """Load the result as `generate` does, so that a folder that was written is one that can be used."""
    try:
        found = resolve_model(str(folder))
        # Half the memory of float32; what is checked does not depend on it.
        load_model(found, device=torch.device("cpu"), precision=Precision.BF16)
    except ModelError as error:
        said = str(error).replace(f"{folder}{os.sep}", "").replace(str(folder), "the folder")
        raise ModelError(f"{source}: converted, but the result cannot be used, so it was not kept\n  {said}") from None
    return found
