"""DiffusionModel: the networks of one model folder, loaded from safetensors only."""

import copy
import platform
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from cxrsynth.diffusion.ace import ConditionEmbedding, check_ace
from cxrsynth.diffusion.additions import apply_additions
from cxrsynth.diffusion.condition import Condition
from cxrsynth.diffusion.families.base import Components, Family, spatial_factor
from cxrsynth.diffusion.networks import load_denoiser, load_encoder, load_tokenizer, load_vae
from cxrsynth.diffusion.resolve import ResolvedModel
from cxrsynth.diffusion.schedule import NoiseSchedule, noise_schedule
from cxrsynth.diffusion.spec import ModelSpec
from cxrsynth.diffusion.speed import normalize_small_maps_contiguously
from cxrsynth.errors import LaunchError, ModelError
from cxrsynth.runtime.pretrained import LOADING_ERRORS, reason
from cxrsynth.settings import Device, Precision

# RoBERTa and its kin count positions from behind the padding token's number.
_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl")
_UNLIMITED = 100_000  # tokenizers without a limit say 1e30
_DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


@dataclass(frozen=True)
class DiffusionModel:
    """The networks of one model, with what is known of them. `name`, `digest` and `spec` are those of `ResolvedModel`.

    `denoiser` is the UNet or transformer that predicts noise. `dtype` is the type it runs in. `ace`, if present, is
    added to the condition of every prompt. `negative_prompt` is what guidance leads away from.
    """

    name: str
    digest: str
    spec: ModelSpec
    family: Family
    denoiser: Any
    components: Components
    device: torch.device
    precision: Precision
    ace: ConditionEmbedding | None = None
    # Trained weights stay in float32 while forward passes run in `dtype`.
    mixed: bool = False
    negative_prompt: str = field(default="", repr=False)
    # A fast tokenizer keeps its padding as state: two threads at once get wrong tokens, or "Already borrowed".
    _tokenizer_lock: Any = field(default_factory=threading.RLock, repr=False)

    @property
    def vae(self) -> Any:
        """The autoencoder; None in pixel space."""
        return self.components.vae

    def encode(self, prompts: Sequence[str]) -> tuple[Condition, Condition]:
        """Conditions of B prompts, and of the negative prompt, which may be empty (B = 1); long prompts are cut.

        In the denoiser's type.
        """
        with self._tokenizer_lock:
            encoded = self.family.encode(self._pipeline, prompts, negative=self.negative_prompt)
        return self._cast(encoded[0]), self._cast(encoded[1])

    @property
    def any_prompt(self) -> str:
        """A prompt that the model takes, for what does not depend on it."""
        return self.spec.classes[0] if self.spec.classes else "chest"

    def fits(self, text: str) -> bool:
        """Whether the tokenizers take a text without cutting it."""
        with self._tokenizer_lock:
            given = self.family.tokenized(self._pipeline, text)
            limiting = self.family.limiting
            return all(
                len(tokenizer(given, verbose=False).input_ids) <= self._longest(tokenizer)
                for part, tokenizer in self.components.tokenizers.items()
                if limiting is None or part in limiting
            )

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """The denoiser's prediction without guidance, [B, C, h, w] float32; arguments as for `Family.predict`."""
        shown = latents.to(self.dtype, memory_format=torch.channels_last)
        with self.forward_context():
            return self.family.predict(self.denoiser, shown, timesteps, condition).float()

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """The noise levels of training."""
        return noise_schedule(self.scheduler_config, self.device)

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """Content of `scheduler_config.json`."""
        return self.components.scheduler_config

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the denoiser and its condition."""
        return _DTYPES[self.precision]

    def forward_context(self) -> torch.autocast:
        """Context for forward passes of the denoiser: autocast to `dtype` for a `mixed` model, otherwise none.

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
        return self.family.latent_shape(self.denoiser, self.components)

    @property
    def takes_guidance(self) -> bool:
        """Whether the guidance scale is an input of the denoiser, in place of classifier-free guidance."""
        return self.family.takes_guidance(self.denoiser)

    @property
    def training_guidance(self) -> float:
        """The scale to learn at: none, or the one the model is used at, where it is an input."""
        return self.spec.defaults.guidance if self.takes_guidance else 1.0

    @property
    def image_shape(self) -> tuple[int, int]:
        """(H, W) in pixels: the latents' times the factor of the autoencoder."""
        _, height, width = self.latent_shape
        factor = spatial_factor(self.vae)
        return height * factor, width * factor

    @cached_property
    def _pipeline(self) -> Any:
        return self.family.pipeline(self.denoiser, self.components)

    def _longest(self, tokenizer: Any) -> int:
        """Tokens that one tokenizer may give."""
        own = int(tokenizer.model_max_length)
        longest = self.family.longest_prompt(self.components)
        return own if longest is None else min(own, longest)

    def _cast(self, condition: Condition) -> Condition:
        """Numbers in the denoiser's type; masks, which are whole numbers, as they are."""
        return Condition(
            {
                name: tensor.to(self.device, self.dtype) if tensor.is_floating_point() else tensor.to(self.device)
                for name, tensor in condition.tensors.items()
            }
        )


def choose_device(device: Device, *, local_rank: int = 0, option: str = "--device") -> torch.device:
    """The device to use: `auto` prefers CUDA, then Apple's MPS, then the CPU.

    Args:
        device: as asked for.
        local_rank: of this process, which has the GPU of that number.
        option: what asked for it, for messages: an option, or the key of a recipe.

    Raises:
        ModelError: if the named device is not available.
        LaunchError: if there is no GPU for this process.
    """
    present = {Device.CUDA: torch.cuda.is_available(), Device.MPS: torch.backends.mps.is_available(), Device.CPU: True}
    if device is Device.AUTO:
        device = next(d for d, here in present.items() if here)
    if not present[device]:
        raise ModelError(f"{option} {device.value}: not available here\n  use: {option} auto, or cpu")
    if device is Device.CUDA and local_rank >= (count := torch.cuda.device_count()):
        raise LaunchError(
            f"environment: LOCAL_RANK={local_rank}\n"
            f"  expected: a rank below the number of GPUs that this process sees, which is {count}\n"
            f"  start one process a GPU at most, and let each see them all, or use: {option} cpu"
        )
    return torch.device(device.value, local_rank) if device is Device.CUDA else torch.device(device.value)


def choose_precision(precision: Precision, device: torch.device) -> Precision:
    """The precision to use: `auto` is bfloat16 where that is faster, else float16 on CUDA, else float32.

    Raises:
        ModelError: for float16 on a CPU.
    """
    if precision is Precision.FP16 and device.type == "cpu":
        raise ModelError("--precision fp16: not supported on the CPU\n  use: bf16, fp32 or auto")
    if precision is not Precision.AUTO:
        return precision
    if device.type == "cuda":
        # Older cards emulate bfloat16, many times slower than they multiply float16.
        return Precision.BF16 if torch.cuda.is_bf16_supported(including_emulation=False) else Precision.FP16
    return Precision.BF16 if device.type == "cpu" and _bfloat16_pays() else Precision.FP32


def _bfloat16_pays() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32.

    Intel's processors with AMX do so with AMX only: where a virtual machine hides it, the AVX-512 instructions that are
    left take 1.4 to 1.5 times as long for nano's UNet as float32. They are told by float16, which came with AMX.
    """
    if not getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
        return False
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("amx_bf16") or not known.get("avx512_fp16"))


def hardware_name(device: torch.device) -> str:
    """What the last bits of an image depend on beside software: the name of the card, or the CPU's instruction set.

    With its units for bfloat16, where torch says which it has. CPUs of different makers with the same instruction set
    have the same name.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    unit = "CPU" if device.type == "cpu" else device.type.upper()
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    units = [name for name in ("avx512_bf16", "amx_bf16") if known.get(name)]
    return ", ".join([f"{platform.machine()} {unit}", torch.backends.cpu.get_cpu_capability(), *units])


def load_model(
    model: ResolvedModel,
    *,
    device: torch.device,
    precision: Precision,
    mixed: bool = False,
    float32_denoiser: bool = False,
    negative_prompt: str | None = None,
) -> DiffusionModel:
    """Load the networks of a model: in eval mode, `channels_last`, without gradients.

    Args:
        model: from `resolve_model`. Its embeddings are copied, so one resolved model can be loaded many times.
        device: where the networks go.
        precision: their type; see `_vae_dtype` for the autoencoder's.
        mixed: run the denoiser under autocast; for models that are trained.
        float32_denoiser: keep the denoiser's weights in float32; for those that are trained.
        negative_prompt: what guidance leads away from; None for the one that the model's folder names.

    Raises:
        ModelError: if the folder cannot be loaded, weights do not match their network, or the negative prompt has more
            tokens than the text encoder takes.
    """
    dtype = torch.float32 if float32_denoiser else _DTYPES[precision]
    denoiser, components = _load_parts(model, precision, dtype)
    _place(denoiser, components, device)
    loaded = DiffusionModel(
        name=model.name,
        digest=model.digest,
        spec=model.spec,
        family=model.family,
        denoiser=denoiser,
        components=components,
        device=device,
        precision=precision,
        ace=None if model.ace is None else copy.deepcopy(model.ace).to(device),
        mixed=mixed,
        negative_prompt=model.spec.negative_prompt if negative_prompt is None else negative_prompt,
    )
    _check_negative_prompt(loaded, model.folder)
    if model.ace is not None:
        check_ace(model.ace, model.folder, *loaded.encode([""])[0].text.shape[1:])
    return loaded


def _load_parts(model: ResolvedModel, precision: Precision, dtype: torch.dtype) -> tuple[Any, Components]:
    """Denoiser, in `dtype`, and the other parts on the CPU: with what is laid over them, and known to fit each other.

    Raises:
        ModelError: if a part cannot be loaded, or does not fit the others.
    """
    family, folders, laid_over = model.family, model.folders, model.additions
    encoder_dtype = _DTYPES[precision] if family.large_encoders else torch.float32
    merging = bool(laid_over.loras or laid_over.embeddings)  # in float32, so that nothing is rounded twice
    denoiser = load_denoiser(folders[family.denoiser], family, dtype=torch.float32 if merging else dtype)
    components = Components(
        vae=None if family.in_pixels else load_vae(folders["vae"], dtype=_vae_dtype(precision)),
        encoders={
            part: load_encoder(folders[part], dtype=torch.float32 if merging else encoder_dtype)
            for part in model.parts
            if part in family.encoders
        },
        tokenizers={
            part: load_tokenizer(folders[part], named=_class_of(model.index, part))
            for part in model.parts
            if part in family.tokenizers
        },
        scheduler_config=model.scheduler_config(),
        spec=model.spec,
        folders=folders,
        index=model.index,
    )
    _check_finite(denoiser, components, family)
    _limit_tokenizers(model.folder, components)
    if merging:
        apply_additions(laid_over, family, family.pipeline(denoiser, components))
        denoiser.to(dtype)
        for encoder in components.encoders.values():
            encoder.to(encoder_dtype)
    try:
        family.check(denoiser, components)
        family.pipeline(denoiser, components)  # may correct the network's configuration, which all else reads
    except LOADING_ERRORS as error:
        raise ModelError(f"{model.folder}: cannot be loaded: {reason(error)}") from None
    return denoiser, components


def _place(denoiser: Any, components: Components, device: torch.device) -> None:
    """Move the networks to the device: convolutional ones `channels_last`, all of them without gradients."""
    convolutional = [denoiser] if components.vae is None else [denoiser, components.vae]
    for network in (*convolutional, *components.encoders.values()):
        network.requires_grad_(False)
    if components.vae is not None:
        _finish_in_float32(components.vae)
    for network in convolutional:
        if device.type == "cpu":
            normalize_small_maps_contiguously(network)
        network.to(device, memory_format=torch.channels_last)
    for encoder in components.encoders.values():
        encoder.to(device)


def _check_negative_prompt(loaded: DiffusionModel, folder: Path) -> None:
    if loaded.negative_prompt and loaded.takes_guidance:
        raise ModelError(
            f"{folder}: a negative prompt, but the model takes its guidance as an input and has no use for one\n"
            "  leave the negative prompt out"
        )
    if loaded.negative_prompt and not loaded.fits(loaded.negative_prompt):
        raise ModelError(f"{folder}: the negative prompt has more tokens than the text encoder takes\n  shorten it")


def _class_of(index: Mapping[str, Any], part: str) -> str | None:
    """The class that the index gives a part of transformers, `["transformers", "BertTokenizer"]`."""
    kind = index.get(part)
    return str(kind[1]) if isinstance(kind, list) and len(kind) == 2 and kind[1] is not None else None


def _check_finite(denoiser: Any, components: Components, family: Family) -> None:
    """Refuse weights that are not numbers: their images are found to be black or gray much later, if at all.

    Raises:
        ModelError: naming the folder and the tensor.
    """
    networks = {family.denoiser: denoiser, **components.encoders}
    if components.vae is not None:
        networks["vae"] = components.vae
    for part, network in networks.items():
        for name, weight in network.named_parameters():
            if weight.numel() and not all(torch.isfinite(end) for end in torch.aminmax(weight.detach())):
                raise ModelError(
                    f"{components.folders[part]}: {name} holds values that are not finite numbers\n"
                    "  expected: an undamaged file; half precision may have overflowed when it was saved"
                )


def _limit_tokenizers(folder: Path, components: Components) -> None:
    """Limit each tokenizer to the positions its encoder has.

    Raises:
        ModelError: if neither says how many there are.
    """
    for (part, tokenizer), encoder in zip(components.tokenizers.items(), components.encoders.values(), strict=True):
        config = encoder.config
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and config.model_type in _POSITIONS_AFTER_PADDING:
            positions -= int(config.pad_token_id) + 1
        limit = tokenizer.model_max_length
        if not isinstance(limit, int | float) or not limit >= 2:  # NaN is no limit, either
            raise ModelError(
                f"{folder / part / 'tokenizer_config.json'}: model_max_length {limit!r}\n"
                "  expected: the number of tokens that the model was trained with"
            )
        longest = int(min(limit, _UNLIMITED if positions is None else int(positions)))
        if longest >= _UNLIMITED:
            raise ModelError(
                f"{folder / part / 'tokenizer_config.json'}: no model_max_length, and the text encoder has no limit\n"
                "  expected: the number of tokens that the model was trained with"
            )
        tokenizer.model_max_length = longest
        if tokenizer.pad_token is None:
            raise ModelError(
                f"{folder / part}: the tokenizer has no padding token, which batches of prompts need\n"
                "  expected: pad_token in its tokenizer_config.json, the one that the model was trained with"
            )
        known = encoder.get_input_embeddings().num_embeddings
        if len(tokenizer) > known:
            raise ModelError(
                f"{folder / part}: {len(tokenizer)} tokens, but the text encoder has embeddings for {known}\n"
                "  expected: the tokenizer that the text encoder was trained with; words of textual inversion go with"
                " --embeddings"
            )


def _vae_dtype(precision: Precision) -> torch.dtype:
    """Type of the autoencoder: bfloat16 or float32. In float16, those of Stable Diffusion are known to overflow."""
    return torch.bfloat16 if precision is Precision.BF16 else torch.float32


def _finish_in_float32(vae: Any) -> None:
    """Run the decoder's last convolution in float32: bfloat16 has 8 significant bits, an image has 12."""
    last = vae.decoder.layers[-1] if isinstance(vae, AutoencoderTiny) else vae.decoder.conv_out
    last.to(torch.float32)
    last.register_forward_pre_hook(lambda _, inputs: tuple(value.float() for value in inputs))
