"""Programs of other people that check our files. Absent, a test skips; on CI, it fails."""

import os
import shutil

import pytest


def require(program: str, package: str) -> str:
    """Path of a program, or skip (on CI: fail) naming the Debian package that holds it."""
    # Servers lie in /usr/sbin, which is not on every user's PATH.
    path = shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
    if path is None:
        reason = f"{program} is not installed: Debian package {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
