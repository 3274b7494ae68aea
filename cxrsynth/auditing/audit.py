"""`audit`, top to bottom: images in; which are kept and why, and the metrics of the set, out."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cxrsynth import console
from cxrsynth.auditing.comparison import compare_with_reference, needs_reference_pixels
from cxrsynth.auditing.decide import Reference, decide, thresholds, with_usual_rules
from cxrsynth.auditing.depicts import write_depicts
from cxrsynth.auditing.early import warn_early
from cxrsynth.auditing.reader_study.study import reader_study
from cxrsynth.auditing.real_names import RealNames
from cxrsynth.auditing.reidentification import Reidentification, reidentify
from cxrsynth.auditing.results import write_results
from cxrsynth.auditing.score_table import reward_names, reward_values, scores_table
from cxrsynth.auditing.scored import Scored
from cxrsynth.auditing.scoring import score_collection
from cxrsynth.auditing.setup import AuditRun, open_audit, tell_read
from cxrsynth.auditing.summary import summarize, unknown_patients
from cxrsynth.console import counted
from cxrsynth.errors import ShardError
from cxrsynth.metrics.memorization.duplicates import duplicates
from cxrsynth.runtime.memory import LOADING_ADVICE, memory_advice
from cxrsynth.runtime.shared_folder import refuse_folders_apart
from cxrsynth.settings import AuditSettings


@dataclass(frozen=True)
class AuditReport:
    """What an audit found; `summary` is summary.json, with the names of readers. `passed` decides the exit code."""

    out: Path
    summary: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every threshold of --fail-under was reached."""
        return not self.summary["failed"]


def audit(settings: AuditSettings) -> AuditReport | None:
    """Score every image, decide which to keep, and write the results; None in every process but the main one.

    Scores are kept in `.cxrsynth-audit/`, which only its owner can read (mode 0700): a stopped audit resumes there, and
    the same command with other rules decides anew without scoring. What an earlier audit found is deleted once all
    inputs are checked, so that one which fails leaves no page of another. When the audit is complete, that folder holds
    scores, features, metadata, keyed pseudonyms of patients, and pictures of the audited images; the pixels of the
    reference are deleted unless `keep_reference_pixels` is set. With `show_real`, small pictures of at most 48 of the
    nearest real images are in report.html; large ones are in reader-study.html if that is asked for, and which of them
    are real is known in `.cxrsynth-audit/` alone. Elsewhere real images have keyed names, which
    `.cxrsynth-audit/real-names.csv` translates.

    Raises:
        RecipeError, ReportsError, ModelError, ShardError: for what the user can fix.
    """
    with memory_advice(LOADING_ADVICE):
        run = open_audit(settings)
    refuse_folders_apart(run.processes, run.folder.locked, complete=False)
    try:
        if run.processes.is_main:
            run.folder.start(keep_study=bool(run.settings.reader_answers))
        run.processes.wait()
        _score(run)
        advice = "audit fewer images, or, where it is a GPU's memory, use --device cpu: scores are kept"
        with memory_advice(advice), run.processes.ending_with_main():
            return AuditReport(run.folder.path, _conclude(run)) if run.processes.is_main else None
    except OSError as error:
        raise run.folder.failure(error) from None
    finally:
        run.folder.unlock()


def _score(run: AuditRun) -> None:
    """Score the reference, the images, and what the model is attacked with; every process takes its share of the units.

    What the reference cannot give is known once it is scored: before the images, of which there are more. A rule that
    it cannot give stops the audit; a part that it cannot measure costs itself alone.
    """
    with memory_advice("lower --batch-size"):
        if run.reference is not None:
            with_pixels = needs_reference_pixels(run, run.reference)
            score_collection(run, run.reference, what="reference images", with_pixels=with_pixels)
            run.processes.wait()
            run.reference.refuse_no_match()
            if run.rules.percentile:
                thresholds(run.rules, _rewards(Scored(run.reference)))
            if run.processes.is_main:
                warn_early(run, Scored(run.reference))
        score_collection(run, run.images, what="images")
        run.processes.wait()
        run.images.refuse_no_match()
        if run.membership is not None:
            attacked = {"members": run.membership.members, "non-members": run.membership.others}
            for what, examined in attacked.items():
                score_collection(
                    run, examined, what=f"{what} attacked", with_pixels=False, scorer=run.membership.scorer
                )
            run.processes.wait()
            for examined in attacked.values():
                examined.refuse_no_match()


def _conclude(run: AuditRun) -> dict[str, Any]:
    """From scored units to the files; returns what summary.json holds."""
    images = Scored(run.images)
    _refuse_unreadable(images)
    tell_read(run)
    reference = None if run.reference is None else Scored(run.reference)
    if reference is not None and (caveat := unknown_patients(reference)) is not None:
        console.warn(f"{caveat}\n  name the column of patients with --patient-column")
    console.say("comparing images with each other")
    found = _duplicates(images)
    columns = found.columns
    names = RealNames(run.scorer.id_key)
    comparison = None if reference is None else names.hide_in(compare_with_reference(run, images, reference))
    if comparison is not None:
        columns |= comparison.columns
    patients = Reidentification() if reference is None else reidentify(run, images, reference, names)
    real = {} if reference is None else _rewards(reference)
    run = replace(run, rules=with_usual_rules(run.rules, real))
    decided = decide(scores_table([images.rows], {**columns, **patients.columns}), run.rules, real)
    study = reader_study(run, images, reference, decided)
    summary = summarize(run, images, reference, comparison, patients, decided, real, names, study, found.follow_ups)
    write_results(run, images, reference, decided, summary, names)
    if run.settings.write_depicts is not None:
        subjects = {name: images.values(name) for name in ("view", "age_group", "sex")}
        depicted = write_depicts(
            run.settings.write_depicts,
            subjects,
            summary["obedience"] or (),
            manifest=run.images.collection.manifest,
            record=run.folder.depicts,
        )
        console.say(f"{run.settings.write_depicts}: depicts {', '.join(depicted)}")
    return summary


def _rewards(scored: Scored) -> Reference:
    """Each reward of all images."""
    return {name: reward_values(scored.rows, name) for name in reward_names(scored.rows)}


def _refuse_unreadable(images: Scored) -> None:
    """Raises ShardError if no image at all could be read."""
    damaged = images.examined.cache.damaged()
    if not images.rows.num_rows and damaged:
        first = damaged[0]
        raise ShardError(
            f"{images.examined.collection.path}: no image could be read ({len(damaged)} tried)\n"
            f"  the first: {': '.join(filter(None, (first.source, first.member, first.reason)))}"
        )


@dataclass(frozen=True)
class _Duplicates:
    """Columns `duplicate_of` and `duplicate_similarity`, and how many images resemble another of the same patient."""

    columns: dict[str, list[Any]]
    follow_ups: int


def _duplicates(images: Scored) -> _Duplicates:
    """Copies within the set. An image that resembles an earlier one of the same patient is a follow-up."""
    keys = images.values("key")
    # In sets of ours a patient is a report, whose images should differ.
    patients = images.patients if images.examined.collection.manifest is None else None
    repeats = duplicates(images.thumbnails, keys, images.values("sha256"), patients=patients)
    found, again = repeats.first_of, repeats.follow_ups
    if again:
        resemble = "1 image resembles" if len(again) == 1 else f"{counted(len(again), 'image')} resemble"
        console.say(f"{resemble} an earlier one of the same patient: follow-ups, not duplicates")
    columns: dict[str, list[Any]] = {
        "duplicate_of": [found[key][0] if key in found else None for key in keys],
        "duplicate_similarity": [found[key][1] if key in found else None for key in keys],
    }
    return _Duplicates(columns, len(again))
