"""BioViL-T as published, at random weights: the image model in its real size, the text model a few channels wide."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

import cxrsynth
from cxrsynth.cli import app
from cxrsynth.conversion.biovil_t import IMAGE_WEIGHTS
from cxrsynth.errors import ModelError
from cxrsynth.rewards.backends import load_reward
from cxrsynth.rewards.digests import backend_digest
from tests.conversion.published import biovil_t, biovil_t_image_state

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shapes() -> dict[str, Tensor]:
    """The image model with one number in the place of each tensor's values: a file of some kilobytes."""
    return {
        name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        for name, tensor in biovil_t_image_state().items()
    }


@pytest.mark.parametrize("pickled_text", [False, True])
def test_every_tensor_keeps_its_published_name_and_value(pickled_text: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = biovil_t_image_state()
    # As others count them in the published file of 109,745,561 bytes.
    assert len(image) == 372
    source, out = biovil_t(tmp_path / "source", image, pickled_text=pickled_text), tmp_path / "biovil-t"
    assert (source / IMAGE_WEIGHTS).stat().st_size == pytest.approx(109_745_561, rel=1e-3)
    done = CliRunner().invoke(app, ["convert", str(source), str(out)])
    assert done.exit_code == 0, done.output
    printed = " ".join(done.output.split())
    assert f"BioViL-T; use it with cxrsynth audit SET --judge consistency={out}" in printed
    text = torch.load(source / "pytorch_model.bin") if pickled_text else load_file(source / "model.safetensors")
    written = load_file(out / "model.safetensors")
    for name in (
        "encoder.encoder.conv1.weight",
        "encoder.encoder.layer4.2.bn3.running_var",
        "encoder.backbone_to_vit.weight",
        "encoder.missing_previous_emb",
        "projector.model.0.weight",
        "projector.model.1.running_mean",
        "projector.model.3.bias",
    ):
        assert torch.equal(written[name], image[name]), name
    for name in (
        "bert.embeddings.word_embeddings.weight",
        "bert.encoder.layer.1.attention.self.query.weight",
        "cls_projection_head.dense_to_hidden.weight",
        "cls_projection_head.LayerNorm.bias",
        "cls_projection_head.dense_to_output.weight",
    ):
        assert torch.equal(written[name], text[name]), name
    published = image | text
    assert all(torch.equal(tensor, published[name]) for name, tensor in written.items())
    unused = ("encoder.vit_pooler.", "encoder.encoder.fc.", "cls.predictions.", "bert.pooler.")
    assert published.keys() - written.keys() == {name for name in published if name.startswith(unused)}
    assert {path.name for path in out.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt",
    }  # fmt: skip
    assert not (source / "ran").exists()


def test_the_converted_folder_names_its_class_and_no_code(shapes: dict[str, Tensor], tmp_path: Path) -> None:
    source = biovil_t(tmp_path / "source", shapes)
    done = cxrsynth.convert(source, tmp_path / "out")
    assert (done.model, done.family) == (tmp_path / "out", "BioViL-T")
    assert done.digest == backend_digest("consistency", str(tmp_path / "out"))
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (settings["architectures"], settings["model_type"]) == (["BioViLT"], "biovil-t")
    assert (settings["projection_size"], settings["text_config"]["hidden_size"]) == (128, 16)
    assert all("auto_map" not in path.read_text() for path in (tmp_path / "out").glob("*.json"))


def without(state: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: without(s, "encoder.encoder.layer3.5.conv2.weight"), "missing .*encoder.layer3.5.conv2.weight"),
        (lambda s: without(s, "encoder.missing_previous_emb"), "missing from .*encoder.missing_previous_emb"),
        (lambda s: s | {"encoder.encoder.layer4.3.conv1.weight": torch.zeros(2)}, "does not have.*layer4.3.conv1"),
        (lambda s: s | {"projector.model.0.weight": torch.zeros(128, 2048, 1, 1)}, "another shape.*projector.model.0"),
        (lambda s: {f"module.{name}": tensor for name, tensor in s.items()}, "missing from its weights"),
    ],
)
def test_an_image_model_that_does_not_match_is_refused_and_nothing_is_left(
    change: Any, said: str, shapes: dict[str, Tensor], tmp_path: Path
) -> None:
    source = biovil_t(tmp_path / "source", change(shapes))
    with pytest.raises(ModelError, match=rf"{IMAGE_WEIGHTS}: cannot be loaded as a half of BioViL-T: \d+ .*{said}"):
        cxrsynth.convert(source, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: without(s, "cls_projection_head.dense_to_output.bias"), "missing .*dense_to_output.bias"),
        (lambda s: s | {"bert.encoder.layer.2.output.dense.bias": torch.zeros(16)}, "does not have.*layer.2.output"),
        (lambda s: s | {"cls_projection_head.LayerNorm.bias": torch.zeros(64)}, "another shape.*LayerNorm.bias"),
    ],
)
def test_a_text_model_that_does_not_match_is_refused(
    change: Any, said: str, shapes: dict[str, Tensor], tmp_path: Path
) -> None:
    source = biovil_t(tmp_path / "source", shapes, pickled_text=True)
    torch.save(change(torch.load(source / "pytorch_model.bin")), source / "pytorch_model.bin")
    with pytest.raises(ModelError, match=rf"pytorch_model.bin: cannot be loaded as a half of BioViL-T: .*{said}"):
        cxrsynth.convert(source, tmp_path / "out")


class _Bomb:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


def test_an_image_model_that_holds_more_than_tensors_is_never_unpickled(
    shapes: dict[str, Tensor], tmp_path: Path
) -> None:
    source = biovil_t(tmp_path / "source", shapes | {"bomb": _Bomb(tmp_path / "ran")})
    with pytest.raises(ModelError, match=f"{IMAGE_WEIGHTS}: holds more than tensors"):
        cxrsynth.convert(source, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        (IMAGE_WEIGHTS, IMAGE_WEIGHTS),
        ("model.safetensors", "model.safetensors or pytorch_model.bin"),
        ("vocab.txt", "vocab.txt"),
        ("config.json", "config.json"),
    ],
)
def test_a_missing_file_is_named(lacking: str, said: str, shapes: dict[str, Tensor], tmp_path: Path) -> None:
    source = biovil_t(tmp_path / "source", shapes)
    (source / lacking).unlink()
    with pytest.raises(ModelError, match=f"source: BioViL-T, but without {said}\n"):
        cxrsynth.convert(source, tmp_path / "out")


@pytest.mark.parametrize("settings", ["[]", '{"model_type": "cxr-bert", "hidden_size": "wide"}', "{"])
def test_settings_of_something_else_are_refused(settings: str, shapes: dict[str, Tensor], tmp_path: Path) -> None:
    source = biovil_t(tmp_path / "source", shapes)
    (source / "config.json").write_text(settings)
    with pytest.raises(ModelError, match=r"config\.json: (no settings|cannot be read)"):
        cxrsynth.convert(source, tmp_path / "out")


def test_options_of_models_that_make_images_are_refused(shapes: dict[str, Tensor], tmp_path: Path) -> None:
    source = biovil_t(tmp_path / "source", shapes)
    with pytest.raises(ModelError, match="--name: belongs to a model that makes images"):
        cxrsynth.convert(source, tmp_path / "out", name="judge")


def test_the_published_folder_itself_is_no_judge_but_says_how_to_make_one(
    shapes: dict[str, Tensor], tmp_path: Path
) -> None:
    source = biovil_t(tmp_path / "source", shapes)
    with pytest.raises(ModelError, match=r"BioViL-T or CXR-BERT as published(.|\n)*cxrsynth convert PUBLISHED FOLDER"):
        load_reward("consistency", str(source), device=CPU)
    assert not (source / "ran").exists()


def test_code_planted_in_the_converted_folder_is_refused(shapes: dict[str, Tensor], tmp_path: Path) -> None:
    source, out = biovil_t(tmp_path / "source", shapes), tmp_path / "out"
    cxrsynth.convert(source, out)
    shutil.copyfile(source / "modeling_cxrbert.py", out / "modeling_cxrbert.py")
    for name in ("config.json", "tokenizer_config.json"):
        content = (out / name).read_text()
        (out / name).write_text(json.dumps(json.loads(content) | {"auto_map": {"AutoModel": "modeling_cxrbert.A"}}))
        with pytest.raises(ModelError, match=rf"{name}: asks for Python code of its own \(auto_map\)"):
            load_reward("consistency", str(out), device=CPU)
        (out / name).write_text(content)
    assert not (source / "ran").exists()
    load_reward("consistency", str(out), device=CPU)
