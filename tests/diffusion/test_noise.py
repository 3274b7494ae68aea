"""Seeded noise: recorded values, or existing data sets and tuning runs would no longer be reproduced."""

import pytest
import torch

from cxrsynth.diffusion.noise import seeded_noise


@pytest.mark.parametrize(
    ("shape", "key", "expected"),
    [
        # The initial latent of a sample: the run's seed and the sample key.
        ((2, 2), (3, "abc-00"), [0.04327057674527168, 1.7842788696289062, -1.040223479270935, 0.45268598198890686]),
        # The evaluator's and the rollouts' streams.
        (
            (2, 2),
            (7, "held out", "r-1", 0),
            [-1.0623219013214111, 0.263611376285553, 0.9724490642547607, -0.38465917110443115],
        ),
        ((3,), (0, "start", 1, 2, "r"), [0.3575277626514435, 1.1302170753479004, 0.7670561671257019]),
    ],
)
def test_noise_is_what_it_always_was(shape: tuple[int, ...], key: tuple[object, ...], expected: list[float]) -> None:
    found = seeded_noise(shape, *key)
    assert found.shape == shape
    assert torch.allclose(found.flatten(), torch.tensor(expected), rtol=0, atol=1e-6)
