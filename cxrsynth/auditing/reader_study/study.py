"""A reader study made: images chosen, blinded, and written as one page, with the key apart from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cxrsynth import console
from cxrsynth.auditing.folder import STUDY_PAGE
from cxrsynth.auditing.keyed import keyed_digest
from cxrsynth.auditing.reader_study.answers import Answered
from cxrsynth.auditing.reader_study.blinding import Blinding
from cxrsynth.auditing.reader_study.choose import Candidate, Pair, candidates, choose_pairs, matched
from cxrsynth.auditing.reader_study.key import KeyedImage, Kind, StudyKey, write_key
from cxrsynth.auditing.reader_study.page import Shown, write_study_page
from cxrsynth.auditing.reader_study.scores import score
from cxrsynth.auditing.reader_study.shown import common_side, common_text, gray_levels, read_images, read_sources
from cxrsynth.auditing.scored import Scored
from cxrsynth.auditing.setup import AuditRun
from cxrsynth.errors import ShardError

UNFINISHED = "reader {} answered "  # how a caveat begins
_SMALL_SIDE = 256  # pixels


@dataclass(frozen=True)
class ReaderStudy:
    """What summary.json holds of a study, None where there is none; why none was made; what to keep in mind."""

    summary: dict[str, Any] | None = None
    problem: str | None = None
    caveats: tuple[str, ...] = ()


def reader_study(run: AuditRun, images: Scored, reference: Scored | None, decided: pa.Table) -> ReaderStudy:
    """Make the study that was asked for, and score the answers that were given.

    All images are scored by now: a study that cannot be made costs itself alone.
    """
    made, problem = None, None
    if run.settings.reader_study is not None and reference is not None:
        try:
            made = _make(run, {"synthetic": images, "real": reference}, decided, run.settings.reader_study)
        except ShardError as error:
            problem = str(error)
            console.warn(f"no reader study was made: {error}")
    if run.answers is None:
        return ReaderStudy(None if made is None else made.described() | {"scores": None}, problem)
    key = run.answers.key
    if made is not None and made.study != key.study:
        console.warn(f"--reader-answers: to study {key.study}; the page is now that of study {made.study}")
    caveats = _caveats(run.answers, images)
    for caveat in caveats:
        console.warn(caveat)
    readers = keyed_digest([file.reader.name.casefold() for file in run.answers.files], run.scorer.id_key)
    return ReaderStudy(key.described() | {"scores": score(run.answers), "readers": readers}, problem, caveats)


def _make(run: AuditRun, scored: Mapping[Kind, Scored], decided: pa.Table, count: int) -> StudyKey:
    """Choose images, write the key, then the page; raises ShardError if that cannot be done.

    Synthetic images are kept ones, so no copies and no duplicates. Real ones passed the same quality checks: burned-in
    text would give them away, and may name a patient.
    """
    console.say("making the reader study")
    blinding = Blinding(run.scorer.id_key, run.settings.seed)
    ignored = run.rules.ignored_checks
    passed = [not set(failed or ()) - ignored for failed in scored["real"].values("checks_failed")]
    pairs = choose_pairs(
        candidates(scored["synthetic"].rows, scored["synthetic"].patients, decided["kept"].to_pylist()),
        candidates(scored["real"].rows, scored["real"].patients, passed),
        count // 2,
        blinding.rng("images"),
    )
    key, shown, levels = _blind(scored, pairs, blinding, workers=run.settings.workers)
    write_key(run.folder.parts, key)  # first: answers without a key would be lost
    write_study_page(run.folder.path / STUDY_PAGE, key.study, shown, levels, side=key.side, text=key.text)
    _tell(key)
    return key


def _blind(
    scored: Mapping[Kind, Scored], pairs: list[Pair], blinding: Blinding, *, workers: int
) -> tuple[StudyKey, list[Shown], dict[str, bytes]]:
    """The key; the images in the order they are read in; and their gray levels. All by names that say nothing."""
    chosen: dict[Kind, dict[str, Candidate]] = {
        "synthetic": {pair.synthetic.key: pair.synthetic for pair in pairs},
        "real": {pair.real.key: pair.real for pair in pairs},
    }
    sources = {kind: read_sources(scored[kind], set(of), workers=workers) for kind, of in chosen.items()}
    every = [source for of in sources.values() for source in of.values()]
    side, text = common_side(every), common_text(every)
    names = {
        (kind, key): blinding.name("image", kind, key, source.sha256)
        for kind, of in sources.items()
        for key, source in of.items()
    }
    keyed = {
        names[kind, key]: KeyedImage(
            kind=kind,
            key=key,
            sha256=sources[kind][key].sha256,
            present=tuple(sorted(one.present)),
            absent=tuple(sorted(one.absent)),
        )
        for kind, of in chosen.items()
        for key, one in of.items()
    }
    shown = [Shown(name, "" if text is None else sources[kind][key].texts[text]) for (kind, key), name in names.items()]
    levels = {
        names[kind, radiograph.key]: gray_levels(radiograph.pixels, side)
        for kind, of in chosen.items()
        for radiograph in read_images(scored[kind], set(of), workers=workers)
    }
    key = StudyKey(
        study=blinding.name("study", str(side), str(text), *sorted(keyed)),
        seed=blinding.seed,
        side=side,
        text=text,
        matched=matched(pairs),
        images=keyed,
    )
    return key, sorted(shown, key=lambda one: blinding.name("order", one.name)), levels


def _caveats(answered: Answered, images: Scored) -> tuple[str, ...]:
    """What scores of these answers do not show."""
    found = []
    of = len(answered.key.images)
    for file in answered.files:
        done = sum(answer.origin is not None for answer in file.answers)
        if done < of:
            found.append(f"{UNFINISHED.format(file.reader.name)}{done} of {of} images: scored on those")
    there = set(images.values("sha256"))
    made = [image for image in answered.key.images.values() if image.kind == "synthetic"]
    gone = sum(image.sha256 not in there for image in made)
    if gone:
        found.append(f"{gone} of {len(made)} synthetic images of the reader study are no longer in this set")
    return tuple(found)


def _tell(key: StudyKey) -> None:
    """What the owner of the page must know."""
    real, pairs = len(key.of_kind("real")), len(key.images) // 2
    reports = " and reports of real patients" if key.text == "report" else ""
    console.warn(
        f"{STUDY_PAGE} holds {real} real radiographs{reports}: treat it as you treat the reference\n"
        "  give it only to readers who may see the reference, and delete it afterwards"
    )
    if key.text is None:
        console.warn("--reader-study: not all images have a report or findings, so readers are not asked about them")
    if key.side < _SMALL_SIDE:
        console.warn(
            f"--reader-study: the smallest image has a short side of {key.side} pixels, and all are shown at that size:"
            " readers see little"
        )
    for name, what, least in (("view", "view is", pairs), ("present", "findings are", pairs / 2)):
        if key.matched[name] < least:
            console.warn(
                f"--reader-study: in {key.matched[name]} of {pairs} pairs of a synthetic and a real image the {what}"
                " known to be the same: readers may go by the others"
            )
