"""Going on from a model folder that is there already, where the checkpoints it came from are not."""

import shutil
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from cxrsynth.nano.build.export import JUDGES, NUMBERS_FILE, SHARP_VAE, START
from cxrsynth.nano.build.training import log


def take_over(model: Path, work: Path) -> None:
    """Fill a work folder with the networks of a model folder, in float32; what the work folder has stays.

    The autoencoder comes with its decoder as it is, trained against a discriminator or not: latents need the encoder
    alone.

    Raises:
        OSError: if a part is missing.
    """
    for folder in ("vae", SHARP_VAE):
        if not (work / folder).is_dir():
            AutoencoderKL.from_pretrained(model, subfolder="vae").float().save_pretrained(work / folder)
    for folder in ("tokenizer", JUDGES):
        if not (work / folder).is_dir():
            shutil.copytree(model / folder, work / folder)
    if not (work / START).is_dir():
        CLIPTextModel.from_pretrained(model / "text_encoder").float().save_pretrained(work / START / "text_encoder")
        UNet2DConditionModel.from_pretrained(model / "unet").float().save_pretrained(work / START / "unet")
        if (model / NUMBERS_FILE).is_file():
            shutil.copy(model / NUMBERS_FILE, work / START / NUMBERS_FILE)  # tells how long it learned already
    log.info("going on from %s", model)
