"""Continue training from a model folder whose checkpoints are gone."""

import shutil
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from cxrsynth.nano.build.export import FAMILIES_FOLDER, NUMBERS_FILE, SHARP_VAE, START
from cxrsynth.nano.build.training import log


def take_over(model: Path, work: Path) -> None:
    """Fill a work folder with the networks of a model folder, in float32; existing parts are kept.

    The decoder is taken as it is, whether trained against a discriminator or not: latents need the encoder only.

    Raises:
        OSError: if a network is missing.
    """
    for folder in ("vae", SHARP_VAE):
        if not (work / folder).is_dir():
            AutoencoderKL.from_pretrained(model, subfolder="vae").float().save_pretrained(work / folder)
    for folder in ("tokenizer", FAMILIES_FOLDER):
        if not (work / folder).is_dir():
            shutil.copytree(model / folder, work / folder)
    if not (work / START).is_dir():
        CLIPTextModel.from_pretrained(model / "text_encoder").float().save_pretrained(work / START / "text_encoder")
        UNet2DConditionModel.from_pretrained(model / "unet").float().save_pretrained(work / START / "unet")
        if (model / NUMBERS_FILE).is_file():
            shutil.copy(model / NUMBERS_FILE, work / START / NUMBERS_FILE)  # holds the training steps so far
    log.info("continuing from %s", model)
