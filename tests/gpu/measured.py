"""`python -m tests.gpu.measured RESULT.json ARGS...`: one `cxrsynth` command, its wall time and peak GPU memory."""

import json
import sys
import time
from pathlib import Path

import torch


def main() -> int:
    """Run the command in this process; write seconds, peak bytes and exit code to the JSON file."""
    result, *arguments = sys.argv[1:]
    from cxrsynth.cli import app

    started = time.perf_counter()
    code = 0
    try:
        app(arguments)
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    finally:
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        seconds = time.perf_counter() - started
        Path(result).write_text(json.dumps({"code": code, "seconds": seconds, "peak_bytes": peak}), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
