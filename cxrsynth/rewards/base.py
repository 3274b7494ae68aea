"""The reward protocol, and several rewards side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cxrsynth.reports.table.rows import Report


class Reward(Protocol):
    """Scores images against their reports; higher is better.

    A reward of your own is any class with these four attributes, called with a batch. It needs no base class:

        class LungBrightness:
            unit = "gray level"
            low, high = 0.0, 1.0
            needs_report = False

            def __init__(self, backend: str, *, device: torch.device) -> None:
                top, bottom = (float(edge) for edge in backend.split("-"))  # backend "0.25-0.75"
                self.rows, self.device = (top, bottom), device

            @torch.inference_mode()
            def __call__(self, images: Tensor, reports: Sequence[Report]) -> Tensor:
                height = images.shape[2]
                top, bottom = (round(edge * height) for edge in self.rows)
                return images[:, :, top:bottom].to(self.device).mean((1, 2, 3)).cpu()

    Make it known by an entry point of an installed package, in group `cxrsynth.rewards`; in `pyproject.toml`:

        [project.entry-points."cxrsynth.rewards"]
        lung-brightness = "my_package.rewards:LungBrightness"

    The name then works in a recipe (`rewards: {lung-brightness: {weight: 1.0, backend: 0.25-0.75}}`) and on the command
    line (`--judge lung-brightness=0.25-0.75`). The class is called as `LungBrightness(backend, device=device)`:
    `backend` is the text given with the name (a folder of weights, a setting), `device` where its networks should run.

    A reward must score each image by itself (the batch changes nothing beyond rounding), return the same value for the
    same input, keep no gradient, leave its arguments unchanged, and be safe to call from several threads. `cxrsynth
    rewards check lung-brightness --backend 0.25-0.75` tries all of this out.

    Attributes:
        unit: unit of the values, for tables and charts: "cosine", "nats".
        low: smallest possible value; `-math.inf` if there is none.
        high: largest possible value; `math.inf` if there is none.
        needs_report: whether the value depends on the report; where it is False, reports may be empty.
    """

    unit: str
    low: float
    high: float
    needs_report: bool

    def __call__(self, images: Tensor, reports: Sequence[Report]) -> Tensor:
        """Score a batch.

        Args:
            images: [B, 1, H, W] float32 in [0, 1], gray, black is 0, on any device; H and W vary between calls.
            reports: the B reports of the images. A `Report` has `report_id`, `text`, `impression`, `findings`,
                `labels` (finding -> `FindingLabel`), `view`, `sex`, `age_years`.

        Returns:
            [B] float32 in [`low`, `high`]; nan where an image or a report cannot be scored (a report without labels, a
            chest without lungs). Any other non-finite value, another shape or an exception stops the run; another
            floating-point type or device is converted.
        """
        ...


@dataclass(frozen=True)
class RewardTable:
    """Rewards of B images, one column per reward; nan where a reward could not score an image."""

    names: tuple[str, ...]
    values: Tensor  # [B, R] float32

    def column(self, name: str) -> Tensor:
        """The column of one reward, [B]."""
        return self.values[:, self.names.index(name)]

    def total(self, weights: Mapping[str, float]) -> Tensor:
        """Weighted mean over the rewards that are not nan, [B]; nan where all are."""
        weight = torch.tensor([float(weights[name]) for name in self.names])
        known = ~self.values.isnan()
        return (self.values.nan_to_num() * weight).sum(1) / (known * weight).sum(1)


class RewardSuite:
    """Named rewards, applied to the same images."""

    def __init__(self, rewards: Mapping[str, Reward]) -> None:
        if not rewards:
            raise ValueError("a reward suite needs at least one reward")
        self.rewards = dict(rewards)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rewards, in the order of the columns."""
        return tuple(self.rewards)

    @torch.inference_mode()
    def __call__(self, images: Tensor, reports: Sequence[Report]) -> RewardTable:
        """Score images [B, 1, H, W] with every reward.

        Raises:
            ValueError: unless images are [B, 1, H, W] float32 in [0, 1] with one report each.
        """
        check_images(images, reports)
        columns = [reward(images, reports).float().cpu() for reward in self.rewards.values()]
        return RewardTable(tuple(self.rewards), torch.stack(columns, dim=1))


def check_images(images: Tensor, reports: Sequence[Report]) -> None:
    """Raises ValueError unless images are [B, 1, H, W] float32 in [0, 1], with one report each."""
    if images.dim() != 4 or images.shape[1] != 1 or images.dtype != torch.float32:
        raise ValueError(
            f"images of shape {tuple(images.shape)} and type {images.dtype}, expected [B, 1, H, W] float32"
        )
    if len(images) != len(reports):
        raise ValueError(f"{len(images)} images for {len(reports)} reports, expected one report per image")
    if len(images) and not (images.amin() >= 0 and images.amax() <= 1):
        raise ValueError("images contain values outside [0, 1], or values that are not numbers")
