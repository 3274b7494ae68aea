"""Which rewards there are, without loading one: the built-in names and their backends, and installed entry points."""

from importlib.metadata import EntryPoint, entry_points

from cxrsynth.errors import ModelError
from cxrsynth.settings import REWARDS

# `nano` to tune with, `nano-judge` to evaluate and audit with: another architecture, trained on other patients.
FAMILIES = ("nano", "nano-judge")
ENTRY_POINTS = "cxrsynth.rewards"
# What each built-in reward takes beside a family.
FURTHER_BACKENDS = {
    "posture": ("pspnet", "a folder"),
    "diagnosis": ("released weights such as densenet121-res224-all", "a folder"),
    "consistency": ("a folder", "a hub id owner/name@revision"),
}


def own_rewards() -> dict[str, EntryPoint]:
    """Users' own rewards in installed packages, by name."""
    return {found.name: found for found in sorted(entry_points(group=ENTRY_POINTS))}


def own_reward(name: str) -> EntryPoint:
    """The entry point of a user's own reward.

    Raises:
        ModelError: if no installed package has one of this name.
    """
    own = own_rewards()
    if name not in own:
        known = ", ".join((*REWARDS, *own))
        raise ModelError(
            f"reward {name!r}: unknown\n  expected: {known}, or a name that an installed package gives an entry point"
            f" in group {ENTRY_POINTS}"
        )
    return own[name]


def known_backends(name: str) -> str:
    """The backends of a built-in reward, in words."""
    *several, last = (*FAMILIES, *FURTHER_BACKENDS[name])
    return f"{', '.join(several)}, or {last}"


def unknown_backend(name: str, backend: str) -> ModelError:
    """The error for a backend that a built-in reward does not have; it lists those it has."""
    return ModelError(f"{name}: no backend {backend!r}\n  expected: {known_backends(name)}")


def describe_rewards() -> dict[str, str]:
    """Name -> where the reward comes from, the built-in ones first."""
    own = {
        name: f"{found.value}, of {found.dist.name} {found.dist.version}" if found.dist else found.value
        for name, found in own_rewards().items()
        if name not in REWARDS
    }
    return {name: f"built in; backend {known_backends(name)}" for name in REWARDS} | own
