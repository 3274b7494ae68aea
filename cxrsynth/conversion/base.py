"""The model folder that `--base` names: what it must have before anything is read."""

from pathlib import Path
from typing import Any

from cxrsynth.diffusion.families import family_of
from cxrsynth.diffusion.resolve import INDEX, read_index
from cxrsynth.errors import ModelError


def check_base(base: Path) -> None:
    """Refuse what is no model folder.

    Raises:
        ModelError: naming the option.
    """
    if not base.is_dir():
        raise ModelError(f"--base {base}: no such folder\n  expected: a model folder in diffusers' layout")
    try:
        family_of(base)
    except ModelError as error:
        raise ModelError(f"--base {error}") from None
    base_index(base)


def base_index(base: Path) -> dict[str, Any]:
    """Content of its `model_index.json`, which names a class for each part that is there.

    Raises:
        ModelError: if it cannot be read, or leaves out a part.
    """
    index = read_index(base)
    for part in family_of(base).parts:
        kind = index.get(part)
        if (base / part).is_dir() and not (isinstance(kind, list) and [type(one) for one in kind] == [str, str]):
            raise ModelError(
                f"--base {base}: {INDEX} gives no class for {part}/\n"
                "  expected: library and class of each part, as save_pretrained of a pipeline writes it"
            )
    return index
