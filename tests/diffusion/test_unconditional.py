"""UNets without text: our images are those of the plain pipelines of diffusers from the same noise."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline
from torch import Tensor

from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import _step_noise, encode_images, make_scheduler, sample_images
from cxrsynth.errors import ModelError
from cxrsynth.reports.labels import FindingLabel, Status
from cxrsynth.reports.request import PromptBuilder, class_of
from cxrsynth.reports.table.rows import Report
from cxrsynth.settings import Additions, PromptStyle, Sampler
from tests.diffusion.test_families import dpmpp, loaded
from tests.families import CLASSES, WITHOUT_TEXT, build
from tests.generation.making import command, manifest, metadata, write_table
from tests.generation.test_generate import refuse, succeed

BY_CLASS = ("by class", "by timestep of class")
STEPS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each kind."""
    home = tmp_path_factory.mktemp("without-text")
    spec = {name: {"classes": list(CLASSES)} if name in BY_CLASS else None for name in WITHOUT_TEXT}
    return {name: build(name, home / name.replace(" ", "-"), spec=spec[name]) for name in WITHOUT_TEXT}


def noise_of(model: DiffusionModel) -> Tensor:
    return torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))


def by_diffusers(folder: Path, sampler: Sampler, noise: Tensor, drawing: dict[str, Any], labels: Any) -> Tensor:
    """Images [B, 1, H, W] of the plain pipeline; `drawing` gives the noise of steps."""
    kind, module = (DDIMPipeline, "ddim") if sampler is Sampler.DDIM else (DDPMPipeline, "ddpm")
    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if sampler is Sampler.DPMPP:
        pipeline.scheduler = dpmpp(pipeline.scheduler.config)
    if labels is not None:  # the pipelines know none
        pipeline.unet.forward = partial(pipeline.unet.forward, class_labels=torch.tensor(labels))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"diffusers.pipelines.{module}.pipeline_{module}.randn_tensor", lambda *_, **__: noise.clone())
        given = drawing | {"batch_size": len(noise), "num_inference_steps": STEPS, "output_type": "np"}
        images = pipeline(**given).images
    return torch.from_numpy(images).permute(0, 3, 1, 2).mean(1, keepdim=True)


@pytest.mark.parametrize("name", WITHOUT_TEXT)
def test_images_are_those_of_diffusers(name: str, folders: dict[str, Path]) -> None:
    model = loaded(folders[name])
    assert model.image_shape == (16, 16)
    noise = noise_of(model)
    prompts, labels = (["Pleural Effusion", "Pneumonia"], [2, 0]) if name in BY_CLASS else (["clear", "lungs"], None)
    for sampler in (Sampler.MODEL, Sampler.DDIM, Sampler.DPMPP):
        found = sample_images(model, prompts, noise, sampler=sampler, steps=STEPS, guidance=1.0)
        drawing = _step_noise(make_scheduler(model, sampler, steps=STEPS), noise) if sampler is Sampler.MODEL else {}
        expected = by_diffusers(folders[name], sampler, noise, drawing, labels)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", BY_CLASS)
def test_images_depend_on_the_class(name: str, folders: dict[str, Path]) -> None:
    model = loaded(folders[name])
    noise = noise_of(model)[:1].expand(2, -1, -1, -1)
    given: dict[str, Any] = {"sampler": Sampler.DDIM, "steps": STEPS, "guidance": 1.0}
    one, other = sample_images(model, ["Pneumonia", "No Finding"], noise, **given)
    assert (one - other).abs().max() > 1e-3


def test_a_prompt_that_is_no_class_is_refused_without_repeating_it(folders: dict[str, Path]) -> None:
    model = loaded(folders["by class"])
    with pytest.raises(ModelError, match=r"not one of the model's classes\n  expected: Pneumonia, No") as caught:
        model.encode(["Private text"])
    assert "Private" not in str(caught.value)


@pytest.mark.parametrize("name", ["gray", "RGB"])
def test_encoded_images_are_pixels(name: str, folders: dict[str, Path]) -> None:
    model = loaded(folders[name])
    image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = encode_images(model, image)
    assert latents.shape == (1, *model.latent_shape)
    torch.testing.assert_close(latents, (2 * image - 1).expand_as(latents))


def test_a_report_asks_for_the_first_class_that_is_present() -> None:
    present, absent = FindingLabel(Status.PRESENT), FindingLabel(Status.ABSENT)
    assert class_of({"Pleural Effusion": present, "Pneumonia": present}, CLASSES) == "Pneumonia"
    assert class_of({"Pleural Effusion": present, "Pneumonia": absent}, CLASSES) == "Pleural Effusion"
    assert class_of({"Edema": present, "No Finding": present}, CLASSES) == "No Finding"
    assert class_of({}, CLASSES) == "No Finding"


def test_the_prompt_is_the_name_of_the_class(folders: dict[str, Path]) -> None:
    spec = resolve_model(str(folders["by class"])).spec
    assert spec.prompt is PromptStyle.CLASS
    builder = PromptBuilder(spec.prompt, spec.depicts, lambda _: True, classes=spec.classes)
    report = Report(report_id="a", impression="Small left pleural effusion.", findings="", text="", labels={}, line=2)
    built = builder.build(report)
    assert built.prompt == built.metadata["prompt"] == "Pleural Effusion"


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("by class", {}, r"the UNet has 3 classes, 0 are named\n.*\"classes\""),
        ("by class", {"classes": ["Pneumonia", "No Finding"]}, "has 3 classes, 2 are named"),
        ("by class", {"classes": ["Pneumonia", "Edema", "Fracture"]}, "No Finding is missing"),
        ("by class", {"classes": ["No Finding", "Edema", "Edema"]}, "a finding is named twice"),
        ("by class", {"classes": ["No Finding", "Edema", "Cough"]}, "unknown: Cough; known: No Finding"),
        ("gray", {"classes": ["Pneumonia", "No Finding"]}, "classes, but the UNet has none"),
        ("gray", {"prompt": "class"}, r"prompt 'class' without classes"),
        ("stable_diffusion", {"classes": ["Pneumonia", "No Finding"]}, "is conditioned on text"),
        ("stable_diffusion", {"prompt": "class"}, "prompt 'class' without classes"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(
    name: str, spec: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = build(name, tmp_path / "model", spec=spec)
    with pytest.raises(ModelError, match=message):
        loaded(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_embed_type": "identity"}, "class_embed_type 'identity'"),
        ({"in_channels": 4, "out_channels": 4}, "in_channels 4: not a UNet in pixel space"),
        ({"out_channels": 2}, "predicts its variance, too"),
    ],
)
def test_networks_that_take_or_give_more_are_refused(
    change: dict[str, Any], message: str, folders: dict[str, Path]
) -> None:
    model = loaded(folders["gray"])
    model.denoiser.register_to_config(**change)
    with pytest.raises(ModelError, match=message):
        model.family.check(model.denoiser, model.components)


def test_embeddings_beside_a_model_without_text_are_refused(tmp_path: Path) -> None:
    folder = build("gray", tmp_path / "model")
    (folder / "ace.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"adaptive condition embeddings, but .* is a model without text"):
        resolve_model(str(folder))


def test_the_folder_is_the_one_that_diffusers_saves(folders: dict[str, Path]) -> None:
    index = json.loads((folders["gray"] / "model_index.json").read_text())
    assert {name for name in index if not name.startswith("_")} == {"unet", "scheduler"}


def test_a_model_that_takes_no_prompt_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "r.csv", (("a", "Small left pleural effusion.", "LATERAL"),), ("id", "report", "view")
    )
    arguments = command(table, tmp_path / "out", folders["gray"], "--steps", "2", "--guidance", "1")
    printed = succeed(arguments)
    assert "Pleural Effusion, view LATERAL" in " ".join(printed.split())
    (sample,) = metadata(tmp_path / "out").values()
    assert sample["unsupported_findings"] == "view LATERAL; Pleural Effusion"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "does not depend on the report" in card
    assert "do not use them as labels" in card
    assert "They were requested from the model" not in card
    assert manifest(tmp_path / "out")["plan"]["conditioned"] is False


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--prompt", "findings"), "--prompt: a model without text takes no prompt"),
        (("--prompt-template", "roentgen"), "--prompt-template: a model without text takes no prompt"),
        (("--negative-prompt", "bad"), "has no guidance\n  leave it out"),
        (("--vae", "{folder}"), "--vae: a model without text works on pixels"),
    ],
)
def test_options_that_mean_nothing_to_it_are_refused(
    options: tuple[str, str], said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    vae = build("stable_diffusion", tmp_path / "other")
    table = write_table(tmp_path / "r.csv", (("a", "Clear lungs."),), ("id", "report"))
    option, value = options
    arguments = command(table, tmp_path / "out", folders["gray"], "--guidance", "1", option, value.format(folder=vae))
    assert said in refuse(arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["sana", "sd3", "flux", "lumina2"])
def test_a_discrete_schedule_on_a_model_of_flow_matching_is_refused(name: str, tmp_path: Path) -> None:
    folder, other = build(name, tmp_path / name), build("stable_diffusion", tmp_path / "other")
    laid_over = Additions(scheduler=other / "scheduler")
    with pytest.raises(ModelError, match=r"a discrete schedule, but .* learned by flow matching"):
        resolve_model(str(folder), additions=laid_over)
    shutil.rmtree(folder / "scheduler")
    shutil.copytree(other / "scheduler", folder / "scheduler")
    with pytest.raises(ModelError, match=r"scheduler.*: a discrete schedule|model_index"):
        resolve_model(str(folder))
