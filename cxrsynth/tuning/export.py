"""The model a stage leaves: a complete Stable Diffusion folder that `generate` and plain diffusers load."""

import errno
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft.tuners.lora import Linear as LoraLinear
from safetensors import SafetensorError
from torch import Tensor, nn

from cxrsynth.diffusion.ace import save_ace
from cxrsynth.diffusion.model import DiffusionModel, load_model
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.resolve import ResolvedModel, resolve_model
from cxrsynth.diffusion.sampler import encode_prompts, guided_condition, predict_noise
from cxrsynth.diffusion.spec import SPEC_FILE
from cxrsynth.errors import ModelError
from cxrsynth.reports.conditions import CONDITIONS
from cxrsynth.runtime.files import folder_atomically
from cxrsynth.settings import Precision

_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
CARD = "model_card.md"
_TUNED = "-tuned"
_PROBES = 4


@dataclass(frozen=True)
class Trained:
    """A model in memory and its trained `weights`, whose names begin with their network's.

    `adapters` says that the UNet's trained weights are low-rank adapters.
    """

    model: DiffusionModel
    weights: Mapping[str, nn.Parameter] = field(repr=False)
    adapters: bool

    @property
    def parts(self) -> set[str]:
        """Networks that were trained."""
        return {name.split(".")[0] for name in self.weights}


def save_tuned(trained: Trained, out: Path, *, source: ResolvedModel, card: str) -> None:
    """Write the tuned model under a temporary name, load it back and compare, then rename it.

    Args:
        trained: the model, with the weights to save.
        out: the new folder.
        source: model the stage began with; what was not trained is copied from it, byte for byte.
        card: text of the model card.

    Raises:
        ModelError: if the model loaded back is not the one saved.
        OSError: if it cannot be written.
    """
    folder = source.folder
    try:
        with folder_atomically(out) as partial:
            for part in _PARTS:
                if part not in trained.parts:
                    shutil.copytree(folder / part, partial / part)
            _write_index(folder, partial)
            _write_spec(trained.model, folder, partial)
            # In float32: half precision may not resolve the change that tuning made.
            if "unet" in trained.parts:
                _save_unet(trained, source, partial / "unet")
            if "text_encoder" in trained.parts:
                trained.model.text_encoder.save_pretrained(partial / "text_encoder")
            for part in trained.parts & {"unet", "text_encoder"}:
                _forget_origin(partial / part / "config.json")
            if trained.model.ace is not None:
                save_ace(trained.model.ace.plain(), partial)
            _compare(trained, source, partial)
            (partial / CARD).write_text(card, encoding="utf-8")
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from None


def _save_unet(trained: Trained, source: ResolvedModel, folder: Path) -> None:
    """In a function of its own: a merged UNet is gone before the saved model is loaded back."""
    unet = _merged(trained, source) if trained.adapters else trained.model.unet
    unet.save_pretrained(folder, safe_serialization=True)


def _forget_origin(config: Path) -> None:
    """Drop the source's path: it belongs to this machine, and equal weights would have different digests."""
    content = json.loads(config.read_text(encoding="utf-8"))
    content.pop("_name_or_path", None)
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_index(folder: Path, partial: Path) -> None:
    """The source's index without parts that are not copied: diffusers would fail to find a safety checker."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    here = {
        name: [None, None] if isinstance(part, list) and not (partial / name).exists() and name not in _PARTS else part
        for name, part in index.items()
    }
    (partial / "model_index.json").write_text(json.dumps(here, indent=2) + "\n", encoding="utf-8")


def _merged(trained: Trained, source: ResolvedModel) -> UNet2DConditionModel:
    """The source's UNet, on the CPU, with the adapters merged into its weights."""
    unet = trained.model.unet
    plain = _load_on_cpu(source).unet
    plain.add_adapter(unet.peft_config[next(iter(unet.peft_config))], adapter_name="cxrsynth")
    learned = {name.removeprefix("unet."): weight for name, weight in trained.weights.items()}
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if name in learned:
                weight.copy_(learned[name])
    plain.fuse_lora(adapter_names=["cxrsynth"])
    plain.unload_lora()
    return plain


def _compare(trained: Trained, source: ResolvedModel, folder: Path) -> None:
    """The saved model, loaded back, against the model in memory: its weights, and its predictions on fixed noise.

    Weights must agree up to rounding, predictions far more closely than tuning changed them: if an adapter were lost,
    the source would come back. Models are loaded on the CPU, one at a time: the training device has no room to spare.
    """
    expected, rounding = _predictions(trained.model), 1e-4 if trained.model.dtype is torch.float32 else 2e-2
    adapted = {f"{name}.weight" for name, _ in _adapters(trained)}
    before = _load_on_cpu(source)
    start = _predictions(before)
    weights_before = {name: weight for name, weight in before.unet.named_parameters() if name in adapted}
    del before
    loaded = _load_on_cpu(resolve_model(str(folder)))
    _compare_weights(trained, loaded, weights_before, folder)
    found = _predictions(loaded)
    off, changed, size = (
        (a - b).square().mean().sqrt().item()
        for a, b in ((found, expected), (expected, start), (expected, 0 * expected))
    )
    if off > rounding * size or (changed > 2 * rounding * size and off > 0.5 * changed):
        raise _not_the_same(
            folder, f"predictions are off by {off / size:.1e} of their size, tuning changed {changed / size:.1e}"
        )


def _load_on_cpu(model: ResolvedModel) -> DiffusionModel:
    return load_model(model, device=torch.device("cpu"), precision=Precision.FP32)


def _adapters(trained: Trained) -> list[tuple[str, LoraLinear]]:
    """Layers of the UNet with a low-rank adapter, by name."""
    return [(name, module) for name, module in trained.model.unet.named_modules() if isinstance(module, LoraLinear)]


def _compare_weights(trained: Trained, loaded: DiffusionModel, before: Mapping[str, Tensor], folder: Path) -> None:
    """Trained weights against loaded ones: bit for bit, or for adapters, the change they make, up to rounding.

    Args:
        trained: in memory.
        loaded: from `folder`, on the CPU.
        before: the source's weights that have adapters, on the CPU.
        folder: named in the error.
    """
    found = {
        f"{part}.{name}": weight
        for part, network in (("unet", loaded.unet), ("text_encoder", loaded.text_encoder))
        for name, weight in network.named_parameters()
    }
    for name, module in _adapters(trained):
        weight, (adapter,) = f"{name}.weight", module.active_adapters
        change = module.get_delta_weight(adapter).detach().cpu().float()
        off = found[f"unet.{weight}"] - before[weight] - change
        # Rounding of the sum of weight and change, and of the adapters' product where it is in bfloat16.
        if off.norm() > 1e-6 * before[weight].norm() + 1e-2 * change.norm():
            raise _not_the_same(folder, f"{weight} changed by other than its adapter")
    for part in sorted(trained.parts & ({"text_encoder"} if trained.adapters else {"unet", "text_encoder"})):
        for name, parameter in getattr(trained.model, part).named_parameters():
            if not torch.equal(parameter.detach().cpu().float(), found[f"{part}.{name}"]):
                raise _not_the_same(folder, f"{part}.{name} differs")
    ace, kept = trained.model.ace, loaded.ace
    if ace is not None and (kept is None or not torch.equal(ace.plain().blocks.cpu(), kept.plain().blocks)):
        raise _not_the_same(folder, "adaptive condition embeddings differ")


def _not_the_same(folder: Path, how: str) -> ModelError:
    return ModelError(
        f"{folder}: the model loaded back is not the one saved: {how}\n"
        "  this is a fault of cxrsynth or of a library: please report it"
    )


@torch.no_grad()
def _predictions(model: DiffusionModel) -> Tensor:
    """The UNet's output at one middle timestep with all of ACE's conditions, [_PROBES, C, h, w] on the CPU.

    One probe at a time, so that it takes less memory than a step of training; convolutions in full float32, so that
    an accelerator agrees with the CPU.
    """
    encoded = encode_prompts(model, ["", "chest"]).clone()
    mask = None if model.ace is None else model.ace.mask([CONDITIONS])
    condition = guided_condition(model, encoded[1:], encoded[:1], 1.0, mask=mask)
    middle = torch.tensor(500, device=model.device)
    probes = [seeded_noise(model.latent_shape, "probe", i)[None].to(model.device) for i in range(_PROBES)]
    with torch.backends.cudnn.flags(allow_tf32=False):
        return torch.cat([predict_noise(model, probe, middle, condition, 1.0).float().cpu() for probe in probes])


def _write_spec(model: DiffusionModel, folder: Path, out: Path) -> None:
    """cxrsynth.json of the source under a name of its own."""
    path = folder / SPEC_FILE
    spec: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    spec["name"] = model.name.removesuffix(_TUNED) + _TUNED
    (out / SPEC_FILE).write_text(json.dumps(spec, indent=1) + "\n", encoding="utf-8")
