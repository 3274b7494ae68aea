"""No option of any command runs Python code that lies in a folder it is given, nor asks whether it may."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from cxrsynth.cli import app
from cxrsynth.rewards.backends import family_folder
from tests.generation.making import ROWS, write_table
from tests.tuning.making import recipe, write_recipe

_MAP = {name: f"planted.{name}" for name in ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor")}


def plant(folder: Path, ran: Path) -> Path:
    """Put code into a folder and those in it, and have all their configurations name it."""
    for path in list(folder.rglob("*.json")):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and path.name != "tokenizer.json" and "index" not in path.name:
            if path.name != "cxrsynth.json":
                path.write_text(json.dumps(content | {"auto_map": _MAP}))
            (path.parent / "planted.py").write_text(
                f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
                + "".join(f"class {name}:\n    pass\n" for name in _MAP)
            )
    return folder


def of_generate(option: str, part: str = "") -> Callable[[Path, Path, Path], list[object]]:
    def command(home: Path, model: Path, planted: Path) -> list[object]:
        table = write_table(home / "reports.csv", ROWS[:1])
        own = [] if option == "--model" else ["--model", model]
        return ["generate", table, "--out", home / "set", *own, option, planted / part, "--limit", 1, "--steps", 1]

    return command


def of_audit(option: str, value: str = "{}") -> Callable[[Path, Path, Path], list[object]]:
    def command(home: Path, model: Path, planted: Path) -> list[object]:
        images = find_images(home)
        reference = ["--reference", images] if option == "--generator" else []
        return ["audit", images, "--out", home / "out", option, value.format(planted), *reference]

    return command


def find_images(home: Path) -> Path:
    """A folder with one picture."""
    folder = home / "images"
    folder.mkdir(exist_ok=True)
    Image.linear_gradient("L").save(folder / "a.png")
    return folder


def of_tune(home: Path, model: Path, planted: Path) -> list[object]:
    return ["tune", write_recipe(home, recipe(planted, rewards={"posture": {}})), "--out", home / "run", "--dry-run"]


COMMANDS: dict[str, tuple[str, Callable[[Path, Path, Path], list[object]]]] = {
    "generate --model": ("model", of_generate("--model")),
    "generate --unet": ("model", of_generate("--unet", "unet")),
    "generate --vae": ("model", of_generate("--vae", "vae")),
    "generate --scheduler": ("model", of_generate("--scheduler", "scheduler")),
    "generate --labeler": ("dual", of_generate("--labeler")),
    "generate --deid-model": ("dual", of_generate("--deid-model")),
    "audit --labeler": ("dual", of_audit("--labeler")),
    "audit --generator": ("model", of_audit("--generator")),
    "audit --family": ("family", of_audit("--family")),
    "audit --features": ("dual", of_audit("--features")),
    "audit --judge consistency": ("dual", of_audit("--judge", "consistency={}")),
    "audit --judge posture": ("family", of_audit("--judge", "posture={}")),
    "tune model.checkpoint": ("model", of_tune),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_planted_code_never_runs(name: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt="": pytest.fail("asked whether to run the code"))
    kind, command = COMMANDS[name]
    family = family_folder("nano")
    assert family is not None
    source = {"model": tiny_model, "family": family, "dual": family / "dual_encoder"}[kind]
    ran = tmp_path / "ran"
    shutil.copytree(source, tmp_path / "planted")
    planted = plant(tmp_path / "planted", ran)
    assert list(planted.rglob("planted.py"))
    result = CliRunner().invoke(app, list(map(str, command(tmp_path, tiny_model, planted))))
    assert not ran.exists()
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    # It was refused for the code, or for being something else than the option takes; or loaded without its code.
    assert result.exit_code in (0, 2), result.output


def test_the_trap_works(tmp_path: Path) -> None:
    """Whoever runs the code springs it."""
    family = family_folder("nano")
    assert family is not None
    shutil.copytree(family / "dual_encoder", tmp_path / "planted")
    plant(tmp_path / "planted", tmp_path / "ran")
    exec((tmp_path / "planted" / "planted.py").read_text(), {})
    assert (tmp_path / "ran").exists()
