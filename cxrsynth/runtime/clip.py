"""CLIP's text encoder, saved by any release: before transformers 5 its tensor names begin with `text_model.`."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import CLIPTextModel

from cxrsynth.runtime.pretrained import LOADING_ERRORS, Unmatched, load_unchecked, reason, unusable, variant

_PREFIX = "text_model."
_ROLE = "CLIP's text encoder"
# A whole CLIP may be saved in place of its text encoder; text embeddings need none of these.
_OTHER_PARTS = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")


def load_text_encoder(folder: Path) -> CLIPTextModel:
    """Load a text encoder, on the CPU, in float32 and eval mode.

    Raises:
        ModelError: if the folder cannot be loaded, or its weights do not match the network.
    """
    encoder, unmatched = load_unchecked(CLIPTextModel, folder, role=_ROLE)
    named = variant(folder)
    weights = folder / ("model.safetensors" if named is None else f"model.{named}.safetensors")
    if unmatched.missing and weights.is_file():
        # This release may not know the names that another one gave.
        accept_any_names(encoder)
        try:
            missing, unexpected = encoder.load_state_dict(load_file(weights), strict=False)
        except LOADING_ERRORS as error:
            raise unusable(folder, _ROLE, reason(error)) from None
        unmatched = Unmatched(frozenset(missing), unexpected=frozenset(unexpected))
    unmatched.refuse(folder, _ROLE, may_hold=_OTHER_PARTS)
    return encoder  # type: ignore[no-any-return]


def accept_any_names(encoder: CLIPTextModel) -> None:
    """Let `load_state_dict`, of the encoder or of a network around it, accept the tensor names of every release."""
    wanted = any(name.startswith(_PREFIX) for name in encoder.state_dict())

    def rename(_module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name in [name for name in state if name.startswith(prefix)]:
            own = name.removeprefix(prefix)
            if own.startswith(_PREFIX) != wanted:
                state[prefix + (_PREFIX + own if wanted else own.removeprefix(_PREFIX))] = state.pop(name)

    encoder.register_load_state_dict_pre_hook(rename)
