"""Whether all processes of a run write to one folder, or each machine has another one under the same name."""

import secrets
import time
from contextlib import suppress
from pathlib import Path

import torch

from cxrsynth.console import counted
from cxrsynth.errors import LaunchError
from cxrsynth.runtime.folder import LockedFolder
from cxrsynth.runtime.processes import ProcessGroup

_VISIBLE_S = 10.0  # by then, network file systems show what another machine has written
_POLL_S = 0.1


def refuse_folders_apart(group: ProcessGroup, folder: LockedFolder, *, complete: bool, others: bool = False) -> None:
    """Have the first process write a file, and see whether the others find it; all must come here.

    Nothing stays in the folder, and one that was not there is removed again, unless `others` may be using it by then.

    Args:
        group: the processes of the run.
        folder: of the run, as this process sees it.
        complete: whether all that the run makes is there. Where it is for all, nothing more will be written.
        others: whether other runs, of other parts, may be starting there.

    Raises:
        LaunchError: in every process, if one does not find the file.
        ShardError: in the first process, if the folder cannot be written to.
    """
    if group.count == 1:
        return
    if int(group.add_up(torch.tensor([int(complete)]))) == group.count:
        return
    token = folder.token(int(group.of_first(torch.tensor([secrets.randbits(62)]))))
    group.wait()  # until all have looked at the folder: with the token in it, it may look like somebody else's
    new = [path for path in dict.fromkeys((folder.state, folder.path)) if not path.exists()]
    if group.is_main:
        folder.write_token(token)
    group.wait()
    lacking = torch.zeros(group.count, dtype=torch.int64)
    lacking[group.rank] = not _appears(token)
    blind = group.add_up(lacking).nonzero().flatten().tolist()
    # Another run that completes a data set there removes the file, too: then nothing is known.
    is_there = bool(group.of_first(torch.tensor([int(token.exists())])))
    if group.is_main:
        token.unlink(missing_ok=True)
        for path in () if others else new:  # a model that does not load leaves no folder behind
            with suppress(OSError):
                path.rmdir()
    if blind and is_there:
        raise LaunchError(
            f"{folder.name}: {counted(len(blind), 'process', 'processes')} of {group.count} (rank"
            f" {', '.join(map(str, blind))}) did not find there what the first one wrote\n"
            "  expected: one folder that all processes share, such as on a network file system; each writes a part"
        )


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + _VISIBLE_S
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
