"""What tests of users' own rewards share: a package with one reward, installed for a test."""

import itertools
from pathlib import Path

import pytest

_COUNT = itertools.count()

# A reward that keeps every promise; tests replace a part of it.
HONEST = """
import sys

import numpy as np
import torch


class Own:
    unit, low, high, needs_report = "mean gray level", 0.0, 1.0, False

    def __init__(self, backend, *, device):
        pass

    def __call__(self, images, reports):
        return images.mean((1, 2, 3))
"""


def install_reward(folder: Path, source: str, monkeypatch: pytest.MonkeyPatch, *, name: str = "own") -> Path:
    """Install a user's package whose class `Own` is the reward `name`. Returns its module, new for every call."""
    module = f"own_reward_{next(_COUNT)}"
    folder = folder / module
    folder.mkdir(parents=True)
    path = folder / f"{module}.py"
    path.write_text(source)
    installed = folder / f"{module}-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[cxrsynth.rewards]\n{name} = {module}:Own\n")
    monkeypatch.syspath_prepend(str(folder))
    return path


def replaced(call: str = "", *, constructor: str = "", top: str = "") -> str:
    """The honest reward with other lines in its call or constructor, or on top of its module."""
    source = HONEST
    if call:
        source = source.replace("        return images.mean((1, 2, 3))\n", _indented(call))
    if constructor:
        source = source.replace("        pass\n", _indented(constructor))
    return source.replace("\n\n\nclass", f"\n{top}\n\n\nclass") if top else source


def _indented(lines: str) -> str:
    return "".join(f"        {line}\n" for line in lines.splitlines())
