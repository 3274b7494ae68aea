"""Which judge stands behind a reward: by name, by folder, or a user's own class."""

from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from pathlib import Path

import torch

from cxrsynth.errors import ModelError
from cxrsynth.rewards.base import Reward
from cxrsynth.rewards.nano import load_family

# `nano` to tune with, `nano-judge` to audit with: other architecture, other patients.
FAMILIES = ("nano", "nano-judge")
REWARDS = ("posture", "diagnosis", "consistency")
ENTRY_POINTS = "cxrsynth.rewards"


def load_reward(name: str, backend: str, *, device: torch.device) -> Reward:
    """One reward.

    Args:
        name: `posture`, `diagnosis`, `consistency`, or that of an entry point in group `cxrsynth.rewards`, which names
            a class called with `backend` and `device`.
        backend: a family (`nano`, `nano-judge`, or a folder laid out like one); for diagnosis also released
            torchxrayvision weights or a folder of them; for consistency also a transformers folder.
        device: where its networks run.

    Raises:
        ModelError: if there is no such reward or backend, or it cannot be loaded.
    """
    if name not in REWARDS:
        own = _entry_points()
        if name not in own:
            known = ", ".join((*REWARDS, *sorted(own)))
            raise ModelError(
                f"reward {name!r}: not known\n  expected: {known}, or an entry point in group {ENTRY_POINTS}"
            )
        reward: Reward = own[name].load()(backend, device=device)
        return reward
    folder = _family_folder(backend)
    if folder is not None:
        return _family(folder, device)[name]
    if name == "diagnosis":
        from cxrsynth.rewards.xrv import load_xrv

        return load_xrv(backend, device=device)
    if name == "consistency" and Path(backend).is_dir():
        from cxrsynth.rewards.transformers_dual import load_dual_encoder

        return load_dual_encoder(Path(backend), device=device)
    raise ModelError(f"{name}: no backend {backend!r}\n  expected: {', '.join(FAMILIES)}, or a folder")


@lru_cache(maxsize=4)
def _family(folder: Path, device: torch.device) -> dict[str, Reward]:
    return load_family(folder, device=device)


def _family_folder(backend: str) -> Path | None:
    """Folder of a family in the package or the user's own, None where the backend is something else."""
    if backend in FAMILIES:
        return Path(str(files("cxrsynth") / "nano" / "assets" / "judges" / backend))
    folder = Path(backend)
    return folder if (folder / "classifier").is_dir() else None


def _entry_points() -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group=ENTRY_POINTS)}
