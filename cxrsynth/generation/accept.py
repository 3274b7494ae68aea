"""Acceptance: an image that fails a rule is drawn again from other noise, and what was decided is recorded.

The rules are those of `audit`, applied to the image as a reader of the shard will see it. What passes is no unfiltered
sample of the model: every image says how often it was drawn, and the manifest how many passed, by finding.
"""

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cxrsynth.errors import RecipeError
from cxrsynth.images.pictures import squared
from cxrsynth.metrics.memorization.registration import load_posture
from cxrsynth.metrics.quality.checks import CHECKS, FRONTAL_CHECKS, QualityChecks
from cxrsynth.metrics.quality.framing import framing_digest, load_framing
from cxrsynth.metrics.quality.likeness import TEMPLATES_FILE, Likeness
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.backends import REWARDS, load_reward
from cxrsynth.rewards.base import Reward
from cxrsynth.rewards.digests import backend_digest
from cxrsynth.rewards.installed import own_rewards
from cxrsynth.rewards.networks import features_once
from cxrsynth.rewards.subject import AGREEMENTS, agreement_digest, load_agreement
from cxrsynth.runtime.files import file_sha256
from cxrsynth.settings import TUNING_FAMILY, AcceptSettings

# As in `audit`: networks resample from this side to their own input.
_IMAGE_SIZE = 256

Image = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Outcome:
    """What was decided on one image.

    `attempts` were drawn, of which number `attempt` (from 1) stays. `scores` are its rewards, undefined ones left out;
    `failed` is empty exactly where it is accepted: `check: text`, `posture<-1.0`.
    """

    attempt: int
    attempts: int
    scores: Mapping[str, float]
    failed: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        """Whether the image passed every rule."""
        return not self.failed

    @property
    def metadata(self) -> dict[str, Any]:
        """The part of a sample's JSON. Texts, since readers infer columns and no sample may hold a null."""
        return {
            "accepted": self.accepted,
            "attempt": self.attempt,
            "attempts": self.attempts,
            "scores": "; ".join(f"{name}={value:.6g}" for name, value in self.scores.items()),
            "failed": "; ".join(self.failed),
        }

    @property
    def comment(self) -> str:
        """One sentence for the comment of a DICOM object."""
        scores = f" ({', '.join(f'{name} {value:.3g}' for name, value in self.scores.items())})" if self.scores else ""
        if self.accepted:
            return f"Accepted at attempt {self.attempt}{scores}."
        return f"Not accepted in {self.attempts} attempts: {', '.join(self.failed)}{scores}."


@dataclass(frozen=True)
class Acceptor:
    """Networks and rules that judge images: rewards with thresholds, and quality checks."""

    rewards: Mapping[str, Reward]
    checks: QualityChecks
    thresholds: Mapping[str, float]
    ignored_checks: frozenset[str]
    attempts: int

    def draw(
        self,
        sample: Callable[[Sequence[int], int], Tensor],
        reports: Sequence[Report],
        *,
        stored: Callable[[Image], Image],
        laterals: Set[int] = frozenset(),
    ) -> tuple[Tensor, list[Outcome]]:
        """Draw one image for each report, those that fail again, at most `attempts` times in all.

        Where no attempt passes, the one that fails the fewest rules stays, the first of these.

        Args:
            sample: (places among the reports, number of the attempt from 0) -> images [len(places), 1, H, W].
            reports: B, with the labels that the images are published with.
            stored: an image [H, W] as a reader of the shard will see it.
            laterals: places of the reports that ask for a lateral view of a model that can show it. The checks that
                know frontal chests alone, `FRONTAL_CHECKS`, decide nothing there.

        Returns:
            Images [B, 1, H, W] as sampled, and what was decided on each.
        """
        places = list(range(len(reports)))
        images = sample(places, 0).clone()  # what is sampled in inference mode cannot be written to
        outcomes = self._judge(images, reports, stored, [place in laterals for place in places])
        for attempt in range(1, self.attempts):
            places = [place for place, outcome in enumerate(outcomes) if not outcome.accepted]
            if not places:
                break
            again = sample(places, attempt)
            found = self._judge(
                again, [reports[place] for place in places], stored, [place in laterals for place in places]
            )
            for place, image, outcome in zip(places, again, found, strict=True):
                kept = outcomes[place]
                if len(outcome.failed) < len(kept.failed):
                    images[place], kept = image, replace(outcome, attempt=attempt + 1)
                outcomes[place] = replace(kept, attempts=attempt + 1)
        return images, outcomes

    @torch.inference_mode()
    def _judge(
        self, images: Tensor, reports: Sequence[Report], stored: Callable[[Image], Image], lateral: Sequence[bool]
    ) -> list[Outcome]:
        seen = [stored(image[0].numpy()) for image in images]
        batch = torch.from_numpy(np.stack([squared(one, _IMAGE_SIZE) for one in seen]))[:, None]  # [B, 1, S, S]
        with features_once():
            found = self.checks(batch, seen)
            scores = {name: reward(batch, reports).float().cpu() for name, reward in self.rewards.items()}
        return [
            self._outcome(
                {name: column[place] for name, column in scores.items()},
                [
                    name
                    for name, bad in zip(found.names, failed, strict=True)
                    if bad and not (lateral[place] and name in FRONTAL_CHECKS)
                ],
            )
            for place, failed in enumerate(found.failed.tolist())
        ]

    def _outcome(self, scores: Mapping[str, Tensor], failed: Sequence[str]) -> Outcome:
        reasons = [f"check: {name}" for name in failed if name not in self.ignored_checks]
        # In float32 like the scores: -1.1 there lies below the -1.1 a user writes. Undefined ones (nan) reject nothing.
        reasons += [
            f"{name}<{float(least)}"
            for name, least in sorted(self.thresholds.items())
            if scores[name] < np.float32(least)
        ]
        defined = {name: value.item() for name, value in scores.items() if not value.isnan()}
        return Outcome(attempt=1, attempts=1, scores=defined, failed=tuple(reasons))


def load_acceptor(settings: AcceptSettings, *, device: torch.device) -> Acceptor:
    """Load what judges images. Raises ModelError for a reward model that cannot be loaded."""
    folder = _checks_folder()
    return Acceptor(
        rewards={name: _load(name, backend, device) for name, backend in _judges(settings).items()},
        checks=QualityChecks(Likeness.load(folder, load_posture(folder, device)), load_framing(device)),
        thresholds=settings.thresholds,
        ignored_checks=frozenset(settings.ignored_checks),
        attempts=settings.attempts,
    )


def acceptance_plan(settings: AcceptSettings) -> dict[str, Any]:
    """What the decisions depend on, as part of a plan: rules, and digests of the networks that judge.

    Raises:
        RecipeError: for a threshold or check that there is none of, or a reward model that decides nothing.
        ModelError: for a reward model that is not there.
    """
    for name in sorted(settings.thresholds.keys() - _judges(settings).keys()):
        raise RecipeError(
            f"--min {name}: no reward of that name is measured\n"
            f"  known: {', '.join((*REWARDS, *AGREEMENTS))}; a reward of your own needs --judge {name}=BACKEND"
        )
    for name, value in settings.thresholds.items():
        if not math.isfinite(value):
            raise RecipeError(f"--min {name}={value}: expected a finite number")
    _check_judges_decide(settings)
    for name in sorted(set(settings.ignored_checks) - CHECKS.keys()):
        raise RecipeError(f"--ignore-check {name}: no check of that name\n  known: {', '.join(CHECKS)}")
    folder = _checks_folder()
    return {
        "attempts": settings.attempts,
        "at_least": {name: float(value) for name, value in sorted(settings.thresholds.items())},
        "ignored_checks": sorted(settings.ignored_checks),
        "only_accepted": settings.only_accepted,
        "reward_models": {
            name: {"backend": backend, "digest": _digest(name, backend)} for name, backend in _judges(settings).items()
        },
        "checks": {
            "posture": backend_digest("posture", TUNING_FAMILY),
            "mean_chests": file_sha256(folder / TEMPLATES_FILE),
            "framing": framing_digest(),
        },
    }


def _check_judges_decide(settings: AcceptSettings) -> None:
    """Refuse a backend that no rule needs: who gave it expects that images are judged by it.

    Raises:
        RecipeError: naming the reward.
    """
    rules, given = settings.thresholds.keys(), settings.judges
    if isinstance(given, str):
        if given != TUNING_FAMILY and not rules:
            raise RecipeError(
                f"--judge {given}: decides nothing\n  give a threshold with --min REWARD=VALUE, or leave it out"
            )
        return
    by_classifier = rules & (set(AGREEMENTS) - given.keys())  # judged by the backend of diagnosis
    for name in sorted(given.keys() - rules - ({"diagnosis"} if by_classifier else set())):
        raise RecipeError(
            f"--judge {name}: decides nothing\n  give a threshold with --min {name}=VALUE, or leave it out"
        )


def _judges(settings: AcceptSettings) -> dict[str, str]:
    """Backend of each reward with a threshold, by name; agreement is judged by the classifier of diagnosis."""
    given = settings.judges
    known = dict.fromkeys(REWARDS, given) if isinstance(given, str) else dict(given)
    if "diagnosis" in known:
        known = dict.fromkeys(AGREEMENTS, known["diagnosis"]) | known
    return {name: known[name] for name in sorted(settings.thresholds) if name in known}


def _load(name: str, backend: str, device: torch.device) -> Reward:
    return (load_agreement if _is_agreement(name) else load_reward)(name, backend, device=device)


def _digest(name: str, backend: str) -> str:
    return (agreement_digest if _is_agreement(name) else backend_digest)(name, backend)


def _is_agreement(name: str) -> bool:
    """A user's own reward of such a name comes first."""
    return name in AGREEMENTS and name not in own_rewards()


def _checks_folder() -> Path:
    """Of the family whose posture network registers images for the checks: that of an audit stays out of decisions."""
    return Path(str(files("cxrsynth") / "nano" / "assets" / "judges" / TUNING_FAMILY))
