"""Tables of images for tests: patients, groups, and findings that shift the features."""

import numpy as np

from cxrsynth.metrics.groups import ImageTable


def table(
    count: int, *, seed: int, shift: float = 0.0, effect: float = 2.0, per_patient: int = 2, share: float = 0.4
) -> ImageTable:
    """Images of width 8: `effect` is how far a finding moves feature 0, `shift` how far all are from the others."""
    rng = np.random.default_rng(seed)
    present = [{"Edema"} if rng.random() < share else {"No Finding"} for _ in range(count)]
    features = rng.normal(shift, 1.0, (count, 8))
    features[:, 0] += effect * np.array(["Edema" in names for names in present])
    return ImageTable(
        features=features.astype(np.float32),
        view=["PA" if place % 2 else "AP" for place in range(count)],
        sex=["F" if place % 3 else "M" for place in range(count)],
        age_group=["adult" if place % 20 else None for place in range(count)],
        present=present,
        patients=[f"p{place // per_patient}" for place in range(count)],
    )
