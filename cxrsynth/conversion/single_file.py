"""One file in latent diffusion's layout, to a folder in diffusers' layout, by diffusers' own mapping of names.

Diffusers would download settings that it does not find. It is given local ones only: a base folder, or the YAML file
that the checkpoint was trained with.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import (
    SingleFileComponentError,
    create_diffusers_clip_model_from_ldm,
    create_diffusers_t5_model_from_checkpoint,
    is_clip_model_in_single_file,
    is_t5_in_single_file,
)
from torch import Tensor

from cxrsynth.conversion.base import base_index
from cxrsynth.conversion.layout import DENOISER, EMA, TEXT, check_layout, is_vae_tensor, what_it_holds, with_prefix
from cxrsynth.conversion.original_config import OriginalConfig
from cxrsynth.conversion.weights import read_weights
from cxrsynth.diffusion.families import family_of
from cxrsynth.diffusion.families.base import Family
from cxrsynth.diffusion.resolve import INDEX
from cxrsynth.errors import ModelError, in_words
from cxrsynth.runtime.files import read_json, stable_json
from cxrsynth.runtime.pretrained import LOADING_ERRORS
from cxrsynth.settings import ConvertSettings

_FAILURES = (*LOADING_ERRORS, SingleFileComponentError, NotImplementedError, AssertionError)
_COPIED = (".json", ".txt", ".model", ".safetensors")
# Below this number, diffusers takes the plain weights whatever it is asked for.
_LEAST_EMA = 101

# Empty tensors by which files of v-prediction models, which have no settings, say what they are.
_MARKERS: dict[str, tuple[str, str | bool]] = {
    "v_pred": ("prediction_type", "v_prediction"),
    "ztsnr": ("rescale_betas_zero_snr", True),
}

_LAYER = re.compile(
    rf"(?P<stack>(?:{'|'.join(map(re.escape, TEXT))}).*(?:encoder\.layers|resblocks|encoder\.block))\.(?P<layer>\d+)\."
)

State = dict[str, Tensor]


def convert_single_file(settings: ConvertSettings, out: Path) -> None:
    """Fill `out` with the model in a file, and with the parts of `settings.base` that the file lacks.

    Args:
        settings: its `source` is a file.
        out: an empty folder.

    Raises:
        ModelError: if the file is in no layout that can be converted, if a part is missing in both, or if the file
            does not fit the settings.
        OSError: if a file cannot be copied or written.
    """
    source, base = settings.source, settings.base
    # Before the weights, which may take minutes to read.
    original = None if settings.original_config is None else OriginalConfig(settings.original_config)
    known = None if base is None else (family_of(base), _index(base), _parts(base, family_of(base)))
    state = with_prefix(read_weights(source))
    check_layout(source, state)
    if base is None or known is None:
        raise ModelError(
            f"{source}: holds {what_it_holds(state)}; missing: their settings, a tokenizer and a scheduler\n"
            "  name a model folder of the same architecture with --base; its weights are not needed for what the file"
            " holds"
        )
    family, index, parts = known
    if settings.ema:
        _check_ema(source, state)
    networks = {
        part: _read_part(part, state, settings, family=family, index=index, original=original)
        for part in parts
        if part in family.networks
    }
    if any(name.startswith(TEXT) for name in state) and not any(networks.get(part) for part in family.encoders):
        raise ModelError(
            f"{source}: its text encoder, {_first(state, TEXT)} ..., is none that diffusers converts to"
            f" {index['text_encoder'][1]}, which {base} has\n"
            "  expected: --base of the same architecture, with CLIP's or OpenCLIP's text encoder"
        )
    _refuse_missing(source, base, [part for part, network in networks.items() if network is None])
    for part in parts:
        network = networks.get(part)
        if network is not None:
            network.save_pretrained(out / part, safe_serialization=True)
        else:
            _copy(base / part, out / part)
    path = out / "scheduler" / "scheduler_config.json"
    scheduler = read_json(path)
    stated = {key: value for name, (key, value) in _MARKERS.items() if name in state}
    if original is not None or stated:
        path.write_bytes(stable_json((original.scheduler(scheduler) if original else scheduler) | stated))
    # What the base has beside the parts, such as a safety checker, does not belong to this model.
    left_out = {part: [None, None] for part, kind in index.items() if isinstance(kind, list) and part not in parts}
    (out / INDEX).write_bytes(stable_json(index | left_out))


def _parts(base: Path, family: Family) -> list[str]:
    """The folders of the base, in the family's order. Raises ModelError if one is missing."""
    parts = [part for part in family.parts if (base / part).is_dir() or part not in family.optional]
    missing = [f"{part}/" for part in parts if not (base / part).is_dir()]
    if missing:
        raise ModelError(f"--base {base}: missing {', '.join(missing)}\n  expected: the folder of {family.title}")
    return parts


def _index(base: Path) -> dict[str, Any]:
    return {name: kind for name, kind in base_index(base).items() if name != "_name_or_path"}


def _read_part(
    part: str,
    state: State,
    settings: ConvertSettings,
    *,
    family: Family,
    index: dict[str, Any],
    original: OriginalConfig | None,
) -> Any:
    """The network of one part as the file has it; None if the file lacks it.

    Raises:
        ModelError: if the file has it, and it does not fit its settings.
    """
    base = settings.base
    kind: Any
    if part in family.encoders:
        kind = _encoder_class(base, part, index)
        with _explained(settings, part):
            encoder = _encoder(state, kind, base=str(base), part=part)
            if encoder is not None:
                _check_encoder(encoder, state)
            return encoder
    held = _tensors_of(part, state)
    if not held:
        return None
    kind = AutoencoderKL if part == "vae" else family.denoiser_class
    if not hasattr(kind, "from_single_file"):
        raise ModelError(f"{settings.source}: diffusers reads no single files of {family.title}")
    given: dict[str, Any] = {"config": str(base), "subfolder": part}
    if original is not None:
        given = {"original_config": original.content}
    if part != "vae" and settings.ema:
        given["extract_ema"] = True
    with _explained(settings, part):
        # A copy, because some mappings take out what they have used.
        network = kind.from_single_file(dict(state), local_files_only=True, **given)
    if original is not None:
        original.correct(network, part)
    _check_complete(settings.source, part, network, held)
    return network


@contextmanager
def _explained(settings: ConvertSettings, part: str) -> Iterator[None]:
    """Say which part does not fit what it was read with, where diffusers fails. It asserts on some checkpoints."""
    try:
        yield
    except _FAILURES as error:
        wanted = "--original-config" if settings.original_config else f"{settings.base}/{part}"
        raise ModelError(
            f"{settings.source}: its {part} does not fit {wanted}: {_first_line(error)}\n"
            "  expected: --base of the same architecture, or the YAML file it was trained with as --original-config"
        ) from None


def _encoder_class(base: Path | None, part: str, index: dict[str, Any]) -> Any:
    """The class that the base names for one of its text encoders. Raises ModelError if transformers has none such."""
    named = str(index[part][1])
    kind = getattr(transformers, named, None)
    if kind is None:
        raise ModelError(f"--base {base}: {INDEX}: {part} is a {named}, which this transformers does not have")
    return kind


def _encoder(state: State, kind: Any, *, base: str, part: str) -> Any:
    given = {"checkpoint": dict(state), "config": base, "subfolder": part, "local_files_only": True}
    if is_clip_model_in_single_file(kind, state):
        return create_diffusers_clip_model_from_ldm(kind, **given)
    if kind.__name__.startswith("T5") and is_t5_in_single_file(state):
        return create_diffusers_t5_model_from_checkpoint(kind, **given)
    return None


def _check_encoder(encoder: Any, state: State) -> None:
    """Refuse a text encoder that lacks weights, or whose layers in the file are more than it has.

    OpenCLIP's files have one layer more than models that use the last but one.

    Raises:
        ValueError: naming a weight, or both numbers of layers.
    """
    lacking = [name for name, weight in encoder.named_parameters() if weight.is_meta]
    if lacking:
        raise ValueError(f"{len(lacking)} of its tensors are missing, such as {lacking[0]}")
    layers = getattr(encoder.config, "num_hidden_layers", None)
    found: dict[str, set[int]] = {}
    for name in state:
        if (match := _LAYER.match(name)) is not None:
            found.setdefault(match["stack"], set()).add(int(match["layer"]))
    fits = {
        len(places) - more for stack, places in found.items() for more in ((0, 1) if "resblocks" in stack else (0,))
    }
    if found and layers is not None and layers not in fits:
        held = " and ".join(str(len(places)) for places in found.values())
        raise ValueError(f"the file has {held} layers, its settings have {layers}")


def _tensors_of(part: str, state: State) -> State:
    if part == "vae":
        return {name: tensor for name, tensor in state.items() if is_vae_tensor(name)}
    return {name: tensor for name, tensor in state.items() if name.startswith(DENOISER)}


def _check_complete(source: Path, part: str, network: Any, held: State) -> None:
    """Refuse a network that lacks weights, or a file of which some were not used: diffusers logs both, and goes on."""
    values = [*network.parameters(), *network.buffers()]
    lacking = [name for name, weight in network.named_parameters() if weight.is_meta]
    expected, found = sum(value.numel() for value in values), sum(tensor.numel() for tensor in held.values())
    if lacking or expected != found:
        raise ModelError(
            f"{source}: its {part} has {found:,} weights, and its settings ask for {expected:,}"
            f"{f'; {lacking[0]} is missing' if lacking else ''}\n"
            "  expected: --base of the same architecture, or the YAML file it was trained with as --original-config"
        )


def _check_ema(source: Path, state: State) -> None:
    """Refuse a file without averaged weights of the whole U-Net. Raises ModelError."""
    averaged = {name for name in state if name.startswith(EMA)}
    plain = [name for name in state if name.startswith(DENOISER)]
    if len(averaged) < _LEAST_EMA:
        raise ModelError(f"--ema: {source} has no averaged weights ({EMA}*)\n  leave the option out")
    # The average of model.diffusion_model.a.b is model_ema.diffusion_modelab.
    lacking = [name for name in plain if EMA + "".join(name.split(".")[1:]) not in averaged]
    if lacking:
        raise ModelError(f"--ema: {source} has no average of {len(lacking)} tensors, such as {lacking[0]}")


def _refuse_missing(source: Path, base: Path, lacking: list[str]) -> None:
    """Parts that the file lacks come from the base, if it has their weights. Raises ModelError."""
    missing = [part for part in lacking if not list((base / part).glob("*.safetensors"))]
    if missing:
        raise ModelError(
            f"{source}: missing {', '.join(missing)}, and {base} has no safetensors of that either\n"
            "  expected: --base with the weights of the parts that the file lacks"
        )


def _copy(source: Path, out: Path) -> None:
    out.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in _COPIED:
            shutil.copyfile(path, out / path.name)


def _first(state: State, prefixes: tuple[str, ...]) -> str:
    return sorted(name for name in state if name.startswith(prefixes))[0]


def _first_line(error: BaseException) -> str:
    """Diffusers goes on to advise arguments that the user cannot give."""
    return in_words(error).partition(" If you want to instead")[0]
