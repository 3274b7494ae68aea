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
from cxrsynth.diffusion.notices import tell_additions
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


@pytest.mark.parametrize("scale", [pytest.param(1.0, marks=pytest.mark.slow), 0.5])
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


def test_scales_in_the_header_of_lora_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    """diffusers writes the settings of an adapter into the file; without them alpha would be the rank."""
    pytest.importorskip("diffusers", minversion="0.34")
    pipeline = DiffusionPipeline.from_pretrained(folders["stable_diffusion"], safety_checker=None)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_v"])
    torch.manual_seed(0)
    pipeline.unet.add_adapter(config)
    with torch.no_grad():
        for name, weight in pipeline.unet.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.2)
    layers, settings = get_peft_model_state_dict(pipeline.unet), config.to_dict()
    type(pipeline).save_lora_weights(tmp_path, unet_lora_layers=layers, unet_lora_adapter_metadata=settings)
    found = images_of(with_lora(folders["stable_diffusion"], tmp_path))
    torch.testing.assert_close(found, by_diffusers(pipeline), atol=1e-4, rtol=0)
    assert (found - images_of(loaded(folders["stable_diffusion"]))).abs().max() > 1e-3


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
    by_file = Additions(scheduler=place / "scheduler_config.json")
    assert resolve_model(str(base), additions=by_file).digest == model.digest
    (place / "scheduler_config.json").write_text((place / "scheduler_config.json").read_text() + " ")
    assert resolve_model(str(base), additions=Additions(scheduler=tmp_path / "other")).digest != model.digest


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("family", "part"), [("stable_diffusion", "vae"), ("stable_diffusion", "unet"), ("pixart", "transformer")]
)
def test_a_network_that_the_folder_lacks(
    family: str, part: str, whole: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Its folder, or the model folder that it is in."""
    shutil.copytree(folders[family], tmp_path / "base")
    (tmp_path / "other").mkdir()
    (tmp_path / "base" / part).rename(tmp_path / "other" / part)
    missing = r"missing vae/\n .*with --vae" if part == "vae" else r"missing unet/ or transformer/\n(.*\n)*.*--unet"
    with pytest.raises(ModelError, match=missing):
        loaded(tmp_path / "base")
    place = tmp_path / "other" if whole else tmp_path / "other" / part
    given = Additions(vae=place) if part == "vae" else Additions(denoiser=place)
    found = images_of(loaded(tmp_path / "base", additions=given))
    assert torch.equal(found, images_of(loaded(folders[family])))


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
        ({"embeddings": "pickled/words.bin"}, r"--embeddings .*words\.bin: not a safetensors file"),
        ({"embeddings": "nowhere/words.safetensors"}, r"--embeddings .*words\.safetensors: no such file or folder"),
        ({"embeddings": "empty"}, r"--embeddings .*empty: 0 safetensors files there, expected one"),
        (
            {"embeddings": "strange/weights.safetensors"},
            r"--embeddings .*weights\.safetensors: cannot be loaded: .* --lora",
        ),
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
    with pytest.raises(
        ModelError, match=r"--lora .*: cannot be added to a Stable Diffusion XL model: its \d+ tensors have"
    ):
        loaded(folders["sdxl"], additions=Additions(loras=(Lora(weights),)))


def with_lora(folder: Path, weights: Path) -> DiffusionModel:
    return loaded(folder, additions=Additions(loras=(Lora(weights),)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("another block", r"\d+ of its \d+ tensors have no layer in the model, such as unet\.down_blocks\.9\..*lora_A"),
        ("another encoder", r"2 of its \d+ tensors have no layer in the model, such as text_encoder_9\.layer\.lora_A"),
        ("no second factor", r"1 tensors of its layers are missing, such as unet\..*\.lora_B\.weight"),
        ("no first factor", r"1 tensors of its layers are missing, such as unet\..*\.lora_A\.weight"),
        ("not a number", r"1 of its tensors hold values that are not finite numbers, such as unet\."),
        (
            "another size",
            r"\d+ tensors have another shape than the network's, such as .*: \[2, 5\], expected \[2, \d+\]",
        ),
        ("dora_scale", r"DoRA weights with dora_scale"),
        (
            "no network",
            r"(\d+) of its \1 tensors have .* such as down_blocks.*; expected: names that begin with unet\.",
        ),
        ("nothing", r"there are no tensors in it"),
    ],
)
def test_lora_weights_of_diffusers_that_fit_in_part_are_refused(
    change: str, said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    weights = lora_of(folders["stable_diffusion"], tmp_path / "lora")
    file = weights / "pytorch_lora_weights.safetensors"
    state = load_file(file)
    first, second = (next(name for name in state if factor in name) for factor in ("lora_A", "lora_B"))
    match change:
        case "another block":
            state = {name.replace("down_blocks.1", "down_blocks.9"): weight for name, weight in state.items()}
        case "another encoder":
            state |= {f"text_encoder_9.layer.lora_{factor}.weight": torch.randn(2, 2) for factor in "AB"}
        case "no second factor":
            del state[second]
        case "no first factor":
            del state[first]
        case "not a number":
            state[first][0, 0] = torch.nan
        case "another size":
            state = {name: weight[:, :5].contiguous() if "_A" in name else weight for name, weight in state.items()}
        case "dora_scale":
            state["unet.layer.lora_dora_scale"] = torch.ones(2)
        case "no network":
            state = {name.removeprefix("unet."): weight for name, weight in state.items()}
        case _:
            state = {}
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"--lora .*: cannot be added to a Stable Diffusion model: {said}") as error:
        with_lora(folders["stable_diffusion"], weights)
    assert "laid_over" not in str(error.value)


def test_lora_weights_of_another_trainer(folders: dict[str, Path], tmp_path: Path) -> None:
    """Names and alphas of kohya's scripts, which diffusers converts: alpha 1 at rank 2 halves the weights."""
    weights = lora_of(folders["stable_diffusion"], tmp_path / "lora")
    state = load_file(weights / "pytorch_lora_weights.safetensors")
    kohya = {}
    for name, weight in state.items():
        layer, _, factor = name.removeprefix("unet.").partition(".lora_")
        layer = f"lora_unet_{layer.replace('.', '_')}"
        kohya[f"{layer}.lora_{'down' if factor[0] == 'A' else 'up'}.weight"] = weight
        kohya[f"{layer}.alpha"] = torch.tensor(1.0)
    save_file(kohya, tmp_path / "kohya.safetensors")
    found = images_of(with_lora(folders["stable_diffusion"], tmp_path / "kohya.safetensors"))
    halved = loaded(folders["stable_diffusion"], additions=Additions(loras=(Lora(weights, 0.5),)))
    torch.testing.assert_close(found, images_of(halved), atol=1e-5, rtol=0)


def encoder_lora(encoder: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """LoRA weights of CLIP's layers, by CLIP's names before transformers 5, and what they add to each layer."""
    generator = torch.Generator().manual_seed(5)
    factors, added = {}, {}
    for name, layer in encoder.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            down = 0.3 * torch.randn(2, layer.in_features, generator=generator)
            up = 0.3 * torch.randn(layer.out_features, 2, generator=generator)
            called = name if name.startswith("text_model.") else f"text_model.{name}"
            factors |= {f"{called}.lora_A.weight": down, f"{called}.lora_B.weight": up}
            added[f"{name}.weight"] = up @ down
    return factors, added


@pytest.mark.parametrize("name", ["stable_diffusion", "flux"])
def test_lora_weights_of_a_text_encoder(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Those of diffusers are merged in every family whose pipeline takes them, by name of the encoder."""
    base = folders.get(name) or build(name, tmp_path / name)
    plain = loaded(base).components.encoders["text_encoder"]
    factors, added = encoder_lora(plain)
    save_file({f"text_encoder.{key}": weight for key, weight in factors.items()}, tmp_path / "te.safetensors")
    found = with_lora(base, tmp_path / "te.safetensors").components.encoders["text_encoder"].state_dict()
    before = plain.state_dict()
    assert set(found) == set(before)
    for key, weight in found.items():
        torch.testing.assert_close(weight, before[key] + added.get(key, 0.0))


@pytest.mark.parametrize(("name", "part"), [("stable_diffusion", "text_encoder"), ("sdxl", "text_encoder_2")])
def test_lora_weights_of_peft_for_a_text_encoder(
    name: str, part: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    plain = loaded(folders[name]).components.encoders[part]
    factors, added = encoder_lora(plain)
    LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"]).save_pretrained(tmp_path)
    wrapped = {f"base_model.model.{key}": weight for key, weight in factors.items()}
    save_file(wrapped, tmp_path / "adapter_model.safetensors")
    found = with_lora(folders[name], tmp_path).components.encoders[part].state_dict()
    before = plain.state_dict()
    assert set(found) == set(before)
    for key, weight in found.items():
        torch.testing.assert_close(weight, before[key] + added.get(key, 0.0))


def test_lora_weights_for_a_text_encoder_of_another_kind_are_refused(tmp_path: Path) -> None:
    base = build("stable_diffusion with BERT", tmp_path / "base")
    state = {
        f"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_{f}.weight": torch.randn(4, 4) for f in "AB"
    }
    save_file(state, tmp_path / "te.safetensors")
    with pytest.raises(ModelError, match=r"--lora .*: its tensors for a text encoder fit no layer of the model's"):
        with_lora(base, tmp_path / "te.safetensors")


def test_lora_weights_of_peft_on_convolutions_are_merged(folders: dict[str, Path], tmp_path: Path) -> None:
    """And so are whole layers that were trained beside them: the network's tensors keep their names."""
    model = loaded(folders["stable_diffusion"])
    names = set(model.denoiser.state_dict())
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["conv1"], modules_to_save=["conv_in"], init_lora_weights=False)
    wrapped = get_peft_model(model.denoiser, config)
    with torch.no_grad():
        wrapped.base_model.model.conv_in.modules_to_save["default"].weight.mul_(1.5)
    expected = images_of(model)
    # Layers that are saved whole have the memory layout of the loaded model, which safetensors does not take.
    wrapped.to(memory_format=torch.contiguous_format).save_pretrained(tmp_path / "lora")
    found = with_lora(folders["stable_diffusion"], tmp_path / "lora")
    assert set(found.denoiser.state_dict()) == names
    torch.testing.assert_close(images_of(found), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("half", r"\d+ tensors are missing, such as .*lora_[AB]\.weight"),
        (
            "another block",
            r"1 of its layers are in none of the model's networks \(unet, text_encoder\), such as elsewhere",
        ),
        ("another size", r"\d+ tensors have another shape than the network's, such as .*: \[2, 5\]"),
        ("LoHa", r"LoHa adapters \(peft_type in adapter_config\.json\); expected: LoRA"),
        ("list", r"adapter_config\.json is no JSON object"),
        ("damaged", r"adapter_config\.json is no JSON object"),
    ],
)
def test_lora_weights_of_peft_that_do_not_fit_are_refused(
    change: str, said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    unet = UNet2DConditionModel.from_pretrained(folders["stable_diffusion"] / "unet")
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    get_peft_model(unet, config).save_pretrained(tmp_path)
    file, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    state = load_file(file)
    match change:
        case "half":
            state = {name: state[name] for name in sorted(state)[: len(state) // 2 + 1]}
        case "another block":
            state |= {f"base_model.model.elsewhere.lora_{factor}.weight": torch.ones(2, 2) for factor in "AB"}
        case "another size":
            state = {name: weight[:, :5].contiguous() if "_A" in name else weight for name, weight in state.items()}
        case "LoHa":
            settings.write_text(json.dumps(json.loads(settings.read_text()) | {"peft_type": "LOHA"}))
        case "list":
            settings.write_text("[]")
        case _:
            settings.write_text("{")
    save_file(state, file)
    with pytest.raises(ModelError, match=rf"--lora .*: cannot be added to a Stable Diffusion model: {said}"):
        with_lora(folders["stable_diffusion"], tmp_path)


def with_words(folder: Path, *files: Path) -> DiffusionModel:
    return loaded(folder, additions=Additions(embeddings=files))


def test_a_file_of_several_words(folders: dict[str, Path], tmp_path: Path) -> None:
    words = {"<one>": torch.randn(16), "<two>": torch.randn(2, 16)}
    save_file(words, tmp_path / "words.safetensors")
    found = with_words(folders["stable_diffusion"], tmp_path / "words.safetensors").components
    tokenizer, rows = found.tokenizers["tokenizer"], found.encoders["text_encoder"].get_input_embeddings().weight
    expected = [words["<one>"], *words["<two>"]]
    for token, vector in zip(["<one>", "<two>", "<two>_1"], expected, strict=True):
        torch.testing.assert_close(rows[tokenizer.convert_tokens_to_ids(token)], vector)


def test_a_word_named_by_its_file(folders: dict[str, Path], tmp_path: Path) -> None:
    save_file({"emb_params": torch.randn(2, 16)}, tmp_path / "cxr-style.safetensors")
    model = with_words(folders["stable_diffusion"], tmp_path / "cxr-style.safetensors")
    vocabulary = model.components.tokenizers["tokenizer"].get_vocab()
    assert {"cxr-style", "cxr-style_1"} <= set(vocabulary)
    assert "emb_params" not in vocabulary


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"<c>": torch.ones(20)}, r"'<c>' has vectors of 20 numbers, those of the text encoder have 16"),
        ({"<c>": torch.full((16,), torch.nan)}, r"'<c>' has values that are not finite numbers"),
        ({"<c>": torch.ones(2, 2, 16)}, r"'<c>' is a tensor of shape \[2, 2, 16\]"),
        ({"two words": torch.ones(16)}, r"'two words' is no single word"),
        ({"lungs</w>": torch.ones(16)}, r"the tokenizer has a token 'lungs</w>' already"),
        ({"<C>": torch.ones(2, 16)}, r"the tokenizer reads '<C>' as '<c>', and would use one of its 2 vectors"),
        ({"clip_l": torch.ones(16), "clip_g": torch.ones(16)}, r"words for Stable Diffusion XL"),
        ({}, r"0 tensors"),
    ],
)
def test_words_that_cannot_be_added_are_refused(
    words: dict[str, Tensor], said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    save_file(words, tmp_path / "words.safetensors")
    with pytest.raises(ModelError, match=rf"--embeddings .*words\.safetensors: .*{said}") as error:
        with_words(folders["stable_diffusion"], tmp_path / "words.safetensors")
    assert "tensor(" not in str(error.value)


def test_words_and_lora_weights_from_the_hub(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def downloaded(name: str, **_: Any) -> Path:
        asked.append(name)
        return tmp_path

    monkeypatch.setattr("cxrsynth.diffusion.additions.hub_folder", downloaded)
    save_file({"<c>": torch.ones(16)}, tmp_path / "learned_embeds.safetensors")
    model = with_words(folders["stable_diffusion"], Path("owner/name@v1"))
    assert "<c>" in model.components.tokenizers["tokenizer"].get_vocab()
    assert asked == ["owner/name@v1"]
    with pytest.raises(ModelError, match="no such file or folder"):
        with_words(folders["stable_diffusion"], Path("owner/words.safetensors"))
    assert asked == ["owner/name@v1"]


def test_files_beside_a_model_that_are_not_used_are_named(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(folders["stable_diffusion"], model)
    tell_additions(resolve_model(str(model)))
    assert capsys.readouterr().err == ""
    save_file({"<c>": torch.ones(16)}, model / "learned_embeds.safetensors")
    save_file({"unet.lora_A.weight": torch.ones(2, 2)}, model / "weights.safetensors")
    tell_additions(resolve_model(str(model)))
    words, weights = model / "learned_embeds.safetensors", model / "weights.safetensors"
    assert capsys.readouterr().err == (
        f"warning: {model}: not used, for it is no part of the model: learned_embeds.safetensors, weights.safetensors\n"
        f"  to use it: --embeddings {words}, --lora {weights}\n"
    )
    for name in ("a.ckpt", "b.ckpt"):
        (model / name).write_bytes(b"")
    found = resolve_model(str(model), additions=Additions(embeddings=(words,)))
    tell_additions(found, lora="model.lora", embeddings="model.embeddings")
    assert capsys.readouterr().err == (
        f"model.embeddings {words}: adds <c>\n"
        f"warning: {model}: not used, for it is no part of the model: a.ckpt, b.ckpt, weights.safetensors\n"
        f"  to use it: model.lora {weights}\n"
    )


@pytest.mark.parametrize(
    ("part", "name", "other"),
    [
        ("unet", "diffusion_pytorch_model.safetensors", "model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors", "vae.safetensors"),
        ("text_encoder", "model.safetensors", "pytorch_model.safetensors"),
    ],
)
def test_weights_under_another_name_are_refused(
    part: str, name: str, other: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(folders["stable_diffusion"], model)
    (model / part / name).rename(model / part / other)
    with pytest.raises(ModelError, match=rf"{other}: weights under another name.*\n  expected: {name}; .*rename"):
        resolve_model(str(model))
    if part == "unet":
        with pytest.raises(ModelError, match=rf"{other}: weights under another name.*\n  expected: {name}; .*rename"):
            resolve_model(str(folders["stable_diffusion"]), additions=Additions(denoiser=model / part))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("unet", r"unet/config\.json: cannot be loaded as a network's configuration: no JSON object"),
        ("vae", r"vae/config\.json: not a configuration but a list\n  expected: a JSON object"),
    ],
)
def test_settings_that_are_no_object_are_refused(
    part: str, said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders["stable_diffusion"], tmp_path / "model")
    (tmp_path / "model" / part / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=said):
        loaded(tmp_path / "model")


@pytest.mark.parametrize("kind", ["CLIPTokenizer", "BertTokenizer", "T5Tokenizer"])
def test_a_tokenizer_without_its_vocabulary_is_refused(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Every word would be unknown, and all reports one prompt."""
    shutil.copytree(folders["stable_diffusion"], tmp_path / "model")
    folder = tmp_path / "model" / "tokenizer"
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, "model_max_length": 24}))
    # Before transformers 5 the tokenizer itself fails.
    with pytest.raises(ModelError, match=rf"{folder}: cannot be loaded as a tokenizer: ") as error:
        loaded(tmp_path / "model")
    assert "\n  expected: tokenizer.json, or the vocabulary in the files of its kind: " in str(error.value)


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
