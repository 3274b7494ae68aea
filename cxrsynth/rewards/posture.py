"""Posture (framing and alignment): is the chest upright, centered and of the right size?"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cxrsynth.reports.table.rows import Report

# One unit of distance: 5% of width, 10% of scale, 5 degrees. In the regressor's order and units.
_UNIT = (0.1, 0.1, math.log(1.1), math.log(1.1), math.radians(5.0))


class PostureReward:
    """Negative distance of the regressed warp from the identity, in units of 5% of width, 10% of scale, 5 degrees.

    0 is canonical; -1 is one such unit away. CXRL (Han et al., arXiv:2403.06516) rewards alignment to a canonical
    orientation; the units are our choice.

    Args:
        network: images [B, 1, H, W] in [0, 1] -> [B, 5], as `PostureRegressor`; a row of nan gives nan.
    """

    unit = "minus units of 5% of width, 10% of scale, 5 degrees (root of the sum of squares)"
    low, high = -math.inf, 0.0
    needs_report = False

    def __init__(self, network: nn.Module) -> None:
        self._network = network.eval()
        self._unit = torch.tensor(_UNIT)

    @torch.inference_mode()
    def __call__(self, images: Tensor, reports: Sequence[Report]) -> Tensor:
        """[B, 1, H, W] in [0, 1] -> [B]; reports are ignored."""
        device = next(self._network.parameters()).device
        warp = self._network(images.to(device)).float()
        distance: Tensor = (warp / self._unit.to(device)).square().sum(1).sqrt()
        return -distance
