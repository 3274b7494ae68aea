"""The folder a stage of tuning leaves: a whole Stable Diffusion layout that `generate` and plain diffusers load."""

import copy
import errno
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft.tuners.lora import Linear as LoraLinear
from safetensors import SafetensorError
from torch import Tensor, nn

from cxrsynth.diffusion.ace import save_ace
from cxrsynth.diffusion.model import DiffusionModel, find_model, load_model
from cxrsynth.diffusion.sampler import encode_prompts, guided_condition, predict_noise
from cxrsynth.diffusion.spec import SPEC_FILE
from cxrsynth.errors import ModelError
from cxrsynth.policy.draws import noise
from cxrsynth.reports.conditions import CONDITIONS
from cxrsynth.settings import Precision

_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
CARD = "model_card.md"
_TUNED = "-tuned"
_PROBES = 4


@dataclass(frozen=True)
class Trained:
    """A model in memory whose `weights` are no longer the source's; their names begin with the network they are of.

    `adapters`: those of the UNet are low-rank adapters.
    """

    model: DiffusionModel
    weights: Mapping[str, nn.Parameter] = field(repr=False)
    adapters: bool

    @property
    def parts(self) -> set[str]:
        """Networks that were trained."""
        return {name.split(".")[0] for name in self.weights}


def save_tuned(trained: Trained, out: Path, *, source: str, card: str) -> None:
    """Write the tuned model beside its final name, load it back and compare, then give it its name.

    Args:
        trained: with the weights that are to be saved.
        out: folder to be.
        source: model the stage began with; what was not trained is copied from it, byte for byte.
        card: text of the model card.

    Raises:
        ModelError: if what was loaded back is not what was saved.
        OSError: if it cannot be written.
    """
    folder, partial = find_model(source), out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for part in _PARTS:
            if part not in trained.parts:
                shutil.copytree(folder / part, partial / part)
        _write_index(folder, partial)
        _write_spec(trained.model, folder, partial)
        # In float32: the change of tuning can be smaller than half precision tells apart.
        if "unet" in trained.parts:
            unet = _merged(trained, source) if trained.adapters else trained.model.unet
            unet.save_pretrained(partial / "unet", safe_serialization=True)
        if "text_encoder" in trained.parts:
            trained.model.text_encoder.save_pretrained(partial / "text_encoder")
        for part in trained.parts & {"unet", "text_encoder"}:
            _forget_origin(partial / part / "config.json")
        if trained.model.ace is not None:
            save_ace(trained.model.ace.plain(), partial)
        _compare(trained, source, partial)
        (partial / CARD).write_text(card, encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from None


def _forget_origin(config: Path) -> None:
    """Drop where the source lay: a path of this machine, by which equal weights would have different digests."""
    told = json.loads(config.read_text(encoding="utf-8"))
    told.pop("_name_or_path", None)
    config.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_index(folder: Path, partial: Path) -> None:
    """The source's index without parts that are not copied: diffusers would look for a safety checker in vain."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    here = {
        name: [None, None] if isinstance(part, list) and not (partial / name).exists() and name not in _PARTS else part
        for name, part in index.items()
    }
    (partial / "model_index.json").write_text(json.dumps(here, indent=2) + "\n", encoding="utf-8")


def _merged(trained: Trained, source: str) -> UNet2DConditionModel:
    """The source's UNet with the adapters added to its weights."""
    unet = trained.model.unet
    plain = load_model(source, device=torch.device("cpu"), precision=Precision.FP32).unet
    plain.add_adapter(unet.peft_config[next(iter(unet.peft_config))], adapter_name="cxrsynth")
    learned = {name.removeprefix("unet."): weight for name, weight in trained.weights.items()}
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if name in learned:
                weight.copy_(learned[name])
    plain.fuse_lora(adapter_names=["cxrsynth"])
    plain.unload_lora()
    return plain


def _compare(trained: Trained, source: str, folder: Path) -> None:
    """Predictions of the saved model against those of the model in memory, on fixed noise.

    Weights must agree to their rounding, and predictions: an adapter that is lost on the way would bring the source
    back. All are made in float32, convolutions too: half precision can be further off than tuning changed the model.
    """
    device = trained.model.device
    loaded, before = (load_model(name, device=device, precision=Precision.FP32) for name in (str(folder), source))
    _compare_weights(trained, loaded, before, folder)
    unet = trained.model.unet
    rounded = any(weight.dtype is not torch.float32 for weight in unet.parameters())
    model = replace(
        trained.model, unet=copy.deepcopy(unet).float() if rounded else unet, precision=Precision.FP32, mixed=False
    )
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected, found, start = _predictions(model), _predictions(loaded), _predictions(before)
        # Frozen weights in half precision are the source's, rounded: what tuning changed is seen against themselves.
        untuned = _predictions_untuned(trained, model, before) if rounded else start
    off, changed, size = (
        difference.square().mean().sqrt().item()
        for difference in ((found - start) - (expected - untuned), expected - untuned, expected)
    )
    if off > max(1e-4 * size, 0.5 * changed if rounded else 0.0):
        raise _not_the_same(
            folder, f"predictions are off by {off / size:.1e} of their size, tuning changed {changed / size:.1e}"
        )


def _predictions_untuned(trained: Trained, model: DiffusionModel, before: DiffusionModel) -> Tensor:
    """Of the source with the UNet of the model in memory, its adapters off."""
    if trained.adapters:
        model.unet.disable_adapters()
    try:
        return _predictions(replace(before, unet=model.unet))
    finally:
        if trained.adapters:
            model.unet.enable_adapters()


def _compare_weights(trained: Trained, loaded: DiffusionModel, before: DiffusionModel, folder: Path) -> None:
    """What was trained against what was loaded: to the bit, and adapters as the change they make, to rounding."""
    found, start = dict(loaded.unet.named_parameters()), dict(before.unet.named_parameters())
    if trained.adapters:
        for name, module in trained.model.unet.named_modules():
            if isinstance(module, LoraLinear):
                weight, (adapter,) = f"{name}.weight", module.active_adapters
                change = module.get_delta_weight(adapter).detach().float().cpu()
                off = found[weight].cpu() - start[weight].cpu() - change
                # Rounding of the sum of weight and change, and of the adapters' product where it is in bfloat16.
                rounding = 1e-6 * start[weight].norm().cpu() + 1e-2 * change.norm()
                if off.norm() > rounding:
                    raise _not_the_same(folder, f"{weight} changed by other than its adapter")
    elif "unet" in trained.parts and any(
        not torch.equal(weight.detach().float(), found[name]) for name, weight in trained.model.unet.named_parameters()
    ):
        raise _not_the_same(folder, "weights of the UNet differ")
    ace, kept = trained.model.ace, loaded.ace
    if ace is not None and (kept is None or not torch.equal(ace.plain().blocks.cpu(), kept.plain().blocks.cpu())):
        raise _not_the_same(folder, "adaptive condition embeddings differ")


def _not_the_same(folder: Path, how: str) -> ModelError:
    return ModelError(
        f"{folder}: the model loaded back is not the one saved: {how}\n"
        "  this is a fault of cxrsynth or of a library: please report it"
    )


@torch.no_grad()
def _predictions(model: DiffusionModel) -> Tensor:
    """Of the UNet at one middle timestep for every condition of ACE at once, on the CPU."""
    latents = torch.stack([noise(model.latent_shape, "probe", i) for i in range(_PROBES)]).to(model.device)
    encoded = encode_prompts(model, ["", *["chest"] * _PROBES]).clone()
    mask = None if model.ace is None else model.ace.mask([CONDITIONS] * _PROBES)
    condition = guided_condition(model, encoded[1:], encoded[:1], 1.0, mask=mask)
    middle = torch.tensor(500, device=model.device)
    return predict_noise(model, latents, middle, condition, 1.0).cpu()


def _write_spec(model: DiffusionModel, folder: Path, out: Path) -> None:
    """cxrsynth.json of the source under a name of its own."""
    path = folder / SPEC_FILE
    spec: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    spec["name"] = model.name.removesuffix(_TUNED) + _TUNED
    (out / SPEC_FILE).write_text(json.dumps(spec, indent=1) + "\n", encoding="utf-8")
