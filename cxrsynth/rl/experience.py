"""What an iteration has sampled, for the update to learn from; each process holds its own share."""

from dataclasses import dataclass

from torch import Tensor

from cxrsynth.diffusion.condition import Condition
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.sampler import guided_condition
from cxrsynth.rl.perturbation import Shifts
from cxrsynth.rl.policy import Policy


@dataclass(frozen=True)
class Conditioning:
    """What n of the iteration's N images were sampled for; tensors on the CPU.

    `places` are their indices among the N; `text` the conditions of their reports' prompts, `empty` that of no prompt,
    `mask` the ACE blocks of their reports, `shifts` the first action if the policy has one; `report_ids` name them in
    errors.
    """

    places: list[int]
    report_ids: list[str]
    text: Condition  # of n prompts
    empty: Condition  # of no prompt, 1
    mask: Tensor | None  # [n, K]
    shifts: Shifts | None

    def condition(self, model: DiffusionModel, policy: Policy, rows: Tensor, *, guidance: float) -> Condition:
        """The condition of these rows as `model` gets it, the policy or its baseline; from `guided_condition`."""
        mask = None if self.mask is None else self.mask[rows]
        shift = None
        if self.shifts is not None:
            # A shift that was sampled is given to the baseline too, like every action before a step.
            model, shift = policy.model, self.shifts.values[rows]
        device = model.device
        return guided_condition(
            model, self.text[rows].to(device), self.empty.to(device), guidance, mask=mask, shift=shift
        )


@dataclass(frozen=True)
class Experience(Conditioning):
    """Trajectories: latents of every step and the log-probabilities of the steps between them."""

    latents: Tensor  # [T, n, C, h, w]
    log_probs: Tensor  # [T - 1, n]


@dataclass(frozen=True)
class CleanSamples(Conditioning):
    """Sampled latents without noise; how they were reached is not kept."""

    clean: Tensor  # [n, C, h, w] float32
