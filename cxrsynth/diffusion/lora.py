"""LoRA weights of diffusers and peft, merged into a pipeline's networks; weights that fit only in part are refused."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, LoraModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file
from torch import Tensor

from cxrsynth.diffusion.families.base import Family
from cxrsynth.errors import ModelError
from cxrsynth.runtime.files import read_json
from cxrsynth.runtime.pretrained import LOADING_ERRORS, quiet_libraries, reason, refuse_own_code
from cxrsynth.settings import Lora

PEFT_CONFIG = "adapter_config.json"
# Names under which diffusers and peft save, in order; a folder with one other file is taken, too.
LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_ADAPTER = "laid_over"
_WRAPPED = "base_model.model."
_CLIP = "text_model."  # begins the names of CLIP's layers before transformers 5
_OTHER_ENCODER = "its tensors for a text encoder fit no layer of the model's"
_KINDS = {"LOHA": "LoHa", "LOKR": "LoKr", "ADALORA": "AdaLoRA", "IA3": "IA3"}


def merge_lora(lora: Lora, file: Path, family: Family, pipeline: Any) -> None:
    """Merge LoRA weights into the networks of a pipeline, in place.

    Args:
        lora: what was asked for.
        file: its safetensors file.
        family: of the pipeline.
        pipeline: with networks in float32 on the CPU.

    Raises:
        ModelError: if the weights cannot be read, or do not fit the networks in every tensor.
    """
    try:
        state = load_file(file)
        wrong = sorted(name for name, weight in state.items() if not torch.isfinite(weight).all())
        if wrong:
            raise ValueError(f"{len(wrong)} of its tensors hold values that are not finite numbers, such as {wrong[0]}")
        with quiet_libraries():
            if (file.parent / PEFT_CONFIG).is_file():
                _merge_peft(file.parent / PEFT_CONFIG, state, lora.scale, family, pipeline)
            elif not hasattr(pipeline, "load_lora_weights"):
                raise ValueError(
                    f"found weights of another kind; expected: those of peft, with {PEFT_CONFIG} beside them"
                )
            else:
                _merge_diffusers(file, state, lora.scale, family, pipeline)
    except LOADING_ERRORS as error:
        problem = reason(error).replace(f".{_ADAPTER}", "")
        raise ModelError(f"--lora {lora.path}: cannot be added to {family.title}: {problem}") from None


def _merge_diffusers(file: Path, state: dict[str, Tensor], scale: float, family: Family, pipeline: Any) -> None:
    """Weights that diffusers saved, or that it converts from the names of other trainers."""
    if any("dora_scale" in name for name in state):
        raise ValueError(
            "DoRA weights with dora_scale, which diffusers leaves out; expected: LoRA, or DoRA saved by peft"
        )
    sizes = _sizes(getattr(pipeline, family.denoiser))
    converted = _load_diffusers(file, state, pipeline)
    if _sizes(getattr(pipeline, family.denoiser)) != sizes:  # diffusers widens layers for what it calls control LoRA
        raise ValueError("its layers are wider than the model's")
    arrived = _adapter_tensors(pipeline, (family.denoiser, *family.encoders))
    if unused := _left_over(converted, arrived):
        raise ValueError(
            f"{len(unused)} of its {len(converted)} tensors have no layer in the model, such as {unused[0]}"
            + (f"; expected: names that begin with {family.denoiser}." if len(unused) == len(converted) else "")
        )
    if lacking := _left_over(arrived, converted):
        name = lacking[0].replace(f".{_ADAPTER}", "")
        raise ValueError(f"{len(lacking)} tensors of its layers are missing, such as {name}")
    if not arrived:
        raise ValueError("there are no tensors in it")
    # By name: the pipelines' own choice leaves out text encoders in some families.
    parts = sorted({name.partition(".")[0] for name in arrived})
    pipeline.fuse_lora(components=parts, lora_scale=scale, adapter_names=[_ADAPTER])
    pipeline.unload_lora_weights()


def _load_diffusers(file: Path, state: dict[str, Tensor], pipeline: Any) -> dict[str, Tensor]:
    """Load weights into layers beside a pipeline's networks; returns them by the names diffusers gives them.

    Raises:
        ValueError: if diffusers cannot place them.
    """
    converted: dict[str, Tensor] = {}
    convert = pipeline.lora_state_dict

    def recording(*given: Any, **further: Any) -> Any:
        found = convert(*given, **further)
        converted.update(found[0] if isinstance(found, tuple) else found)  # alone in some families and releases
        return found

    pipeline.lora_state_dict = recording
    try:
        # From the file: its header may hold the scales of layers.
        pipeline.load_lora_weights(
            str(file.parent), weight_name=file.name, adapter_name=_ADAPTER, local_files_only=True, use_safetensors=True
        )
    except IndexError:  # diffusers looks for a rank among the layers of CLIP, or in names of its own
        if not any("text_encoder" in name or "lora_te" in name for name in state):
            raise ValueError(f"its tensors are not named as diffusers names them, such as {min(state)}") from None
        raise ValueError(_OTHER_ENCODER) from None
    except ValueError as error:
        if "attention modules for" in str(error):  # the same in earlier releases
            raise ValueError(_OTHER_ENCODER) from None
        if not str(error).startswith("Target modules"):  # peft's list of all of them
            raise
        raise ValueError(f"its {len(converted)} tensors have no layer in the model, such as {min(converted)}") from None
    finally:
        del pipeline.lora_state_dict
    return converted


def _sizes(network: Any) -> dict[str, torch.Size]:
    """Shapes of a network's own weights."""
    return {
        name.replace(".base_layer.", "."): weight.shape
        for name, weight in network.named_parameters()
        if _ADAPTER not in name
    }


def _adapter_tensors(pipeline: Any, parts: tuple[str, ...]) -> dict[str, Tensor]:
    """What was loaded into layers beside the networks' own weights."""
    return {
        f"{part}.{name}": weight
        for part in parts
        if getattr(pipeline, part, None) is not None
        for name, weight in getattr(pipeline, part).named_parameters()
        if f".{_ADAPTER}" in name
    }


def _left_over(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors whose values are not among the others.

    By value, since each family and release has rules of its own from the names in a file to those of layers.
    """
    counts = Counter(map(_digest, others.values()))
    names = []
    for name, tensor in sorted(tensors.items()):
        counts[digest := _digest(tensor)] -= 1
        if counts[digest] < 0:
            names.append(name)
    return names


def _digest(tensor: Tensor) -> bytes:
    if tensor.is_meta:  # a layer that the file has in part only
        return b""
    values = tensor.detach().float().cpu().contiguous().numpy()
    return hashlib.sha256(values.tobytes()).digest()


def _merge_peft(path: Path, state: dict[str, Tensor], scale: float, family: Family, pipeline: Any) -> None:
    """Weights that peft saved, for the denoiser or one text encoder: the network that has all of its layers."""
    _check_kind(path)
    refuse_own_code(path)
    part = _network_of(state, (family.denoiser, *family.encoders), pipeline)
    network = getattr(pipeline, part)
    config = LoraConfig.from_pretrained(str(path.parent))
    config.lora_alpha = config.lora_alpha * scale
    config.alpha_pattern = {name: alpha * scale for name, alpha in config.alpha_pattern.items()}
    config.inference_mode = True
    own = _named_as_in(network, state)
    adapted = LoraModel(network, config, _ADAPTER)
    expected = get_peft_model_state_dict(network, adapter_name=_ADAPTER, save_embedding_layers=False)
    if missing := sorted(set(expected) - set(own)):
        raise ValueError(f"{len(missing)} tensors are missing, such as {missing[0]}")
    found: Any = set_peft_model_state_dict(network, own, adapter_name=_ADAPTER)
    if found.unexpected_keys:
        first = min(found.unexpected_keys).replace(f".{_ADAPTER}", "")
        raise ValueError(f"{len(found.unexpected_keys)} tensors have no layer in the {part}, such as {first}")
    for module in network.modules():  # earlier releases of peft take a list of active adapters for a name
        if isinstance(module, ModulesToSaveWrapper):
            module.set_adapter(_ADAPTER)
    adapted.merge_and_unload()
    if hasattr(network, "peft_config"):  # older releases of peft leave it, and take later adapters for a second one
        del network.peft_config


def _check_kind(path: Path) -> None:
    """Raises ValueError for settings that cannot be read, or are not those of LoRA."""
    try:
        config = read_json(path)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"{path.name} is no JSON object; expected: the settings that peft saves")
    kind = str(config.get("peft_type", "LORA"))
    if kind != "LORA":
        raise ValueError(f"{_KINDS.get(kind, kind)} adapters (peft_type in {path.name}); expected: LoRA")


def _network_of(state: Mapping[str, Tensor], parts: tuple[str, ...], pipeline: Any) -> str:
    """The network that has every adapted layer, in the sizes of the tensors where more than one has.

    Raises:
        ValueError: if none has.
    """
    networks = {part: getattr(pipeline, part) for part in parts if getattr(pipeline, part, None) is not None}
    unknown = {part: _layers_without_place(network, state) for part, network in networks.items()}
    nearest = min(unknown, key=lambda part: len(unknown[part]))
    if unknown[nearest]:
        raise ValueError(
            f"{len(unknown[nearest])} of its layers are in none of the model's networks ({', '.join(networks)}),"
            f" such as {unknown[nearest][0]}"
        )
    fitting = [part for part in networks if not unknown[part]]
    sized = [part for part in fitting if _has_sizes(networks[part], state)] or fitting
    if len(sized) > 1:
        raise ValueError(
            f"its layers are in {' and '.join(sized)}; expected: weights of diffusers, which name one of them"
        )
    return sized[0]


def _layers_without_place(network: Any, state: Mapping[str, Tensor]) -> list[str]:
    modules = {name for name, _ in network.named_modules()}
    layers = {_layer(name) for name in _named_as_in(network, state) if ".lora_" in name}
    return sorted(layers - modules) if layers else ["none at all"]


def _has_sizes(network: Any, state: Mapping[str, Tensor]) -> bool:
    modules = dict(network.named_modules())
    return all(
        weight.shape[1] == getattr(modules[_layer(name)], "in_features", weight.shape[1])
        for name, weight in _named_as_in(network, state).items()
        if name.endswith(".lora_A.weight")
    )


def _named_as_in(network: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names of a network: peft saves them with its wrapping, and CLIP's names depend on the release."""
    modules = {name for name, _ in network.named_modules()}
    named = {}
    for wrapped, weight in state.items():
        name = wrapped.removeprefix(_WRAPPED)
        other = name.removeprefix(_CLIP) if name.startswith(_CLIP) else _CLIP + name
        named[other if _layer(name) not in modules and _layer(other) in modules else name] = weight
    return named


def _layer(name: str) -> str:
    """The layer that a tensor belongs to."""
    return name.partition(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0]
