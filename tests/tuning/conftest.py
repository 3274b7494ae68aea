"""Fixtures of the tests of `tune`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tuning.supervised import other_text, write_images


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of 40 x 36 pixels with the reports F-1 to F-4 in a table beside the folder."""
    folder = tmp_path_factory.mktemp("images") / "images"
    folder.mkdir()
    rows = np.linspace(0, 1, 40)[:, None]
    for place in range(4):
        levels = 0.5 + 0.4 * np.sin((place + 2) * rows + np.linspace(0, 3 + place, 36)[None])
        Image.fromarray((levels * 255).astype(np.uint8)).save(folder / f"image{place}.png")
    table = [(f"image{place}.png", f"F-{place + 1}", *other_text(place)) for place in range(4)]
    write_images(folder.parent / "images.csv", table)
    return folder


@pytest.fixture
def one_core() -> Iterator[None]:
    """Two threads on one operation of a tiny network wait for each other, longer when cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
