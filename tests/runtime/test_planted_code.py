"""No option of any command runs Python code that lies in a folder it is given, nor asks whether it may."""

import ast
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import cxrsynth
from cxrsynth.cli import app
from cxrsynth.metrics.reidentification.verifier import packaged_verifier
from cxrsynth.rewards.backends import family_folder
from tests.conversion.published import ldm_state, pickle_parts
from tests.generation.making import ROWS, write_table
from tests.tuning.making import recipe, write_recipe

Command = Callable[[Path, Path, Path], list[object]]

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


def of_generate(option: str, part: str = "", *further: str) -> Command:
    def command(home: Path, model: Path, planted: Path) -> list[object]:
        table = write_table(home / "reports.csv", ROWS[:1])
        own = [] if option == "--model" else ["--model", model]
        value = part.format(planted) if "{" in part else planted / part
        return ["generate", table, "--out", home / "set", *own, option, value, *further, "--limit", 1, "--steps", 1]

    return command


def of_audit(option: str, value: str = "{}", *further: str) -> Command:
    """`further` may name two folders of images, as `{images}` and `{others}`."""

    def command(home: Path, model: Path, planted: Path) -> list[object]:
        images = find_images(home)
        given = [
            one.format(images=images, others=find_images(home, "others", Image.radial_gradient)) for one in further
        ]
        return ["audit", images, "--out", home / "out", option, value.format(planted), *given]

    return command


def find_images(home: Path, name: str = "images", draw: Callable[[str], Image.Image] = Image.linear_gradient) -> Path:
    """A folder with as many pictures as an attack on a model needs, no two alike."""
    folder = home / name
    folder.mkdir(exist_ok=True)
    for number in range(10):
        draw("L").rotate(9 * number).save(folder / f"{name}-{number}.png")
    return folder


def of_convert(home: Path, model: Path, planted: Path) -> list[object]:
    return ["convert", planted, home / "out"]


def of_convert_base(home: Path, model: Path, planted: Path) -> list[object]:
    save_file(ldm_state(model), home / "one.safetensors")
    return ["convert", home / "one.safetensors", home / "out", "--base", planted]


def of_reward_check(name: str) -> Command:
    return lambda home, model, planted: ["rewards", "check", name, "--backend", planted, "--device", "cpu"]


def of_tune(section: str, key: str, value: Callable[[Path], object] = str, **changes: Any) -> Command:
    """A recipe with one more key in a section, as its `value` names the folder; `changes` go into its stage."""

    def command(home: Path, model: Path, planted: Path) -> list[object]:
        content = recipe(model, **({"rewards": {"posture": {}}} | changes))
        place = content["stages"][0] if section == "stage" else content.setdefault(section, {})
        place[key] = value(planted)
        if section == "evaluation":
            content["evaluation"]["reference"] = str(find_images(home))
        return ["tune", write_recipe(home, content), "--out", home / "run", "--dry-run"]

    return command


def of_tuned_rewards(name: str) -> Command:
    return of_tune("stage", "rewards", lambda planted: {name: {"backend": str(planted)}})


def one_in(part: str = "") -> Callable[[Path], list[str]]:
    return lambda planted: [str(planted / part)]


REFERENCE, MEMBERS = ("--reference", "{images}"), ("--members", "{images}", "--non-members", "{others}")
# By name of the option or key: the kind of folder that code is planted in, and the command that is given the folder.
COMMANDS: dict[str, tuple[str, Command]] = {
    "generate --model": ("model", of_generate("--model")),
    "generate --unet": ("model", of_generate("--unet", "unet")),
    "generate --vae": ("model", of_generate("--vae", "vae")),
    "generate --scheduler": ("model", of_generate("--scheduler", "scheduler")),
    "generate --lora": ("lora", of_generate("--lora")),
    "generate --embeddings": ("words", of_generate("--embeddings")),
    "generate --labeler": ("dual", of_generate("--labeler")),
    "generate --deid-model": ("dual", of_generate("--deid-model")),
    "generate --judge": ("family", of_generate("--judge", "posture={}", "--accept", "--min-posture=-9")),
    "generate --judge consistency": (
        "dual",
        of_generate("--judge", "consistency={}", "--accept", "--min-consistency=-1"),
    ),
    "audit --labeler": ("dual", of_audit("--labeler")),
    "audit --generator": ("model", of_audit("--generator", "{}", *REFERENCE)),
    "audit --model --members": ("model", of_audit("--model", "{}", *MEMBERS)),
    "audit --family": ("family", of_audit("--family")),
    "audit --features": ("dual", of_audit("--features")),
    "audit --features, a family": ("family", of_audit("--features")),
    "audit --verifier": ("verifier", of_audit("--verifier", "{}", *REFERENCE)),
    "audit --verifier, an encoder": ("dual", of_audit("--verifier", "{}", *REFERENCE)),
    "audit --utility-model": ("dual", of_audit("--utility-model", "{}", "--utility", *REFERENCE)),
    "audit --utility-model, a family": ("family", of_audit("--utility-model", "{}", "--utility", *REFERENCE)),
    "audit --judge": ("family", of_audit("--judge")),
    "audit --judge consistency": ("dual", of_audit("--judge", "consistency={}")),
    "audit --judge diagnosis": ("family", of_audit("--judge", "diagnosis={}")),
    "audit --judge posture": ("family", of_audit("--judge", "posture={}")),
    "convert SOURCE": ("pickled", of_convert),
    "convert --base": ("model", of_convert_base),
    "rewards check posture": ("family", of_reward_check("posture")),
    "rewards check diagnosis": ("family", of_reward_check("diagnosis")),
    "rewards check consistency": ("dual", of_reward_check("consistency")),
    "tune model.checkpoint": ("model", of_tune("model", "checkpoint")),
    "tune model.unet": ("model", of_tune("model", "unet", lambda planted: str(planted / "unet"))),
    "tune model.vae": ("model", of_tune("model", "vae", lambda planted: str(planted / "vae"))),
    "tune model.scheduler": ("model", of_tune("model", "scheduler", lambda planted: str(planted / "scheduler"))),
    "tune model.lora": ("lora", of_tune("model", "lora", one_in())),
    "tune model.embeddings": ("words", of_tune("model", "embeddings", one_in())),
    "tune reports.labeler": ("dual", of_tune("reports", "labeler")),
    "tune rewards.posture.backend": ("family", of_tuned_rewards("posture")),
    "tune rewards.diagnosis.backend": ("family", of_tuned_rewards("diagnosis")),
    "tune rewards.consistency.backend": ("dual", of_tuned_rewards("consistency")),
    "tune evaluation.evaluator": ("family", of_tune("evaluation", "evaluator")),
    "tune evaluation.features": ("dual", of_tune("evaluation", "features")),
}


def make_source(kind: str, model: Path, folder: Path) -> None:
    """A folder of one kind, in which code is then planted."""
    family = family_folder("nano")
    assert family is not None
    if kind == "lora":
        unet = UNet2DConditionModel.from_pretrained(model / "unet")
        get_peft_model(unet, LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)).save_pretrained(folder)
    elif kind == "words":
        folder.mkdir()
        save_file({"<opacity>": torch.zeros(1, 16)}, folder / "words.safetensors")
        (folder / "config.json").write_text("{}")
    else:
        known = {"family": family, "dual": family / "dual_encoder", "verifier": packaged_verifier()}
        shutil.copytree(known.get(kind, model), folder)
        if kind == "pickled":
            pickle_parts(folder)


@pytest.mark.parametrize("name", COMMANDS)
def test_planted_code_never_runs(name: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt="": pytest.fail("asked whether to run the code"))
    kind, command = COMMANDS[name]
    ran = tmp_path / "ran"
    make_source(kind, tiny_model, tmp_path / "planted")
    planted = plant(tmp_path / "planted", ran)
    assert list(planted.rglob("planted.py"))
    result = CliRunner().invoke(app, list(map(str, command(tmp_path, tiny_model, planted))))
    assert not ran.exists()
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    if kind == "words":  # nothing but the tensors is read
        assert result.exit_code == 0, result.output
    else:
        assert result.exit_code == 2, result.output
        assert "asks for Python code of its own (auto_map), which cxrsynth never runs" in result.output


def test_the_trap_works(tmp_path: Path) -> None:
    """Whoever runs the code springs it."""
    family = family_folder("nano")
    assert family is not None
    shutil.copytree(family / "dual_encoder", tmp_path / "planted")
    plant(tmp_path / "planted", tmp_path / "ran")
    exec((tmp_path / "planted" / "planted.py").read_text(), {})
    assert (tmp_path / "ran").exists()


# Where `from_pretrained` may be called, and of what: there the settings are looked at first, or the folder is the
# build's own. Everything else goes through `runtime/pretrained.py`.
ALLOWED = {
    "runtime/pretrained.py": {"kind"},
    "rewards/networks.py": {"super()"},  # `SavedNetwork`
    "diffusion/lora.py": {"LoraConfig"},
    "nano/build/export.py": {"CLIPTokenizer"},
    "nano/build/__main__.py": {"CLIPTokenizer"},
    "nano/build/reward_models.py": {"CLIPTokenizer"},
    "nano/build/measure.py": {"CLIPTokenizer"},
}


def loaders(tree: ast.AST) -> Iterator[str]:
    """What `from_pretrained` is taken of in code, whether it is called there or handed on."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "from_pretrained":
            yield ast.unparse(node.value)
        elif isinstance(node, ast.Constant) and node.value == "from_pretrained":
            yield "a string"  # `getattr`


def test_folders_are_loaded_in_one_place() -> None:
    root = Path(cxrsynth.__file__).parent
    texts = {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in root.rglob("*.py")}
    trees = {name: ast.parse(text) for name, text in texts.items() if "from_pretrained" in text or "Saved" in text}
    own = {
        node.name
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "SavedNetwork" for base in node.bases)
    }
    assert {"FindingClassifier", "PatientVerifier"} <= own
    found = {name: set(loaders(tree)) - own for name, tree in trees.items()}
    assert {name: kinds for name, kinds in found.items() if kinds} == ALLOWED


def test_such_a_call_elsewhere_is_noticed() -> None:
    code = "a = transformers.AutoModel.from_pretrained(x)\nload = B.from_pretrained\ngetattr(C, 'from_pretrained')(x)"
    assert set(loaders(ast.parse(code))) == {"transformers.AutoModel", "B", "a string"}
