"""Which reports and starting noises an iteration uses; determined by the seed and the iteration alone."""

import random
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class RolloutSpec:
    """One trajectory to sample. `report` is an index into the training reports, `start` into a report's pool of x_T.

    `stream` identifies its step noise. Two mirrored trajectories share x_T and step noise, and shift the condition in
    opposite directions, `sign` 1 and -1.
    """

    place: int
    report: int
    start: int
    stream: int = 0
    sign: float = 1.0


def rollout_specs(
    iteration: int, *, seed: int, reports: int, per_iteration: int, images: int, pool: int, mirrored: bool = False
) -> list[RolloutSpec]:
    """Trajectories of an iteration: reports in a new order on each pass, x_T from the pool in turn.

    A report's images start from different x_T until the pool is used up; mirrored ones start in pairs from the same.
    """
    each = 2 if mirrored else 1
    first = iteration * per_iteration
    found: list[RolloutSpec] = []
    for turn in range(first, first + per_iteration):
        lap, place = divmod(turn, reports)
        report = _order(seed, lap, reports)[place]
        for image in range(images):
            start = (lap * (images // each) + image // each) % pool
            found.append(RolloutSpec(len(found), report, start, len(found) - image % each, 1.0 - 2.0 * (image % each)))
    return found


@lru_cache(maxsize=2)  # called for every report of a pass, and long for many reports
def _order(seed: int, lap: int, reports: int) -> list[int]:
    order = list(range(reports))
    random.Random(f"{seed} {lap}").shuffle(order)
    return order
