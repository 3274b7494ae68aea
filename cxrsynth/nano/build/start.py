"""Continue training from a model folder whose checkpoints are gone."""

import shutil
from pathlib import Path

from cxrsynth.diffusion.networks import load_unet, load_vae
from cxrsynth.nano.build.export import FAMILIES_FOLDER, NUMBERS_FILE, SHARP_VAE, START
from cxrsynth.nano.build.training import log
from cxrsynth.runtime.clip import load_text_encoder


def take_over(model: Path, work: Path) -> None:
    """Fill a work folder with the networks of a model folder, in float32; existing parts are kept.

    The decoder is taken as it is, whether trained against a discriminator or not: latents need the encoder only.

    Raises:
        ModelError: if a network is missing, or its weights do not match it.
        OSError: if a file is missing or cannot be written.
    """
    for folder in ("vae", SHARP_VAE):
        if not (work / folder).is_dir():
            load_vae(model / "vae").save_pretrained(work / folder)
    for folder in ("tokenizer", FAMILIES_FOLDER):
        if not (work / folder).is_dir():
            shutil.copytree(model / folder, work / folder)
    if not (work / START).is_dir():
        load_text_encoder(model / "text_encoder").save_pretrained(work / START / "text_encoder")
        load_unet(model / "unet").save_pretrained(work / START / "unet")
        shutil.copytree(model / FAMILIES_FOLDER, work / START / FAMILIES_FOLDER)
        if (model / NUMBERS_FILE).is_file():
            shutil.copy(model / NUMBERS_FILE, work / START / NUMBERS_FILE)  # holds the training steps so far
    log.info("continuing from %s", model)
