"""The command line answers at once: nothing heavy is imported before work starts."""

import subprocess
import sys

import pytest

_CODE = """
import sys
from typer.testing import CliRunner
from cxrsynth.cli import app
result = CliRunner().invoke(app, sys.argv[1:])
heavy = {"torch", "diffusers", "transformers", "spacy", "numpy", "pydicom", "pyarrow"} & set(sys.modules)
sys.stdout.write(f"{result.exit_code} {sorted(heavy)}")
"""


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", _CODE, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == "0 []"
