"""Populations of features whose Frechet distance is known, to draw sets from."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import sqrtm

from cxrsynth.metrics.fidelity import Features, Units


@dataclass(frozen=True)
class Population:
    """Features with `mean` [D] and covariance `root` @ `root`.T [D, D].

    A unit (a patient) has `per_unit` images, which share half of their variance. `heavy` multiplies each unit by a
    random number: tails then are those of Student's t with 8 degrees of freedom.
    """

    mean: Features
    root: Features
    per_unit: int = 1
    heavy: bool = False

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Features, Units]:
        """Features [count, D] and units [count]."""
        units = np.arange(count) // self.per_unit
        drawn = rng.normal(size=(count, len(self.mean)))
        if self.per_unit > 1:
            shared = rng.normal(size=(int(units[-1]) + 1, len(self.mean)))
            drawn = np.sqrt(0.5) * (drawn + shared[units])
        if self.heavy:
            drawn *= np.sqrt(6 / rng.chisquare(8, size=int(units[-1]) + 1))[units, None]
        return self.mean + drawn @ self.root.T, units


def populations(
    width: int, *, apart: float, per_unit: int = 1, heavy: bool = False
) -> tuple[Population, Population, float]:
    """Two populations and their squared Frechet distance, which is 0 for `apart` 0.

    The variances fall as i^-1.2, about as those of `nano-judge` on real radiographs do (nine effective dimensions of
    160), and sum up to 60.
    """
    rng = np.random.default_rng(0)
    variances = np.arange(1, width + 1) ** -1.2
    scale = np.sqrt(60 * variances / variances.sum())
    turned = np.linalg.qr(rng.normal(size=(width, width)))[0]
    first = turned * scale
    # Other directions and sizes of variance, and another mean.
    second = first @ (np.eye(width) + apart * rng.normal(size=(width, width)) / np.sqrt(width))
    mean = apart * (turned @ (scale * rng.normal(size=width)))
    root = np.real(sqrtm(sqrtm(first @ first.T) @ second @ second.T @ sqrtm(first @ first.T)))
    distance = mean @ mean + np.trace(first @ first.T) + np.trace(second @ second.T) - 2 * np.trace(root)
    one = Population(np.zeros(width), first, per_unit, heavy)
    return one, Population(mean, second, per_unit, heavy), float(distance) if apart else 0.0
