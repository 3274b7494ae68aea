"""The trained networks as a Stable Diffusion folder, half precision, with cxrsynth.json and a model card."""

from pathlib import Path

from cxrsynth.nano.build.config import BuildConfig


def export_model(data: Path, work: Path, out: Path, *, settings: BuildConfig) -> None:
    ...
