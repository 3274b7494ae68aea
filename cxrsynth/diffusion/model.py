"""DiffusionModel: the networks of one Stable Diffusion folder, loaded from safetensors only."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from cxrsynth.diffusion.ace import ACE_CONFIG, ACE_FILE, AdaptiveConditionEmbedding, ConditionEmbedding, load_ace
from cxrsynth.diffusion.spec import ModelSpec, read_spec
from cxrsynth.diffusion.speed import normalise_small_maps_contiguously
from cxrsynth.errors import ModelError
from cxrsynth.runtime.files import file_sha256
from cxrsynth.settings import Device, Precision

_COMPONENTS = ("unet", "vae", "text_encoder")
_PARTS = (*_COMPONENTS, "tokenizer", "scheduler")
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


@dataclass(frozen=True)
class DiffusionModel:
    """A frozen bundle. `digest` is the SHA-256 over the folder's files; `dtype` is the networks' type.

    `ace`, where there is one, is added to the condition of every prompt.
    """

    name: str
    digest: str
    spec: ModelSpec
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    device: torch.device
    precision: Precision
    ace: ConditionEmbedding | None = None
    # Weights that are trained stay float32 while their forward passes run in `dtype`.
    mixed: bool = False
    # A fast tokenizer holds its padding as state: two threads at once get wrong tokens, or "Already borrowed".
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
        """Whether a text fits the tokenizer whole."""
        with self._tokenizer_lock:
            return len(self.tokenizer(text, verbose=False).input_ids) <= int(self.tokenizer.model_max_length)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of UNet and text encoder."""
        return _DTYPES[self.precision]

    def forward_context(self) -> torch.autocast:
        """What forward passes of the UNet run in: autocast to `dtype` for a `mixed` model, else nothing.

        No cache of cast weights: threads would share it.
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
        """Pixels on a side: latent size times the autoencoder's factor."""
        return self.latent_shape[1] * int(2 ** (len(self.vae.config.block_out_channels) - 1))


def find_model(name: str) -> Path:
    """Folder of a model: `nano`, a folder in Stable Diffusion layout, or a hub id (fetched, safetensors only).

    Raises:
        ModelError: if there is no such model, or its layout or weights cannot be used.
    """
    folder = Path(str(files("cxrsynth") / "nano" / "assets")) if name == "nano" else Path(name)
    if not folder.is_dir():
        folder = _from_hub(name)
    missing = [f"{part}/" for part in _PARTS if not (folder / part).is_dir()]
    if missing or not (folder / "model_index.json").is_file():
        raise ModelError(
            f"{folder}: not a Stable Diffusion folder, missing {', '.join(missing) or 'model_index.json'}\n"
            f"  expected: model_index.json and {', '.join(f'{p}/' for p in _PARTS)}"
        )
    for part in _COMPONENTS:
        if not list((folder / part).glob("*.safetensors")):
            raise ModelError(
                f"{folder / part}: no safetensors weights\n"
                "  weights load from safetensors only; convert pickled weights (.bin, .ckpt) with diffusers first"
            )
    return folder


def _from_hub(name: str) -> Path:
    """Download a hub repository's configs and safetensors; a plain path that does not exist is not tried."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"--model {name}: no such folder\n  expected: nano, a model folder, or a hub id owner/name")
    wanted = [f"{part}/*{end}" for part in _PARTS for end in (".json", ".txt", ".safetensors")]
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", *wanted]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"--model {name}: no such folder, and not fetched from the hub ({type(error).__name__})\n"
            "  expected: nano, a model folder, or a hub id owner/name that can be reached"
        ) from None


def model_digest(folder: Path, ace: Path | None = None) -> str:
    """SHA-256 over names and contents of all files that decide what the model makes.

    Args:
        folder: of the model.
        ace: embeddings used in place of those in the folder.
    """
    total = hashlib.sha256()
    kept = [p for part in _PARTS for p in (folder / part).iterdir() if p.suffix in (".json", ".txt", ".safetensors")]
    kept += [p for p in (folder / "model_index.json", folder / "cxrsynth.json") if p.exists()]
    for path in sorted(kept):
        total.update(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n".encode())
    own = ace if ace is not None else folder
    own = own if own.is_dir() else own.parent
    for name in (ACE_FILE, ACE_CONFIG):
        if (own / name).is_file():
            total.update(f"{name} {file_sha256(own / name)}\n".encode())
    return total.hexdigest()


def choose_device(device: Device, *, local_rank: int = 0) -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU. Raises ModelError if the named device is absent."""
    present = {Device.CUDA: torch.cuda.is_available(), Device.MPS: torch.backends.mps.is_available(), Device.CPU: True}
    if device is Device.AUTO:
        device = next(d for d, here in present.items() if here)
    if not present[device]:
        raise ModelError(f"--device {device.value}: not available here\n  use: --device auto, or cpu")
    return torch.device(device.value, local_rank) if device is Device.CUDA else torch.device(device.value)


def choose_precision(precision: Precision, device: torch.device) -> Precision:
    """`auto` takes bfloat16 where the hardware multiplies it, else float16 on CUDA, else float32."""
    if precision is Precision.FP16 and device.type == "cpu":
        raise ModelError("--precision fp16: not supported on the CPU\n  use: bf16, fp32 or auto")
    if precision is not Precision.AUTO:
        return precision
    if device.type == "cuda":
        return Precision.BF16 if torch.cuda.is_bf16_supported() else Precision.FP16
    fast = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return Precision.BF16 if fast else Precision.FP32


def load_model(
    name: str,
    *,
    device: torch.device,
    precision: Precision,
    ace: Path | None = None,
    mixed: bool = False,
    float32_unet: bool = False,
) -> DiffusionModel:
    """Load a model folder; all networks in eval mode, `channels_last`, without gradients.

    Args:
        name: `nano`, a folder in Stable Diffusion layout, or a hub id.
        device: where the networks go.
        precision: their type; see `_vae_dtype` for the autoencoder's.
        ace: file or folder of adaptive condition embeddings; None takes those in the model's folder, if any.
        mixed: run the UNet under autocast; for models that are trained.
        float32_unet: keep the UNet's weights in float32: those that are trained.

    Raises:
        ModelError: if the folder or its weights cannot be used.
    """
    folder = find_model(name)
    spec = read_spec(folder)
    dtype = torch.float32 if float32_unet else _DTYPES[precision]
    embeddings = find_ace(folder, ace)
    try:
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True, torch_dtype=dtype)
        vae = AutoencoderKL.from_pretrained(folder / "vae", use_safetensors=True, torch_dtype=_vae_dtype(precision))
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True, dtype=torch.float32)
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        scheduler_config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        _check_parts(folder, unet, text_encoder, tokenizer, scheduler_config)
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        TypeError,
        AttributeError,
        SafetensorError,
    ) as error:  # of the libraries, by what is wrong in a folder's files
        raise ModelError(f"{folder}: cannot be loaded: {error}") from None
    for network in (unet, vae, text_encoder):
        network.eval().requires_grad_(False)
    _finish_in_float32(vae)
    if device.type == "cpu":
        for network in (unet, vae):
            normalise_small_maps_contiguously(network)
    return DiffusionModel(
        name=spec.name or folder.resolve().name,
        digest=model_digest(folder, ace),
        spec=spec,
        unet=unet.to(device, memory_format=torch.channels_last),
        vae=vae.to(device, memory_format=torch.channels_last),
        text_encoder=text_encoder.to(device),
        tokenizer=tokenizer,
        scheduler_config=scheduler_config,
        device=device,
        precision=precision,
        ace=None if embeddings is None else embeddings.to(device),
        mixed=mixed,
    )


def _check_parts(
    folder: Path, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, scheduler: Any
) -> None:
    """What the libraries load without a word and fail on later. A tokenizer longer than its encoder is shortened to it.

    Raises:
        ModelError: for what cannot be used, by its file.
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
    DDIMScheduler.from_config(scheduler)  # may refuse its betas
    positions = int(text_encoder.config.max_position_embeddings)
    tokenizer.model_max_length = min(int(tokenizer.model_max_length), positions)


def find_ace(folder: Path, ace: Path | None) -> AdaptiveConditionEmbedding | None:
    """The embeddings asked for, else those in a model's folder; None where there are none.

    Raises:
        ModelError: if they cannot be read, or are of another size than the model's text embeddings.
    """
    if ace is None and not (folder / ACE_FILE).is_file():
        return None
    found = load_ace(folder if ace is None else ace)
    try:
        text = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
        width, length = int(text["hidden_size"]), int(text["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{folder / 'text_encoder'}: config.json does not tell the text encoder's size") from None
    if found.blocks.shape[2] != width or found.tokens > length:
        raise ModelError(
            f"{ace or folder}: embeddings of {found.tokens} positions and width {found.blocks.shape[2]}, the model's"
            f" text encoder has {length} and {width}\n  expected: embeddings tuned with this model"
        )
    return found


def _vae_dtype(precision: Precision) -> torch.dtype:
    """The autoencoder follows bfloat16 only: in float16 those of Stable Diffusion are known to overflow."""
    return torch.bfloat16 if precision is Precision.BF16 else torch.float32


def _finish_in_float32(vae: AutoencoderKL) -> None:
    """Run the decoder's last convolution in float32: bfloat16 output has 8 significant bits, an image 12."""
    last = vae.decoder.conv_out
    last.to(torch.float32)
    last.register_forward_pre_hook(lambda _, inputs: tuple(value.float() for value in inputs))
