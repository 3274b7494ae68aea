"""Consistency with CLIP and SigLIP of transformers at random weights, saved to a folder and loaded back."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from cxrsynth.errors import ModelError
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.backends import load_reward
from cxrsynth.rewards.digests import backend_digest
from cxrsynth.rewards.transformers_dual import load_dual_encoder
from tests.conftest import make_tokenizer

CPU = torch.device("cpu")
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
KINDS = {
    "clip": (CLIPConfig, CLIPModel, CLIPImageProcessor),
    "siglip": (SiglipConfig, SiglipModel, SiglipImageProcessor),
}


@pytest.fixture(scope="module", params=list(KINDS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, model, processor = KINDS[request.param]
    path = tmp_path_factory.mktemp(request.param)
    tokenizer = make_tokenizer(32)
    text = SMALL | {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "projection_size": 16}
    text |= {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    vision = SMALL | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    settings = {"text_config": text, "vision_config": vision} | ({"projection_dim": 16} if config is CLIPConfig else {})
    model(config(**settings)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    size = {"height": 32, "width": 32}
    sizes = {"size": {"shortest_edge": 32}, "crop_size": size} if config is CLIPConfig else {"size": size}
    processor(**sizes).save_pretrained(path)
    return path


def test_a_batch_scores_as_its_pairs_do_alone(folder: Path) -> None:
    reward = load_dual_encoder(folder, device=CPU)
    images = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    reports = [
        Report("a", 2, impression="Pleural effusion."),
        Report("b", 3, findings="Lungs are clear. No effusion. " * 30),
        Report("c", 4),
    ]
    values = reward(images, reports)
    assert values.shape == (3,)
    assert values[:2].abs().max() <= 1
    assert values[2].isnan()
    alone = torch.cat([reward(images[i : i + 1], reports[i : i + 1]) for i in range(2)])
    assert torch.allclose(values[:2], alone, atol=1e-5)
    assert not torch.allclose(reward(images[[1, 0]], reports[:2]), values[:2], atol=1e-5)  # depends on the image
    assert not torch.allclose(reward(images[:2], [reports[1], reports[0]]), values[:2], atol=1e-5)  # and on the text


def test_identifiers_do_not_reach_the_encoder(folder: Path) -> None:
    reward = load_dual_encoder(folder, device=CPU)
    image = torch.rand(1, 1, 32, 32)
    reports = [Report("a", 2, impression=f"Effusion seen on {date}.") for date in ("03/14/2019", "05/02/2021")]
    assert torch.equal(reward(image, reports[:1]), reward(image, reports[1:]))


def test_a_folder_of_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded as a dual encoder"):
        load_dual_encoder(tmp_path, device=CPU)


def test_tensors_that_do_not_match_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    state = load_file(folder / "model.safetensors")
    name = "vision_model.post_layernorm.weight"
    wrong = {
        "missing": {key: value for key, value in state.items() if key != name},
        "does not have": state | {"vision_model.further.weight": torch.zeros(2)},
        "mismatched|shape": state | {name: torch.zeros(3)},
    }
    for message, tensors in wrong.items():
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=message):
            load_dual_encoder(tmp_path, device=CPU)


def test_a_hub_id_needs_a_revision_and_is_identified_by_its_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository laid out as huggingface_hub caches it; nothing is downloaded."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--name"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    image, report = torch.rand(1, 1, 32, 32), [Report("a", 2, impression="Pleural effusion.")]
    expected = load_dual_encoder(folder, device=CPU)(image, report)
    for revision in (commit, "v1"):
        named = f"owner/name@{revision}"
        assert torch.equal(load_reward("consistency", named, device=CPU)(image, report), expected)
        assert backend_digest("consistency", named) == backend_digest("consistency", str(folder))
    with pytest.raises(ModelError, match="owner/name@v2: no such folder, and cannot be downloaded"):
        load_reward("consistency", "owner/name@v2", device=CPU)
    with pytest.raises(ModelError, match=r"no backend 'owner/name'\n.*owner/name@revision"):
        load_reward("consistency", "owner/name", device=CPU)
