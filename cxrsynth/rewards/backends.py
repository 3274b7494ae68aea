"""Which networks stand behind a reward: by name, by folder, or as a user's own class.

No released weights were available for testing: torchxrayvision's DenseNet, ResNet and PSPNet and the CLIP and SigLIP of
transformers are tested with randomly initialized networks of the real classes, saved to a folder (or to the file that
torchxrayvision downloads) and loaded back. BiomedCLIP, CheXzero and CXR-CLIP need conversion to a folder that
transformers loads, which is untested. BioViL-T is not supported: its package, hi-ml-multimodal, is not a dependency.
"""

from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from pathlib import Path

import torch

from cxrsynth.errors import ModelError
from cxrsynth.rewards.base import Reward
from cxrsynth.rewards.nano import load_family
from cxrsynth.runtime.pretrained import hub_folder
from cxrsynth.settings import REWARDS as REWARDS

# `nano` to tune with, `nano-judge` to evaluate and audit with: another architecture, trained on other patients.
FAMILIES = ("nano", "nano-judge")
ENTRY_POINTS = "cxrsynth.rewards"


def load_reward(name: str, backend: str, *, device: torch.device) -> Reward:
    """Load one reward.

    Args:
        name: `posture`, `diagnosis`, `consistency`, or the name of an entry point in group `cxrsynth.rewards`, whose
            class is called with `backend` and `device` (see `Reward`).
        backend: a family (`nano`, `nano-judge`, or a folder laid out like one). For posture also `pspnet` or a folder
            of torchxrayvision's PSPNet; for diagnosis released torchxrayvision weights or a folder of them; for
            consistency a transformers folder or a hub id `owner/name@revision`. Released weights may be followed by
            the SHA-256 of their file, `densenet121-res224-all@sha256:<digest>`; those that are pickled must be.
        device: where its networks run.

    Raises:
        ModelError: if there is no such reward or backend, or it cannot be loaded or trusted.
    """
    if name not in REWARDS:
        reward: Reward = own_reward(name).load()(backend, device=device)
        return reward
    family = family_folder(backend)
    if family is not None:
        return _family(family, device)[name]
    if name == "diagnosis":
        from cxrsynth.rewards.xrv import load_xrv

        return load_xrv(backend, device=device)
    if name == "posture":
        from cxrsynth.rewards.xrv_posture import RELEASED, load_lung_posture

        if backend.partition("@")[0] == RELEASED or Path(backend).is_dir():
            return load_lung_posture(backend, device=device)
    if name == "consistency":
        from cxrsynth.rewards.transformers_dual import load_dual_encoder

        folder = transformers_folder(backend)
        if folder is not None:
            return load_dual_encoder(folder, device=device)
    raise unknown_backend(name, backend)


def family_folder(backend: str) -> Path | None:
    """Folder of a reward family in the package or of the user's own; None where the backend is something else."""
    if backend in FAMILIES:
        return Path(str(files("cxrsynth") / "nano" / "assets" / "judges" / backend))
    folder = Path(backend)
    return folder if (folder / "classifier").is_dir() else None


def transformers_folder(backend: str) -> Path | None:
    """A local folder, or the snapshot of a hub id `owner/name@revision`; None where the backend is neither.

    Raises:
        ModelError: if the hub has no such revision or cannot be reached.
    """
    return Path(backend) if Path(backend).is_dir() else hub_folder(backend)


def own_reward(name: str) -> EntryPoint:
    """The entry point of a user's own reward.

    Raises:
        ModelError: if no installed package has one of this name.
    """
    own = {found.name: found for found in entry_points(group=ENTRY_POINTS)}
    if name not in own:
        known = ", ".join((*REWARDS, *sorted(own)))
        raise ModelError(
            f"reward {name!r}: unknown\n  expected: {known}, or a name that an installed package gives an entry point"
            f" in group {ENTRY_POINTS}"
        )
    return own[name]


def unknown_backend(name: str, backend: str) -> ModelError:
    """The error for a backend that a reward does not have; it lists those it has."""
    further = {
        "posture": ", pspnet, or a folder",
        "diagnosis": ", released weights such as densenet121-res224-all, or a folder",
        "consistency": ", a folder, or a hub id owner/name@revision",
    }
    return ModelError(f"{name}: no backend {backend!r}\n  expected: {', '.join(FAMILIES)}{further[name]}")


@lru_cache(maxsize=4)
def _family(folder: Path, device: torch.device) -> dict[str, Reward]:
    return load_family(folder, device=device)
