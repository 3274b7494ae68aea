"""A model folder in diffusers' layout with pickled weights, to the same folder with safetensors."""

import json
import shutil
from pathlib import Path

from cxrsynth import console
from cxrsynth.conversion.weights import PICKLED, read_weights, write_weights
from cxrsynth.errors import ModelError, in_words
from cxrsynth.runtime.files import read_json

_INDEX = ".bin.index"
_SHOWN = 5
# Settings, vocabularies, weights that are safe already, and texts for people. Never code.
_COPIED = (".json", ".txt", ".model", ".safetensors", ".md")


def convert_folder(source: Path, out: Path) -> None:
    """Fill `out` with the model in `source`: pickled weights as safetensors, everything else as it is.

    Weights are left out where the part has the same in safetensors. Checkpoints beside the parts, and code, are not
    part of the model and are not copied.

    Args:
        source: folder with `model_index.json`; the parts' weights may be in one file or in several with an index.
        out: an empty folder.

    Raises:
        ModelError: if there is nothing to convert, or weights cannot be read.
        OSError: if a file cannot be copied or written.
    """
    if not (source / "model_index.json").is_file():
        raise ModelError(
            f"{source}: no model_index.json there\n"
            "  expected: a model folder in diffusers' layout, a bundle of MONAI, or a single file of weights"
        )
    if not any(_is_weights(path) for path in source.glob("*/*")):
        raise ModelError(
            f"{source}: no pickled weights (.bin) in its parts, so there is nothing to convert\n"
            "  a folder with safetensors is used as it is: --model; for a single file, name the file itself"
        )
    left_out = []
    for path in sorted(source.glob("*")) + sorted(source.glob("*/*")):
        # Links are followed: a snapshot of the hub consists of them.
        if path.is_symlink() and not path.exists():
            raise ModelError(
                f"{path}: a link to {path.readlink()}, which is not there\n"
                "  a snapshot copied without the files it links to? Copy it again following links (cp -rL)"
            )
        if not path.is_file() or path.name.startswith("."):
            continue
        target = out / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        if _is_weights(path) and path.parent != source:
            target = target.with_name(safetensors_name(path.name))
            if not (path.parent / target.name).is_file():
                write_weights(target, read_weights(path))
        elif _INDEX in path.name:
            target = target.with_name(safetensors_name(path.name))
            if not (path.parent / target.name).is_file():
                target.write_text(_renamed_index(path), encoding="utf-8")
        elif path.suffix in _COPIED or path.name.startswith("LICENSE"):
            shutil.copyfile(path, target)
        elif path.suffix in PICKLED:
            left_out.append(path.relative_to(source).as_posix())
    if left_out:
        console.warn(
            f"{source}: no part of the model, left out: {', '.join(left_out[:_SHOWN])}"
            f"{f' and {len(left_out) - _SHOWN} more' if len(left_out) > _SHOWN else ''}\n"
            "  LoRA weights and learned words become safetensors with: cxrsynth convert FILE weights.safetensors"
        )
    for folder in out.iterdir():
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # it held nothing of a model


def safetensors_name(name: str) -> str:
    """The name of pickled weights, or of their index, once they are safetensors.

    `diffusion_pytorch_model.fp16.bin` keeps its stem; transformers' `pytorch_model.bin` becomes `model.safetensors`.
    """
    stem = name.removeprefix("pytorch_") if name.startswith("pytorch_model") else name
    return stem.replace(".bin", ".safetensors")


def _is_weights(path: Path) -> bool:
    return path.suffix in PICKLED and path.name.startswith(("pytorch_model", "diffusion_pytorch_model"))


def _renamed_index(path: Path) -> str:
    try:
        index = read_json(path)
        index["weight_map"] = {name: safetensors_name(file) for name, file in index["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: cannot be read as an index of weights: {in_words(error)}") from None
    return json.dumps(index, indent=2, sort_keys=True) + "\n"
