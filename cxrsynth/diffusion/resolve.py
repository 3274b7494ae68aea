"""From a model's name to its folder, description, digest and embeddings: found, checked and hashed once."""

import hashlib
import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from cxrsynth.diffusion.ace import ACE_CONFIG, ACE_FILE, AdaptiveConditionEmbedding, check_ace, load_ace
from cxrsynth.diffusion.additions import (
    addition_files,
    changed_parts,
    check_additions,
    check_networks,
    located,
    replaced_parts,
)
from cxrsynth.diffusion.families import FAMILIES, family_of
from cxrsynth.diffusion.families.base import Family
from cxrsynth.diffusion.schedule import is_flow, read_scheduler_config
from cxrsynth.diffusion.spec import SPEC_FILE, ModelSpec, SamplingDefaults, read_spec
from cxrsynth.errors import ModelError, in_words
from cxrsynth.reports.prompt import Depicts
from cxrsynth.runtime.files import file_sha256, read_json
from cxrsynth.runtime.pretrained import MODEL_SUFFIXES, check_files, check_weights_name, hub_folder
from cxrsynth.settings import PACKAGED_MODELS, Additions, PromptStyle, Sampler

INDEX = "model_index.json"
_ABOUT_INDEX = (
    f"\n  {INDEX} names the class of each part: download it from where the model was published, or write the folder"
    " with save_pretrained of its pipeline in diffusers"
)
_NOTHING = Additions()
# Of a model that is told nothing: its images do not depend on what a report says.
_NOTHING_ASKED = Depicts(views=(), age_groups=(), sexes=(), findings={}, sides=False, uncertain=False)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class ResolvedModel:
    """A model that was found and checked, but not loaded.

    `name` is the one its `cxrsynth.json` gives, else the hub repository's, else the folder's. `digest` is the SHA-256
    over all files that decide the images. `parts` are the folders it consists of. `ace` holds the adaptive condition
    embeddings, if there are any. `revision` is the commit of a hub repository; None for a local folder.
    """

    name: str
    folder: Path
    family: Family
    parts: tuple[str, ...]
    spec: ModelSpec
    digest: str
    ace: AdaptiveConditionEmbedding | None = field(default=None, repr=False)
    revision: str | None = None
    additions: Additions = _NOTHING

    @property
    def changed_parts(self) -> set[str]:
        """Parts that are not those of the folder, because something is laid over them."""
        return changed_parts(self.additions, self.family, self.parts)

    @property
    def folders(self) -> dict[str, Path]:
        """Where each part is: in the model's folder, or laid over it."""
        return {part: self.folder / part for part in self.parts} | replaced_parts(self.additions, self.family)

    def scheduler_config(self) -> dict[str, Any]:
        """Content of `scheduler_config.json` as the model's pipeline uses it.

        Raises:
            ModelError: if it cannot be read, or describes a schedule that is not known.
        """
        return self.family.settled_scheduler(_scheduler_config(self.folder, self.additions))

    @property
    def index(self) -> dict[str, Any]:
        """Content of `model_index.json`."""
        return read_index(self.folder)


def resolve_model(
    name: str, *, ace: Path | None = None, additions: Additions = _NOTHING, option: str = "--model"
) -> ResolvedModel:
    """Find a model, read its description, check its embeddings and hash its files.

    Args:
        name: `nano`, `nano-fast`, a folder in diffusers' layout, or a hub id `owner/name` or `owner/name@revision`.
        ace: file or folder of adaptive condition embeddings; None uses those in the model's folder, if any.
        additions: what is laid over the folder.
        option: what names the model, for messages: an option, or the key of a recipe.

    Raises:
        ModelError: if there is no such model, or its files cannot be used.
    """
    folder = _find(name, option)
    additions = located(additions)
    check_networks(additions)
    family = family_of(folder, denoiser=additions.denoiser)
    parts = _parts(folder, family, additions)
    check_additions(additions, family)
    if not family.has_text and (ace is not None or (folder / ACE_FILE).is_file()):
        raise ModelError(
            f"{ace or folder / ACE_FILE}: adaptive condition embeddings, but {folder} is {family.title}\n"
            "  leave them out: they are added to text embeddings"
        )
    if family.flow_only and not is_flow(family.settled_scheduler(_scheduler_config(folder, additions))):
        raise ModelError(
            f"{additions.scheduler or folder / 'scheduler'}: a discrete schedule, but {family.title} learned by flow"
            " matching\n  expected: the scheduler that the model was published with, as FlowMatchEulerDiscreteScheduler"
        )
    spec = _spec(folder, family)
    given = spec.defaults.model_dump(exclude_unset=True) if "defaults" in spec.model_fields_set else {}
    # What the file leaves out is the family's.
    spec = spec.model_copy(update={"defaults": _defaults(folder, family, additions).model_copy(update=given)})
    from_hub = name not in PACKAGED_MODELS and not Path(name).is_dir()
    hub_name, _, revision = name.partition("@")
    called = hub_name.rpartition("/")[2] if from_hub else folder.resolve().name
    return ResolvedModel(
        name=spec.name or called,
        folder=folder,
        family=family,
        parts=parts,
        spec=spec,
        digest=model_digest(folder, ace, additions),
        additions=additions,
        ace=_find_ace(folder, family, ace),
        revision=(_commit(folder) or revision or None) if from_hub else None,
    )


def _spec(folder: Path, family: Family) -> ModelSpec:
    """A model's own description, checked against its family.

    Raises:
        ModelError: if it cannot be read, or says what models of the family do not have.
    """
    spec, path = read_spec(folder), folder / SPEC_FILE
    if spec.image_size is not None and not family.takes_image_size:
        raise ModelError(
            f"{path}: image_size: the size of {family.title}'s images is in {family.denoiser}/config.json, as"
            " sample_size\n  leave image_size out"
        )
    if spec.classes and family.has_text:
        raise ModelError(f"{path}: classes: {family.title} is conditioned on text\n  leave classes out")
    texts = [name for name in ("negative_prompt", "prompt_template") if getattr(spec, name)]
    if texts and not family.has_text:
        raise ModelError(f"{path}: {', '.join(texts)}: {family.title} takes no text\n  leave out: {', '.join(texts)}")
    if not family.has_text and not spec.classes and spec.depicts is None:
        spec = spec.model_copy(update={"depicts": _NOTHING_ASKED})
    if spec.classes and "prompt" not in spec.model_fields_set:
        spec = spec.model_copy(update={"prompt": PromptStyle.CLASS})
    if (spec.prompt is PromptStyle.CLASS) != bool(spec.classes):
        raise ModelError(
            f"{path}: prompt {spec.prompt.value!r}"
            f" {'of a class-conditional model' if spec.classes else 'without classes'}\n"
            f"  expected: {'no prompt format' if spec.classes else 'the names of the classes, as classes'}"
        )
    return spec


def _defaults(folder: Path, family: Family, additions: Additions) -> SamplingDefaults:
    """The family's, without DDIM for a model of it that learned by flow matching."""
    defaults = family.defaults_of(folder)
    if defaults.sampler is Sampler.DDIM and is_flow(_scheduler_config(folder, additions)):
        return defaults.model_copy(update={"sampler": Sampler.EULER})
    return defaults


def find_model(name: str, *, option: str = "--model") -> Path:
    """Folder of a model, by the names `resolve_model` takes; a hub repository is downloaded (safetensors only).

    Raises:
        ModelError: if there is no such model, or its layout or weights cannot be used.
    """
    folder = _find(name, option)
    _parts(folder, family_of(folder))
    return folder


def _find(name: str, option: str) -> Path:
    folder = Path(str(files("cxrsynth") / "nano" / PACKAGED_MODELS[name])) if name in PACKAGED_MODELS else Path(name)
    folder = folder if folder.is_dir() else _from_hub(name, option)
    known = {part for family in FAMILIES.values() for part in family.parts}
    for checked in (folder, *(folder / part for part in sorted(known) if (folder / part).is_dir())):
        try:
            check_files(checked)
        except OSError as error:
            raise ModelError(f"{checked}: cannot be read ({error.strerror})") from None
    return folder


def _parts(folder: Path, family: Family, additions: Additions = _NOTHING) -> tuple[str, ...]:
    """The folders a model consists of; those that something else is used for need not be there.

    Raises:
        ModelError: if one is missing, or has no safetensors weights.
    """
    has_index = (folder / INDEX).is_file()
    left_out = _left_out(folder) & family.optional if has_index else set[str]()
    for encoder, tokenizer in zip(family.encoders, family.tokenizers, strict=True):
        if encoder in left_out:
            left_out.add(tokenizer)  # pipelines take one without its encoder, and have no use for it
        elif tokenizer in left_out:
            raise ModelError(
                f"{folder / INDEX}: {encoder} without {tokenizer}\n"
                f"  expected: both; without {encoder}, write both as [null, null]"
            )
    replaced = replaced_parts(additions, family)
    parts = tuple(part for part in family.parts if part not in left_out)
    missing = [part for part in parts if part not in replaced and not (folder / part).is_dir()]
    if missing or not has_index:
        named = [f"{part}/" for part in missing] + ([] if has_index else [INDEX])
        options = {family.denoiser: "--unet", "vae": "--vae", "scheduler": "--scheduler"}
        elsewhere = [options[part] for part in missing if part in options]
        raise ModelError(
            f"{folder}: looks like {family.title}, but is missing {', '.join(named)}\n"
            f"  expected: {INDEX} and {', '.join(f'{p}/' for p in parts)}"
            + (f"; take the missing from another model with {', '.join(elsewhere)}" if elsewhere else "")
            + ("" if has_index else _ABOUT_INDEX)
        )
    for part in parts:
        if part not in family.networks or part in replaced:
            continue
        if not list((folder / part).glob("*.safetensors")):
            raise ModelError(
                f"{folder / part}: no safetensors weights\n"
                "  weights load from safetensors only; convert pickled weights (.bin, .ckpt) with: cxrsynth convert"
            )
        check_weights_name(folder / part, of_diffusers=part not in family.encoders)
    return parts


def _scheduler_config(folder: Path, additions: Additions) -> dict[str, Any]:
    if additions.scheduler is not None:
        return read_scheduler_config(additions.scheduler)
    kind = read_index(folder).get("scheduler")
    # Pipelines load the class that the index names, whatever the configuration was saved from.
    named = kind[1] if isinstance(kind, list) and len(kind) == 2 else None
    return read_scheduler_config(folder / "scheduler", named=named)


def _left_out(folder: Path) -> set[str]:
    """Parts that `model_index.json` says the model does without."""
    return {name for name, kind in read_index(folder).items() if isinstance(kind, list) and kind[:1] == [None]}


def read_index(folder: Path) -> dict[str, Any]:
    """Content of a model folder's `model_index.json`: the pipeline's class, and library and class of each part.

    Raises:
        ModelError: if it cannot be read.
    """
    path = folder / INDEX
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {in_words(error)}{_ABOUT_INDEX}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: not the list of a model's parts, expected a JSON object{_ABOUT_INDEX}")
    return content


def _from_hub(name: str, option: str) -> Path:
    """Download the configs and safetensors of a hub repository. Names that look like local paths are refused."""
    parts = sorted({part for family in FAMILIES.values() for part in family.parts})
    wanted = [f"{part}/*{suffix}" for part in parts for suffix in MODEL_SUFFIXES]
    folder = hub_folder(
        name, patterns=["*.json", *wanted], needs_revision=False, folders="nano, nano-fast, a model folder"
    )
    if folder is None:
        raise ModelError(
            f"{option} {name}: no such folder\n"
            "  expected: nano, nano-fast, a model folder, or a hub id owner/name[@revision]"
        )
    return folder


def _commit(snapshot: Path) -> str | None:
    """Commit of a hub snapshot: the hub's cache names the folder after it."""
    return snapshot.name if _COMMIT.fullmatch(snapshot.name) else None


def model_digest(
    folder: Path, ace: Path | None = None, additions: Additions = _NOTHING, *, described: bool = True
) -> str:
    """SHA-256 over names and contents of all files that decide which images a model makes.

    Args:
        folder: of the model.
        ace: embeddings used in place of those in the folder.
        additions: what is laid over the folder.
        described: whether `cxrsynth.json` is one of them; without it, the digest is that of a folder that has none.

    Raises:
        ModelError: if a file cannot be read.
    """
    parts = [folder / part for part in _parts(folder, family_of(folder, denoiser=additions.denoiser), additions)]
    paths = [p for part in parts if part.is_dir() for p in part.iterdir() if p.suffix in MODEL_SUFFIXES]
    beside = (folder / INDEX, *((folder / SPEC_FILE,) if described else ()))
    paths += [path for path in beside if path.exists()]
    named = [(path.relative_to(folder).as_posix(), path) for path in sorted(paths)]
    embeddings = ace if ace is not None else folder
    weights = embeddings / ACE_FILE if embeddings.is_dir() else embeddings  # as `load_ace` takes it, whatever its name
    beside_weights = ((ACE_FILE, weights), (ACE_CONFIG, weights.with_name(ACE_CONFIG)))
    named += [(name, path) for name, path in beside_weights if path.is_file()]
    named += addition_files(additions)
    total = hashlib.sha256()
    for name, path in named:
        total.update(f"{name} {_sha256(path)}\n".encode())
    return total.hexdigest()


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None


def _find_ace(folder: Path, family: Family, ace: Path | None) -> AdaptiveConditionEmbedding | None:
    """The embeddings that were asked for, else those in the model's folder; None if there are none.

    Raises:
        ModelError: if they cannot be read, or do not have the size of the model's text embeddings.
    """
    if ace is None and not (folder / ACE_FILE).is_file():
        return None
    found, size = load_ace(folder if ace is None else ace), family.text_size(folder)
    if size is not None:
        check_ace(found, ace or folder, *size)
    return found
