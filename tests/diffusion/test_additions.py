"""What is laid over a model's folder: our images are those of diffusers with the same things loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cxrsynth.diffusion.model import DiffusionModel, load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.errors import ModelError
from cxrsynth.settings import Additions, Lora, Precision, Sampler, parse_lora
from tests.families import build

CPU = torch.device("cpu")
PROMPTS = ["clear lungs", "left lower lobe pneumonia"]
WITH_LORA = ("stable_diffusion", "sdxl", "sana", "sd3", "lumina2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("families")
    return {name: build(name, home / name) for name in (*WITH_LORA, "pixart")}


def loaded(folder: Path, **given: Any) -> DiffusionModel:
    return load_model(resolve_model(str(folder), **given), device=CPU, precision=Precision.FP32)


def images_of(model: DiffusionModel, prompts: list[str] = PROMPTS) -> Tensor:
    noise = torch.randn(len(prompts), *model.latent_shape, generator=torch.Generator().manual_seed(0))
    return sample_images(model, prompts, noise, sampler=Sampler.MODEL, steps=3, guidance=3.0)


def by_diffusers(pipeline: Any, prompts: list[str] = PROMPTS) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    side = network.config.sample_size
    noise = torch.randn(len(prompts), 4, side, side, generator=torch.Generator().manual_seed(0))
    size = side * pipeline.vae_scale_factor
    further = {"use_resolution_binning": False} if "Sana" in type(pipeline).__name__ else {}
    given = {"latents": noise, "height": size, "width": size, "num_inference_steps": 3, "guidance_scale": 3.0}
    images = pipeline(prompts, output_type="np", **given, **further).images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def adapted(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """LoRA weights of a network in peft's names, none of them zero."""
    torch.manual_seed(seed)
    wrapped = get_peft_model(network, LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"]))
    state = get_peft_model_state_dict(wrapped)
    return {name.removeprefix("base_model.model."): 0.3 * torch.randn_like(weight) for name, weight in state.items()}


def lora_of(folder: Path, out: Path) -> Path:
    """LoRA weights as diffusers saves them."""
    pipeline = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    part = "unet" if hasattr(pipeline, "unet") else "transformer"
    weights = adapted(getattr(pipeline, part))
    out.mkdir()
    saved = {f"{part}.{name}": weight.contiguous() for name, weight in weights.items()}
    save_file(saved, out / "pytorch_lora_weights.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("name", WITH_LORA)
def test_lora_weights_of_diffusers(name: str, scale: float, folders: dict[str, Path], tmp_path: Path) -> None:
    weights = lora_of(folders[name], tmp_path / "lora")
    model = loaded(folders[name], additions=Additions(loras=(Lora(weights, scale),)))
    pipeline = DiffusionPipeline.from_pretrained(folders[name], safety_checker=None)
    pipeline.load_lora_weights(weights, weight_name="pytorch_lora_weights.safetensors")
    pipeline.fuse_lora(lora_scale=scale)
    found = images_of(model)
    torch.testing.assert_close(found, by_diffusers(pipeline), atol=1e-4, rtol=0)
    plain = loaded(folders[name])
    assert (found - images_of(plain)).abs().max() > 1e-4
    assert model.digest != plain.digest


@pytest.mark.parametrize("name", ["stable_diffusion", "pixart"])
def test_lora_weights_of_peft(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model = loaded(folders[name])
    torch.manual_seed(0)
    wrapped = get_peft_model(model.denoiser, LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"]))
    with torch.no_grad():
        for key, weight in wrapped.named_parameters():
            if "lora_" in key:
                weight.normal_(std=0.3)
    expected = images_of(model)  # peft changed the network in place
    wrapped.save_pretrained(tmp_path / "lora")
    found = images_of(loaded(folders[name], additions=Additions(loras=(Lora(tmp_path / "lora"),))))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - images_of(loaded(folders[name]))).abs().max() > 1e-4


def test_a_denoiser_and_an_autoencoder_of_their_own(folders: dict[str, Path], tmp_path: Path) -> None:
    base = folders["stable_diffusion"]
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    vae = AutoencoderKL.from_pretrained(base / "vae")
    torch.manual_seed(1)
    with torch.no_grad():
        for network in (unet, vae):
            for weight in network.parameters():
                weight += 0.02 * torch.randn_like(weight)
    average = EMAModel(unet.parameters(), model_cls=UNet2DConditionModel, model_config=unet.config)
    average.save_pretrained(tmp_path / "unet_ema")  # as training scripts leave it, with settings of its own
    vae.save_pretrained(tmp_path / "vae")
    found = loaded(base, additions=Additions(denoiser=tmp_path / "unet_ema", vae=tmp_path / "vae"))
    pipeline = DiffusionPipeline.from_pretrained(base, unet=unet, vae=vae, safety_checker=None)
    torch.testing.assert_close(images_of(found), by_diffusers(pipeline), atol=1e-4, rtol=0)


@pytest.mark.parametrize("whole", [False, True])
def test_a_scheduler_from_elsewhere(whole: bool, folders: dict[str, Path], tmp_path: Path) -> None:
    """Its folder, or the model folder that it is in; the model itself then needs none."""
    base = tmp_path / "base"
    shutil.copytree(folders["stable_diffusion"], base)
    shutil.rmtree(base / "scheduler")
    with pytest.raises(ModelError, match=r"missing scheduler/\n .*; take the missing from another model with --schedu"):
        loaded(base)
    place = tmp_path / "other" / "scheduler" if whole else tmp_path / "other"
    scheduler = DDIMScheduler(beta_schedule="linear", timestep_spacing="trailing", clip_sample=False)
    scheduler.save_pretrained(place)
    model = resolve_model(str(base), additions=Additions(scheduler=tmp_path / "other"))
    found = images_of(loaded(base, additions=Additions(scheduler=tmp_path / "other")))
    pipeline = DiffusionPipeline.from_pretrained(folders["stable_diffusion"], scheduler=scheduler, safety_checker=None)
    torch.testing.assert_close(found, by_diffusers(pipeline), atol=1e-4, rtol=0)
    (place / "scheduler_config.json").write_text((place / "scheduler_config.json").read_text() + " ")
    assert resolve_model(str(base), additions=Additions(scheduler=tmp_path / "other")).digest != model.digest


def test_an_autoencoder_that_the_folder_lacks(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["stable_diffusion"], tmp_path / "base")
    (tmp_path / "base" / "vae").rename(tmp_path / "vae")
    with pytest.raises(ModelError, match=r"missing vae/\n .*with --vae"):
        loaded(tmp_path / "base")
    found = images_of(loaded(tmp_path / "base", additions=Additions(vae=tmp_path / "vae")))
    assert torch.equal(found, images_of(loaded(folders["stable_diffusion"])))


def test_words_of_textual_inversion(folders: dict[str, Path], tmp_path: Path) -> None:
    base = folders["stable_diffusion"]
    words = tmp_path / "learned.safetensors"
    save_file({"<cxr>": torch.randn(2, 16, generator=torch.Generator().manual_seed(0))}, words)
    prompts = ["<cxr> clear lungs", "<cxr>"]
    model = loaded(base, additions=Additions(embeddings=(words,)))
    pipeline = DiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipeline.load_textual_inversion(words)
    found = images_of(model, prompts)
    torch.testing.assert_close(found, by_diffusers(pipeline, prompts), atol=1e-4, rtol=0)
    assert (found - images_of(loaded(base), prompts)).abs().max() > 1e-4


@pytest.mark.parametrize("sharded", [False, True])
def test_weights_of_a_variant_alone(sharded: bool, folders: dict[str, Path], tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(folders["stable_diffusion"], safety_checker=None)
    further = {"max_shard_size": "5kB"} if sharded else {}
    pipeline.save_pretrained(tmp_path / "model", variant="fp16", safe_serialization=True, **further)
    names = [path.name for path in (tmp_path / "model").rglob("*.safetensors")]
    assert all("fp16" in name for name in names)
    assert len(names) > 3 if sharded else len(names) == 3
    torch.testing.assert_close(images_of(loaded(tmp_path / "model")), by_diffusers(pipeline), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"denoiser": "nowhere"}, r"--unet .*nowhere: no config\.json there\n  expected: .* unet/"),
        ({"vae": "pickled"}, r"--vae .*pickled: no safetensors weights"),
        ({"scheduler": "empty"}, r"--scheduler .*empty: no scheduler_config\.json there, nor in a folder scheduler/"),
        ({"loras": "empty"}, r"--lora .*empty: 0 safetensors files there, expected one"),
        ({"loras": "strange"}, r"--lora .*strange: cannot be added to a Stable Diffusion model"),
        ({"embeddings": "pickled/words.bin"}, r"--embeddings .*words\.bin: no such file, or not safetensors"),
        ({"embeddings": "strange/weights.safetensors"}, r"--embeddings .*weights\.safetensors: cannot be loaded"),
    ],
)
def test_what_cannot_be_laid_over_is_refused(
    given: dict[str, str], said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("empty", "pickled", "strange"):
        (tmp_path / name).mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "words.bin").write_bytes(b"pickle")
    save_file({"somewhere.lora_A.weight": torch.ones(2, 3)}, tmp_path / "strange" / "weights.safetensors")
    ((kind, name),) = given.items()
    path = tmp_path / name
    values: dict[str, Any] = {"loras": (Lora(path),), "embeddings": (path,)}
    additions = Additions(**{kind: values.get(kind, path)})
    with pytest.raises(ModelError, match=said):
        loaded(folders["stable_diffusion"], additions=additions)


def test_lora_weights_of_another_model_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    weights = lora_of(folders["sdxl"], tmp_path / "lora")
    state = load_file(weights / "pytorch_lora_weights.safetensors")
    renamed = {name.replace("unet.", "unet.other_"): weight for name, weight in state.items()}
    save_file(renamed, weights / "pytorch_lora_weights.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"--lora .*: cannot be added to a Stable Diffusion XL model"):
        loaded(folders["sdxl"], additions=Additions(loras=(Lora(weights),)))


def test_a_path_may_hold_an_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "lr=3").mkdir()
    assert parse_lora(str(tmp_path / "lr=3")) == Lora(tmp_path / "lr=3", 1.0)
    assert parse_lora(f"{tmp_path}/lr=3=0.5") == Lora(tmp_path / "lr=3", 0.5)
    assert parse_lora("some.safetensors") == Lora(Path("some.safetensors"))
    for wrong in ("a=b", "=1", "a=nan", "a="):
        with pytest.raises(ValueError, match="expected PATH or PATH=SCALE"):
            parse_lora(wrong)


def test_a_tokenizer_of_more_words_than_the_encoder_has_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["stable_diffusion"], tmp_path / "model")
    path = tmp_path / "model" / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["zzz"] = max(content["model"]["vocab"].values()) + 1
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"tokenizer: \d+ tokens, but the text encoder has embeddings for \d+"):
        loaded(tmp_path / "model")
