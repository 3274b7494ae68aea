"""The denoiser: UNet and CLIP text encoder, trained together on cached latents of augmented images."""

import math
import random
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cxrsynth.diffusion.networks import load_unet
from cxrsynth.nano.build.autoencoder import encode_mean
from cxrsynth.nano.build.config import DenoiserSettings, TextSettings
from cxrsynth.nano.build.images import SMALL_GROUPS, Radiograph, caption
from cxrsynth.nano.build.phrases import every_phrase, varied_text
from cxrsynth.nano.build.training import (
    PartGradients,
    forward_context,
    load_state,
    log,
    save_state,
    step_generator,
    warmup_stable_decay,
)
from cxrsynth.reports.prompt import every_canonical_sentence
from cxrsynth.runtime.clip import load_text_encoder
from cxrsynth.runtime.warps import compose, warp, warp_matrices


def make_scheduler() -> DDIMScheduler:
    """DDIM, v-prediction, zero terminal SNR, trailing steps (Lin et al., arXiv:2305.08891)."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
    )


def make_sampler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ on the same schedule, which ends at the lowest noise level of training, not at zero.

    A last step to zero noise averages over everything that could be there, and images come out too smooth.
    """
    sampler: DPMSolverMultistepScheduler = DPMSolverMultistepScheduler.from_config(
        make_scheduler().config, final_sigmas_type="sigma_min"
    )
    return sampler


def make_tokenizer(settings: TextSettings) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer, with merges learned from canonical sentences and the grammar's phrases."""
    base = CLIPTokenizer(model_max_length=settings.max_tokens)
    return base.train_new_from_iterator(
        [every_canonical_sentence(), every_phrase()], vocab_size=settings.vocab_size, show_progress=False
    )


def make_text_encoder(settings: TextSettings, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Untrained text encoder for this tokenizer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.width,
            intermediate_size=2 * settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            max_position_embeddings=settings.max_tokens,
            projection_dim=settings.width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_unet(
    settings: DenoiserSettings, *, latent_channels: int, latent_size: int, width: int
) -> UNet2DConditionModel:
    """Untrained UNet; cross-attention at all levels but the first."""
    lower = len(settings.channels) - 1
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=settings.channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * lower,
        up_block_types=("CrossAttnUpBlock2D",) * lower + ("UpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=32,
    )


# Marks training images of 64 x 64 pixels in their prompt; `generate` never uses it.
SMALL_SENTENCE = "Low resolution."


class Networks(nn.Module):
    """The networks that the denoising loss trains."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """[B, C, h, w], [B], [B, L] -> predicted velocity [B, C, h, w]."""
        condition = self.text_encoder(tokens).last_hidden_state  # [B, L, D]
        return self.unet(noisy, timesteps, condition).sample  # type: ignore[no-any-return]


def cache_latents(
    pixels: Tensor, frames: Tensor, vae: AutoencoderKL, path: Path, *, settings: DenoiserSettings, seed: int
) -> Tensor:
    """Latents of `variants` views of each image in its canonical frame, float16 [N, V, C, h, w].

    The first view is the frame itself, the others are shifted, scaled and rotated a little. No flips: the heart would
    change sides.

    Args:
        pixels: uint8 [N, 1, H, W].
        frames: matrices [N, 2, 3] of the canonical frames.
        vae: the trained autoencoder.
        path: file of the latents, read if it exists.
        settings: number and extent of the views.
        seed: of the augmentation.
    """
    if path.exists():
        return load_file(path)["latents"]
    views = []
    for variant in range(settings.variants):
        view_frames = frames
        if variant:
            view_frames = compose(frames, _small_moves(len(frames), settings, step_generator(seed, variant)))
        parts = zip(pixels.split(256), view_frames.split(256), strict=True)
        shown = (warp(part.float() / 255.0, m, mode="bicubic").clamp(0, 1) * 2 - 1 for part, m in parts)
        views.append(torch.cat([encode_mean(vae, part) for part in shown]).half())
        log.info("latents: view %d of %d", variant + 1, settings.variants)
    latents = torch.stack(views, dim=1)
    save_file({"latents": latents}, path)
    return latents


def _small_moves(count: int, settings: DenoiserSettings, rng: torch.Generator) -> Tensor:
    """Matrices [count, 2, 3] of random small shifts, zooms and rotations."""
    reach = torch.tensor([2 * settings.shift, 2 * settings.shift, settings.zoom, math.radians(settings.rotation_deg)])
    shift_x, shift_y, log_scale, angle = ((torch.rand(count, 4, generator=rng) * 2 - 1) * reach).unbind(-1)
    return warp_matrices(torch.stack((shift_x, shift_y, log_scale, log_scale, angle), -1))


def train_denoiser(
    radiographs: list[Radiograph],
    latents: Tensor,
    tokenizer: CLIPTokenizer,
    work: Path,
    *,
    settings: DenoiserSettings,
    text: TextSettings,
    seed: int,
    save_every: int,
    parts: int,
    start: Path | None = None,
) -> Networks:
    """Minimize the velocity error; returns the networks with their averaged (EMA) weights.

    Args:
        radiographs: the images of `latents`, in the same order.
        latents: [N, V, C, h, w], zero mean and unit variance per channel.
        tokenizer: made by `make_tokenizer`.
        work: folder of the checkpoint `denoiser.pt`, from which the run resumes.
        start: folder of a trained UNet and text encoder, which train for `more_steps` instead of `steps`.

    Source: Salimans and Ho, arXiv:2202.00512, appendix D (velocity).
    """
    torch.manual_seed(seed)
    scheduler = make_scheduler()
    unet = make_unet(settings, latent_channels=latents.shape[2], latent_size=latents.shape[-1], width=text.width)
    networks = Networks(unet, make_text_encoder(text, tokenizer)).train()
    steps = settings.steps
    if start is not None:
        networks.unet.load_state_dict(load_unet(start / "unet").state_dict())
        networks.text_encoder.load_state_dict(load_text_encoder(start / "text_encoder").state_dict())
        steps = settings.more_steps
    networks.unet.set_attn_processor(AttnProcessor())  # torch's fused attention trains a tenth slower on a CPU
    averaged = _EMA(networks, settings.ema_decay)
    optimizer = torch.optim.AdamW(
        networks.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    checkpoint = work / "denoiser.pt"
    first = load_state(checkpoint, optimizer=optimizer, networks=networks, averaged=averaged)
    averaged.ema.optimization_step = first
    weights = sampling_weights(radiographs)
    weights *= torch.tensor([settings.share.get(radiograph.group, 1.0) for radiograph in radiographs])
    captions = _sized(radiographs, _captions(radiographs, tokenizer, settings, seed))
    tokens, empty = _tokens(captions, tokenizer), _tokens([[""]], tokenizer)
    gradients, parameters = PartGradients(parts), list(networks.parameters())

    def loss(noisy: Tensor, timesteps: Tensor, words: Tensor, target: Tensor) -> Tensor:
        with forward_context():
            predicted = networks(noisy, timesteps, words)
        return F.mse_loss(predicted.float(), target)

    started, losses = time.monotonic(), 0.0
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * warmup_stable_decay(step, steps=steps)
        rng = step_generator(seed + 1, step)
        size = settings.batch_size
        radiograph = torch.multinomial(weights, size, replacement=True, generator=rng)
        view = torch.randint(latents.shape[1], (size,), generator=rng)
        phrase = torch.randint(tokens.shape[1], (size,), generator=rng)
        blank = torch.rand(size, generator=rng) < settings.unconditional
        clean = latents[radiograph, view].float()  # [B, C, h, w]
        noise = torch.randn(clean.shape, generator=rng)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (size,), generator=rng)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        target = scheduler.get_velocity(clean, noise, timesteps)
        words = torch.where(blank[:, None], empty[0, 0], tokens[radiograph, phrase])  # [B, L]
        losses += gradients(loss, (noisy, timesteps, words, target), parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        averaged.ema.step(networks.parameters())
        if (step + 1) % 100 == 0:
            rate = (step + 1 - first) * size / (time.monotonic() - started)
            log.info("denoiser %d/%d loss %.4f, %.1f images/s", step + 1, steps, losses / 100, rate)
            losses = 0.0
        if (step + 1) % save_every == 0 or step + 1 == steps:
            save_state(checkpoint, step=step + 1, optimizer=optimizer, networks=networks, averaged=averaged)
    averaged.ema.copy_to(networks.parameters())
    return networks.eval()


def sampling_weights(radiographs: list[Radiograph], *, most: float = 4.0) -> Tensor:
    """Sampling weight of each image, [N]: rare findings and age groups weigh more, by the root of their rarity.

    The rarest attribute of an image decides; no image weighs more than `most` times as much as another.
    """
    shown = [(radiograph.subject.age_group, radiograph.subject.view, *radiograph.present) for radiograph in radiographs]
    counts = Counter(thing for things in shown for thing in set(things))
    rarest = torch.tensor([min(counts[thing] for thing in things) for things in shown], dtype=torch.float64)
    return (rarest.max() / rarest).sqrt().clamp(max=most)


class _EMA(nn.Module):
    """diffusers' EMAModel with its weights in a state_dict, which torch loads with `weights_only`."""

    def __init__(self, networks: nn.Module, decay: float) -> None:
        super().__init__()
        self.ema = EMAModel(networks.parameters(), decay=decay, use_ema_warmup=True, power=0.75)
        self.shadow = nn.ParameterList(nn.Parameter(p, requires_grad=False) for p in self.ema.shadow_params)
        self.ema.shadow_params = list(self.shadow)


def _captions(
    radiographs: list[Radiograph], tokenizer: CLIPTokenizer, settings: DenoiserSettings, seed: int
) -> list[list[str]]:
    """`settings.captions` texts of each image: canonical prompts, and a share in the wording of the grammar."""
    rng = random.Random(seed)

    def fits(text: str) -> bool:
        tokens: list[int] = tokenizer(f"{text} {SMALL_SENTENCE}").input_ids
        return len(tokens) <= int(tokenizer.model_max_length)

    def one(radiograph: Radiograph) -> str:
        text = varied_text(radiograph, rng) if rng.random() < settings.varied else ""
        # A text that would be cut loses information; the canonical prompt is short.
        return text if text and fits(text) else caption(radiograph, rng)

    return [[one(radiograph) for _ in range(settings.captions)] for radiograph in radiographs]


def _sized(radiographs: list[Radiograph], captions: list[list[str]]) -> list[list[str]]:
    """Mark the captions of small images, as size conditioning does (Podell et al., arXiv:2307.01952)."""
    return [
        [" ".join(filter(None, (text, SMALL_SENTENCE))) for text in texts]
        if radiograph.group in SMALL_GROUPS
        else texts
        for radiograph, texts in zip(radiographs, captions, strict=True)
    ]


def _tokens(texts: list[list[str]], tokenizer: CLIPTokenizer) -> Tensor:
    """Token ids [N, captions, L]; longer texts are cut."""
    flat = [text for several in texts for text in several]
    encoded: Tensor = tokenizer(flat, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return encoded.view(len(texts), -1, encoded.shape[-1])
