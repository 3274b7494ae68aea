"""What is laid over a model's folder: another denoiser, autoencoder or scheduler, LoRA weights, learned words."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cxrsynth.diffusion.families import DENOISERS
from cxrsynth.diffusion.families.base import Family
from cxrsynth.diffusion.lora import LORA_FILES, PEFT_CONFIG, merge_lora
from cxrsynth.diffusion.schedule import SCHEDULER_FILE
from cxrsynth.diffusion.words import WORDS_FILES, add_words, named_by_file, read_words
from cxrsynth.errors import ModelError
from cxrsynth.runtime.pretrained import check_weights_name, hub_folder
from cxrsynth.settings import Additions, Lora

_SCHEDULERS = (SCHEDULER_FILE, f"scheduler/{SCHEDULER_FILE}")
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


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
        if (file.parent / PEFT_CONFIG).is_file():
            yield f"+lora-{place}-config", file.parent / PEFT_CONFIG
    for place, path in enumerate(additions.embeddings):
        file = words_file(path)
        yield f"+embeddings-{place} {named_by_file(file)}".rstrip(), file


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

    def network(folder: Path | None, names: Sequence[str]) -> Path | None:
        if folder is None:
            return None
        folder = here(folder)
        return next((f for f in (folder, *(folder / name for name in names)) if (f / "config.json").is_file()), folder)

    def here(path: Path) -> Path:
        if path.exists() or path.suffix in WEIGHTS_SUFFIXES:  # a mistyped file is not looked for on the hub
            return path
        return hub_folder(str(path), needs_revision=False) or path

    loras = tuple(Lora(here(lora.path), lora.scale) for lora in additions.loras)
    scheduler = additions.scheduler
    if scheduler is not None:
        if not scheduler.exists():
            scheduler = hub_folder(str(scheduler), patterns=_SCHEDULERS, needs_revision=False) or scheduler
        if scheduler.name == SCHEDULER_FILE and scheduler.is_file():
            scheduler = scheduler.parent
        scheduler = next((f for f in (scheduler, scheduler / "scheduler") if (f / SCHEDULER_FILE).is_file()), scheduler)
    return replace(
        additions,
        denoiser=network(additions.denoiser, DENOISERS),
        vae=network(additions.vae, ("vae",)),
        scheduler=scheduler,
        loras=loras,
        embeddings=tuple(map(here, additions.embeddings)),
    )


def check_networks(additions: Additions) -> None:
    """Refuse networks that are not there, before anything is loaded.

    Raises:
        ModelError: naming the option and the path.
    """
    for option, part, folder in (("--unet", "unet", additions.denoiser), ("--vae", "vae", additions.vae)):
        if folder is None:
            continue
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{option} {folder}: no config.json there\n"
                f"  expected: the folder of a network, as {part}/ in a model folder, that model folder, or a hub id"
            )
        if not list(folder.glob("*.safetensors")):
            raise ModelError(
                f"{option} {folder}: no safetensors weights\n"
                "  weights load from safetensors only; convert their model with: cxrsynth convert"
            )
        check_weights_name(folder, of_diffusers=True)


def check_additions(additions: Additions, family: Family) -> None:
    """Refuse schedulers, LoRA weights and words that are not there, before anything is loaded.

    Raises:
        ModelError: naming the option and the path.
    """
    if additions.scheduler is not None and not (additions.scheduler / SCHEDULER_FILE).is_file():
        raise ModelError(
            f"--scheduler {additions.scheduler}: no {SCHEDULER_FILE} there, nor in a folder scheduler/ of it\n"
            "  expected: scheduler/ of a model folder, the model folder itself, or a hub id"
        )
    if additions.vae is not None and family.in_pixels:
        raise ModelError(f"--vae: {family.title} works on pixels, without an autoencoder\n  leave the option out")
    for lora in additions.loras:
        lora_file(lora.path)
    if additions.embeddings and not family.learns_words:
        raise ModelError(f"--embeddings: {family.title} takes no words of its own\n  leave the option out")
    for path in additions.embeddings:
        read_words(words_file(path))


def lora_file(path: Path) -> Path:
    """The safetensors file of LoRA weights in a folder, or the file itself.

    Raises:
        ModelError: if there is none, or more than one.
    """
    return _one_file("--lora", path, LORA_FILES)


def words_file(path: Path) -> Path:
    """The safetensors file of learned words in a folder, or the file itself.

    Raises:
        ModelError: if there is none, or more than one.
    """
    return _one_file("--embeddings", path, WORDS_FILES)


def _one_file(option: str, path: Path, names: Sequence[str]) -> Path:
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if not path.is_dir():
        raise ModelError(
            f"{option} {path}: {'not a safetensors file' if path.is_file() else 'no such file or folder'}\n"
            f"  expected: a .safetensors file, a folder with {' or '.join(names)}, or a hub id"
        )
    found = sorted(path.glob("*.safetensors"))
    named = [file for file in found if file.name in names] or found
    if len(named) != 1:
        raise ModelError(
            f"{option} {path}: {len(named)} safetensors files there, expected one\n"
            f"  expected: a .safetensors file, or a folder with {' or '.join(names)}"
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
        add_words(words_file(path), pipeline)
    for lora in additions.loras:
        merge_lora(lora, lora_file(lora.path), family, pipeline)
