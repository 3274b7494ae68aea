"""Extractors on the real classes at random weights, saved to a folder and loaded by name."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchxrayvision.models import DenseNet
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEModel,
)

from cxrsynth.errors import ModelError
from cxrsynth.metrics.features import load_extractor
from cxrsynth.rewards.networks import FindingClassifier
from tests.conversion.published import RADDINO, rad_dino

CPU = torch.device("cpu")
TRUNK: dict[str, Any] = {"kind": "resnet", "size": 32, "widths": [8, 12], "depths": [1, 1]}
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = SMALL | {"image_size": 32, "patch_size": 8}
SIZE = {"height": 32, "width": 32}
CROPPED = {"size": {"shortest_edge": 32}, "crop_size": SIZE}


def family(folder: Path) -> str:
    FindingClassifier(heads=["Edema", "Fracture"], trunk=TRUNK).save_pretrained(folder / "classifier")
    return str(folder)


def xrv(folder: Path) -> str:
    targets = ["Effusion", "Nodule"]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"targets": targets, "input_resolution": 64}))
    save_file(DenseNet(num_classes=2).state_dict(), folder / "model.safetensors")
    return f"xrv:{folder}"


def encoder(model: Any, processor: Any) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        model().save_pretrained(folder)
        processor().save_pretrained(folder)
        return str(folder)

    return make


KINDS: dict[str, tuple[Callable[[Path], str], int]] = {
    "family": (family, 12),
    "xrv": (xrv, 1024),
    "dinov2": (encoder(lambda: Dinov2Model(Dinov2Config(**VISION)), lambda: BitImageProcessor(**CROPPED)), 16),
    "clip": (
        encoder(
            lambda: CLIPModel(CLIPConfig(text_config=SMALL | {"vocab_size": 50}, vision_config=VISION)),
            lambda: CLIPImageProcessor(**CROPPED),
        ),
        16,
    ),
    "siglip": (
        encoder(lambda: SiglipVisionModel(SiglipVisionConfig(**VISION)), lambda: SiglipImageProcessor(size=SIZE)),
        16,
    ),
    "resnet": (
        encoder(
            lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 24], depths=[1, 1])),
            lambda: BitImageProcessor(**CROPPED),
        ),
        24,
    ),
}


@pytest.fixture(scope="module", params=list(KINDS))
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    make, width = KINDS[request.param]
    torch.manual_seed(0)
    return make(tmp_path_factory.mktemp("encoders") / request.param), width


def radiographs(count: int = 3, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(1))


def weights_of(name: str) -> Path:
    return next(Path(name.removeprefix("xrv:")).rglob("model.safetensors"))


def test_an_images_features_are_its_own(named: tuple[str, int]) -> None:
    name, width = named
    extractor = load_extractor(name, device=CPU)
    together = extractor(radiographs())
    assert together.shape == (3, width)
    assert together.dtype == torch.float32
    assert not together.requires_grad
    alone = torch.cat([extractor(radiograph[None]) for radiograph in radiographs()])
    rounding = 1e-5 * together.abs().max().item()
    assert torch.allclose(together, alone, atol=rounding)
    assert not torch.allclose(together[0], together[1], atol=1e-4, rtol=1e-4)
    again = load_extractor(name, device=CPU)
    assert torch.equal(again(radiographs()), together)
    assert (again.name, again.digest, again.width) == (name, extractor.digest, width)


def test_the_digest_is_that_of_weights_and_settings(named: tuple[str, int]) -> None:
    name, _ = named
    weights = weights_of(name)
    digest = load_extractor(name, device=CPU).digest
    settings = [path for n in ("config.json", "preprocessor_config.json") if (path := weights.with_name(n)).is_file()]
    assert settings
    expected = hashlib.sha256(b"".join(path.read_bytes() for path in (weights, *settings)))
    assert digest == expected.hexdigest()


def test_tensors_missing_from_the_file_are_reported(named: tuple[str, int], tmp_path: Path) -> None:
    name, _ = named
    folder, target = Path(name.removeprefix("xrv:")), tmp_path / "torn"
    torn = target / weights_of(name).relative_to(folder)
    torn.parent.mkdir(parents=True)
    for path in weights_of(name).parent.glob("*.json"):
        (torn.parent / path.name).write_bytes(path.read_bytes())
    state = load_file(weights_of(name))
    lost = next(key for key in sorted(state) if key.endswith(".weight") and "text" not in key)
    save_file({key: value for key, value in state.items() if key != lost}, torn, metadata={"format": "pt"})
    with pytest.raises(ModelError):
        load_extractor(name.replace(str(folder), str(target)), device=CPU)


def test_a_family_gives_its_classifiers_trunk(tmp_path: Path) -> None:
    name = family(tmp_path / "own")
    trunk = FindingClassifier.from_pretrained(tmp_path / "own" / "classifier").eval().trunk
    with torch.inference_mode():
        assert torch.equal(load_extractor(name, device=CPU)(radiographs()), trunk(radiographs()))


def test_xrv_features_are_the_librarys_own_in_its_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = xrv(tmp_path / "xrv")
    made = load_extractor(name, device=CPU)(radiographs())
    assert capsys.readouterr().out == ""  # the library prints warnings
    network = DenseNet(num_classes=2).eval()
    network.load_state_dict(load_file(tmp_path / "xrv" / "model.safetensors"))
    with torch.inference_mode():
        assert torch.allclose(made, network.features2((radiographs() * 2 - 1) * 1024), rtol=1e-4, atol=1e-4)
    assert torch.equal(load_extractor(name.removeprefix("xrv:"), device=CPU)(radiographs()), made)  # told by its config


def test_pooling_that_was_never_trained_is_not_used(tmp_path: Path) -> None:
    encoder(lambda: ViTForImageClassification(ViTConfig(**VISION)), lambda: ViTImageProcessor(size=SIZE))(tmp_path)
    first, again = (load_extractor(str(tmp_path), device=CPU)(radiographs()) for _ in range(2))
    assert torch.equal(first, again)


def test_an_encoder_that_masks_at_random_is_refused(tmp_path: Path) -> None:
    encoder(lambda: ViTMAEModel(ViTMAEConfig(**VISION)), lambda: ViTImageProcessor(size=SIZE))(tmp_path)
    with pytest.raises(ModelError, match="has other features each time"):
        load_extractor(str(tmp_path), device=CPU)


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    encoder(lambda: Dinov2Model(Dinov2Config(**VISION)), lambda: BitImageProcessor(**CROPPED))(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        load_extractor(str(tmp_path), device=CPU)


def test_what_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="features 'nowhere': unknown"):
        load_extractor("nowhere", device=CPU)
    with pytest.raises(ModelError, match="cannot be loaded as an image encoder"):
        load_extractor(str(tmp_path), device=CPU)
    (tmp_path / "classifier").mkdir()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        load_extractor(str(tmp_path), device=CPU)


@pytest.mark.parametrize(
    "images", [radiographs()[:, 0], radiographs().double(), radiographs() * 2, radiographs() * float("nan")]
)
def test_images_out_of_range_are_refused(images: torch.Tensor, tmp_path: Path) -> None:
    extractor = load_extractor(family(tmp_path / "own"), device=CPU)
    with pytest.raises(ValueError, match="images"):
        extractor(images)


def test_features_that_are_not_finite_end_the_scoring_at_once(tmp_path: Path) -> None:
    extractor = load_extractor(family(tmp_path / "own"), device=CPU)

    def encode(images: torch.Tensor) -> torch.Tensor:
        return extractor.encode(images) / (images.mean((1, 2, 3), keepdim=False)[:, None] > 0.1)

    overflows = replace(extractor, encode=encode)
    assert torch.equal(overflows(radiographs()), extractor(radiographs()))
    dark = torch.cat([radiographs(), 0.1 * radiographs(2)])
    with pytest.raises(ModelError, match=r"the features of .*own: not finite for 2 of 5 images"):
        overflows(dark)


@pytest.fixture(scope="module")
def raddino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rad_dino(tmp_path_factory.mktemp("raddino") / "rad-dino")


def test_raddino_as_published_gives_its_class_token(raddino: Path) -> None:
    extractor = load_extractor(str(raddino), device=CPU)
    images = radiographs(2, side=518)  # of the published size, so that nothing is resized
    network = Dinov2Model(Dinov2Config.from_pretrained(raddino)).eval()
    network.load_state_dict(load_file(raddino / "model.safetensors"))
    with torch.inference_mode():
        expected = network((images.expand(-1, 3, -1, -1) - 0.5307) / 0.2583).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor(images), expected, atol=1e-4, rtol=1e-4)
    weights = b"".join((raddino / name).read_bytes() for name in ("model.safetensors", *RADDINO))
    assert (extractor.width, extractor.digest) == (768, hashlib.sha256(weights).hexdigest())


def test_raddino_by_hub_id_is_the_benchmarks_network(
    raddino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository laid out as huggingface_hub caches it; nothing is downloaded."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--microsoft--rad-dino" / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(raddino)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = load_extractor(f"microsoft/rad-dino@{commit}", device=CPU)
    assert (found.name, found.width) == (f"microsoft/rad-dino@{commit}", 768)
    assert found.digest == load_extractor(str(raddino), device=CPU).digest
