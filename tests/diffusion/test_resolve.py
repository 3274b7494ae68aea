"""From a model's name to its folder, digest and embeddings."""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import save_file

from cxrsynth.diffusion.ace import AdaptiveConditionEmbedding, save_ace
from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.errors import ModelError
from cxrsynth.reports.conditions import CONDITIONS
from cxrsynth.runtime.pretrained import hub_folder
from cxrsynth.settings import Additions, Lora, Precision

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, holding two commits of `lab/chest`: branch `main` is at NEW, tag `v1` at OLD."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--lab--chest"
    for commit in (OLD, NEW):
        shutil.copytree(tiny_model, repository / "snapshots" / commit)
    (repository / "snapshots" / OLD / "cxrsynth.json").write_text('{"name": "chest-v1"}')
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(NEW)
    (repository / "refs" / "v1").write_text(OLD)
    return repository / "snapshots"


@pytest.mark.parametrize(
    ("asked", "commit", "name"),
    [
        ("lab/chest", NEW, "chest"),
        ("lab/chest@main", NEW, "chest"),
        ("lab/chest@v1", OLD, "chest-v1"),
        (f"lab/chest@{OLD}", OLD, "chest-v1"),
    ],
)
def test_a_hub_model_is_found_at_its_revision(asked: str, commit: str, name: str, hub: Path) -> None:
    found = resolve_model(asked)
    assert found.folder == hub / commit
    assert (found.revision, found.name) == (commit, name)
    assert found.digest == resolve_model(str(hub / commit)).digest


@pytest.mark.parametrize("asked", ["lab/chest@v2", "lab/chest@", "lab/other", "chest@v1", "./lab/chest@v1"])
def test_a_hub_model_that_is_not_there(asked: str, hub: Path) -> None:
    with pytest.raises(ModelError, match=r"owner/name\[@revision\]"):
        resolve_model(asked)


def test_a_download_that_fails_is_reported_alike_for_models_and_rewards(hub: Path) -> None:
    failed = r"^lab/chest@v2: no such folder, and cannot be downloaded from the hub \(Cannot find [^\n]*\)\n"
    with pytest.raises(
        ModelError, match=failed + r"  expected: nano, nano-fast, a model folder, or a hub id owner/name\[@revision\]"
    ):
        resolve_model("lab/chest@v2")
    with pytest.raises(ModelError, match=failed + "  expected: a folder, or a hub id owner/name@revision"):
        hub_folder("lab/chest@v2")


def test_a_gated_model_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise GatedRepoError.__new__(GatedRepoError)  # its arguments differ between releases

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ModelError, match=r"^lab/chest: a gated repository.*\n  accept its terms.*hf auth login$"):
        resolve_model("lab/chest")


def test_what_is_laid_over_may_be_named_by_its_hub_id(hub: Path, tiny_model: Path) -> None:
    repository = hub.parents[1] / "models--lab--vae"
    shutil.copytree(tiny_model / "vae", repository / "snapshots" / NEW)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(NEW)
    found = resolve_model(str(tiny_model), additions=Additions(vae=Path("lab/vae")))
    assert found.additions.vae == repository / "snapshots" / NEW
    weights = repository.with_name("models--lab--lora") / "snapshots" / NEW / "pytorch_lora_weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"")
    (weights.parents[2] / "refs").mkdir()
    (weights.parents[2] / "refs" / "main").write_text(NEW)
    found = resolve_model(str(tiny_model), additions=Additions(loras=(Lora(Path("lab/lora"), 0.5),)))
    assert found.additions.loras == (Lora(weights.parent, 0.5),)
    with pytest.raises(ModelError, match="lab/other"):
        resolve_model(str(tiny_model), additions=Additions(vae=Path("lab/other")))


def test_a_local_folder_has_no_revision(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab").mkdir()
    shutil.copytree(tiny_model, tmp_path / "lab" / "chest@v1")
    monkeypatch.chdir(tmp_path)
    found = resolve_model("lab/chest@v1")
    assert (found.name, found.revision) == ("chest@v1", None)
    assert found.digest == resolve_model(str(tiny_model)).digest
    assert resolve_model("nano").revision is None


def test_models_loaded_from_one_resolved_model_share_no_embeddings(tiny_model: Path, tmp_path: Path) -> None:
    save_ace(AdaptiveConditionEmbedding(16, tokens=4, conditions=CONDITIONS), tmp_path)
    resolved = resolve_model(str(tiny_model), ace=tmp_path)
    first, second = (load_model(resolved, device=torch.device("cpu"), precision=Precision.FP32) for _ in range(2))
    assert first.ace is not None
    assert second.ace is not None
    first.ace.plain().blocks.data.add_(1)
    assert not second.ace.plain().blocks.any()
    assert resolved.ace is not None
    assert not resolved.ace.blocks.any()


@pytest.mark.parametrize("content", ["{oops", "[]", "null", '"x"', "\xff"])
def test_an_index_that_cannot_be_read_is_refused(content: str, tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "model_index.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(
        ModelError, match=r"model_index\.json: (cannot be read|not the list of a model's parts)"
    ) as refused:
        resolve_model(str(model))
    assert "save_pretrained of its pipeline" in str(refused.value)


def test_a_missing_index_is_explained(tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "model_index.json").unlink()
    shutil.rmtree(model / "vae")
    with pytest.raises(ModelError, match=r"missing vae/, model_index\.json\n") as refused:
        resolve_model(str(model))
    assert "model_index.json names the class of each part: download it" in str(refused.value)


def test_the_digest_is_that_of_the_embeddings_that_are_loaded(tiny_model: Path, tmp_path: Path) -> None:
    """Whatever their file is called: a set must not be resumed with others."""
    width = 16
    for place, name in enumerate(("a", "b")):
        ace = AdaptiveConditionEmbedding(width, tokens=2, conditions=CONDITIONS)
        torch.nn.init.constant_(ace.blocks, float(place + 1))
        (tmp_path / name).mkdir()
        save_ace(ace, tmp_path / name)
        (tmp_path / name / "ace.safetensors").rename(tmp_path / "a" / f"{name}.safetensors")
    one, other = (resolve_model(str(tiny_model), ace=tmp_path / "a" / f"{name}.safetensors") for name in ("a", "b"))
    assert one.digest != other.digest
    (tmp_path / "a" / "a.safetensors").rename(tmp_path / "a" / "ace.safetensors")
    assert resolve_model(str(tiny_model), ace=tmp_path / "a").digest == one.digest
    assert resolve_model(str(tiny_model), ace=tmp_path / "a" / "b.safetensors").digest == other.digest


def test_a_word_that_its_file_names_is_part_of_the_digest(tiny_model: Path, tmp_path: Path) -> None:
    def digest(name: str, tensor: str) -> str:
        save_file({tensor: torch.ones(1, 8)}, tmp_path / f"{name}.safetensors")
        return resolve_model(
            str(tiny_model), additions=Additions(embeddings=(tmp_path / f"{name}.safetensors",))
        ).digest

    assert digest("alpha", "emb_params") != digest("beta", "emb_params")
    assert digest("gamma", "<word>") == digest("delta", "<word>")
