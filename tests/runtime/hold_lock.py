"""A process that takes the lock of a folder and keeps it: `python -m tests.runtime.hold_lock FOLDER`."""

import sys
import time
from pathlib import Path

from cxrsynth.runtime.folder import LockedFolder

if __name__ == "__main__":
    folder = LockedFolder(Path(sys.argv[1]), lock=".lock", written=(), kept="")
    folder.lock()
    (folder.path / "held").touch()
    time.sleep(600)
