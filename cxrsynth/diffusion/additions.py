"""What is laid over a model's folder: another denoiser, autoencoder or scheduler, LoRA weights, learned words."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from cxrsynth.diffusion.adapters import merge_adapters
from cxrsynth.diffusion.families.base import Family
from cxrsynth.diffusion.schedule import SCHEDULER_FILE
from cxrsynth.errors import ModelError
from cxrsynth.runtime.pretrained import LOADING_ERRORS, hub_folder
from cxrsynth.settings import Additions, Lora

_PEFT_CONFIG = "adapter_config.json"
# Names under which diffusers and peft save, in order; a folder with one other file is taken, too.
_LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_SCHEDULERS = (SCHEDULER_FILE, f"scheduler/{SCHEDULER_FILE}")
_ADAPTER = "laid_over"
_WRAPPED = "base_model.model."


def addition_files(additions: Additions) -> Iterator[tuple[str, Path]]:
    """Every file that decides images, under a name that says what it is used for.

    Raises:
        ModelError: if there is none where one was named.
    """
    for role, folder in (("denoiser", additions.denoiser), ("vae", additions.vae)):
        if folder is not None:
            for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors")):
                yield f"+{role}/{path.name}", path
    if additions.scheduler is not None:
        yield f"+scheduler/{SCHEDULER_FILE}", additions.scheduler / SCHEDULER_FILE
    for place, lora in enumerate(additions.loras):
        file = lora_file(lora.path)
        yield f"+lora-{place} {lora.scale!r}", file
        if (file.parent / _PEFT_CONFIG).is_file():
            yield f"+lora-{place}-config", file.parent / _PEFT_CONFIG
    for place, path in enumerate(additions.embeddings):
        yield f"+embeddings-{place}", path


def replaced_parts(additions: Additions, family: Family) -> dict[str, Path]:
    """Folders that are used in place of parts of a model, which it may lack."""
    given = {family.denoiser: additions.denoiser, "vae": additions.vae, "scheduler": additions.scheduler}
    return {part: folder for part, folder in given.items() if folder is not None}


def changed_parts(additions: Additions, family: Family, parts: Sequence[str]) -> set[str]:
    """Folders of a model that are no longer those of its own folder."""
    changed = set(replaced_parts(additions, family))
    changed |= {family.denoiser} if additions.loras else set()
    if additions.loras or additions.embeddings:
        changed |= {part for part in parts if part in family.encoders}
    if additions.embeddings:
        changed |= {part for part in parts if part in family.tokenizers}
    return changed


def located(additions: Additions) -> Additions:
    """The same with local folders for what is named by a hub id, `owner/name[@revision]`.

    Raises:
        ModelError: if there is no such repository, or it cannot be reached.
    """

    def local(folder: Path | None) -> Path | None:
        return folder if folder is None else here(folder)

    def here(path: Path) -> Path:
        return path if path.exists() else hub_folder(str(path), needs_revision=False) or path

    loras = tuple(Lora(here(lora.path), lora.scale) for lora in additions.loras)
    scheduler = additions.scheduler
    if scheduler is not None:
        if not scheduler.exists():
            scheduler = hub_folder(str(scheduler), patterns=_SCHEDULERS, needs_revision=False) or scheduler
        scheduler = next((f for f in (scheduler, scheduler / "scheduler") if (f / SCHEDULER_FILE).is_file()), scheduler)
    return replace(
        additions, denoiser=local(additions.denoiser), vae=local(additions.vae), scheduler=scheduler, loras=loras
    )


def check_additions(additions: Additions, family: Family) -> None:
    """Refuse what is not there, before anything is loaded.

    Raises:
        ModelError: naming the option and the path.
    """
    for option, part, folder in (("--unet", family.denoiser, additions.denoiser), ("--vae", "vae", additions.vae)):
        if folder is not None and not (folder / "config.json").is_file():
            raise ModelError(
                f"{option} {folder}: no config.json there\n"
                f"  expected: the folder of a network, as {part}/ in a model folder, or a hub id"
            )
        if folder is not None and not list(folder.glob("*.safetensors")):
            raise ModelError(
                f"{option} {folder}: no safetensors weights\n"
                "  weights load from safetensors only; convert their model with: cxrsynth convert"
            )
    if additions.scheduler is not None and not (additions.scheduler / SCHEDULER_FILE).is_file():
        raise ModelError(
            f"--scheduler {additions.scheduler}: no {SCHEDULER_FILE} there, nor in a folder scheduler/ of it\n"
            "  expected: scheduler/ of a model folder, the model folder itself, or a hub id"
        )
    for lora in additions.loras:
        lora_file(lora.path)
    if additions.embeddings and not family.learns_words:
        raise ModelError(f"--embeddings: {family.title} takes no words of its own\n  leave the option out")
    for path in additions.embeddings:
        if not path.is_file() or path.suffix != ".safetensors":
            raise ModelError(f"--embeddings {path}: no such file, or not safetensors\n  expected: a .safetensors file")


def lora_file(path: Path) -> Path:
    """The safetensors file of LoRA weights in a folder, or the file itself.

    Raises:
        ModelError: if there is none, or more than one.
    """
    if path.is_file() and path.suffix == ".safetensors":
        return path
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    named = [file for file in found if file.name in _LORA_FILES] or found
    if len(named) != 1:
        raise ModelError(
            f"--lora {path}: {len(named)} safetensors files there, expected one\n"
            f"  expected: a .safetensors file, or a folder with {' or '.join(_LORA_FILES)}"
        )
    return named[0]


def apply_additions(additions: Additions, family: Family, pipeline: Any) -> None:
    """Merge LoRA weights into the pipeline's networks, and add learned words to its text encoder and tokenizer.

    Args:
        additions: checked.
        family: of the pipeline.
        pipeline: with networks in float32 on the CPU; they are changed in place.

    Raises:
        ModelError: if a file cannot be read, or does not fit the networks.
    """
    for path in additions.embeddings:
        _add_words(path, pipeline)
    for lora in additions.loras:
        _merge(lora, family, pipeline)


def _add_words(path: Path, pipeline: Any) -> None:
    before = len(pipeline.tokenizer)
    try:
        pipeline.load_textual_inversion(load_file(path), local_files_only=True)
    except LOADING_ERRORS as error:
        raise ModelError(f"--embeddings {path}: cannot be loaded: {error}") from None
    if len(pipeline.tokenizer) == before:
        raise ModelError(f"--embeddings {path}: no new words in it")


def _merge(lora: Lora, family: Family, pipeline: Any) -> None:
    file = lora_file(lora.path)
    try:
        state = load_file(file)
        if (file.parent / _PEFT_CONFIG).is_file():
            _merge_peft(file.parent, state, lora.scale, getattr(pipeline, family.denoiser))
        elif not hasattr(pipeline, "load_lora_weights"):
            raise ValueError(f"{family.title} takes LoRA weights of peft only, with {_PEFT_CONFIG} beside them")
        else:
            _merge_diffusers(state, lora.scale, family, pipeline)
    except LOADING_ERRORS as error:
        raise ModelError(f"--lora {lora.path}: cannot be added to {family.title}: {error}") from None


def _merge_diffusers(state: dict[str, Tensor], scale: float, family: Family, pipeline: Any) -> None:
    """Weights that diffusers saved, or that it converts from the names of other trainers."""
    networks = (family.denoiser, *family.encoders)
    before = {name: _fingerprint(getattr(pipeline, name, None)) for name in networks}
    pipeline.load_lora_weights(dict(state), adapter_name=_ADAPTER)
    pipeline.fuse_lora(lora_scale=scale, adapter_names=[_ADAPTER])
    pipeline.unload_lora_weights()
    if scale and before == {name: _fingerprint(getattr(pipeline, name, None)) for name in networks}:
        raise ValueError("none of its layers is one of the model's")


def _merge_peft(folder: Path, state: dict[str, Tensor], scale: float, denoiser: Any) -> None:
    """Weights that peft saved, for the denoiser."""
    config = LoraConfig.from_pretrained(str(folder))
    config.lora_alpha = config.lora_alpha * scale
    config.alpha_pattern = {name: alpha * scale for name, alpha in config.alpha_pattern.items()}
    config.inference_mode = True
    inject_adapter_in_model(config, denoiser, _ADAPTER)
    # Saved around the network that peft wraps, which is here without its wrapping.
    own = {name.removeprefix(_WRAPPED): weight for name, weight in state.items()}
    found: Any = set_peft_model_state_dict(denoiser, own, adapter_name=_ADAPTER)
    unmatched = found.unexpected_keys
    if unmatched:
        raise ValueError(f"{len(unmatched)} tensors have no layer in the model, such as {sorted(unmatched)[0]}")
    merge_adapters(denoiser)


@torch.no_grad()
def _fingerprint(network: Any) -> float:
    """A number that changes with the weights."""
    if network is None:
        return 0.0
    return float(sum(weight.double().square().sum() for weight in network.parameters()))
