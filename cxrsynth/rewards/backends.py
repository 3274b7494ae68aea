"""Which networks stand behind a reward: by name, by folder, or as a user's own class.

No released weights were available for testing: torchxrayvision's DenseNet, ResNet and PSPNet and the CLIP and SigLIP of
transformers are tested with randomly initialized networks of the real classes, saved to a folder (or to the file that
torchxrayvision downloads) and loaded back. BiomedCLIP, CheXzero and CXR-CLIP need conversion to a folder that
transformers loads, which is untested. BioViL-T is tested with random weights under the names of its published code.
"""

from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import torch

from cxrsynth.errors import ModelError
from cxrsynth.rewards.base import Reward
from cxrsynth.rewards.installed import FAMILIES as FAMILIES
from cxrsynth.rewards.installed import unknown_backend
from cxrsynth.rewards.nano import load_family
from cxrsynth.rewards.own import OwnReward
from cxrsynth.runtime.pretrained import hub_folder
from cxrsynth.settings import REWARDS as REWARDS


def load_reward(name: str, backend: str, *, device: torch.device) -> Reward:
    """Load one reward.

    Args:
        name: `posture`, `diagnosis`, `consistency`, or the name of an entry point in group `cxrsynth.rewards`, whose
            class is called with `backend` and `device` (see `Reward`), and held to the contract by `OwnReward`.
        backend: a family (`nano`, `nano-judge`, or a folder laid out like one). For posture also `pspnet` or a folder
            of torchxrayvision's PSPNet; for diagnosis released torchxrayvision weights or a folder of them; for
            consistency a transformers folder, a hub id `owner/name@revision`, or BioViL-T as `cxrsynth convert` makes
            it. Released weights may be followed by the SHA-256 of their file,
            `densenet121-res224-all@sha256:<digest>`; those that are pickled must be.
        device: where its networks run.

    Raises:
        ModelError: if there is no such reward or backend, or it cannot be loaded or trusted.
    """
    if name not in REWARDS:
        return OwnReward(name, backend, device=device)
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
        folder = transformers_folder(backend)
        if folder is not None:
            return _dual_encoder(backend, folder, device)
    raise unknown_backend(name, backend)


def _dual_encoder(backend: str, folder: Path, device: torch.device) -> Reward:
    from cxrsynth.rewards.biovil_t import MODEL_TYPE, PUBLISHED_TYPE, load_biovil_t, model_type
    from cxrsynth.rewards.transformers_dual import load_dual_encoder

    kind = model_type(folder)
    if kind == PUBLISHED_TYPE:
        raise ModelError(
            f"{backend}: BioViL-T or CXR-BERT as published ({PUBLISHED_TYPE}), whose networks are code of its own\n"
            "  expected: a folder converted once from all published files, the image model (.pt) included:"
            " cxrsynth convert PUBLISHED FOLDER"
        )
    return (load_biovil_t if kind == MODEL_TYPE else load_dual_encoder)(folder, device=device)


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


def origin(name: str, backend: str) -> tuple[str, str]:
    """What a reward's networks have in common with others: two of the same origin are not independent.

    For a family it is the family, whatever the reward; else the reward with its backend.
    """
    family = family_folder(backend) if name in REWARDS else None
    if family is not None:
        return "family", str(family.resolve())
    path = Path(backend)
    return name, str(path.resolve()) if path.exists() else backend.partition("@sha256:")[0]


@lru_cache(maxsize=4)
def _family(folder: Path, device: torch.device) -> dict[str, Reward]:
    return load_family(folder, device=device)
