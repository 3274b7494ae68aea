"""The benchmarks of speed and scale run: at the smallest size, where their numbers mean nothing."""

import re
import subprocess
import sys

import pytest
import transformers

from cxrsynth.recipe.read import load_recipe
from tests.benchmarks import tune_ablations

SMALL = {
    "generate_speed": ["--rounds", "1", "--steps", "2", "--images-per-report", "1", "--limit", "4"],
    "encode_share": ["--rounds", "1", "--images", "2"],
    "network_share": ["--repeats", "1", "--batches", "1"],
    "network_tried": ["--repeats", "1", "--images", "1", "--only", "int8, the rest as"],
    "tune_speed": ["--rounds", "1", "--reports", "1", "--images", "2", "--batch", "2"],
    "audit_speed": ["--rounds", "1", "--images", "8"],
    "scale": ["--rows", "200"],
    "start_up": ["--repeats", "1", "--no-commands"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_prints_its_ratio(name: str) -> None:
    if name == "generate_speed" and int(transformers.__version__.partition(".")[0]) < 5:
        pytest.skip("a pipeline reads nano's tokenizer with transformers 5 or later")
    # The processes of `tests` see what this one sees: `sys.path` of conftest, handed on.
    code = (
        f"import runpy, sys; sys.path[:] = {sys.path!r}; "
        f"runpy.run_module('tests.benchmarks.{name}', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", code, *SMALL[name]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    ratio = re.search(r"ratio[^\d]*(\d+\.\d+)", done.stdout + done.stderr)
    assert ratio is not None
    assert float(ratio[1]) > 0


@pytest.mark.parametrize("name", tune_ablations.VARIANTS)
def test_every_ablation_is_a_recipe(name: str) -> None:
    variant = tune_ablations.VARIANTS[name]
    load_recipe(tune_ablations.RECIPES / variant.recipe, overrides=variant.changes)
