"""The network that tells patients apart: its loss, that its build runs, and what the shipped one does."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from cxrsynth.metrics.reidentification.verifier import PatientVerifier, load_verifier, packaged_verifier
from cxrsynth.nano.build import verifier
from cxrsynth.nano.build.images import load_images
from cxrsynth.nano.build.verifier import contrastive_loss, images_of_patients
from cxrsynth.runtime.files import file_sha256, read_json
from tests.nano.test_build import write_images


def test_the_loss_is_that_of_picking_the_partner() -> None:
    embeddings = F.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    scores = (embeddings @ embeddings.T * 4).tolist()
    by_hand = []
    for one in range(6):
        others = [math.exp(scores[one][other]) for other in range(6) if other != one]
        by_hand.append(-scores[one][(one + 3) % 6] + math.log(sum(others)))
    assert contrastive_loss(embeddings, torch.tensor(4.0)).item() == pytest.approx(sum(by_hand) / 6, rel=1e-5)


def test_equal_partners_among_opposites_cost_least() -> None:
    apart = torch.eye(4).repeat(2, 1)
    assert contrastive_loss(apart, torch.tensor(50.0)).item() == pytest.approx(0.0, abs=1e-6)
    assert contrastive_loss(torch.ones(8, 4) / 2, torch.tensor(50.0)).item() == pytest.approx(math.log(7), rel=1e-5)


def test_images_of_a_patient_belong_together(tmp_path: Path) -> None:
    radiographs, _ = load_images(write_images(tmp_path / "data", size=256), size=256)
    patients = images_of_patients(radiographs)
    assert sorted(place for places in patients for place in places) == list(range(len(radiographs)))
    assert all(len({radiographs[place].patient_id for place in places}) == 1 for places in patients)
    assert len(patients) == len({one.patient_id for one in radiographs})


def test_the_build_writes_a_network_and_takes_no_step_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_images(tmp_path / "data", size=256)
    monkeypatch.setattr(verifier, "_SETTINGS", verifier._SETTINGS.model_copy(update={"batch_size": 4}))
    verifier.main(data, tmp_path / "work", steps=2, seed=1)
    folder = tmp_path / "work" / "verifier"
    weights = load_file(folder / "model.safetensors")
    assert all(one.dtype in (torch.float16, torch.int64) and torch.isfinite(one).all() for one in weights.values())
    verifier.main(data, tmp_path / "work", steps=2, seed=1)
    again = load_file(folder / "model.safetensors")
    assert all(torch.equal(one, again[name]) for name, one in weights.items())
    network = PatientVerifier.from_pretrained(folder)
    assert network(torch.rand(2, 1, 64, 64)).shape == (2, 128)
    assert network.held_out is not None
    assert network.held_out.keys() == {"auc", "patients", "images"}


def test_the_shipped_network_knows_an_image_again_and_says_how_well_it_knows_patients() -> None:
    shipped = load_verifier("nano", device=torch.device("cpu"))
    assert shipped.embed.digest == file_sha256(packaged_verifier() / "model.safetensors")
    assert shipped.held_out == read_json(packaged_verifier() / "config.json")["held_out"]
    assert shipped.held_out is not None
    assert shipped.held_out["auc"]["low"] > 0.7
