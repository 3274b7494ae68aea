"""What is printed of a model's additions: words that a file adds, and files beside a model that are not used."""

from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from cxrsynth import console
from cxrsynth.diffusion.ace import ACE_FILE
from cxrsynth.diffusion.additions import WEIGHTS_SUFFIXES, lora_file, words_file
from cxrsynth.diffusion.resolve import ResolvedModel
from cxrsynth.diffusion.words import read_words
from cxrsynth.runtime.processes import read_launch

_SHOWN = 3
_MOST_WORDS = 16  # tensors in a file that is taken for learned words


def tell_additions(model: ResolvedModel, *, lora: str = "--lora", embeddings: str = "--embeddings") -> None:
    """Print, in the main process, what is added to a model's words, and which files beside the model are not used.

    Args:
        model: that was found and checked.
        lora: how the user gives LoRA weights: an option, or the key of a recipe.
        embeddings: the same for learned words.
    """
    if read_launch().rank != 0:
        return
    for path in model.additions.embeddings:
        file = words_file(path)
        console.say(f"{embeddings} {file}: adds {_listed(list(read_words(file)))}")
    unused = list(_unused(model))
    if not unused:
        return
    message = f"{model.folder}: not used, for it is no part of the model: {_listed([path.name for path in unused])}"
    options = {path: _option(path, lora, embeddings if model.family.learns_words else None) for path in unused}
    taken = [f"{option} {path}" for path, option in options.items() if option is not None]
    if taken:
        message += f"\n  to use it: {', '.join(taken[:_SHOWN])}"
        if any(path.suffix != ".safetensors" for path, option in options.items() if option is not None):
            message += "; as safetensors, not pickled"
    console.warn(message)


def _unused(model: ResolvedModel) -> Iterator[Path]:
    """Files of weights beside the parts of a model, which no option names."""
    named = {lora_file(lora.path).resolve() for lora in model.additions.loras}
    named |= {words_file(path).resolve() for path in model.additions.embeddings}
    for path in sorted(model.folder.iterdir()):
        if path.suffix in WEIGHTS_SUFFIXES and path.name != ACE_FILE and path.is_file() and path.resolve() not in named:
            yield path


def _option(path: Path, lora: str, embeddings: str | None) -> str | None:
    """The option that takes a file, None if none does."""
    names, words = [path.stem.lower()], "embed" in path.stem.lower()
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                words = 0 < len(names) <= _MOST_WORDS and all(len(file.get_slice(n).get_shape()) < 3 for n in names)
        except (OSError, SafetensorError):
            return None
    if any("lora" in name for name in names):
        return lora
    return embeddings if words else None


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
