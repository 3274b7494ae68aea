"""DiffusionModel: the networks of one Stable Diffusion folder, loaded from safetensors only."""

import copy
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizerFast

from cxrsynth.diffusion.ace import ConditionEmbedding
from cxrsynth.diffusion.networks import load_unet, load_vae
from cxrsynth.diffusion.resolve import ResolvedModel
from cxrsynth.diffusion.spec import ModelSpec
from cxrsynth.diffusion.speed import normalize_small_maps_contiguously
from cxrsynth.errors import ModelError
from cxrsynth.runtime.clip import load_text_encoder
from cxrsynth.runtime.pretrained import LOADING_ERRORS
from cxrsynth.settings import Device, Precision

_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


@dataclass(frozen=True)
class DiffusionModel:
    """The networks of one model, with what is known of them. `name`, `digest` and `spec` are those of `ResolvedModel`.

    `dtype` is the type the networks run in. `ace`, if present, is added to the condition of every prompt.
    """

    name: str
    digest: str
    spec: ModelSpec
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizerFast
    scheduler_config: dict[str, Any]
    device: torch.device
    precision: Precision
    ace: ConditionEmbedding | None = None
    # Trained weights stay in float32 while forward passes run in `dtype`.
    mixed: bool = False
    # A fast tokenizer keeps its padding as state: two threads at once get wrong tokens, or "Already borrowed".
    _tokenizer_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def tokens(self, prompts: list[str]) -> Tensor:
        """Token ids of prompts, padded and cut to the tokenizer's length, int64 [B, L] on the device."""
        with self._tokenizer_lock:
            encoded = self.tokenizer(
                prompts,
                padding="max_length",
                max_length=self.tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
        return encoded.input_ids.to(self.device)  # type: ignore[no-any-return]

    def fits(self, text: str) -> bool:
        """Whether the tokenizer takes a text without cutting it."""
        with self._tokenizer_lock:
            return len(self.tokenizer(text, verbose=False).input_ids) <= int(self.tokenizer.model_max_length)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of UNet and text encoder."""
        return _DTYPES[self.precision]

    def forward_context(self) -> torch.autocast:
        """Context for forward passes of the UNet: autocast to `dtype` for a `mixed` model, otherwise none.

        Cast weights are not cached, since threads would share the cache.
        """
        return torch.autocast(
            self.device.type,
            dtype=self.dtype,
            enabled=self.mixed and self.dtype is not torch.float32,
            cache_enabled=False,
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        size = int(self.unet.config.sample_size)
        return int(self.unet.config.in_channels), size, size

    @property
    def image_size(self) -> int:
        """Pixels per side: the latent size times the factor of the autoencoder."""
        return self.latent_shape[1] * int(2 ** (len(self.vae.config.block_out_channels) - 1))


def choose_device(device: Device, *, local_rank: int = 0, option: str = "--device") -> torch.device:
    """The device to use: `auto` prefers CUDA, then Apple's MPS, then the CPU.

    Args:
        device: as asked for.
        local_rank: of this process, which has the GPU of that number.
        option: what asked for it, for messages: an option, or the key of a recipe.

    Raises:
        ModelError: if the named device is not available.
    """
    present = {Device.CUDA: torch.cuda.is_available(), Device.MPS: torch.backends.mps.is_available(), Device.CPU: True}
    if device is Device.AUTO:
        device = next(d for d, here in present.items() if here)
    if not present[device]:
        raise ModelError(f"{option} {device.value}: not available here\n  use: {option} auto, or cpu")
    return torch.device(device.value, local_rank) if device is Device.CUDA else torch.device(device.value)


def choose_precision(precision: Precision, device: torch.device) -> Precision:
    """The precision to use: `auto` is bfloat16 where the hardware multiplies it, else float16 on CUDA, else float32.

    Raises:
        ModelError: for float16 on a CPU.
    """
    if precision is Precision.FP16 and device.type == "cpu":
        raise ModelError("--precision fp16: not supported on the CPU\n  use: bf16, fp32 or auto")
    if precision is not Precision.AUTO:
        return precision
    if device.type == "cuda":
        return Precision.BF16 if torch.cuda.is_bf16_supported() else Precision.FP16
    fast = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return Precision.BF16 if fast else Precision.FP32


def load_model(
    model: ResolvedModel,
    *,
    device: torch.device,
    precision: Precision,
    mixed: bool = False,
    float32_unet: bool = False,
) -> DiffusionModel:
    """Load the networks of a model: in eval mode, `channels_last`, without gradients.

    Args:
        model: from `resolve_model`. Its embeddings are copied, so one resolved model can be loaded many times.
        device: where the networks go.
        precision: their type; see `_vae_dtype` for the autoencoder's.
        mixed: run the UNet under autocast; for models that are trained.
        float32_unet: keep the UNet's weights in float32; for UNets that are trained.

    Raises:
        ModelError: if the folder cannot be loaded, or weights do not match their network.
    """
    folder = model.folder
    dtype = torch.float32 if float32_unet else _DTYPES[precision]
    unet = load_unet(folder / "unet", dtype=dtype)
    vae = load_vae(folder / "vae", dtype=_vae_dtype(precision))
    text_encoder = load_text_encoder(folder / "text_encoder")
    try:
        # Before transformers 5, only the fast tokenizer reads tokenizer.json.
        tokenizer = CLIPTokenizerFast.from_pretrained(folder / "tokenizer")
        scheduler_config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        _check_parts(folder, unet, text_encoder, tokenizer, scheduler_config)
    except LOADING_ERRORS as error:
        raise ModelError(f"{folder}: cannot be loaded: {error}") from None
    for network in (unet, vae, text_encoder):
        network.requires_grad_(False)
    _finish_in_float32(vae)
    if device.type == "cpu":
        for network in (unet, vae):
            normalize_small_maps_contiguously(network)
    return DiffusionModel(
        name=model.name,
        digest=model.digest,
        spec=model.spec,
        unet=unet.to(device, memory_format=torch.channels_last),
        vae=vae.to(device, memory_format=torch.channels_last),
        text_encoder=text_encoder.to(device),
        tokenizer=tokenizer,
        scheduler_config=scheduler_config,
        device=device,
        precision=precision,
        ace=None if model.ace is None else copy.deepcopy(model.ace).to(device),
        mixed=mixed,
    )


def _check_parts(
    folder: Path, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizerFast, scheduler: Any
) -> None:
    """Refuse what the libraries load without complaint and fail on later; limit the tokenizer to its encoder's length.

    Raises:
        ModelError: naming the file that cannot be used.
    """
    size = unet.config.sample_size
    if not isinstance(size, int):
        raise ModelError(f"{folder / 'unet' / 'config.json'}: sample_size {size}, expected one number (square latents)")
    config = folder / "scheduler" / "scheduler_config.json"
    if not isinstance(scheduler, dict):
        raise ModelError(f"{config}: not a scheduler's configuration, expected an object")
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in _PREDICTIONS:
        raise ModelError(f"{config}: prediction_type {kind!r}, expected {', '.join(_PREDICTIONS)}")
    DDIMScheduler.from_config(scheduler)  # may reject its betas
    positions = int(text_encoder.config.max_position_embeddings)
    tokenizer.model_max_length = min(int(tokenizer.model_max_length), positions)


def _vae_dtype(precision: Precision) -> torch.dtype:
    """Type of the autoencoder: bfloat16 or float32. In float16, those of Stable Diffusion are known to overflow."""
    return torch.bfloat16 if precision is Precision.BF16 else torch.float32


def _finish_in_float32(vae: AutoencoderKL) -> None:
    """Run the decoder's last convolution in float32: bfloat16 has 8 significant bits, an image has 12."""
    last = vae.decoder.conv_out
    last.to(torch.float32)
    last.register_forward_pre_hook(lambda _, inputs: tuple(value.float() for value in inputs))
