"""Verifiers: the package's own, a folder of another, an image encoder, and folders that are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cxrsynth.errors import ModelError
from cxrsynth.metrics.reidentification.verifier import PatientVerifier, load_verifier

CPU = torch.device("cpu")
TRUNK = {"kind": "resnet", "size": 32, "widths": [4, 4], "depths": [1, 1]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    PatientVerifier(TRUNK, 6, {"auc": {"value": 0.8, "low": 0.7, "high": 0.9}}).half().save_pretrained(tmp_path / "own")
    return tmp_path / "own"


def test_a_folder_of_another_verifier_gives_its_embeddings(folder: Path) -> None:
    found = load_verifier(str(folder), device=CPU)
    images = torch.rand(3, 1, 48, 48, generator=torch.Generator().manual_seed(1))
    embeddings = found.embed(images)
    network = PatientVerifier.from_pretrained(folder).float().eval()
    with torch.inference_mode():
        torch.testing.assert_close(embeddings, network(images))
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    assert found.embed.width == 6
    assert found.held_out == {"auc": {"value": 0.8, "low": 0.7, "high": 0.9}}


def test_an_image_encoder_is_a_verifier_of_which_nothing_is_known() -> None:
    found = load_verifier("nano-judge", device=CPU)
    assert found.embed(torch.rand(2, 1, 64, 64)).shape == (2, found.embed.width)
    assert found.held_out is None


def test_the_digest_is_of_the_weights(folder: Path) -> None:
    before = load_verifier(str(folder), device=CPU).embed.digest
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: one + 1 if name == "head.bias" else one for name, one in weights.items()}, folder / "model.safetensors"
    )
    assert load_verifier(str(folder), device=CPU).embed.digest != before


def test_other_settings_of_the_same_weights_are_known(folder: Path) -> None:
    """Embeddings depend on them, and an audit must not go on with those of before."""
    before = load_verifier(str(folder), device=CPU)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"held_out"', '"held_out" '))
    after = load_verifier(str(folder), device=CPU)
    assert after.embed.digest == before.embed.digest
    assert after.settings != before.settings
    assert len(after.settings) == 64


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "damaged", "config"])
def test_weights_that_do_not_fit_are_refused(folder: Path, fault: str) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    match fault:
        case "missing":
            del weights["head.bias"]
        case "unexpected":
            weights["another"] = torch.zeros(2)
        case "shape":
            weights["head.bias"] = torch.zeros(7)
        case "config":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"trunk": {"kind": "transformer"}}))
    save_file(weights, file)
    if fault == "damaged":
        file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelError, match="cannot be loaded as a verifier") as caught:
        load_verifier(str(folder), device=CPU)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("config", ["[]", "{bad", "7"])
def test_settings_that_are_none_are_refused(folder: Path, config: str) -> None:
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelError, match="cannot be read as settings"):
        load_verifier(str(folder), device=CPU)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ModelError, match="nowhere"):
        load_verifier("nowhere", device=CPU)
