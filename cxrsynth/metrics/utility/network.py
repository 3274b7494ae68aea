"""A network in place of the probe: a classifier trained on pixels, in each of the ways that the probe is."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxrsynth.errors import ModelError
from cxrsynth.metrics.features import load_extractor
from cxrsynth.metrics.fidelity import Features
from cxrsynth.metrics.utility.cohorts import SYNTHETIC, Arm, Cohorts, TrainingSet, halves, truth_of
from cxrsynth.metrics.utility.probe import Scores
from cxrsynth.rewards.backends import FAMILIES, family_folder
from cxrsynth.rewards.networks import Trunk
from cxrsynth.runtime.files import read_json
from cxrsynth.runtime.warps import warp, warp_matrices

# Optimizer steps on each kind of images; every step takes as many images of each kind that it is trained on.
STEPS, BATCH = 300, 32
# Share of the patients to train on that thresholds are chosen on, held out in every way to train.
HELD_OUT = 0.2
_OWN_SIZE = 96  # pixels that networks from random weights see: 128 take twice the time
_RANDOM_RATE, _TRAINED_RATE = 1e-3, 1e-4
_REACH = (0.05, 0.05, 0.05, 0.05, 0.1)  # augmentation: shift, log scale, rotation; see `warp_matrices`
_ROLE = "--utility-model"

Pixels = npt.NDArray[np.uint8]
State = dict[str, Any]


@dataclass(frozen=True)
class Classifier:
    """A network that learns findings: its encoder, from images [B, 1, H, W] in [0, 1] to features [B, `width`].

    `digest` is that of the weights it starts from, None for random ones.
    """

    name: str
    digest: str | None
    width: int
    network: nn.Module = field(repr=False)
    encode: Callable[[Tensor], Tensor] = field(repr=False)

    @property
    def learning_rate(self) -> float:
        """The highest of the schedule: lower for weights that are trained already."""
        return _RANDOM_RATE if self.digest is None else _TRAINED_RATE

    def as_json(self) -> dict[str, Any]:
        """As `summary.json` has it."""
        return {
            "name": self.name,
            "digest": self.digest,
            "starts_from": "random weights" if self.digest is None else "its own weights",
            "steps": STEPS,
            "batch_size": BATCH,
            "learning_rate": self.learning_rate,
        }


def load_classifier(name: str, *, device: torch.device, seed: int) -> Classifier:
    """Load a network to train.

    Args:
        name: `nano` or `nano-judge`: that architecture with random weights, at 96 x 96 pixels. Else any encoder of
            `load_extractor`, which starts from its own weights.
        device: where it is trained.
        seed: of random weights.

    Raises:
        ModelError: if there is none of that name, or it cannot be loaded.
    """
    family = family_folder(name)
    if name not in FAMILIES or family is None:
        found = load_extractor(name, device=device, role=_ROLE)
        return Classifier(name, found.digest, found.width, found.network, found.encode)
    config = read_json(family / "classifier" / "config.json")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = Trunk(**(config["trunk"] | {"size": _OWN_SIZE})).to(device).to(memory_format=torch.channels_last)
    return Classifier(name, None, trunk.features, trunk, lambda images: trunk(images.to(device)))


@dataclass(frozen=True)
class Networks:
    """One network for all findings, trained in every way; its scores."""

    cohorts: Cohorts
    findings: Sequence[str]
    held_out: TrainingSet
    logits: dict[str, tuple[Features, Features]] = field(repr=False)  # of test and held-out images, [N, K] each

    def arms(self, finding: str) -> list[Arm]:
        """Every way to train: the balanced cohort serves all findings."""
        return self.cohorts.arms()

    def can_train(self, finding: str, stage: str, images: TrainingSet) -> bool:
        """Always: nothing is chosen by cross-validation."""
        return True

    def scores(self, finding: str, arms: list[Arm]) -> dict[str, Scores]:
        """Scores of a finding by every way to train."""
        place = self.findings.index(finding)
        truth = truth_of(finding, self.held_out.present)
        found = {arm.name: self.logits[arm.name] for arm in arms}
        return {name: Scores(test[:, place], own[:, place], truth) for name, (test, own) in found.items()}


def train_networks(
    classifier: Classifier,
    cohorts: Cohorts,
    findings: Sequence[str],
    test: Pixels,
    *,
    seed: int,
    say: Callable[[str], None] = lambda text: None,
) -> Networks:
    """Train the network in every way, always from the same weights and on the same batches of real images.

    Masked by nothing: a finding that is not stated as present counts as absent. The rarer outcome of a finding weighs
    more, by the root of its rarity.

    Args:
        classifier: what is trained; its weights are put back.
        cohorts: with pixels.
        findings: K outputs.
        test: pixels of the test images, [N, H, W].
        seed: of the head's weights, the batches and the patients held out.
        say: called with what is being trained.

    Raises:
        ModelError: if a loss is not finite.
    """
    train, rest = halves(cohorts.own.patients, share=HELD_OUT, seed=seed)
    held_out, cohorts = cohorts.own.take(rest), replace(cohorts, own=cohorts.own.take(train))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = _Student(classifier, nn.Linear(classifier.width, len(findings)), tuple(findings), seed)
        start, pretrained = student.state(), None
        logits = {}
        for arm in cohorts.arms():
            say(f"training {classifier.name} on {arm.name} images")
            student.restore(start)
            if arm.before is not None:
                # Just what the arm of synthetic images alone has learned, which is trained first.
                assert pretrained is not None
                student.restore(pretrained)
            student.learn([one for one in (arm.own, arm.beside) if one is not None], rate=classifier.learning_rate)
            if arm.name == SYNTHETIC:
                pretrained = student.state()
            assert held_out.pixels is not None
            logits[arm.name] = (student.logits(test), student.logits(held_out.pixels))
        student.restore(start)
    return Networks(cohorts, findings, held_out, logits)


@dataclass(frozen=True)
class _Student:
    """An encoder with a linear head for the findings."""

    classifier: Classifier
    head: nn.Linear
    findings: tuple[str, ...]
    seed: int

    def __post_init__(self) -> None:
        self.head.to(next(self.classifier.network.parameters()).device)

    def parts(self) -> nn.ModuleList:
        return nn.ModuleList([self.classifier.network, self.head])

    def state(self) -> State:
        return copy.deepcopy(self.parts().state_dict())

    def restore(self, state: State) -> None:
        self.parts().load_state_dict(state)

    def learn(self, sets: list[TrainingSet], *, rate: float) -> None:
        """`STEPS` steps, each on `BATCH` images of every set; a set has the same batches whatever is beside it."""
        parts = self.parts().train()
        labels = [self._labels(one) for one in sets]
        every = torch.cat(labels)
        present = every.sum(0)
        weight = ((len(every) - present) / present.clamp(min=1)).sqrt().clamp(0.5, 8.0)  # [K]
        streams = [torch.Generator().manual_seed(self.seed) for _ in sets]
        optimizer = torch.optim.AdamW(parts.parameters(), lr=rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=STEPS, pct_start=0.1)
        for _ in range(STEPS):
            chosen = [torch.randint(len(one), (BATCH,), generator=rng) for one, rng in zip(sets, streams, strict=True)]
            batches = [_augmented(one, of, rng) for one, of, rng in zip(sets, chosen, streams, strict=True)]
            wanted = torch.cat([of[places] for of, places in zip(labels, chosen, strict=True)])
            logits = self.head(self.classifier.encode(torch.cat(batches)))
            loss = F.binary_cross_entropy_with_logits(
                logits, wanted.to(logits.device), pos_weight=weight.to(logits.device)
            )
            if not loss.isfinite():
                raise ModelError(f"{_ROLE} {self.classifier.name}: its loss is not finite\n  use another network")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
            optimizer.step()
            schedule.step()

    @torch.inference_mode()
    def logits(self, pixels: Pixels) -> Features:
        """[N, H, W] -> [N, K]."""
        self.parts().eval()
        parts = [
            self.head(self.classifier.encode(_images(pixels[first : first + BATCH]))).cpu()
            for first in range(0, len(pixels), BATCH)
        ]
        return np.asarray(torch.cat(parts).double().numpy())

    def _labels(self, images: TrainingSet) -> Tensor:
        columns = [truth_of(finding, images.present) for finding in self.findings]
        return torch.from_numpy(np.stack(columns, 1)).float()  # [N, K]


def _augmented(images: TrainingSet, places: Tensor, rng: torch.Generator) -> Tensor:
    """Images [B, 1, H, W] at some places, each shifted, zoomed and turned a little."""
    assert images.pixels is not None
    warps = (torch.rand(len(places), 5, generator=rng) * 2 - 1) * torch.tensor(_REACH)
    return warp(_images(images.pixels[places.numpy()]), warp_matrices(warps)).clamp(0, 1)


def _images(pixels: Pixels) -> Tensor:
    """[B, H, W] uint8 -> [B, 1, H, W] in [0, 1]."""
    return torch.from_numpy(np.asarray(pixels)).float()[:, None] / 255
