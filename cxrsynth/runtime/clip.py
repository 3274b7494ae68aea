"""CLIP's text encoder, saved by any release: before transformers 5 its tensor names begin with `text_model.`."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import CLIPTextModel

_PREFIX = "text_model."


def load_text_encoder(folder: Path) -> CLIPTextModel:
    """Load a text encoder in float32. Tensors that the file lacks would otherwise keep their random values.

    Raises:
        OSError, ValueError, RuntimeError, SafetensorError: if the folder cannot be loaded, or lacks tensors.
    """
    encoder, loading = CLIPTextModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    if loading["missing_keys"]:
        accept_any_names(encoder)
        encoder.load_state_dict(load_file(folder / "model.safetensors"))
    # By hand: the argument that asks for a type has another name before transformers 4.56.
    return encoder.float()


def accept_any_names(encoder: CLIPTextModel) -> None:
    """Let `load_state_dict`, of the encoder or of a network around it, accept the tensor names of every release."""
    wanted = any(name.startswith(_PREFIX) for name in encoder.state_dict())

    def rename(_module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name in [name for name in state if name.startswith(prefix)]:
            own = name.removeprefix(prefix)
            if own.startswith(_PREFIX) != wanted:
                state[prefix + (_PREFIX + own if wanted else own.removeprefix(_PREFIX))] = state.pop(name)

    encoder.register_load_state_dict_pre_hook(rename)
