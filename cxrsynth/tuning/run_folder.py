"""The folder of one tuning run: the recipe first, then metrics, sheets and checkpoints, the model at the end.

recipe.yaml, inputs.json       what this run is; the same recipe on the same inputs goes on where it stopped
versions.json                  of the libraries it was begun with
metrics.jsonl                  one row an iteration, evaluations among them
sheets/, curves.png            contact sheets of baseline and policy, curves of the metrics
checkpoints/<stage>-<n>/       for going on; the newest few, and the best by the judge
checkpoints/latents-<stage>/   images of fine-tuning, encoded, as long as the stage runs
stages/<stage>/model/          what a stage before the last left
model/                         the tuned model: Stable Diffusion layout, ace.safetensors, model card
"""

import errno
import fcntl
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from cxrsynth.errors import RecipeError, ShardError
from cxrsynth.runtime.files import write_atomically

_CHECKPOINT = re.compile(r"(\d+)-(\d{6})")


class RunFolder:
    """All paths a run touches are named here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.curves = path / "curves.png"
        self.checkpoints = path / "checkpoints"
        self.baseline_images = path / "checkpoints" / "baseline"
        self.sheets = path / "sheets"
        self.model = path / "model"
        self._lock: IO[str] | None = None

    def check(self, recipe: str) -> bool:
        """Refuse a folder that holds something else; True if this recipe's model is already there.

        Raises:
            ShardError: for a foreign non-empty folder, or a file in the way.
            RecipeError: if another recipe was begun here.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ShardError(f"--out {self.path}: is a file, expected a folder")
        known = self.path / "recipe.yaml"
        if not known.exists():
            names = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
            if names - {".lock"}:
                raise ShardError(
                    f"--out {self.path}: not empty, and not a run of cxrsynth tune\n  choose a new or empty folder"
                )
            return False
        before = self._read(known)
        if before != recipe:
            changed = sorted(set(_lines(before)) ^ set(_lines(recipe)))[:6]
            raise RecipeError(
                f"--out {self.path}: holds a run of another recipe\n  "
                + "\n  ".join(changed)
                + "\n  choose a new folder, or run the recipe that was begun there"
            )
        return (self.model / "model_card.md").is_file()

    def start(self, recipe: str, versions: Mapping[str, str], inputs: Mapping[str, str]) -> None:
        """Make the folder, take its lock, write down what the run is.

        Args:
            recipe: resolved, as YAML.
            versions: of libraries.
            inputs: digests of what the recipe names, by its keys.

        Raises:
            ShardError: if it cannot be written, or another run is writing there.
            RecipeError: if the run was begun with other inputs.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write_atomically(self.path / "recipe.yaml", recipe.encode())
            for folder in (self.checkpoints, self.sheets, self.baseline_images):
                folder.mkdir(parents=True, exist_ok=True)
            self._drop_leftovers()
            self._same_inputs(inputs)
            self._write_versions(versions)
        except BlockingIOError:
            raise ShardError(f"--out {self.path}: another run is writing there\n  wait for it, or stop it") from None
        except OSError as error:
            raise self.failed(error) from None

    def _write_versions(self, versions: Mapping[str, str]) -> None:
        """Of the libraries the run was begun with; and of those it goes on with, where they are others."""
        path = self.path / "versions.json"
        try:
            begun = dict(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            begun = dict(versions)
        if {name: value for name, value in begun.items() if name != "resumed_with"} != dict(versions):
            begun["resumed_with"] = dict(versions)
        write_atomically(path, json.dumps(begun, indent=1).encode())

    def _same_inputs(self, inputs: Mapping[str, str]) -> None:
        """Checkpoints, held-out reports and the baseline's images are of the files the run was begun with."""
        known = self.path / "inputs.json"
        if not known.exists():
            write_atomically(known, json.dumps(inputs, indent=1).encode())
            return
        try:
            before = dict(json.loads(self._read(known)))
        except (ValueError, TypeError):
            raise ShardError(
                f"{known}: not what a run wrote there\n  bring it back, or choose a new folder: it tells the run's"
                " inputs"
            ) from None
        changed = sorted(name for name in before.keys() | inputs.keys() if before.get(name) != inputs.get(name))
        if changed:
            raise RecipeError(
                f"--out {self.path}: the run was begun with other files behind {', '.join(changed)}\n"
                "  bring them back, or choose a new folder: what was learned and measured is of the old ones"
            )

    def _drop_leftovers(self) -> None:
        """Of a run that was killed while saving: what was replaced comes back where nothing took its place."""
        for old in self.checkpoints.glob(".*.old"):
            name = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
            shutil.rmtree(old) if name.exists() else old.rename(name)
        for partial in [*self.checkpoints.glob(".*.partial"), *self.path.glob(".*.partial")]:
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()

    def _read(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror})\n  run the same command again") from None
        except UnicodeDecodeError:
            raise ShardError(f"{path}: not what a run wrote there\n  bring it back, or choose a new folder") from None

    def failed(self, error: OSError) -> ShardError:
        """That something here could not be written, or not be read back; what stood there before is whole."""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        told = "cannot be written" if full or error.filename is None else f"trouble with {error.filename}"
        todo = "make room" if full else "mend this"
        return ShardError(
            f"--out {self.path}: {told} ({error.strerror})\n"
            f"  the previous checkpoint is whole; {todo}, and run the same command again"
        )

    def unlock(self) -> None:
        """Let another run write here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def checkpoint(self, stage: int, iteration: int) -> Path:
        """Folder of a checkpoint after `iteration` iterations of a stage."""
        return self.checkpoints / f"{stage}-{iteration:06d}"

    def best(self, stage: int) -> Path:
        """Folder of the best checkpoint of a stage by the judge."""
        return self.checkpoints / f"best-{stage}"

    def newest(self, stage: int) -> Path | None:
        """The newest checkpoint of a stage; None where there is none."""
        found = self._numbered(stage)
        return found[-1] if found else None

    def rotate(self, stage: int, *, keep: int) -> None:
        """Remove all but the newest `keep` checkpoints of a stage; the best is kept apart."""
        for old in self._numbered(stage)[:-keep]:
            shutil.rmtree(old)

    def stage_model(self, stage: int) -> Path:
        """What a stage leaves for the next."""
        return self.path / "stages" / str(stage) / "model"

    def latents(self, stage: int) -> Path:
        """Encoded images of a stage, while it runs."""
        return self.checkpoints / f"latents-{stage}"

    def _numbered(self, stage: int) -> list[Path]:
        if not self.checkpoints.is_dir():
            return []
        found = ((_CHECKPOINT.fullmatch(path.name), path) for path in self.checkpoints.iterdir())
        return sorted(path for match, path in found if match and int(match[1]) == stage)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]
