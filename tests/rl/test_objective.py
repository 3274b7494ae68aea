"""The clipped objective: its gradient inside and outside the clip range, and its figures."""

import pytest
import torch
from torch import Tensor

from cxrsynth.rl.objective import clipped_objective


def gradient(difference: list[float], advantage: list[float], **given: object) -> Tensor:
    log_prob = torch.tensor(difference, requires_grad=True)
    loss = clipped_objective(log_prob, torch.zeros(len(difference)), torch.tensor(advantage), clip_range=0.1, **given)  # type: ignore[arg-type]
    loss.loss.backward()
    assert log_prob.grad is not None
    return log_prob.grad


def test_before_any_update_it_is_the_policy_gradient() -> None:
    assert gradient([0.0, 0.0], [2.0, -3.0]).tolist() == [-2.0, 3.0]


def test_beyond_the_clip_range_only_gradients_that_lead_back_count() -> None:
    """Ratio 1.5: a good sample is ignored, a bad one still pushed down; below 1 it is the other way round."""
    far = gradient([0.405, 0.405, -0.5, -0.5], [1.0, -1.0, 1.0, -1.0])
    assert far[0] == far[3] == 0
    assert far[1] > 0 > far[2]


def test_figures() -> None:
    log_prob = torch.tensor([0.0, 0.3])
    found = clipped_objective(
        log_prob, torch.zeros(2), torch.ones(2), clip_range=0.1, kl=torch.tensor([1.0, 3.0]), kl_weight=0.5
    )
    assert (found.clipped, found.baseline_kl) == (1.0, 4.0)
    assert found.ratio_error == pytest.approx(0.34986, abs=1e-4)
    assert found.approx_kl == pytest.approx(0.34986 - 0.3, abs=1e-4)
    assert float(found.loss) == pytest.approx(-(1.0 + 1.1) + 0.5 * 4.0)
