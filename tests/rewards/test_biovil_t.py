"""BioViL-T as a judge, at random weights: what it computes, checked against another way to compute it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision import transforms
from torchvision.models import resnet50
from torchvision.models.feature_extraction import create_feature_extractor
from transformers import BertConfig, BertForMaskedLM
from typer.testing import CliRunner

import cxrsynth
from cxrsynth.cli import app
from cxrsynth.conversion.biovil_t import IMAGE_WEIGHTS
from cxrsynth.errors import ModelError
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.backends import load_reward
from cxrsynth.rewards.biovil_t import load_biovil_t, prepared
from tests.conversion.published import BIOVIL_T_WORDS, biovil_t, biovil_t_image_state
from tests.tuning.making import metrics, recipe, tune, write_recipe

CPU = torch.device("cpu")
# Longer than the 24 positions of the text model, so it is cut after its first sentence.
LONG = "clear lungs. " + "no pleural effusion " * 9 + "."
TEXTS = ("heart is normal. clear lungs!", LONG)
READ = ("heart is normal. clear lungs", "clear lungs")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return biovil_t(tmp_path_factory.mktemp("published") / "source", biovil_t_image_state())


@pytest.fixture(scope="module")
def folder(source: Path) -> Path:
    cxrsynth.convert(source, source.parent / "biovil-t")
    return source.parent / "biovil-t"


def pictures(count: int = 2, height: int = 80, width: int = 64) -> np.ndarray[Any, Any]:
    """Smooth gray pictures of 8 bits, [N, H, W], of different ranges."""
    rows, columns = np.mgrid[:height, :width] / height
    waves = [np.sin((place + 2) * 3 * rows + place * columns * 5) for place in range(count)]
    return np.stack([(90 + (60 + 30 * place) * wave).astype(np.uint8) for place, wave in enumerate(waves)])


def tensors(levels: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(levels)[:, None].float() / 255


def prepared_by_hand(levels: np.ndarray[Any, Any]) -> Tensor:
    """The published preparation of a file: stretched to 8 bits, then Pillow and torchvision, [N, 3, 448, 448]."""
    steps = transforms.Compose([transforms.Resize(512), transforms.CenterCrop(448), transforms.ToTensor()])
    found = []
    for picture in levels.astype(float):
        wide = (picture - picture.min()) / (picture.max() - picture.min()) * 255
        found.append(steps(Image.fromarray(wide.astype(np.uint8))).expand(3, -1, -1))
    return torch.stack(found)


def images_by_hand(source: Path, pixels: Tensor) -> Tensor:
    """Unit vectors of prepared images, from the published tensors, by functions alone after the ResNet."""
    state = torch.load(source / IMAGE_WEIGHTS)
    network = resnet50(weights=None)
    resnet = {name: tensor for name, tensor in state.items() if name.startswith("encoder.encoder.")}
    network.load_state_dict({name.removeprefix("encoder.encoder."): tensor for name, tensor in resnet.items()})
    maps = create_feature_extractor(network.eval(), ["layer4"])(pixels)["layer4"]
    assert maps.shape[1:] == (2048, 14, 14)
    patches = torch.einsum("oc,bchw->bohw", state["encoder.backbone_to_vit.weight"][:, :, 0, 0], maps)
    no_earlier = state["encoder.missing_previous_emb"].repeat(len(pixels), 1, 14, 14)
    rows = torch.cat([patches, no_earlier], dim=1).permute(0, 2, 3, 1)  # [B, 14, 14, 512]
    rows = rows @ state["projector.model.0.weight"][:, :, 0, 0].T
    spread = (state["projector.model.1.running_var"] + 1e-5).sqrt()
    rows = (rows - state["projector.model.1.running_mean"]) / spread
    rows = (rows * state["projector.model.1.weight"] + state["projector.model.1.bias"]).clamp(min=0)
    rows = rows @ state["projector.model.3.weight"][:, :, 0, 0].T + state["projector.model.3.bias"]
    return F.normalize(rows.mean((1, 2)), dim=-1)


def texts_by_hand(source: Path, texts: tuple[str, ...]) -> Tensor:
    """Unit vectors of texts, each by itself, tokenized by hand."""
    state = load_file(source / "model.safetensors")
    settings = json.loads((source / "config.json").read_text())
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = BertConfig(**{name: settings[name] for name in (*sizes, "max_position_embeddings")})
    network = BertForMaskedLM(config)
    bert = {name: one for name, one in state.items() if name.startswith(("bert.", "cls.")) and "pooler" not in name}
    assert not network.load_state_dict(bert, strict=False).unexpected_keys
    words = BIOVIL_T_WORDS.split()
    found = []
    for text in texts:
        tokens = ["[CLS]", *text.replace(".", " .").split(), "[SEP]"]
        ids = torch.tensor([[words.index(token) for token in tokens]])
        first = network.eval()(ids, output_hidden_states=True).hidden_states[-1][:, 0]
        head = {name.removeprefix("cls_projection_head."): tensor for name, tensor in state.items()}
        hidden = F.gelu(first @ head["dense_to_hidden.weight"].T + head["dense_to_hidden.bias"])
        hidden = F.layer_norm(hidden, (128,), head["LayerNorm.weight"], head["LayerNorm.bias"], eps=1e-12)
        found.append(hidden @ head["dense_to_output.weight"].T + head["dense_to_output.bias"])
    return F.normalize(torch.cat(found), dim=-1)


@torch.inference_mode()
@pytest.mark.slow
def test_scores_are_the_cosines_of_the_published_computation(source: Path, folder: Path) -> None:
    levels = pictures()
    reward = load_reward("consistency", str(folder), device=CPU)
    reports = [Report(str(place), place, impression=text) for place, text in enumerate(TEXTS)]
    values, texts = reward(tensors(levels), reports), texts_by_hand(source, READ)
    expected = images_by_hand(source, prepared(tensors(levels))) @ texts.T
    torch.testing.assert_close(values, expected.diagonal(), atol=1e-5, rtol=0)
    # An image or a text of another pair would show.
    assert expected.std(0).min() > 1e-3
    assert expected.std(1).min() > 0.05


def test_images_are_prepared_as_the_published_code_prepares_files() -> None:
    for height, width in ((80, 64), (64, 80), (600, 700)):
        levels = pictures(height=height, width=width)
        difference = (prepared(tensors(levels)) - prepared_by_hand(levels)).abs()
        # Pillow and torchvision round differently.
        assert difference.max() <= 1 / 255 + 1e-6
    whole = np.arange(512 * 512).reshape(512, 512) % 256  # of the right size: every level is kept
    assert torch.equal(prepared(tensors(whole[None].astype(np.uint8))), prepared_by_hand(whole[None]))
    assert torch.equal(prepared(torch.full((1, 1, 64, 64), 0.5)), torch.zeros(1, 3, 448, 448))


@pytest.mark.slow
def test_a_batch_scores_as_its_pairs_do_alone(folder: Path) -> None:
    reward = load_biovil_t(folder, device=CPU)
    images = tensors(pictures(3))
    reports = [Report("a", 2, impression="pneumonia."), Report("b", 3, findings=LONG), Report("c", 4)]
    values = reward(images, reports)
    assert values[2].isnan()
    alone = torch.cat([reward(images[i : i + 1], reports[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(values[:2], alone, atol=1e-5, rtol=0)
    assert not torch.allclose(reward(images[[1, 0]], reports[:2]), values[:2], atol=1e-4)
    assert not torch.allclose(reward(images[:2], [reports[1], reports[0]]), values[:2], atol=1e-4)


def test_a_converted_folder_that_was_damaged_is_refused(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    for name in ("config.json", "vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    name = "encoder.missing_previous_emb"
    wrong = {
        f"missing from its weights, such as {name}": {key: value for key, value in state.items() if key != name},
        "does not have, such as encoder.vit_pooler.type_embed": state
        | {"encoder.vit_pooler.type_embed": torch.zeros(2, 1, 256)},
        f"another shape than the network's, such as {name}": state | {name: torch.zeros(1, 128, 1, 1)},
    }
    for message, damaged in wrong.items():
        save_file(damaged, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=message):
            load_reward("consistency", str(tmp_path), device=CPU)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="cannot be loaded as BioViL-T"):
        load_reward("consistency", str(tmp_path), device=CPU)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded as BioViL-T"):
        load_reward("consistency", str(tmp_path), device=CPU)


def test_settings_of_a_far_larger_network_are_refused_before_it_is_made(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    settings = json.loads((folder / "config.json").read_text())
    for change in ({"num_hidden_layers": 10**9}, {"hidden_size": 10**5, "num_attention_heads": 10}):
        (tmp_path / "config.json").unlink()
        (tmp_path / "config.json").write_text(json.dumps(settings | {"text_config": settings["text_config"] | change}))
        with pytest.raises(ModelError, match=r"config\.json (has num_hidden_layers|describes a network)"):
            load_reward("consistency", str(tmp_path), device=CPU)


@pytest.mark.slow
def test_audit_judges_with_it(folder: Path, tmp_path: Path) -> None:
    made, out = tmp_path / "set", tmp_path / "audit"
    options = ("--example", "--limit", "3", "--include-text", "sanitized", "--model", "nano-fast", "--device", "cpu")
    done = CliRunner().invoke(app, ["generate", "--out", str(made), *options])
    assert done.exit_code == 0, done.output
    options = ("--out", str(out), "--judge", f"consistency={folder}", "--device", "cpu")
    done = CliRunner().invoke(app, ["audit", str(made), *options])
    assert done.exit_code == 0, done.output
    values = pq.read_table(out / "scores.parquet")["reward_consistency"].to_pylist()
    assert len(set(values)) == len(values) >= 3
    assert all(-1 <= value <= 1 for value in values)
    found = json.loads((out / "summary.json").read_text())["reward_models"]["consistency"]
    assert (found["backend"], found["unit"], len(found["digest"])) == ("biovil-t", "cosine", 64)


@pytest.mark.slow
def test_tune_is_rewarded_by_it(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    content = recipe(tiny_model, rewards={"consistency": {"backend": str(folder)}})
    done = tune(write_recipe(tmp_path, content), tmp_path / "run")
    assert done.exit_code == 0, done.output
    means = [row["reward/consistency/mean"] for row in metrics(tmp_path / "run") if "reward/consistency/mean" in row]
    assert len(set(means)) == 2  # one an iteration
    assert all(-1 <= mean <= 1 for mean in means)
