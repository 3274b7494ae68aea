"""What goes wrong in a run of `tune`: the message names the setting to change, nothing is lost, and the run resumes."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import Result

from cxrsynth.console import counted
from cxrsynth.diffusion.model import choose_precision, load_model
from cxrsynth.diffusion.resolve import ResolvedModel, resolve_model
from cxrsynth.runtime.files import file_sha256
from cxrsynth.runtime.processes import ProcessGroup
from cxrsynth.settings import Precision
from cxrsynth.tuning import export, run_folder
from cxrsynth.tuning.run_folder import RunFolder
from cxrsynth.tuning.setup import _precision as precision_of
from tests.generation.making import HEADER, ROWS, hashes, write_table
from tests.tuning.making import install_brightness, metrics, recipe, tune, write_recipe

INFINITE = """
import torch


class Infinite:
    unit, low, high, needs_report = "any", 0.0, 1.0, False
    calls = 0

    def __init__(self, backend, *, device):
        pass

    def __call__(self, images, reports):
        Infinite.calls += 1
        return torch.full((len(images),), float("inf") if Infinite.calls > 6 else 0.5)
"""


@pytest.fixture(autouse=True)
def _brightness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_brightness(tmp_path / "own", monkeypatch)


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def sign(checkpoint: Path) -> None:
    """Write the digests anew, as a run with such files would have."""
    names = json.loads((checkpoint / "digests.json").read_text())
    (checkpoint / "digests.json").write_text(json.dumps({name: file_sha256(checkpoint / name) for name in names}))


def test_a_model_that_does_not_load_leaves_no_folder(tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    del state["decoder.conv_in.bias"]
    save_file(state, weights, metadata={"format": "pt"})
    out = tmp_path / "run"
    assert "1 tensors are missing" in refused(tune(write_recipe(tmp_path, recipe(model)), out))
    assert not out.exists()


@pytest.mark.slow
def test_a_hacked_reward_ends_the_stage_with_the_best_model(tiny_model: Path, tmp_path: Path) -> None:
    """The evaluator likes dark images, the reward bright ones."""
    # Images enough, and a rate high enough, that they become brighter whatever release of torch draws their noise.
    train = {"unet": "full", "learning_rate": 3.0e-3, "ace": False}
    content = recipe(tiny_model, iterations=60, images_per_report=8, train=train) | {"seed": 2}
    judge = {"evaluator": {"brightness": "dark"}, "hacking_margin": 1.0e-3}
    content["evaluation"] |= {"every": 5, "on_hacking": "stop"} | judge
    content["checkpoints"] = {"every": 100}
    path, out = write_recipe(tmp_path, content), tmp_path / "run"
    first = tune(path, out)
    assert first.exit_code == 0, first.output
    assert "reward hacking: the evaluator's margin fell" in first.output
    assert "the stage ends here" in first.output
    ended = max(row["iteration"] for row in metrics(out))
    assert ended < 60
    assert "the best according to the evaluator" in (out / "model" / "model_card.md").read_text()
    # Killed before the model was written, it does not train on.
    model, rows = hashes(out / "model"), metrics(out)
    (out / "model").rename(tmp_path / "aside")
    again = tune(path, out)
    assert again.exit_code == 0, again.output
    assert (hashes(out / "model"), metrics(out)) == (model, rows)


@pytest.mark.parametrize("what", ["reports.table", pytest.param("model.checkpoint", marks=pytest.mark.slow)])
def test_other_files_behind_the_same_recipe_are_refused(what: str, tiny_model: Path, tmp_path: Path) -> None:
    own = tmp_path / "model"
    shutil.copytree(tiny_model, own)
    path, out = write_recipe(tmp_path, recipe(own)), tmp_path / "run"
    assert tune(path, out).exit_code == 0
    (out / "model" / "model_card.md").unlink()
    if what == "reports.table":
        write_table(tmp_path / "reports.csv", (*ROWS, ("new-1", *ROWS[0][1:])), HEADER)
    else:
        weights = "unet/diffusion_pytorch_model.safetensors"
        shutil.copy(out / "model" / weights, own / weights)
    assert f"other files behind {what}" in refused(tune(path, out))


def test_reward_models_of_later_stages_are_loaded_first(tiny_model: Path, tmp_path: Path) -> None:
    content = recipe(tiny_model)
    content["stages"].append(content["stages"][0] | {"rewards": {"posture": {"backend": "nowhere"}}})
    assert "posture: no backend 'nowhere'" in refused(tune(write_recipe(tmp_path, content), tmp_path / "run"))
    content["stages"].pop()
    for key, value in (("evaluator", "nowhere"), ("features", "nowhere"), ("reference", "nowhere")):
        changed = content | {"evaluation": content["evaluation"] | {key: value}}
        assert "nowhere" in refused(tune(write_recipe(tmp_path, changed), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("radiographs", [0, 1])
def test_a_reference_of_too_few_images_is_refused_before_work_starts(
    radiographs: int, tiny_model: Path, tmp_path: Path
) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "cut.png").write_bytes(b"\x89PNG")
    for place in range(radiographs):
        Image.new("L", (64, 64), 9 * place).save(real / f"{place}.png")
    content = recipe(tiny_model)
    content["evaluation"] |= {"reference": "real"}
    said = refused(tune(write_recipe(tmp_path, content), tmp_path / "run"))
    assert f"{counted(radiographs, 'image')} that can be read, 1 that cannot" in said
    assert metrics(tmp_path / "run") == []


@pytest.mark.slow
def test_the_positions_of_existing_embeddings_cannot_be_changed(tiny_model: Path, tmp_path: Path) -> None:
    content = recipe(tiny_model, iterations=1)
    content["stages"] = [content["stages"][0], content["stages"][0] | {"train": {"unet": "full", "ace": {"tokens": 6}}}]
    assert "embeddings of 4 positions" in refused(tune(write_recipe(tmp_path, content), tmp_path / "run"))


@pytest.mark.slow
def test_versions_are_those_the_run_began_with(tiny_model: Path, tmp_path: Path) -> None:
    path, out = write_recipe(tmp_path, recipe(tiny_model, iterations=1)), tmp_path / "run"
    assert tune(path, out).exit_code == 0
    versions = json.loads((out / "versions.json").read_text())
    assert versions.keys() & {"resumed_with", "model.revision"} == set()
    (out / "versions.json").write_text(json.dumps(versions | {"torch": "1.0"}))
    shutil.rmtree(out / "model")
    assert tune(path, out).exit_code == 0
    kept = json.loads((out / "versions.json").read_text())
    assert (kept["torch"], kept["resumed_with"]) == ("1.0", versions)


@pytest.mark.slow
def test_one_image_is_too_few_to_evaluate(tiny_model: Path, tmp_path: Path) -> None:
    content = recipe(tiny_model)
    content["reports"]["held_out"] = 1
    path = write_recipe(tmp_path, content)
    assert "evaluation: 1 image, expected at least 2" in refused(tune(path, tmp_path / "run"))
    assert tune(path, tmp_path / "run", "--set", "evaluation.images_per_report=2").exit_code == 0


def test_an_infinite_reward_is_named(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bright_reward", raising=False)
    module = tmp_path / "own" / "bright_reward.py"
    module.write_text(INFINITE.replace("class Infinite", "class Brightness").replace("Infinite.", "Brightness."))
    message = refused(tune(write_recipe(tmp_path, recipe(tiny_model)), tmp_path / "run"))
    assert "iteration 2: report " in message
    assert "reward brightness (backend bright) is infinite" in message
    assert (tmp_path / "run" / "checkpoints" / "0-000001").is_dir()
    del sys.modules["bright_reward"]  # monkeypatch would put this one back


@pytest.mark.slow
def test_a_reward_that_never_answers_is_named(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "bright_reward", raising=False)
    module = tmp_path / "own" / "bright_reward.py"
    module.write_text(INFINITE.replace('"inf"', '"nan"').replace("Infinite", "Brightness"))
    content = recipe(tiny_model, iterations=9)
    content["evaluation"] |= {"every": 9}  # an evaluation without answers would end the run before
    content["stages"][0]["rewards"]["posture"] = {}
    message = refused(tune(write_recipe(tmp_path, content), tmp_path / "run"))
    # It falls silent in the third iteration, and by the end of the fifth each of the five reports had its turn.
    assert "iteration 5: report " in message, message
    assert "and 4 others before: reward brightness is not a number" in message
    assert (tmp_path / "run" / "checkpoints" / "0-000004").is_dir()
    del sys.modules["bright_reward"]  # monkeypatch would put this one back


@pytest.mark.slow
def test_test_reports_that_no_reward_can_score_are_refused_before_the_training(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Reports that mention no finding: the evaluator's diagnosis has nothing to say of any image."""
    content = recipe(tiny_model, iterations=1)
    content["reports"]["test"] = "test.csv"
    write_table(tmp_path / "test.csv", tuple((f"t{n}", "", f"Study {n} as before.", "PA", "F", "50") for n in range(3)))
    said = refused(tune(write_recipe(tmp_path, content), tmp_path / "run"))
    assert "images of test reports: evaluator reward diagnosis is not a number for any of 3" in said
    assert "before iteration 1" in said
    assert not metrics(tmp_path / "run")


def test_a_run_goes_on_with_the_precision_it_began_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other hardware may choose another one, whose images are not those that the baseline's were compared with."""
    device, folder, alone = torch.device("cpu"), RunFolder(tmp_path), ProcessGroup()
    here = choose_precision(Precision.AUTO, device)
    assert precision_of(Precision.AUTO, device, folder, alone) is here
    other = Precision.FP32 if here is Precision.BF16 else Precision.BF16
    (tmp_path / "inputs.json").write_text(json.dumps({"model.precision": other.value}))
    assert precision_of(Precision.AUTO, device, folder, alone) is other
    assert f"precision {other.value}, with which this run began" in " ".join(capsys.readouterr().err.split())
    assert precision_of(here, device, folder, alone) is here
    for damaged in ("[]", '{"model.precision": "x"}', "{"):
        (tmp_path / "inputs.json").write_text(damaged)
        assert precision_of(Precision.AUTO, device, folder, alone) is here


def test_damage_in_the_run_folder_is_explained_or_repaired(tiny_model: Path, tmp_path: Path) -> None:
    path, out = write_recipe(tmp_path, recipe(tiny_model)), tmp_path / "run"
    assert tune(path, out).exit_code == 0
    expected = hashes(out / "model")
    shutil.rmtree(out / "model")
    state = out / "checkpoints" / "0-000002" / "state.json"
    said = json.loads(state.read_text())
    state.write_text(json.dumps({name: value for name, value in said.items() if name != "best"}))
    assert "0-000002/state.json: damaged" in refused(tune(path, out))
    sign(state.parent)
    assert "0-000002: not a checkpoint of this recipe, or of another version ('best' is missing)" in refused(
        tune(path, out)
    )
    shutil.rmtree(state.parent)  # as the message says
    baseline = out / "checkpoints" / "baseline" / "0.safetensors"
    baseline.write_bytes(baseline.read_bytes()[:-7])
    assert tune(path, out).exit_code == 0
    assert hashes(out / "model") == expected
    shutil.rmtree(out / "model")
    best = out / "checkpoints" / "best-0" / "weights.safetensors"
    best.write_bytes(best.read_bytes()[:-7])
    assert "best-0/weights.safetensors: damaged" in refused(tune(path, out))
    shutil.rmtree(best.parent)
    said["best"]["iteration"] = 1
    state.write_text(json.dumps(said))
    sign(state.parent)
    last = tune(path, out)
    assert last.exit_code == 0, last.output
    assert "the weights of the last iteration" in last.output
    assert "weights of iteration 2\n" in (out / "model" / "model_card.md").read_text()


@pytest.mark.slow
def test_damage_to_the_model_of_an_earlier_stage_is_found(tiny_model: Path, tmp_path: Path) -> None:
    """The next stage would learn on from other weights, and compare with another baseline."""
    train = {"unet": "lora", "lora": {"rank": 2}, "ace": False}
    content = recipe(tiny_model, iterations=1, train=train)
    content["stages"] *= 2
    path, out = write_recipe(tmp_path, content), tmp_path / "run"
    assert tune(path, out).exit_code == 0
    expected, rows = hashes(out / "model"), metrics(out)
    shutil.rmtree(out / "model")
    left = out / "stages" / "0" / "model"
    weights = left / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(data)
    for options in ((), ("--export",)):
        assert "stages/0/model: damaged or changed" in refused(tune(path, out, *options)).replace("\\", "/")
    shutil.rmtree(left)  # as the message says
    assert tune(path, out).exit_code == 0
    assert (hashes(out / "model"), metrics(out)) == (expected, rows)


@pytest.mark.parametrize(("iterations", "said"), [(2, "iteration 2: report "), (1, "iteration 1: held-out report ")])
def test_diverged_weights_are_reported_with_the_iteration(
    iterations: int, said: str, tiny_model: Path, tmp_path: Path
) -> None:
    """In the next iteration's images, or in those of held-out reports if an evaluation comes first."""
    train = {"unet": "full", "learning_rate": 1.0e30, "ace": False}
    path = write_recipe(tmp_path, recipe(tiny_model, train=train, iterations=iterations))
    message = refused(tune(path, tmp_path / "run"))
    assert said in message
    assert "lower learning rate" in message


@pytest.mark.slow
def test_a_source_that_lists_a_safety_checker_leaves_a_model_that_diffusers_loads(
    tiny_model: Path, tmp_path: Path
) -> None:
    """The hub's Stable Diffusion 1.5 lists one; it is not copied, and diffusers must not look for it."""
    source = tmp_path / "source"
    shutil.copytree(tiny_model, source)
    index = json.loads((source / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (source / "model_index.json").write_text(json.dumps(index))
    result = tune(write_recipe(tmp_path, recipe(source)), tmp_path / "run")
    assert result.exit_code == 0, result.output
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "run" / "model")
    assert pipeline.safety_checker is None


@pytest.mark.slow
def test_a_full_disk_at_the_start_does_not_lock_the_folder(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write_recipe(tmp_path, recipe(tiny_model)), tmp_path / "run"
    write = run_folder.write_atomically

    def full(target: Path, data: bytes) -> None:
        if target.name == "inputs.json":
            raise OSError(28, "No space left on device")
        write(target, data)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "write_atomically", full)
        assert "No space left on device" in refused(tune(path, out))
    assert tune(path, out).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recipe.yaml", "inputs.json"])
@pytest.mark.parametrize("what", ["other bytes", "a list", "a folder"])
def test_a_file_of_the_run_that_cannot_be_read_back_is_named(
    name: str, what: str, tiny_model: Path, tmp_path: Path
) -> None:
    path, out = write_recipe(tmp_path, recipe(tiny_model)), tmp_path / "run"
    assert tune(path, out).exit_code == 0
    shutil.rmtree(out / "model")
    kept = (out / name).read_bytes()
    (out / name).unlink()
    if what == "a folder":
        (out / name).mkdir()
    else:
        (out / name).write_bytes(b"\xff\xfe" if what == "other bytes" else b"[1, 2]")
    message = refused(tune(path, out)).replace(" ", "")
    if what == "a list" and name == "recipe.yaml":
        assert "arunofanotherrecipe" in message
    else:
        assert f"{name}:{'cannotberead' if what == 'a folder' else 'notwhatarunwrotethere'}" in message
    (out / name).rmdir() if what == "a folder" else (out / name).unlink()
    (out / name).write_bytes(kept)
    assert tune(path, out).exit_code == 0


def test_adapters_of_an_absurd_rank_are_refused_before_the_first_stage(tiny_model: Path, tmp_path: Path) -> None:
    content = recipe(tiny_model)
    content["stages"].append(content["stages"][0] | {"train": {"unet": "lora", "lora": {"rank": 1_000_000}}})
    message = refused(tune(write_recipe(tmp_path, content), tmp_path / "run"))
    assert "train.lora.rank 1000000" in message
    assert "expected: at most 8" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("train", [{"unet": "lora", "lora": {"rank": 2}}, {"unet": "full"}])
def test_weights_lost_while_saving_are_noticed(
    train: dict[str, Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little was learned: bfloat16 predictions would not show it."""
    content = recipe(tiny_model, train=train | {"learning_rate": 1.0e-6, "ace": False})
    content["model"]["precision"] = "bf16"
    path, out = write_recipe(tmp_path, content), tmp_path / "run"

    def lost(model: ResolvedModel, **given: Any) -> Any:
        """Loads the start in place of what was saved."""
        return load_model(resolve_model(str(tiny_model)) if ".partial" in str(model.folder) else model, **given)

    with monkeypatch.context() as patch:
        patch.setattr(export, "load_model", lost)
        assert "the model loaded back is not the one saved" in refused(tune(path, out))
    assert not (out / "model").exists()
    assert tune(path, out).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("train", [{"unet": "lora", "lora": {"rank": 2}}, {"unet": "full"}])
def test_a_model_that_half_precision_is_far_off_for_is_saved(
    train: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    """As one of many layers: what was tuned in bfloat16 is compared in float32."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_norm_out.bias"] += 64.0  # small differences of large activations
    weights["conv_out.weight"] -= weights["conv_out.weight"].mean(1, keepdim=True)
    save_file(weights, path, metadata={"format": "pt"})
    content = recipe(model, train=train | {"learning_rate": 1.0e-6, "ace": False})
    content["model"]["precision"] = "bf16"
    result = tune(write_recipe(tmp_path, content), tmp_path / "run")
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_backends_beside_the_recipe_are_found_from_anywhere(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxrsynth.rewards.backends import family_folder

    family = family_folder("nano")
    assert family is not None
    (tmp_path / "judges").mkdir()
    (tmp_path / "judges" / "mine").symlink_to(family)
    content = recipe(tiny_model, rewards={"posture": {"backend": "judges/mine"}})
    content["evaluation"] |= {"evaluator": {"posture": "judges/mine"}, "features": "judges/mine"}
    path = write_recipe(tmp_path, content)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert tune(path, tmp_path / "run").exit_code == 0
    resolved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert Path(resolved["stages"][0]["rewards"]["posture"]["backend"]).is_absolute()
    assert Path(resolved["evaluation"]["features"]).is_absolute()
    inputs = json.loads((tmp_path / "run" / "inputs.json").read_text())
    assert inputs.keys() >= {"evaluation.evaluator.posture", "evaluation.features"}
    card = (tmp_path / "run" / "model" / "model_card.md").read_text()
    assert "- rewards: posture (nano, weight 1)\n" in card  # where the link leads, and no path
