"""The forward process: clean latents to noisy ones, and what a network predicts of them, as a velocity."""

from torch import Tensor

from cxrsynth.diffusion.model import DiffusionModel

# Next to the clean image there is nothing left to predict, and an error of the clean latents counts without bound.
_LEAST_NOISE = 0.02  # of the noise levels


class ForwardProcess:
    """The forward process of a model: x_t = a x_0 + s eps, with the a and s of its noise schedule.

    Errors are measured on the velocity whatever the network predicts, so noise, velocity and clean latents learn
    alike: an error d of the clean latents is an error d / s of the velocity.

    Args:
        model: whose noise schedule it is.
    """

    def __init__(self, model: DiffusionModel) -> None:
        self._schedule = model.schedule
        self.first = int(_LEAST_NOISE * self._schedule.count)
        self.end = self._schedule.end

    def levels(self, places: Tensor) -> Tensor:
        """Noise levels int64 [B] at places [B] in [0, 1), from the least noise to the most."""
        return (self.first + places * (self.end - self.first)).long().clamp(max=self.end - 1)

    def timesteps(self, levels: Tensor) -> Tensor:
        """What the network is given as its timestep, [B]."""
        return self._schedule.timesteps(levels)

    def noise_level(self, levels: Tensor) -> Tensor:
        """s, the standard deviation of the noise in x_t, [B] float32."""
        return self._schedule.noise_std(levels)

    def noisy(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """x_t, [B, C, h, w]."""
        return self._schedule.noisy(clean, noise, levels)

    def target(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """The velocity that a perfect prediction has, [B, C, h, w]."""
        return self._schedule.velocity_target(clean, noise, levels)

    def velocity(self, noisy: Tensor, prediction: Tensor, levels: Tensor) -> Tensor:
        """The velocity that a prediction of the network stands for, [B, C, h, w] float32."""
        return self._schedule.velocity(noisy, prediction, levels)
