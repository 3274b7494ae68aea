"""What families do with prompts and guidance beyond their images: limits, sizes, embeddings, scales as inputs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cxrsynth.diffusion.ace import AdaptiveConditionEmbedding
from cxrsynth.diffusion.condition import GUIDANCE, MASK, TEXT, Condition
from cxrsynth.diffusion.families.base import classifier_free
from cxrsynth.diffusion.families.lumina2 import Lumina2
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import guided_condition, predict_noise, sample_images
from cxrsynth.errors import ModelError
from cxrsynth.reports.conditions import CONDITIONS
from cxrsynth.settings import Sampler
from tests.diffusion.test_families import PROMPTS, STEPS, by_diffusers, loaded, noise_of
from tests.families import FAMILIES, TOKENS, build

MASKED = ("pixart", "sana", "lumina2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each kind."""
    home = tmp_path_factory.mktemp("families")
    return {name: build(name, home / name.replace(" ", "-")) for name in (*FAMILIES, "flux without guidance")}


def changed(folder: Path, out: Path, file: str, **values: Any) -> Path:
    """A copy with other values in one JSON file."""
    shutil.copytree(folder, out)
    path = out / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | values))
    return out


def test_text_is_aligned_at_the_last_position_that_is_read() -> None:
    text = torch.arange(1.0, 9.0).view(2, 4, 1)
    condition = Condition({TEXT: text, MASK: torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])})
    aligned = condition.aligned_text()
    assert aligned.flatten().tolist() == [0, 0, 1, 2, 5, 6, 7, 8]
    assert condition.with_aligned_text(aligned).text.flatten().tolist() == [1, 2, 0, 0, 5, 6, 7, 8]
    plain = Condition({TEXT: text})
    assert plain.aligned_text() is text
    assert plain.with_aligned_text(text).text is text


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_begin_as_nothing_and_reach_the_network(name: str, folders: dict[str, Path]) -> None:
    """Some families do not read padding, where embeddings of the last positions would be lost."""
    model = loaded(folders[name])
    text, empty = model.encode(PROMPTS)
    ace = AdaptiveConditionEmbedding(text.text.shape[2], tokens=1)
    object.__setattr__(model, "ace", ace)
    noise, when = noise_of(model), torch.tensor(500)

    def predicted(mask: Tensor | None) -> Tensor:
        with torch.no_grad():
            return predict_noise(model, noise, when, guided_condition(model, text, empty, 1.0, mask=mask), 1.0)

    mask = ace.mask([CONDITIONS[:1]] * 2)
    without = predicted(None)
    torch.testing.assert_close(predicted(mask), without)
    torch.nn.init.normal_(ace.blocks, std=3.0)
    assert ((predicted(mask) - without).flatten(1).norm(dim=1) > 1e-4 * without.flatten(1).norm(dim=1)).all()


def test_a_distilled_guidance_scale_is_an_input(folders: dict[str, Path]) -> None:
    model = loaded(folders["flux"])
    text, empty = model.encode(PROMPTS)
    condition = guided_condition(model, text, empty, 3.5)
    assert condition.tensors[GUIDANCE].tolist() == [3.5, 3.5]
    assert len(condition) == 2  # no prompt is not asked for
    noise, when = noise_of(model), torch.tensor(500)
    with torch.no_grad():
        guided = predict_noise(model, noise, when, condition, 3.5)
        other = predict_noise(model, noise, when, guided_condition(model, text, empty, 1.0), 1.0)
    assert (guided - other).abs().max() > 1e-4
    assert model.training_guidance == 3.5
    assert loaded(folders["flux without guidance"]).training_guidance == 1.0


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("pixart", (8, 4.5, Sampler.DPMPP)),
        ("sana", (8, 4.5, Sampler.DPMPP)),
        ("sd3", (8, 7.0, Sampler.EULER)),
        ("stable_diffusion", (8, 4.0, Sampler.DDIM)),
    ],
)
def test_what_a_file_leaves_out_of_the_defaults_is_the_familys(
    family: str, expected: tuple[int, float, Sampler], folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders[family], tmp_path / "model")
    spec = tmp_path / "model" / "cxrsynth.json"
    content = json.loads(spec.read_text()) if spec.exists() else {}
    spec.write_text(json.dumps(content | {"defaults": {"steps": 8}}))
    found = resolve_model(str(tmp_path / "model")).spec.defaults
    assert (found.steps, found.guidance, found.sampler) == expected


def test_without_distilled_guidance_flux_has_none_by_default(folders: dict[str, Path]) -> None:
    assert resolve_model(str(folders["flux"])).spec.defaults.guidance == 3.5
    assert resolve_model(str(folders["flux without guidance"])).spec.defaults.guidance == 1.0


def test_the_description_gives_the_size_of_flux_images(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders["flux"], tmp_path / "model", "cxrsynth.json", image_size=[24, 32])
    model = loaded(folder)
    assert model.image_shape == (24, 32)
    assert model.latent_shape == (4, 12, 16)
    noise = noise_of(model)
    for sampler in (Sampler.MODEL, Sampler.EULER):  # the shift depends on the size
        found = sample_images(model, PROMPTS, noise, sampler=sampler, steps=STEPS, guidance=3.5)
        torch.testing.assert_close(found, by_diffusers(folder, noise, 3.5), atol=1e-4, rtol=0)


def test_a_flux_model_of_no_size_says_what_is_missing(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders["flux"], tmp_path / "model", "vae/config.json")
    config = json.loads((folder / "vae" / "config.json").read_text())
    del config["sample_size"]
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r'nothing gives the size of its images(.|\n)*"image_size" in cxrsynth\.json'):
        loaded(folder)


def test_a_size_that_flux_cannot_pack_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders["flux"], tmp_path / "model", "cxrsynth.json", image_size=[16, 18])
    with pytest.raises(ModelError, match=r"cxrsynth\.json: images of 16 x 18 pixels\n.*multiples of 4"):
        loaded(folder)


def test_a_size_beside_a_networks_own_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders["sdxl"], tmp_path / "model", "cxrsynth.json", image_size=64)
    with pytest.raises(ModelError, match=r"image_size: .* unet/config\.json, as sample_size\n  leave image_size out"):
        resolve_model(str(folder))


def test_flux_for_inpainting_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["flux"], tmp_path / "model")
    model = loaded(folders["flux"])
    model.denoiser.register_to_config(in_channels=32, out_channels=16)
    with pytest.raises(ModelError, match=r"latents of 8 channels .in_channels 32.*have 4: a model for inpainting"):
        model.family.check(model.denoiser, model.components)


def test_t5_alone_limits_prompts_of_flux(folders: dict[str, Path]) -> None:
    """CLIP gives a pooled embedding, from the beginning of the prompt."""
    model = loaded(folders["flux"])
    assert model.fits("clear " * (TOKENS + 10))
    assert not model.fits("clear " * 512)  # and one at the end


def test_the_system_prompt_of_lumina_counts(folders: dict[str, Path]) -> None:
    model = loaded(folders["lumina2"])
    tokenizer = model.components.tokenizers["tokenizer"]
    shown = Lumina2().tokenized(model._pipeline, "")
    room = 256 - len(tokenizer(shown).input_ids)
    assert 0 < room < 250
    assert model.fits("clear " * room)
    assert not model.fits("clear " * (room + 1))
    together, _ = model.encode(["clear " * room, "clear " * (room - 1) + "lungs"])
    assert not torch.equal(together.text[0], together.text[1])  # the last word is read


def test_guidance_of_lumina_keeps_the_length_of_the_conditional_prediction() -> None:
    first, second = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    guided = Lumina2().guide(first, second, 4.0)
    torch.testing.assert_close(guided.norm(dim=-1), second.norm(dim=-1))
    plain = classifier_free(first, second, 4.0)
    torch.testing.assert_close(torch.cosine_similarity(guided, plain, dim=-1), torch.ones(3, 4, 8))
