"""The autoencoder that near-duplicates of kind `autoencoded` are planted with: the generator's where it is known."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from torch import Tensor

from cxrsynth import console
from cxrsynth.diffusion.networks import encoded_mean, load_vae
from cxrsynth.diffusion.resolve import ResolvedModel, resolve_model
from cxrsynth.errors import ModelError
from cxrsynth.shards.plan import as_generated

_STAND_IN = "nano"


@dataclass(frozen=True)
class Autoencoder:
    """Images through a latent diffusion model's autoencoder: what that model's copy of an image would look like.

    `is_generator` is True where `digest` is that of the model in the manifest of the audited images, None where the
    model was named with --model but the manifest does not confirm it, False for a stand-in.
    """

    model: str
    digest: str
    is_generator: bool | None
    device: torch.device
    vae: AutoencoderKL | AutoencoderDC | AutoencoderTiny = field(repr=False)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Gray images [B, 1, H, W] in [0, 1] -> the same; where the autoencoder has three channels, their mean."""
        vae = self.vae.to(self.device)
        pixels = (images.to(self.device) * 2 - 1).expand(-1, int(vae.config.in_channels), -1, -1)
        decoded: Tensor = vae.decode(encoded_mean(vae.encode(pixels))).sample
        return (decoded.mean(1, keepdim=True).cpu() / 2 + 0.5).clamp(0, 1)

    def as_json(self) -> dict[str, Any]:
        """What summary.json says of it."""
        return {"model": self.model, "digest": self.digest, "is_generator": self.is_generator}


def load_autoencoder(generator: str | None, manifest: Mapping[str, Any] | None, device: torch.device) -> Autoencoder:
    """The autoencoder of the generator named by --model, else nano's.

    Args:
        generator: a model as `generate --model` takes it.
        manifest: of the audited images, if they have one; it records the generator's name and digest.
        device: where it runs; it is kept on the CPU until then.

    Raises:
        ModelError: if the model cannot be loaded.
    """
    recorded = recorded_model(manifest or {})
    model = _resolve(generator)
    if model.family.in_pixels:
        raise ModelError(
            f"--model {generator}: a model in pixel space, which has no autoencoder\n"
            "  leave it out, or audit against the reference and attack the model in two runs"
        )
    confirmed = model.digest == recorded.get("digest")
    if generator is not None and recorded and not confirmed:
        console.warn(
            f"--model {generator}: not the model in the manifest of the audited images\n"
            f"  found: digest {model.digest}\n  expected: {recorded.get('name')}, digest {recorded.get('digest')}\n"
            "  near-duplicates will be planted with the autoencoder of the model you named"
        )
    return Autoencoder(
        model=model.name,
        digest=model.digest,
        is_generator=True if confirmed else None if generator is not None else False,
        device=device,
        vae=load_vae(model.folder / "vae").requires_grad_(False),
    )


def recorded_model(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """Name and digest of the generator; of kept images, the manifest of the set they came from records it."""
    model = (as_generated(manifest).get("plan") or {}).get("model")
    return model if isinstance(model, Mapping) else {}


def _resolve(generator: str | None) -> ResolvedModel:
    return resolve_model(generator or _STAND_IN, option="--model")
