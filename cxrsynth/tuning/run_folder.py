"""The folder of one tuning run: the recipe first, then metrics, sheets and checkpoints, the model at the end.

recipe.yaml, inputs.json       what this run is; the same recipe with the same inputs resumes here
history.json                   each time the run went on from its best checkpoint with other settings: which, since when
versions.json                  library versions and the commit of a model from the hub, at the start, and at the last
                               resume if they differ
metrics.jsonl                  one row per iteration, evaluations included
sheets/, curves.png            contact sheets of baseline and policy, curves of the metrics
checkpoints/<stage>-<n>/       to resume from: the newest few
checkpoints/best-<stage>/      the best one by the evaluator
checkpoints/baseline/          the baseline's held-out images
checkpoints/latents-<stage>/   encoded images for fine-tuning, for as long as the stage runs
stages/<stage>/model/          the model a stage before the last one left
stages/<stage>/model.sha256    its digest, without which damage would change what later stages learn
model/                         the tuned model: Stable Diffusion layout, ace.safetensors, model card
export/                        the same of an unfinished run, written by --export
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxrsynth.errors import ModelError, RecipeError, ShardError
from cxrsynth.recipe.changes import changes, check_changes
from cxrsynth.recipe.read import keys_of_earlier_version
from cxrsynth.rl.checkpoint import check_whole
from cxrsynth.runtime.files import folder_atomically, remove, write_atomically
from cxrsynth.runtime.folder import LockedFolder
from cxrsynth.settings import Precision
from cxrsynth.tuning.metrics import Metrics

PRECISION = "model.precision"
_HISTORY = "history.json"
_CHECKPOINT = re.compile(r"(\d+)-(\d{6})")
_CHECKPOINT_NAMES = "checkpoints/[0-9]*-[0-9][0-9][0-9][0-9][0-9][0-9]"
_WRITTEN = (
    *("recipe.yaml", "inputs.json", "versions.json", _HISTORY, "metrics.jsonl", "curves.png", "sheets/*.png"),
    *(_CHECKPOINT_NAMES, "checkpoints/best-*", "checkpoints/baseline/*.safetensors"),
    *("checkpoints/latents-*/*.safetensors", "checkpoints/latents-*/images/*.safetensors"),
    *("stages/*/model", "stages/*/model.sha256", "model", "export"),
)
# Left by version 0.1.
_LEFTOVERS = ("metrics.partial", "curves.partial", "checkpoints/baseline/*.partial")


class RunFolder:
    """The folder of one tuning run; names every path in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.curves = path / "curves.png"
        self.checkpoints = path / "checkpoints"
        self.baseline_images = path / "checkpoints" / "baseline"
        self.sheets = path / "sheets"
        self.model = path / "model"
        self.export = path / "export"
        self.locked = LockedFolder(
            path, lock=".lock", written=_WRITTEN, scratch=_LEFTOVERS, kept="the previous checkpoint is whole"
        )
        self.failure = self.locked.failure
        self.unlock = self.locked.unlock

    def check(self, recipe: str, *, going_on: int | None = None) -> bool:
        """Refuse a folder that holds something else; True if this recipe's model is already there.

        Args:
            recipe: resolved, as YAML.
            going_on: stage that is to go on from its best checkpoint with other settings, None to resume.

        Raises:
            ShardError: for a foreign non-empty folder, or a file in the way.
            RecipeError: if the folder holds a run of another recipe.
        """
        self.locked.refuse_file()
        known = self.path / "recipe.yaml"
        names = self.locked.names()
        if known.name not in names:
            # A run that was killed before its recipe was written left a lock, and at most half of a recipe.
            if names - {".lock"} - self.locked.leftover_names(names):
                raise ShardError(
                    f"--out {self.path}: not empty, and not a run of cxrsynth tune\n  choose a new or empty folder"
                )
            return False
        before = self._read(known)
        if going_on is not None:
            check_changes(before, recipe, going_on)
            if not self.best(going_on).is_dir():
                raise RecipeError(
                    f"--from-best: {self.best(going_on)}: no such checkpoint, nothing was evaluated in this stage yet\n"
                    "  choose a new folder for other settings, or leave out --from-best to resume"
                )
            return False
        if before != recipe and changes(before, recipe):  # a key that is new since then, and null, is no difference
            if renamed := keys_of_earlier_version(before):
                raise RecipeError(
                    f"--out {self.path}: holds a run of an earlier version of cxrsynth ({', '.join(renamed)})\n"
                    "  choose a new folder, or go on with that version"
                )
            changed = sorted(set(_lines(before)) ^ set(_lines(recipe)))[:6]
            raise RecipeError(
                f"--out {self.path}: holds a run of another recipe\n  "
                + "\n  ".join(changed)
                + "\n  choose a new folder, or run the recipe that started this one"
                + ("\n  --from-best goes on with these from the best checkpoint" if _may_change(before, recipe) else "")
            )
        return (self.model / "model_card.md").is_file()

    @property
    def precision(self) -> str | None:
        """The precision with which the run began; None where none is known, or the file is damaged, see `start`."""
        try:
            found = json.loads((self.path / "inputs.json").read_bytes()).get(PRECISION)
        except (OSError, ValueError, AttributeError):
            return None
        return found if found in {one.value for one in Precision} else None

    @property
    def has_begun(self) -> bool:
        """Whether a run has begun here."""
        return (self.path / "recipe.yaml").is_file()

    def refuse_no_run(self) -> None:
        """Raise RecipeError if no run has begun here."""
        if not self.has_begun:
            raise RecipeError(
                f"--out {self.path}: holds no run\n  give the folder of one, or leave out --export and --from-best"
            )

    def start(
        self, recipe: str, versions: Mapping[str, str], inputs: Mapping[str, str], *, going_on: int | None = None
    ) -> None:
        """Make the folder, take its lock, and write down the recipe, the inputs and the versions.

        Args:
            recipe: resolved, as YAML.
            versions: library versions by name, and the commit of a model from the hub.
            inputs: digests of the files the recipe names, by recipe key.
            going_on: stage that goes on from its best checkpoint; its later checkpoints are removed.

        Raises:
            ShardError: if the folder cannot be written, another run is writing there, or a file of the run is damaged.
            RecipeError: if the run started with other inputs, or another run has begun there since it was checked.
            ModelError: if the best checkpoint is damaged.
        """
        self.locked.lock()
        self.check(recipe, going_on=going_on)
        self._history()  # the card needs it at the end: better refused before the work than after it
        try:
            if going_on is not None:
                self._same_inputs(inputs)
                self._rewind(going_on, recipe)
            write_atomically(self.path / "recipe.yaml", recipe.encode())
            for folder in (self.checkpoints, self.sheets, self.baseline_images):
                folder.mkdir(parents=True, exist_ok=True)
            self._same_inputs(inputs)
            self._write_versions(versions)
        except OSError as error:
            raise self.failure(error, writing=True) from None

    def _rewind(self, stage: int, recipe: str) -> None:
        """Make the best checkpoint of a stage its newest; the recipe is written last, so that a kill loses nothing."""
        best = self.best(stage)
        iteration = check_whole(best)
        with folder_atomically(self.checkpoint(stage, iteration)) as partial:
            shutil.copytree(best, partial, dirs_exist_ok=True)
        for later in self._numbered(stage):
            if later.name > self.checkpoint(stage, iteration).name:
                shutil.rmtree(later)
        if self.model.is_dir():  # the run was complete; its model stays until the next export
            remove(self.export)
            self.model.rename(self.export)
        history = self._history()
        changed = changes(self._read(self.path / "recipe.yaml"), recipe)
        tested = any(name.startswith("test/") for row in Metrics(self.metrics).rows() for name in row)
        entry = {"from_best": {"stage": stage, "iteration": iteration}, "changed": changed, "tested": tested}
        if history[-1:] != [entry]:  # the process may have been killed just after it was written
            write_atomically(self.path / _HISTORY, json.dumps([*history, entry], indent=1).encode())

    def earlier_tests(self) -> int:
        """How often the run was tested before it went on with other settings."""
        return sum(bool(entry.get("tested")) for entry in self._history())

    def _history(self) -> list[dict[str, Any]]:
        """Each time the run went on from its best checkpoint. Raises ShardError for what no run wrote."""
        path = self.path / _HISTORY
        try:
            found = json.loads(self._read(path)) if path.exists() else []
        except ValueError:
            found = None
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            # Without it, the model card would say that nothing was chosen by test reports.
            raise ShardError(f"{path}: not what a run wrote there\n  restore it, or choose a new folder")
        return found

    def _write_versions(self, versions: Mapping[str, str]) -> None:
        """Record the versions the run started with, and those it resumes with if they differ."""
        path = self.path / "versions.json"
        try:
            begun = dict(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            begun = dict(versions)
        if {name: value for name, value in begun.items() if name != "resumed_with"} != dict(versions):
            begun["resumed_with"] = dict(versions)
        write_atomically(path, json.dumps(begun, indent=1).encode())

    def _same_inputs(self, inputs: Mapping[str, str]) -> None:
        """Refuse other input files: checkpoints, held-out reports and baseline images come from the first ones."""
        known = self.path / "inputs.json"
        if not known.exists():
            write_atomically(known, json.dumps(inputs, indent=1).encode())
            return
        try:
            before = dict(json.loads(self._read(known)))
        except (ValueError, TypeError):
            raise ShardError(
                f"{known}: not what a run wrote there\n"
                "  restore it, or choose a new folder: it identifies the run's inputs"
            ) from None
        changed = sorted(name for name in before.keys() | inputs.keys() if before.get(name) != inputs.get(name))
        if PRECISION not in before:  # of a run that began before it was written down
            changed = [name for name in changed if name != PRECISION]
        if changed:
            raise RecipeError(
                f"--out {self.path}: the run started with other files behind {', '.join(changed)}\n"
                "  restore them, or choose a new folder: what was learned and measured belongs to the old ones"
            )

    def _read(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror})\n  run the same command again") from None
        except UnicodeDecodeError:
            raise ShardError(f"{path}: not what a run wrote there\n  restore it, or choose a new folder") from None

    def checkpoint(self, stage: int, iteration: int) -> Path:
        """Folder of the checkpoint after `iteration` iterations of a stage."""
        return self.checkpoints / f"{stage}-{iteration:06d}"

    def best(self, stage: int) -> Path:
        """Folder of a stage's best checkpoint by the evaluator."""
        return self.checkpoints / f"best-{stage}"

    def newest(self, stage: int) -> Path | None:
        """The newest checkpoint of a stage, None if there is none."""
        found = self._numbered(stage)
        return found[-1] if found else None

    def rotate(self, stage: int, *, keep: int) -> None:
        """Remove all but the newest `keep` checkpoints of a stage; the best is kept apart."""
        for old in self._numbered(stage)[:-keep]:
            shutil.rmtree(old)

    def stage_model(self, stage: int) -> Path:
        """Folder of the model a stage leaves to the next one."""
        return self.path / "stages" / str(stage) / "model"

    def check_stage_model(self, stage: int, digest: str, *, writes: bool) -> None:
        """Refuse a model of a stage that is not the one the stage left; its digest is recorded the first time.

        Args:
            stage: that left it.
            digest: of the model as it is now.
            writes: whether this process may record it.

        Raises:
            ModelError: if it is another model.
            ShardError: if the record cannot be read.
        """
        path = self.stage_model(stage).with_name("model.sha256")
        if not path.exists():
            if writes:
                write_atomically(path, f"{digest}\n".encode())
            return
        if self._read(path).strip() != digest:
            raise ModelError(
                f"{self.stage_model(stage)}: damaged or changed, its SHA-256 is not the one that {path.name} beside it"
                " records\n  restore it, or remove this folder: the stage saves it again from its checkpoint"
            )

    def latents(self, stage: int) -> Path:
        """Folder of a stage's encoded images, while the stage runs."""
        return self.checkpoints / f"latents-{stage}"

    def _numbered(self, stage: int) -> list[Path]:
        if not self.checkpoints.is_dir():
            return []
        found = ((_CHECKPOINT.fullmatch(path.name), path) for path in self.checkpoints.iterdir())
        return sorted(path for match, path in found if match and int(match[1]) == stage)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def _may_change(before: str, recipe: str) -> bool:
    """Whether a run may go on from its best checkpoint with this recipe."""
    try:
        check_changes(before, recipe, 0)
    except RecipeError:
        return False
    return True
