"""How learning rates change over a stage."""

import pytest
import torch
from torch import nn

from cxrsynth.rl.optimizer import set_learning_rates


@pytest.mark.parametrize(
    ("schedule", "done", "factor"),
    [("cosine", 0.0, 1.0), ("cosine", 0.25, 0.853553), ("cosine", 0.5, 0.5), ("cosine", 1.0, 0), ("constant", 0.9, 1)],
)
def test_learning_rates_fall_along_a_cosine(schedule: str, done: float, factor: float) -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate, "initial_lr": rate} for rate in (0.1, 7.0)]
    optimizer = torch.optim.AdamW(groups)
    for _ in range(2):  # from the first rate, not from the last one set
        set_learning_rates(optimizer, schedule, done=done)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * factor, 7.0 * factor])
