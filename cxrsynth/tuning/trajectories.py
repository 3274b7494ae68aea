"""What a teacher visits on its way from noise to images, sampled once and kept on disk while a student learns it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.errors import ModelError, RecipeError
from cxrsynth.runtime.files import write_atomically
from cxrsynth.runtime.pool import OrderedPool

_PER_FILE = 64
_DIGEST = "sha256"  # in a file's header, of its states
_BYTES = 2  # float16: an error of 5e-4 in a target, where the network's own is larger by far


class Trajectories:
    """States of N trajectories in files of a folder, float16; a file found there is not sampled again.

    Args:
        folder: of the files.
        count: N.
        shape: of the states of one trajectory, [K, C, h, w].
        depends_on: everything the states depend on, as plain JSON.
        seed: of their noise.
        begun_anew: each step begins at a state of its own, not where the one before it ended: for K steps there are 2 K
            states, beginning and end of each in turn.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        shape: tuple[int, ...],
        *,
        depends_on: Sequence[object],
        seed: int,
        begun_anew: bool = False,
    ) -> None:
        self._folder, self._count, self._shape, self._seed = folder, count, shape, seed
        self._begun_anew = begun_anew
        self._identity = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._count

    @property
    def byte_count(self) -> int:
        """Disk space of all of them."""
        return self._count * torch.Size(self._shape).numel() * _BYTES

    def check_room(self, limit_bytes: float) -> None:
        """Raises RecipeError if they take more disk space than is allowed."""
        if self.byte_count > limit_bytes:
            raise RecipeError(
                f"cache_gib {limit_bytes / 2**30:g}: {self._count:,} trajectories take"
                f" {self.byte_count / 2**30:.1f} GiB\n"
                "  raise it if the disk has room, or sample fewer trajectories"
            )

    @property
    def files(self) -> list[range]:
        """The trajectories of each file."""
        return [range(first, min(first + _PER_FILE, self._count)) for first in range(0, self._count, _PER_FILE)]

    def noise(self, place: int) -> Tensor:
        """Its noise, [C, h, w] float32: x_T, or what is added to its image."""
        return seeded_noise(self._shape[1:], self._seed, "trajectory", place)

    def is_there(self, places: range) -> bool:
        """Whether a file has been sampled, and holds what was written."""
        try:
            with safe_open(self._path(places), framework="pt") as file:
                states, digest = file.get_tensor("states"), (file.metadata() or {}).get(_DIGEST)
        except (OSError, SafetensorError):
            return False
        return tuple(states.shape) == (len(places), *self._shape) and digest == _digest_of(states)

    def check_all_there(self) -> None:
        """Raises ModelError if a file is missing here: other processes may have sampled it on another machine."""
        missing = sum(not self._path(places).is_file() for places in self.files)
        if missing:
            raise ModelError(
                f"{self._folder}: {missing} of {len(self.files)} files of trajectories are not here\n"
                "  expected: an --out that all processes share; each samples a part"
            )

    def sample(
        self,
        places: range,
        states: Callable[[Sequence[int]], Tensor],
        pool: OrderedPool,
        *,
        batch_size: int,
        advance: Callable[[int], None],
    ) -> None:
        """Sample the trajectories of one file.

        Args:
            places: of the file.
            states: samples a batch, [B, K, C, h, w] float32.
            pool: where batches run.
            batch_size: trajectories a batch.
            advance: told how many are done.

        Raises:
            ModelError: if latents are not numbers.
            OSError: if they cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        batches = [places[first : first + batch_size] for first in range(0, len(places), batch_size)]
        parts = []
        for batch, made in pool.map_in_order(states, batches):
            kept = made.cpu().half()
            if not kept.isfinite().all():
                raise ModelError("the teacher's latents are not numbers\n  try precision: fp32")
            parts.append(kept)
            advance(len(batch))
        found = torch.cat(parts)
        write_atomically(self._path(places), save({"states": found}, metadata={_DIGEST: _digest_of(found)}))

    def ends(self, place: int, step: int) -> tuple[Tensor, Tensor]:
        """Where a trajectory is before and after one of the student's steps, [C, h, w] float32 each.

        Raises:
            ModelError: if its file cannot be read.
        """
        path = self._path(range(place // _PER_FILE * _PER_FILE, self._count))
        try:
            with safe_open(path, framework="pt") as file:
                rows = file.get_slice("states")[place % _PER_FILE]
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"{path}: cannot be read any more ({error})\n  the same command samples what is missing, and goes on"
            ) from None
        if self._begun_anew:
            return rows[2 * step].float(), rows[2 * step + 1].float()
        return self.noise(place) if step == 0 else rows[step - 1].float(), rows[step].float()

    def _path(self, places: range) -> Path:
        return self._folder / f"{self._identity}-{places[0]:08d}.safetensors"


def _digest_of(states: Tensor) -> str:
    return hashlib.sha256(states.contiguous().numpy().tobytes()).hexdigest()
