"""Digests of reward models: what changes them and what does not."""

import shutil
from pathlib import Path

import pytest

from cxrsynth.errors import ModelError
from cxrsynth.rewards.backends import FAMILIES, REWARDS
from cxrsynth.rewards.digests import backend_digest
from cxrsynth.rewards.xrv import released_weights
from cxrsynth.rewards.xrv_posture import released_segmentation

PARTS = {"posture": "posture", "diagnosis": "classifier", "consistency": "dual_encoder"}


@pytest.fixture
def family(tmp_path: Path) -> Path:
    for part in PARTS.values():
        (tmp_path / "own" / part).mkdir(parents=True)
        (tmp_path / "own" / part / "config.json").write_text("{}")
        (tmp_path / "own" / part / "model.safetensors").write_text("weights")
    (tmp_path / "own" / "dual_encoder" / "tokenizer.json").write_text("words")
    return tmp_path / "own"


def digests(backend: Path) -> list[str]:
    return [backend_digest(name, str(backend)) for name in REWARDS]


def test_shipped_families_have_different_digests() -> None:
    found = {backend_digest(name, backend) for name in REWARDS for backend in FAMILIES}
    assert len(found) == len(REWARDS) * len(FAMILIES)
    assert {len(digest) for digest in found} == {64}


@pytest.mark.parametrize("place", range(3))
def test_a_network_counts_for_its_own_reward_only(family: Path, place: int) -> None:
    before = digests(family)
    for file in (family / PARTS[REWARDS[place]]).iterdir():
        kept = file.read_bytes()
        file.write_bytes(kept + b"!")
        assert [a == b for a, b in zip(before, digests(family), strict=True)] == [p != place for p in range(3)], file
        file.write_bytes(kept)
    assert digests(family) == before


def test_neither_the_path_nor_a_readme_counts(family: Path, tmp_path: Path) -> None:
    before = digests(family)
    shutil.copytree(family, tmp_path / "moved")
    (tmp_path / "moved" / "posture" / "README.md").write_text("A reward model.")
    assert digests(tmp_path / "moved") == before


@pytest.mark.parametrize("name", REWARDS)
def test_a_folder_is_identified_by_file_names_and_contents(name: str, tmp_path: Path) -> None:
    def written(**files: str) -> str:
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        (tmp_path / "model").mkdir()
        for file, content in files.items():
            (tmp_path / "model" / file.replace("_", ".")).write_text(content)
        return backend_digest(name, str(tmp_path / "model"))

    one = written(config_json="a", model_safetensors="b", vocab_txt="c")
    assert written(vocab_txt="c", model_safetensors="b", config_json="a", notes_md="d") == one
    assert written(config_json="a", model_safetensors="b", vocab_txt="d") != one
    assert written(config_json="b", model_safetensors="a", vocab_txt="c") != one
    assert written(config_json="a", model_safetensors="bc", vocab_txt="") != one
    assert written(config_json="a", other_safetensors="b", vocab_txt="c") != one


def test_released_weights_are_identified_by_the_downloaded_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pspnet").mkdir()  # a folder of that name comes second
    monkeypatch.chdir(tmp_path)
    files = {
        ("diagnosis", "resnet50-res512-all"): released_weights("resnet50-res512-all", tmp_path),
        ("posture", "pspnet"): released_segmentation(tmp_path),
    }
    for (name, backend), file in files.items():
        assert file is not None
        with pytest.raises(
            ModelError, match=f"{name}: no weights of '{backend}' in torchxrayvision's cache.*\n.*{file.name}"
        ):
            backend_digest(name, backend, cache=tmp_path)
        file.write_text("weights")
        first = backend_digest(name, backend, cache=tmp_path)
        assert backend_digest(name, f"{backend}@sha256:{'0' * 64}", cache=tmp_path) == first
        file.write_text("other weights")
        assert backend_digest(name, backend, cache=tmp_path) != first


def test_targets_that_come_with_a_name_count(tmp_path: Path) -> None:
    for name in ("densenet121-res224-nih", "densenet121-res224-rsna"):
        file = released_weights(name, tmp_path)
        assert file is not None
        file.write_text("the same")
    nih, rsna = (backend_digest("diagnosis", f"densenet121-res224-{of}", cache=tmp_path) for of in ("nih", "rsna"))
    assert nih != rsna


def test_a_users_own_reward_is_identified_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "own_reward-1.0.dist-info"
    installed.mkdir()
    (installed / "entry_points.txt").write_text("[cxrsynth.rewards]\nbrightness = own_reward:Brightness\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def version(number: str, backend: str = "0.5") -> str:
        (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: own-reward\nVersion: {number}\n")
        return backend_digest("brightness", backend)

    assert version("1.0") == version("1.0")
    assert len({version("1.0"), version("1.1"), version("1.0", "0.6")}) == 3
    weights = tmp_path / "weights" / "deep" / "own.bin"
    weights.parent.mkdir(parents=True)
    weights.write_text("one")
    first = [version("1.0", str(path)) for path in (weights, tmp_path / "weights")]
    weights.write_text("two")
    assert not set(first) & {version("1.0", str(path)) for path in (weights, tmp_path / "weights")}


@pytest.mark.parametrize(
    ("name", "backend", "message"),
    [
        ("sharpness", "nano", "reward 'sharpness': unknown"),
        ("posture", "nowhere", "posture: no backend 'nowhere'"),
        ("diagnosis", "nowhere", "diagnosis: no backend 'nowhere'"),
        ("consistency", "pspnet", "consistency: no backend 'pspnet'"),
        ("diagnosis", ".", "has no weights"),
    ],
)
def test_a_missing_reward_or_backend_is_refused(
    name: str, backend: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message):
        backend_digest(name, backend)


def test_a_family_without_the_network_is_refused(family: Path) -> None:
    shutil.rmtree(family / "posture")
    assert backend_digest("diagnosis", str(family))
    with pytest.raises(ModelError, match=r"posture: .*has no weights"):
        backend_digest("posture", str(family))
