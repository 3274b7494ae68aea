"""The YAML file that a checkpoint of latent diffusion was trained with: sizes, noise schedule, scale of latents."""

import copy
from pathlib import Path
from typing import Any

import yaml

from cxrsynth.errors import ModelError, in_words

# Latent diffusion's names of noise schedules -> diffusers'. Its "linear" is linear in the square roots.
_SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear"}
_PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}


class OriginalConfig:
    """The settings in the file, with what diffusers would get wrong put right.

    Diffusers reads sizes of networks from `content` itself, but takes the image size of Stable Diffusion, heads in
    terms of their number alone, and no noise schedule.

    Raises:
        ModelError: if the file cannot be read, or describes no model that text goes into.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.content: dict[str, Any] = copy.deepcopy(yaml.safe_load(path.read_text(encoding="utf-8")))
            self._model: dict[str, Any] = self.content["model"]["params"]
            self._unet: dict[str, Any] = self._model["unet_config"]["params"]
            self._vae: dict[str, Any] = self._model["first_stage_config"]["params"]["ddconfig"]
            self._complete()
        except OSError as error:
            raise ModelError(f"--original-config {path}: cannot be read ({error.strerror})") from None
        except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"--original-config {path}: not the settings of latent diffusion ({in_words(error)})\n"
                "  expected: a YAML file with model.params.unet_config and first_stage_config"
            ) from None
        if not self._unet.get("use_spatial_transformer") or self._unet["context_dim"] is None:
            raise ModelError(f"--original-config {path}: a U-Net that takes no text\n  expected: a text-to-image model")

    def scheduler(self, config: dict[str, Any]) -> dict[str, Any]:
        """A scheduler's configuration with the noise schedule of the file.

        Raises:
            ModelError: for a schedule or a prediction that diffusers has no name for.
        """
        schedule = self._model.get("beta_schedule", "linear")
        prediction = self._model.get("parameterization", "eps")
        for key, value, known in (
            ("beta_schedule", schedule, _SCHEDULES),
            ("parameterization", prediction, _PREDICTIONS),
        ):
            if value not in known:
                raise ModelError(f"--original-config {self._path}: {key} {value}, expected {' or '.join(known)}")
        return config | {
            "beta_schedule": _SCHEDULES[schedule],
            "beta_start": float(self._model.get("linear_start", 1e-4)),
            "beta_end": float(self._model.get("linear_end", 2e-2)),
            "num_train_timesteps": int(self._model.get("timesteps", 1000)),
            "prediction_type": _PREDICTIONS[prediction],
            "trained_betas": None,
        }

    def correct(self, network: Any, part: str) -> None:
        """Set the size that the network was trained at, where the file says so.

        Raises:
            ModelError: for a size that is none.
        """
        size = self._model.get("image_size", self._unet.get("image_size"))
        if size is None:
            return
        sides = [size] if isinstance(size, int) else size
        if not isinstance(sides, list) or not sides or not all(isinstance(side, int) for side in sides):
            raise ModelError(
                f"--original-config {self._path}: image_size {size}, expected a number or height and width"
            )
        factor = 2 ** (len(self._vae["ch_mult"]) - 1) if part == "vae" else 1
        sizes = [side * factor for side in sides]
        network.register_to_config(sample_size=sizes[0] if len(set(sizes)) == 1 else sizes)

    def _complete(self) -> None:
        """Fill in latent diffusion's own defaults, and give heads by their number, as diffusers wants them."""
        self._unet.setdefault("transformer_depth", 1)
        self._unet.setdefault("context_dim", None)
        width = self._unet.get("num_head_channels", -1)
        if width is not None and width != -1:
            channels = [self._unet["model_channels"] * factor for factor in self._unet["channel_mult"]]
            self._unet["num_heads"] = [count // width for count in channels]
