"""Which judge stands behind a reward: by name, by folder, or a user's own class.

Of the backends that are not in the package no released weights were at hand: torchxrayvision's DenseNet, ResNet and
PSPNet and the CLIP and SigLIP of transformers are tested as these real classes with random weights, saved to a folder
(ResNet and PSPNet also to the file that torchxrayvision would fetch) and loaded back. BiomedCLIP, CheXzero and CXR-CLIP
can be used once converted to a folder that transformers loads; that was not tried. BioViL-T is not supported: its
package, hi-ml-multimodal, is not among our dependencies.
"""

from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from pathlib import Path

import torch

from cxrsynth.errors import ModelError
from cxrsynth.rewards.base import Reward
from cxrsynth.rewards.nano import load_family
from cxrsynth.settings import REWARDS as REWARDS

# `nano` to tune with, `nano-judge` to audit with: other architecture, other patients.
FAMILIES = ("nano", "nano-judge")
ENTRY_POINTS = "cxrsynth.rewards"


def load_reward(name: str, backend: str, *, device: torch.device) -> Reward:
    """One reward.

    Args:
        name: `posture`, `diagnosis`, `consistency`, or that of an entry point in group `cxrsynth.rewards`, which names
            a class called with `backend` and `device`.
        backend: a family (`nano`, `nano-judge`, or a folder laid out like one); for posture also `pspnet` or a folder
            of torchxrayvision's PSPNet; for diagnosis released torchxrayvision weights (`densenet121-res224-all`,
            `resnet50-res512-all`) or a folder of them; for consistency a transformers folder.
        device: where its networks run.

    Raises:
        ModelError: if there is no such reward or backend, or it cannot be loaded.
    """
    if name not in REWARDS:
        reward: Reward = own_reward(name).load()(backend, device=device)
        return reward
    folder = family_folder(backend)
    if folder is not None:
        return _family(folder, device)[name]
    if name == "diagnosis":
        from cxrsynth.rewards.xrv import load_xrv

        return load_xrv(backend, device=device)
    if name == "posture" and (backend == "pspnet" or Path(backend).is_dir()):
        from cxrsynth.rewards.xrv_posture import load_lung_posture

        return load_lung_posture(backend, device=device)
    if name == "consistency" and Path(backend).is_dir():
        from cxrsynth.rewards.transformers_dual import load_dual_encoder

        return load_dual_encoder(Path(backend), device=device)
    raise no_backend(name, backend)


def family_folder(backend: str) -> Path | None:
    """Folder of a family in the package or the user's own, None where the backend is something else."""
    if backend in FAMILIES:
        return Path(str(files("cxrsynth") / "nano" / "assets" / "judges" / backend))
    folder = Path(backend)
    return folder if (folder / "classifier").is_dir() else None


def own_reward(name: str) -> EntryPoint:
    """The entry point of a user's own reward.

    Raises:
        ModelError: if no installed package has one of this name.
    """
    own = {found.name: found for found in entry_points(group=ENTRY_POINTS)}
    if name not in own:
        known = ", ".join((*REWARDS, *sorted(own)))
        raise ModelError(f"reward {name!r}: not known\n  expected: {known}, or an entry point in group {ENTRY_POINTS}")
    return own[name]


def no_backend(name: str, backend: str) -> ModelError:
    """That a reward has no such backend, and which it has."""
    released = {"posture": ", pspnet", "diagnosis": ", released weights such as densenet121-res224-all"}
    known = f"{', '.join(FAMILIES)}{released.get(name, '')}, or a folder"
    return ModelError(f"{name}: no backend {backend!r}\n  expected: {known}")


@lru_cache(maxsize=4)
def _family(folder: Path, device: torch.device) -> dict[str, Reward]:
    return load_family(folder, device=device)
