"""`cxrsynth rewards check`: the contract of a reward on nano's images of the example reports."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from cxrsynth.diffusion.model import choose_device, load_model
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.recipe.packaged import EXAMPLE_REPORTS, packaged_folder
from cxrsynth.reports.request import PromptBuilder
from cxrsynth.reports.table.rows import Report
from cxrsynth.reports.table.table import open_table
from cxrsynth.rewards.contract import Finding, try_reward
from cxrsynth.runtime.memory import LOADING_ADVICE, memory_advice
from cxrsynth.settings import Device, Precision

# As few as differ clearly: the contract is about the reward, not about how good the images are.
_IMAGES, _STEPS = 6, 8


def check_reward(name: str, backend: str, *, device: Device) -> Iterator[Finding]:
    """Load a reward and try out each promise of its contract, in the order of what depends on what.

    Args:
        name: of a reward, built in or of an installed package.
        backend: as in a recipe.
        device: where nano and the reward run.

    Raises:
        ModelError: if there is no such reward or device, or a built-in reward cannot be loaded.
    """
    where = choose_device(device)
    with memory_advice(LOADING_ADVICE):
        yield from try_reward(name, backend, device=where, examples=lambda: example_images(where))


def example_images(device: torch.device) -> tuple[Tensor, list[Report]]:
    """Images of nano, [B, 1, H, W] float32 in [0, 1] on the CPU, and their reports with all labels."""
    model = load_model(resolve_model("nano"), device=device, precision=Precision.FP32)
    builder = PromptBuilder(model.spec.prompt_format, model.spec.depicts, model.fits, classes=model.spec.classes)
    rows = open_table(packaged_folder() / EXAMPLE_REPORTS).rows()
    reports = list(islice((row for row in rows if isinstance(row, Report)), _IMAGES))
    built = [builder.build(report) for report in reports]
    defaults = model.spec.defaults
    images = sample_images(
        model,
        [one.prompt for one in built],
        torch.stack([seeded_noise(model.latent_shape, "reward check", report.report_id) for report in reports]),
        sampler=defaults.sampler,
        steps=min(defaults.steps, _STEPS),
        guidance=defaults.guidance,
        conditions=[one.conditions for one in built],
    )
    # Not in inference mode any more: what a reward keeps of them may be learned from.
    return images.clone(), [replace(report, labels=one.labels) for report, one in zip(reports, built, strict=True)]
