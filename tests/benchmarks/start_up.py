"""`python -m tests.benchmarks.start_up`: where the time of the README's first command goes, and that of the others.

Each row is the processor time, user and system, of a process of its own that does what is named and ends, the least of
several that take turns: other work on the machine disturbs that little. Parts are differences between two such
processes: with and without the part, everything before it included. The last column is the time on the clock.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table as RichTable

_IMPORT = "import gc; gc.disable(); import cxrsynth.cli; {rest}"
_LIBRARIES = "import torch, transformers, diffusers; "
_COMMAND = "import cxrsynth.generation.generate; "
_LOAD = (
    "from cxrsynth.diffusion.model import load_model; from cxrsynth.diffusion.resolve import resolve_model;"
    " from cxrsynth.settings import Precision;"
    " load_model(resolve_model('nano'), device=torch.device('cpu'), precision=Precision.FP32); "
)
_READ = "from cxrsynth.reports.findings.reader import FindingsReader; FindingsReader(); "
# Name -> the code that includes all parts before it.
_PARTS = {
    "the interpreter and the command line": "",
    "torch, transformers and diffusers": _LIBRARIES,
    "the rest of what `generate` imports": _LIBRARIES + _COMMAND,
    "nano, hashed and loaded": _LIBRARIES + _COMMAND + _LOAD,
    "the reader of findings": _LIBRARIES + _COMMAND + _LOAD + _READ,
}
_COMMANDS: dict[str, Sequence[str]] = {
    "`cxrsynth --help`": ("--help",),
    "`cxrsynth generate --example --dry-run`": ("generate", "--example", "--dry-run", "--out", "{out}"),
    "`cxrsynth generate --example`": ("generate", "--example", "--out", "{out}"),
    "the same with `--model nano-fast`": ("generate", "--example", "--out", "{out}", "--model", "nano-fast"),
    "`cxrsynth audit` of that": ("audit", "{out}"),
}


def main(
    repeats: Annotated[int, typer.Option(help="Processes of each part.")] = 5,
    commands: Annotated[bool, typer.Option(help="Also whole commands, once each.")] = True,
) -> None:
    """Print both tables."""
    least: dict[str, float] = {}
    for _ in range(repeats):
        for name, rest in _PARTS.items():
            spent, _ = _measured("-c", _IMPORT.format(rest=rest))
            least[name] = min(spent, least.get(name, spent))
    table = RichTable("part", "CPU s", "CPU s until then")
    before = 0.0
    for name, spent in least.items():
        table.add_row(name, f"{max(0.0, spent - before):.2f}", f"{spent:.2f}")
        before = spent
    Console().print(table)
    Console().print(f"ratio of all imports to the whole start: {least[list(_PARTS)[2]] / before:.2f}")
    if commands:
        _print_commands()


def _print_commands() -> None:
    table = RichTable("command", "CPU s", "s")
    with tempfile.TemporaryDirectory() as folder:
        out = ""
        for place, (name, words) in enumerate(_COMMANDS.items()):
            if "audit" not in words:
                out = str(Path(folder) / str(place))
            spent, clock = _measured("-m", "cxrsynth", *(word.format(out=out) for word in words))
            table.add_row(name, f"{spent:.1f}", f"{clock:.1f}")
    Console().print(table)


def _measured(*arguments: str) -> tuple[float, float]:
    """Processor seconds and seconds of Python with these arguments. Raises RuntimeError if it fails."""
    before, started = os.times(), time.monotonic()
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    clock, after = time.monotonic() - started, os.times()
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    return spent, clock


if __name__ == "__main__":
    typer.run(main)
