"""The forward process: clean latents to noisy ones, and what a network predicts of them, as a velocity."""

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from cxrsynth.diffusion.ddim import clean_and_noise
from cxrsynth.diffusion.finetune import training_schedule
from cxrsynth.diffusion.model import DiffusionModel

# Next to the clean image there is nothing left to predict, and an error of the clean latents counts without bound.
_LEAST_NOISE = 0.02  # of the timesteps
# Where no signal is left, noise says nothing about the clean latents.
_LEAST_ALPHA = 1e-5


class ForwardProcess:
    """The forward process of a model: x_t = a x_0 + s eps, where a^2 = alpha-bar and s^2 = 1 - alpha-bar.

    Errors are measured on the velocity v = a eps - s x_0 whatever the network predicts, so noise, velocity and clean
    latents learn alike: an error d of the clean latents is an error d / s of the velocity.

    Args:
        model: whose noise schedule it is.

    Source: velocity as in Salimans and Ho, arXiv:2202.00512, appendix D.
    """

    def __init__(self, model: DiffusionModel) -> None:
        self._scheduler: DDIMScheduler = training_schedule(model.scheduler_config)
        self._alpha = self._scheduler.alphas_cumprod.to(model.device)
        self._kind = str(self._scheduler.config.prediction_type)
        count = len(self._alpha)
        self.first = int(_LEAST_NOISE * count)
        self.end = int((self._scheduler.alphas_cumprod > _LEAST_ALPHA).sum())

    def timesteps(self, places: Tensor) -> Tensor:
        """Timesteps int64 [B] at places [B] in [0, 1), from the least noise to the most."""
        return (self.first + places * (self.end - self.first)).long().clamp(max=self.end - 1)

    def noise_level(self, timesteps: Tensor) -> Tensor:
        """s, the standard deviation of the noise in x_t, [B] float32."""
        level: Tensor = (1 - self._alpha[timesteps]).sqrt().float()
        return level

    def noisy(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t, [B, C, h, w]."""
        return self._scheduler.add_noise(clean, noise, timesteps)  # type: ignore[no-any-return]

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The velocity that a perfect prediction has, [B, C, h, w]."""
        return self._scheduler.get_velocity(clean, noise, timesteps)  # type: ignore[no-any-return]

    def velocity(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """The velocity that a prediction of the network stands for, [B, C, h, w] float32."""
        if self._kind == "v_prediction":
            return prediction
        alpha = self._alpha[timesteps].float()[:, None, None, None]
        clean, noise = clean_and_noise(self._kind, noisy, prediction, alpha)
        return torch.sqrt(alpha) * noise - torch.sqrt(1 - alpha) * clean
