"""curves.png has a panel for each kind of metric in a run."""

from pathlib import Path

import pytest
from PIL import Image

from cxrsynth.tuning.curves import draw_curves

SUPERVISED = [{"stage": 0, "iteration": step, "sft/loss": 1.0 / step, "sft/grad_norm": 0.5} for step in (1, 2, 3)]
REINFORCED = [
    {"stage": 1, "iteration": step, "policy/grad_norm": 0.5, "policy/approx_kl": 0.0, "policy/clip_fraction": None}
    for step in (1, 2)
]


@pytest.mark.parametrize(
    ("rows", "heights"), [(SUPERVISED, 1), (SUPERVISED + REINFORCED, 1), ([{"stage": 0, "iteration": 1}], 0), ([], 0)]
)
def test_panels(rows: list[dict[str, float]], heights: int, tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    draw_curves(rows, path)
    assert path.is_file() == (heights > 0)
    if heights:
        width, height = Image.open(path).size
        assert height * 13 == pytest.approx(width * 3.5 * heights, rel=0.02)


def test_each_stage_starts_where_the_previous_one_ended(tmp_path: Path) -> None:
    """Three steps, then two iterations: the picture differs from that of two stages which both start at 1."""
    pictures = []
    for name, stage in (("after", 1), ("beside", 0)):
        draw_curves([*SUPERVISED, *(row | {"stage": stage} for row in REINFORCED)], tmp_path / name)
        pictures.append(Image.open(tmp_path / name).tobytes())
    assert pictures[0] != pictures[1]
