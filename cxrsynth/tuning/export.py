"""The model a stage leaves: a complete folder that `generate` and plain diffusers load."""

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cxrsynth.diffusion.ace import save_ace
from cxrsynth.diffusion.adapters import adapted_layers, add_adapters, merge_adapters, set_adapters
from cxrsynth.diffusion.additions import replaced_parts
from cxrsynth.diffusion.model import DiffusionModel, load_model
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.resolve import ResolvedModel, resolve_model
from cxrsynth.diffusion.sampler import encode_prompts, guided_condition
from cxrsynth.diffusion.schedule import SCHEDULER_FILE
from cxrsynth.diffusion.spec import SPEC_FILE, SamplingDefaults, read_spec
from cxrsynth.errors import ModelError
from cxrsynth.reports.conditions import CONDITIONS
from cxrsynth.reports.template import PromptTemplate
from cxrsynth.runtime.files import folder_atomically, read_json, system_errors
from cxrsynth.runtime.pretrained import variant
from cxrsynth.settings import Precision

CARD = "model_card.md"
_TUNED, _DISTILLED = "-tuned", "-distilled"
_PROBES = 4


@dataclass(frozen=True)
class Trained:
    """A model in memory and its trained `weights`, whose names begin with their network's.

    `adapters` says that the denoiser's trained weights are low-rank adapters. `defaults` and `scheduler` are how a
    distilled model is used, and its scheduler's configuration; None for a model that is used as its source is.
    """

    model: DiffusionModel
    weights: Mapping[str, nn.Parameter] = field(repr=False)
    adapters: bool
    defaults: SamplingDefaults | None = None
    scheduler: Mapping[str, Any] | None = None

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
    with folder_atomically(out) as partial, system_errors(partial):
        for part in source.parts:
            if part not in trained.parts | source.changed_parts:
                _copy_part(folder / part, partial / part)
        _save_laid_over(trained, source, partial)
        _write_index(source, partial)
        _write_spec(trained, source, partial)
        if trained.scheduler is not None:
            _write_scheduler(trained.scheduler, partial)
        # In float32: half precision may not resolve the change that tuning made.
        denoiser = trained.model.family.denoiser
        if denoiser in trained.parts:
            _save_denoiser(trained, source, partial / denoiser)
        for part, encoder in trained.model.components.encoders.items():
            if part in trained.parts:
                encoder.save_pretrained(partial / part)
        for part in trained.parts & {denoiser, *trained.model.components.encoders}:
            _forget_origin(partial / part / "config.json")
        if trained.model.ace is not None:
            save_ace(trained.model.ace.plain(), partial)
        _compare(trained, source, partial)
        (partial / CARD).write_text(card, encoding="utf-8")


def _copy_part(source: Path, folder: Path) -> None:
    """Copy a part byte for byte; weights that are there as a variant only (fp16) get their plain name.

    The tuned network is saved under the plain name, and diffusers loads all parts of a folder in one variant.
    """
    named = variant(source)
    shutil.copytree(source, folder)
    if named is None:
        return
    for path in list(folder.iterdir()):
        plain = path.with_name(path.name.replace(f".{named}.", ".").replace(f".{named}-", "-"))
        if path.name.endswith(f".index.{named}.json"):
            content = read_json(path)
            files = content["weight_map"]
            content["weight_map"] = {name: file.replace(f".{named}-", "-") for name, file in files.items()}
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        path.rename(plain)


def _save_laid_over(trained: Trained, source: ResolvedModel, folder: Path) -> None:
    """Parts that were not trained, but are not those of the source's folder either."""
    parts = source.changed_parts - trained.parts
    if not parts:
        return
    laid_over, model = source.additions, trained.model
    if laid_over.vae is not None:
        _copy_part(laid_over.vae, folder / "vae")
    if laid_over.scheduler is not None:
        (folder / "scheduler").mkdir()
        shutil.copy(laid_over.scheduler / SCHEDULER_FILE, folder / "scheduler")
    named = {**model.components.encoders, **model.components.tokenizers}
    if model.family.denoiser in parts:  # with embeddings alone trained
        named[model.family.denoiser] = _load_on_cpu(source).denoiser
    for part in parts - {"vae", "scheduler"}:
        named[part].save_pretrained(folder / part)
        if (folder / part / "config.json").is_file():
            _forget_origin(folder / part / "config.json")


def _save_denoiser(trained: Trained, source: ResolvedModel, folder: Path) -> None:
    """In a function of its own: a merged network is gone before the saved model is loaded back."""
    denoiser = _merged(trained, source) if trained.adapters else trained.model.denoiser
    denoiser.save_pretrained(folder, safe_serialization=True)


def _forget_origin(config: Path) -> None:
    """Drop the source's path: it belongs to this machine, and equal weights would have different digests."""
    content = read_json(config)
    content.pop("_name_or_path", None)
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_index(source: ResolvedModel, partial: Path) -> None:
    """The source's index with the classes of what was laid over it, and without parts that are not copied.

    Diffusers would fail to find a safety checker.
    """
    index = read_json(source.folder / "model_index.json")
    gone = {name for name in index if not (partial / name).exists() and name not in source.parts}
    here = {name: [None, None] if isinstance(part, list) and name in gone else part for name, part in index.items()}
    for part, folder in replaced_parts(source.additions, source.family).items():
        config = read_json(folder / (SCHEDULER_FILE if part == "scheduler" else "config.json"))
        if "_class_name" in config:  # else it is of the source's class, or the usual one
            here[part] = ["diffusers", config["_class_name"]]
    (partial / "model_index.json").write_text(json.dumps(here, indent=2) + "\n", encoding="utf-8")


def _merged(trained: Trained, source: ResolvedModel) -> Any:
    """The source's denoiser, on the CPU, with the adapters merged into its weights."""
    model = trained.model
    plain = _load_on_cpu(source).denoiser
    rank, scaling = next((m.r[a], m.scaling[a]) for _, m in adapted_layers(model.denoiser) for a in m.active_adapters)
    add_adapters(plain, model.family.adapted_layers, rank=rank, alpha=round(scaling * rank), seed=0)
    learned = {name.removeprefix(f"{model.family.denoiser}."): weight for name, weight in trained.weights.items()}
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if name in learned:
                weight.copy_(learned[name])
    merge_adapters(plain)
    return plain


def _compare(trained: Trained, source: ResolvedModel, folder: Path) -> None:
    """The saved model, loaded back, against the model in memory: its weights, and its predictions on fixed noise.

    If an adapter were lost, the source would come back. Everything is compared in float32 on the CPU: half precision
    can be further off than tuning changed the model, and the training device has no room to spare.
    """
    before = _load_on_cpu(source)
    start = _predictions(before)
    rounded = any(weight.dtype is not torch.float32 for weight in trained.model.denoiser.parameters())
    model = _copy_on_cpu(trained.model)
    expected = _predictions(model)
    # Frozen weights in half precision are the source's, rounded: the change is measured against themselves.
    untuned = _predictions_untuned(trained, model, before) if rounded else start
    del model
    adapted = {f"{name}.weight" for name, _ in adapted_layers(trained.model.denoiser)}
    weights_before = {name: weight for name, weight in before.denoiser.named_parameters() if name in adapted}
    del before
    loaded = _load_on_cpu(resolve_model(str(folder)))
    _compare_weights(trained, loaded, weights_before, folder)
    found = _predictions(loaded)
    off, changed, size = (
        difference.square().mean().sqrt().item()
        for difference in ((found - start) - (expected - untuned), expected - untuned, expected)
    )
    if off > max(1e-4 * size, 0.5 * changed if rounded else 0.0):
        raise _not_the_same(
            folder, f"predictions are off by {off / size:.1e} of their size, tuning changed {changed / size:.1e}"
        )


def _copy_on_cpu(model: DiffusionModel) -> DiffusionModel:
    """The networks that predictions need, in float32 on the CPU; nothing is allocated on the training device."""

    def copied(network: Any) -> Any:
        if network is None:
            return None
        tensors: dict[int, Any] = {}
        for parameter in network.parameters():
            tensors[id(parameter)] = nn.Parameter(parameter.detach().cpu().float(), requires_grad=False)
        for buffer in network.buffers():
            tensors[id(buffer)] = buffer.detach().cpu().float() if buffer.is_floating_point() else buffer.cpu()
        return copy.deepcopy(network, tensors)  # takes the tensors above in place of its own copies

    return replace(
        model,
        denoiser=copied(model.denoiser),
        components=replace(
            model.components,
            encoders={part: copied(encoder) for part, encoder in model.components.encoders.items()},
        ),
        ace=copied(model.ace),
        device=torch.device("cpu"),
        precision=Precision.FP32,
        mixed=False,
    )


def _predictions_untuned(trained: Trained, model: DiffusionModel, before: DiffusionModel) -> Tensor:
    """Predictions of the source with the UNet of the model in memory, its adapters off."""
    if trained.adapters:
        set_adapters(model.denoiser, on=False)
    return _predictions(replace(before, denoiser=model.denoiser))


def _load_on_cpu(model: ResolvedModel) -> DiffusionModel:
    return load_model(model, device=torch.device("cpu"), precision=Precision.FP32)


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
        for part, network in _networks(loaded).items()
        for name, weight in network.named_parameters()
    }
    for name, module in adapted_layers(trained.model.denoiser):
        weight, (adapter,) = f"{name}.weight", module.active_adapters
        change = module.get_delta_weight(adapter).detach().cpu().float()
        off = found[f"{loaded.family.denoiser}.{weight}"] - before[weight] - change
        # Rounding of the sum of weight and change, and of the adapters' product where it is in bfloat16.
        if off.norm() > 1e-6 * before[weight].norm() + 1e-2 * change.norm():
            raise _not_the_same(folder, f"{weight} changed by other than its adapter")
    merged = {loaded.family.denoiser} if trained.adapters else set()
    for part, network in _networks(trained.model).items():
        if part not in trained.parts or part in merged:
            continue
        for name, parameter in network.named_parameters():
            if not torch.equal(parameter.detach().cpu().float(), found[f"{part}.{name}"]):
                raise _not_the_same(folder, f"{part}.{name} differs")
    ace, kept = trained.model.ace, loaded.ace
    if ace is not None and (kept is None or not torch.equal(ace.plain().blocks.cpu(), kept.plain().blocks)):
        raise _not_the_same(folder, "adaptive condition embeddings differ")


def _networks(model: DiffusionModel) -> dict[str, Any]:
    """The networks that can be trained, by the names of their folders."""
    return {model.family.denoiser: model.denoiser, **model.components.encoders}


def _not_the_same(folder: Path, how: str) -> ModelError:
    return ModelError(
        f"{folder}: the model loaded back is not the one saved: {how}\n"
        "  this is a fault of cxrsynth or of a library: please report it"
    )


@torch.no_grad()
def _predictions(model: DiffusionModel) -> Tensor:
    """The denoiser's output at one middle noise level with all of ACE's conditions, [_PROBES, C, h, w] on the CPU.

    One probe at a time, so that it takes less memory than a step of training; convolutions in full float32, so that
    an accelerator agrees with the CPU.
    """
    text, empty = (part.clone() for part in encode_prompts(model, [model.any_prompt]))
    mask = None if model.ace is None else model.ace.mask([CONDITIONS])
    condition = guided_condition(model, text, empty, 1.0, mask=mask)
    levels = torch.tensor([model.schedule.count // 2], device=model.device)
    middle = model.schedule.timesteps(levels)
    probes = [seeded_noise(model.latent_shape, "probe", i)[None].to(model.device) for i in range(_PROBES)]
    with torch.backends.cudnn.flags(allow_tf32=False):
        return torch.cat([model.predict(probe, middle, condition).cpu() for probe in probes])


def _write_scheduler(config: Mapping[str, Any], out: Path) -> None:
    """A scheduler of its own, also for plain diffusers."""
    text = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"
    (out / "scheduler" / SCHEDULER_FILE).write_text(text, encoding="utf-8")
    path = out / "model_index.json"
    index = read_json(path) | {"scheduler": ["diffusers", config["_class_name"]]}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_spec(trained: Trained, source: ResolvedModel, out: Path) -> None:
    """cxrsynth.json of the source under a name of its own, with the prompts it was tuned with.

    A distilled model has sampling defaults of its own, too.
    """
    path = source.folder / SPEC_FILE
    spec: dict[str, Any] = read_json(path) if path.is_file() else {}
    spec.pop("depicts_from", None)  # images of the source are none of this model
    used = source.spec.prompt_format
    if not source.spec.classes and used != read_spec(source.folder).prompt_format:  # as the recipe asks for
        spec = {key: value for key, value in spec.items() if key not in ("prompt", "prompt_template")}
        spec |= {"prompt_template": used.text} if isinstance(used, PromptTemplate) else {"prompt": used.value}
    name = trained.model.name
    if trained.defaults is None:
        spec["name"] = name.removesuffix(_TUNED) + _TUNED
    else:
        spec |= {
            "name": name.removesuffix(_DISTILLED) + _DISTILLED,
            "defaults": trained.defaults.model_dump(mode="json"),
        }
        spec.pop("negative_prompt", None)  # without guidance it would do nothing, and has been learned
    (out / SPEC_FILE).write_text(json.dumps(spec, indent=1) + "\n", encoding="utf-8")
