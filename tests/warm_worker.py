"""What `processes.torchrun` has its agents run in each worker that they fork: `cxrsynth`, all imports done."""

import os
import runpy
import signal
import sys
from pathlib import Path


def pid_file(log: Path, rank: int) -> Path:
    """Where the newest worker of a rank writes its number."""
    return log.with_name(f"{log.name}.rank-{rank}")


if __name__ == "__main__":
    for number, handler in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        signal.signal(number, handler)  # the agent's own are inherited
    _, log, *arguments = sys.argv
    pid_file(Path(log), int(os.environ["RANK"])).write_text(str(os.getpid()))
    sys.argv = ["cxrsynth", *arguments]
    runpy.run_module("cxrsynth", run_name="__main__", alter_sys=True)
