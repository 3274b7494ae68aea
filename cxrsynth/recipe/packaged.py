"""The recipes, tables and job scripts that come with cxrsynth: found, listed, shown and copied."""

import shutil
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from cxrsynth.errors import RecipeError, ShardError

EXAMPLE_REPORTS = "reports.csv"


def packaged_folder() -> Path:
    """The folder of the recipes: in the package when installed from a wheel, else recipes/ of the checkout."""
    package = Path(str(files("cxrsynth")))
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def packaged_recipes() -> dict[str, str]:
    """Name -> what the recipe does, the first sentence of its comment; sorted by name."""
    return {path.stem: _first_sentence(path) for path in sorted(packaged_folder().glob("*.yaml"))}


def packaged_scripts() -> dict[str, str]:
    """Name with its folder (`slurm/generate-array.sh`) -> what the job script does; sorted by name."""
    folder = packaged_folder()
    return {path.relative_to(folder).as_posix(): _first_sentence(path) for path in sorted(folder.glob("*/*.sh"))}


def find_recipe(recipe: Path) -> Path:
    """A recipe file: `recipe` itself where there is such a file, else the packaged recipe of this name.

    Raises:
        RecipeError: if there is neither.
    """
    if recipe.is_file() or recipe.name != str(recipe):
        return recipe  # a path that does not exist is reported by whoever reads it
    return _packaged(str(recipe), packaged_recipes())


def read_recipe(name: str) -> str:
    """Text of a packaged recipe or job script.

    Raises:
        RecipeError: if there is none of this name.
    """
    return _packaged(name, packaged_recipes() | packaged_scripts()).read_text(encoding="utf-8")


def copy_recipe(name: str, folder: Path) -> list[Path]:
    """Copy a packaged recipe with the packaged tables it reads, or a job script, into `folder`; returns the new paths.

    Raises:
        RecipeError: if there is neither of this name.
        ShardError: if a file exists already or cannot be written. Nothing is copied where one exists.
    """
    source = _packaged(name, packaged_recipes() | packaged_scripts())
    read = _files_read_by(source) if source.suffix == ".yaml" else []
    copies = {path: folder / path.name for path in [source, *read]}
    for target in copies.values():
        if target.exists():
            raise ShardError(f"{target}: exists already\n  choose another folder, or move the file away")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copyfile(path, target)) for path, target in copies.items()]
    except OSError as error:
        raise ShardError(f"{folder}: cannot be written ({error.strerror})") from None


def _packaged(name: str, known: Collection[str]) -> Path:
    """The file of a name as it is listed; `.yaml` may stand behind a recipe's, `.sh` be left out of a script's."""
    for listed in (name, name.removesuffix(".yaml"), f"{name}.sh"):
        if listed in known:
            return packaged_folder() / (listed if listed.endswith(".sh") else f"{listed}.yaml")
    close = get_close_matches(name.removesuffix(".yaml"), known, n=1)
    hint = f"\n  did you mean: {close[0]}" if close else ""
    raise RecipeError(
        f"{name}: no such file, and no recipe of this name in the package{hint}\n  packaged: {', '.join(known)}"
    )


def _first_sentence(path: Path) -> str:
    """Of the comment on top of a recipe or script, which may run over several lines."""
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or line.startswith("#SBATCH"):
            break
        if not line.startswith("#!"):
            comment.append(line.lstrip("# ").strip())
    sentence, stop, _ = " ".join(comment).partition(". ")
    return sentence + stop.strip()


def _files_read_by(recipe: Path) -> list[Path]:
    """Files beside the recipe that it names."""
    import yaml

    named = _texts(yaml.safe_load(recipe.read_text(encoding="utf-8")))
    return [path for path in map(recipe.parent.joinpath, dict.fromkeys(named)) if path.is_file()]


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _texts(part)
