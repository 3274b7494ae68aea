"""The package: what it imports is declared, imports point one way, and what runs is what was installed."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest

import cxrsynth
from cxrsynth.recipe.packaged import packaged_folder, packaged_recipes, packaged_scripts

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(cxrsynth.__file__).parent
# Import name -> distribution, where they differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "faiss": "faiss-cpu",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


def imported(folder: Path) -> set[str]:
    """Distributions that the Python files below a folder import."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    names -= {*sys.stdlib_module_names, "cxrsynth"}
    return {DISTRIBUTIONS.get(name, name).replace("_", "-") for name in names}


def declared(*extras: str) -> set[str]:
    """Distributions that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = project["dependencies"] + [text for name in extras for text in project["optional-dependencies"][name]]
    return {re.split(r"[\[><=~!; ]", text)[0].lower().replace("_", "-") for text in texts}


# pydicom finds these by itself.
DECODERS = {"pyjpegls", "pylibjpeg", "pylibjpeg-openjpeg"}


def test_everything_imported_is_declared_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {"build", "excel", "presidio"} & project["optional-dependencies"].keys()
    found = imported(PACKAGE)
    assert {"torch", "pillow"} <= found
    assert found == declared(*extras) - DECODERS


def test_imports_point_one_way() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    if not program.exists() and os.environ.get("CI") != "true":
        pytest.skip("import-linter is not installed")
    done = subprocess.run(
        [program, "--config", ROOT / "pyproject.toml", "--no-cache"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_the_installed_package_is_tested_not_the_checkout() -> None:
    if os.environ.get("CI") != "true":
        pytest.skip("a checkout may be tested where it lies")
    assert "site-packages" in PACKAGE.parts
    assert packaged_folder() == PACKAGE / "recipes"


def test_the_package_carries_every_recipe_and_table_of_the_repository() -> None:
    ours = _contents(ROOT / "recipes")
    assert _contents(packaged_folder()) == ours
    assert packaged_recipes().keys() == {name.removesuffix(".yaml") for name in ours if name.endswith(".yaml")}
    assert packaged_scripts().keys() == {name for name in ours if name.endswith(".sh")} != set()
    assert all((packaged_recipes() | packaged_scripts()).values())


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_version_is_that_of_the_changelog_and_citation() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[?{re.escape(cxrsynth.__version__)}\b|^## \[?Unreleased\b", changelog, re.MULTILINE)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    released = re.search(r"^version: (\S+)$", citation, re.MULTILINE)
    assert released is not None
    assert re.search(rf"^## {re.escape(released[1])} - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert cxrsynth.__version__ == released[1] or ".dev" in cxrsynth.__version__


def test_links_of_the_readme_work_away_from_the_repository() -> None:
    """A package index shows the text of the package's metadata."""
    links = re.findall(r"\]\(([^)]+)\)", str(metadata("cxrsynth").get_payload()))  # type: ignore[attr-defined]
    assert len(links) > 10
    assert all(link.startswith("https://") for link in links)
    assert any("/raw.githubusercontent.com/" in link for link in links)
