"""What an attacker who holds a diffusion model computes of an image; higher values speak for a member."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cxrsynth.diffusion.condition import Condition
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.sampler import guided_condition, single_condition

LOSS, PROXIMAL, ROUND_TRIP, DISCREPANCY = "loss", "proximal", "round trip", "discrepancy"
ATTACKS = (LOSS, PROXIMAL, ROUND_TRIP, DISCREPANCY)

# Noise levels, as shares of their number. What a model has memorized shows in the middle: near the image everything
# can be seen, and in pure noise nothing.
_PLACES = (0.1, 0.2, 0.3, 0.45, 0.6)
_DRAWS = 2  # of noise, at each level
_ROUND_TRIP_END, _ROUND_TRIP_STEP = 0.1, 0.01  # shares of the levels; 100 and 10 of 1000 in the paper
_NORM = 4  # of the proximal attack, as in its paper


class Attacks:
    """The attacks on one model. Each image's result depends on its key and on `seed`, whatever its batch.

    Args:
        model: that is attacked, with its adaptive condition embeddings if it has them.
        seed: of the noise.

    Sources: loss: Matsumoto et al., arXiv:2302.03262, and Carlini et al., arXiv:2301.13188; proximal: Kong et al.,
    arXiv:2305.18355 (PIA); round trip: Duan et al., arXiv:2302.01316 (SecMI); discrepancy: Zhai et al.,
    arXiv:2405.14800 (CLiD), with the negative prompt as the reduced one. All at noise levels of our choice.
    """

    def __init__(self, model: DiffusionModel, *, seed: int) -> None:
        self._model, self._seed = model, seed
        self._count = model.schedule.count
        self._levels = [int(place * self._count) for place in _PLACES]

    @property
    def names(self) -> list[str]:
        """Of the columns: the attack, and the noise level in percent."""
        percent = [f"{100 * place:g}%" for place in _PLACES]
        named = [f"{attack} {level}" for attack in (LOSS, PROXIMAL, DISCREPANCY) for level in percent]
        return [*named, f"{ROUND_TRIP} {100 * _ROUND_TRIP_END:g}%"]

    def by_attack(self, found: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
        """Results [N, K] by attack, the columns of each."""
        of = [next(attack for attack in ATTACKS if name.startswith(attack)) for name in self.names]
        return {attack: found[:, [one == attack for one in of]] for attack in ATTACKS}

    @property
    def passes(self) -> int:
        """Forward passes of the denoiser for one image."""
        return len(self._levels) * (2 * _DRAWS + 1) + len(self._trip())

    @torch.inference_mode()
    def __call__(
        self, clean: Tensor, keys: Sequence[str], prompts: Sequence[str | None], conditions: Sequence[Sequence[str]]
    ) -> Tensor:
        """Results of B images, [B, K] float32 on the CPU; those of the discrepancy are nan without a prompt.

        Args:
            clean: latents as the denoiser has them, [B, C, h, w] float32.
            keys: of the images, unique.
            prompts: of the images; None where nothing is known, which takes the empty prompt.
            conditions: names of the adaptive condition embeddings that each report gets.
        """
        text, empty = self._conditions(prompts, conditions)
        losses, apart = self._losses(clean, keys, text, empty)
        first = self._clean_and_noise(clean, 0, text)
        columns = [*losses, *self._proximal(clean, first[1], text)]
        known = torch.tensor([prompt is not None for prompt in prompts], device=clean.device)
        columns += [torch.where(known, one, torch.nan) for one in apart]
        columns.append(self._round_trip(clean, first, text))
        return torch.stack(columns, dim=1).float().cpu()

    def _conditions(
        self, prompts: Sequence[str | None], conditions: Sequence[Sequence[str]]
    ) -> tuple[Condition, Condition]:
        """Of the prompts, and of the negative prompt for each image."""
        model = self._model
        text, empty = model.encode([prompt or "" for prompt in prompts])
        mask = None if model.ace is None else model.ace.mask([tuple(one) for one in conditions])
        scale = model.training_guidance
        return (
            guided_condition(model, text, empty, scale, mask=mask),
            single_condition(model, empty.expand(len(text)), scale),
        )

    def _velocity(self, noisy: Tensor, level: int, condition: Condition) -> Tensor:
        schedule, levels = self._model.schedule, self._at(level, len(noisy))
        predicted = self._model.predict(noisy, schedule.timesteps(levels), condition)
        return schedule.velocity(noisy, predicted, levels)

    def _clean_and_noise(self, noisy: Tensor, level: int, condition: Condition) -> tuple[Tensor, Tensor]:
        """What the model takes noisy latents to consist of."""
        velocity = self._velocity(noisy, level, condition)
        return self._model.schedule.clean_and_noise(noisy, velocity, self._at(level, len(noisy)))

    def _at(self, level: int, count: int) -> Tensor:
        return torch.full((count,), level, device=self._model.device)

    def _losses(
        self, clean: Tensor, keys: Sequence[str], text: Condition, empty: Condition
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Minus the training loss at each level, [B] each; and how much the prompt lowers it."""
        losses, apart = [], []
        for level in self._levels:
            with_text, without = clean.new_zeros(len(clean)), clean.new_zeros(len(clean))
            for draw in range(_DRAWS):
                noise = torch.stack(
                    [seeded_noise(clean.shape[1:], self._seed, "membership", key, level, draw) for key in keys]
                ).to(clean)
                levels = self._at(level, len(clean))
                noisy = self._model.schedule.noisy(clean, noise, levels)
                target = self._model.schedule.velocity_target(clean, noise, levels)
                with_text += _mean_square(self._velocity(noisy, level, text) - target) / _DRAWS
                without += _mean_square(self._velocity(noisy, level, empty) - target) / _DRAWS
            losses.append(-with_text)
            apart.append(without - with_text)
        return losses, apart

    def _proximal(self, clean: Tensor, first: Tensor, text: Condition) -> list[Tensor]:
        """The noise that the model sees in the clean image is added to it: a member gets the same noise back."""
        found = []
        for level in self._levels:
            noisy = self._model.schedule.noisy(clean, first, self._at(level, len(clean)))
            _, again = self._clean_and_noise(noisy, level, text)
            found.append(-(again - first).abs().pow(_NORM).flatten(1).sum(1).pow(1 / _NORM))
        return found

    def _trip(self) -> list[int]:
        """Levels of the way into the noise; the last is returned to."""
        step = max(1, int(_ROUND_TRIP_STEP * self._count))
        return list(range(0, int(_ROUND_TRIP_END * self._count) + step + 1, step))

    def _round_trip(self, clean: Tensor, first: tuple[Tensor, Tensor], text: Condition) -> Tensor:
        """Deterministic steps into the noise, one more, and back: a member returns to where it was. [B]."""
        schedule, trip = self._model.schedule, self._trip()
        here, (image, noise) = clean, first
        for level in trip[1:]:
            before, here = here, schedule.noisy(image, noise, self._at(level, len(clean)))
            image, noise = self._clean_and_noise(here, level, text)
        back = schedule.noisy(image, noise, self._at(trip[-2], len(clean)))
        return -_mean_square(back - before)


def _mean_square(difference: Tensor) -> Tensor:
    """[B, ...] -> [B]."""
    mean: Tensor = difference.square().flatten(1).mean(1)
    return mean
