"""`PromptBuilder`: from a report to its de-identified text, labels, prompt and unsupported findings."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from cxrsynth.reports.conditions import conditions_of
from cxrsynth.reports.deid.sanitize import Sanitized, sanitize_part
from cxrsynth.reports.findings.reader import FindingsReader
from cxrsynth.reports.labels import NO_FINDING, OBSERVATIONS, FindingLabel, Labels, Status, contradicts_no_finding
from cxrsynth.reports.language import is_english
from cxrsynth.reports.prompt import (
    Depicts,
    Request,
    Subject,
    age_group,
    canonical_prompt,
    cut_at_sentence,
    limit_to_supported,
)
from cxrsynth.reports.sections import Kind, shown_text, with_content
from cxrsynth.reports.table.rows import Report
from cxrsynth.reports.template import TEXT_FIELDS, PromptFormat, PromptTemplate
from cxrsynth.reports.values import content_fields, field_values, section_of
from cxrsynth.settings import Deid, PromptStyle

if TYPE_CHECKING:
    from cxrsynth.reports.deid.entity_model import EntityModel

_TEMPLATE = "template"  # prompt style of a sample whose prompt a template made
_NOBODY = Subject()
_ANY_CHEST = "Chest X-ray."  # for a report of which nothing is known; an empty prompt is no request at all


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt, whether it was cut, the text of the report that its labels are read from, and the subject it states."""

    text: str
    truncated: bool
    source: str
    states: Subject = _NOBODY


@dataclass(frozen=True)
class BuiltPrompt:
    """The prompt of one report, and what goes with it. `metadata` is part of each sample's JSON and holds no free text.

    `labels` are all labels of the report, whether or not the model can show them; `conditions` are for a model with
    ACE; `subject` is the requested view and patient, without what the model cannot show, and `stated` what of it the
    prompt states outside of a report's own words. `unread` says that findings
    could not be read, because the report is not in English, and that no column has them. `contradictions` counts labels
    that were given up for others: in "columns", or read from the "text". `is_any` says that nothing is known of the
    image, so that the prompt is one for any chest X-ray.
    """

    prompt: str = field(repr=False)
    text: str = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)
    labels: dict[str, FindingLabel] = field(repr=False)
    subject: Subject
    stated: Subject
    conditions: tuple[str, ...]
    sanitized: Counter[str]
    truncated: bool
    unsupported_findings: tuple[str, ...]
    unread: bool = False
    contradictions: Counter[str] = field(default_factory=Counter)
    is_any: bool = False


class Reader(Protocol):
    """Reads labels from the text of a report."""

    def read(self, text: str) -> dict[str, FindingLabel]:
        """The label of each observation that the text mentions, in the order of `OBSERVATIONS`."""


# What de-identification removes with the words around it, which may name a finding (see `KINDS` in deid/sanitize.py).
_MAY_LOSE = ("comparison", "comparison_word", "contact", "sentence", "entity")
_SECTIONS = {PromptStyle.IMPRESSION: Kind.IMPRESSION, PromptStyle.FINDINGS: Kind.FINDINGS}


class PromptBuilder:
    """Makes prompts from reports, in one format for one model.

    Args:
        prompt_format: the prompt format.
        depicts: what the model saw in training; None if its folder does not say.
        fits: whether a text fits the tokenizer.
        classes: findings that the model is conditioned on, for the format `class`.
        deid: strength of the de-identification, of prompts and of `BuiltPrompt.text`.
        reader: reads labels from text; None for the rules.
        entities: finds named entities in what the rules of de-identification leave.
    """

    def __init__(
        self,
        prompt_format: PromptFormat,
        depicts: Depicts | None,
        fits: Callable[[str], bool],
        *,
        classes: Sequence[str] = (),
        deid: Deid = Deid.STANDARD,
        reader: Reader | None = None,
        entities: "EntityModel | None" = None,
    ) -> None:
        self._format = prompt_format
        self._classes = tuple(classes)
        self._depicts = depicts
        self._fits = fits
        self._deid = deid
        self._entities = entities
        self._reader: Reader = FindingsReader() if reader is None else reader

    def build(self, report: Report) -> BuiltPrompt:
        """Build the prompt of one report; label columns override labels read from the text.

        A prompt in words and its labels come from the same text: what the prompt lost, by de-identification, the choice
        of a section or a tokenizer's limit, is not a label. Labels of a prompt in codes are read from all of the
        de-identified report.
        """
        clean = self._clean(report.full_text)
        names = clean.introduced.union(*(self._clean(value).introduced for value in self._columns_of(report)))
        if names != clean.introduced:
            clean = self._clean(report.full_text, names)
        has_text, in_english = bool(report.full_text), is_english(report.full_text)
        if not clean.covered:
            # The sections alone may be too short to tell their language.
            report = replace(report, text="", findings="", impression="")
        subject = Subject(view=report.view, age_group=age_group(report.age_years), sex=report.sex)
        sanitized = Counter(clean.removed)
        given, contradictions = settled(report.labels if report.given is None else report.given)

        # Most prompts are the text they come from: it is read once.
        read_before: dict[str, dict[str, FindingLabel]] = {}

        def read(text: str) -> dict[str, FindingLabel]:
            if not in_english or not text:
                return {}
            if text not in read_before:
                read_before[text] = self._reader.read(text)
            return read_before[text]

        def labels_of(text: str) -> dict[str, FindingLabel]:
            labels = merged(read(text), given)
            # "Compared to the prior study there is a new effusion" is no part of the text any more: a finding that is
            # not requested, but no normal chest either.
            is_lost = any(sanitized[kind] for kind in _MAY_LOSE) and NO_FINDING not in given and NO_FINDING in labels
            if is_lost and contradicts_no_finding(read(report.full_text)):
                del labels[NO_FINDING]
            return labels

        request = limit_to_supported(subject, labels_of(clean.text), self._depicts)
        if isinstance(self._format, PromptTemplate):
            style, is_coded = _TEMPLATE, self._format.is_coded
            made = self._from_template(self._format, report, request, clean, sanitized)
        else:
            style, is_coded = self._format.value, self._format in (PromptStyle.CANONICAL, PromptStyle.CLASS)
            made = self._in_style(self._format, report, request, clean)
        is_any = not made.text.strip()
        prompt, truncated = _ANY_CHEST if is_any else made.text, made.truncated
        labels = labels_of(made.source)
        contradictions["text"] = len(overruled(read(made.source), given))
        request = limit_to_supported(subject, labels, self._depicts)
        metadata = {
            # The same keys for all samples, and no null: readers such as `datasets` infer columns from the first few.
            "view": subject.view or "",
            "sex": subject.sex or "",
            "age_group": subject.age_group or "",
            "findings": {name: _finding_fact(labels.get(name), given=name in given) for name in OBSERVATIONS},
            "unsupported_findings": "; ".join(request.unsupported_findings),
            "prompt_style": style,
            "prompt_truncated": truncated,
        }
        if is_coded:
            metadata["prompt"] = prompt
        return BuiltPrompt(
            prompt=prompt,
            text=clean.text,
            metadata=metadata,
            labels=labels,
            subject=request.subject,
            stated=_NOBODY if is_any else made.states,
            conditions=conditions_of(replace(report, labels=labels)),
            sanitized=sanitized,
            truncated=truncated,
            unsupported_findings=request.unsupported_findings,
            unread=has_text and not in_english and not report.labels,
            contradictions=+contradictions,
            is_any=is_any,
        )

    def _clean(self, text: str, introduced: Set[str] = frozenset()) -> Sanitized:
        return sanitize_part(text, introduced=introduced, strength=self._deid.value, model=self._entities)

    def _columns_of(self, report: Report) -> list[str]:
        """The text of a template's columns, which may introduce names, too."""
        columns = self._format.columns if isinstance(self._format, PromptTemplate) else ()
        return [report.fields.get(name, "") for name in columns]

    def _in_style(self, style: PromptStyle, report: Report, request: Request, clean: Sanitized) -> _Prompt:
        clean_text, states = clean.text, _NOBODY
        if style is PromptStyle.CANONICAL:
            text, source, states = canonical_prompt(request.subject, request.labels), clean_text, request.subject
        elif style is PromptStyle.CLASS:
            text, source = class_of(request.labels, self._classes), clean_text
        else:
            # If the section is missing, or nothing is left of it ("No significant change."), the prompt is all that
            # the report says of the image; without any of it, its labels.
            text = source = clean_text
            if style in _SECTIONS:
                text = source = with_content(self._clean(section_of(report, _SECTIONS[style]), clean.introduced).text)
            if not text:
                text = source = self._clean(shown_text(report.full_text), clean.introduced).text
            if not text:
                text, source, states = canonical_prompt(request.subject, request.labels), "", request.subject
        prompt, truncated = cut_at_sentence(text, self._fits)
        return _Prompt(prompt, truncated, prompt if source == text else source, states)

    def _from_template(
        self, template: PromptTemplate, report: Report, request: Request, clean: Sanitized, sanitized: Counter[str]
    ) -> _Prompt:
        """The prompt of a template; what is removed from columns is added to `sanitized`."""
        clean_text = clean.text
        canonical = canonical_prompt(request.subject, request.labels)
        values = field_values(
            template,
            report,
            request.subject,
            clean=lambda text: self._clean(text, clean.introduced),
            clean_text=clean_text,
            canonical=canonical,
            removed=sanitized,
        )
        # Without a word of the report, the prompt would request any image at all: as in the other formats, all text of
        # the report takes the place of a section that is missing, or else its labels.
        content = content_fields(template)
        instead = canonical if template.is_coded else clean_text or canonical
        states = request.subject if values.get("canonical") else _stated_by_fields(request.subject, template, values)
        if content and not any(values.get(name) for name in content):
            values[content[0]] = instead
            states = request.subject if instead == canonical else states
        elif not any(values.values()):
            prompt, cut = cut_at_sentence(instead or template.render({}), self._fits)
            return _Prompt(prompt, cut, clean_text, request.subject if instead == canonical else _NOBODY)
        prompt = template.render(values)
        filled = [name for name in content if values.get(name)]
        cut = not self._fits(prompt)
        if len(filled) == 1 and cut:
            # The report is cut, not what stands after it.
            name = filled[0]
            values[name], _ = cut_at_sentence(
                values[name], lambda part: self._fits(template.render({**values, name: part}))
            )
        prompt, _ = cut_at_sentence(template.render(values), self._fits)
        in_words = [values[name] for name in filled if name in TEXT_FIELDS]
        return _Prompt(prompt, cut, "\n\n".join(in_words) if in_words else clean_text, states)


def _stated_by_fields(subject: Subject, template: PromptTemplate, values: Mapping[str, str]) -> Subject:
    """What of a subject the fields of a template state, by their values; a clause that is left out states nothing."""
    rendered = template.rendered_fields(values)
    return Subject(
        view=subject.view if "view" in rendered else None,
        age_group=subject.age_group if {"age_group", "age"} & rendered else None,
        sex=subject.sex if "sex" in rendered else None,
    )


def class_of(labels: Labels, classes: Sequence[str]) -> str:
    """The first of a model's classes that a report has as present, else "No Finding"."""
    present = (name for name in classes if name != NO_FINDING and name in labels)
    return next((name for name in present if labels[name].status is Status.PRESENT), NO_FINDING)


def settled(given: Labels) -> tuple[dict[str, FindingLabel], Counter[str]]:
    """Labels of columns without those that contradict others, and how many these were.

    The rule of the CheXpert labeler: No Finding does not go with a finding that is present or uncertain, other than
    Support Devices. The finding stays, No Finding goes.
    """
    labels = dict(given)
    no_finding = labels.get(NO_FINDING)
    if no_finding and no_finding.status is Status.PRESENT and contradicts_no_finding(labels):
        del labels[NO_FINDING]
        return labels, Counter({"columns": 1})
    return labels, Counter()


def overruled(read: Labels, given: Labels) -> set[str]:
    """Findings read from a text that columns say nothing of but No Finding: the column is right."""
    no_finding = given.get(NO_FINDING)
    if no_finding is None or no_finding.status is not Status.PRESENT:
        return set()
    return contradicts_no_finding(read) - set(given)


def merged(read: Labels, given: Labels) -> dict[str, FindingLabel]:
    """Labels read from a text, overridden by those of columns."""
    dropped = overruled(read, given)
    labels = {name: label for name, label in read.items() if name not in dropped}
    for name, label in given.items():
        known = labels.get(name)
        # A column says no side; where the text says the same of the finding, its side holds.
        labels[name] = known if known is not None and label.side is None and known.status is label.status else label
    # Where a text has findings, No Finding is read as absent; columns may say that there are none of these.
    if NO_FINDING not in given and (contradicts_no_finding(labels) or contradicts_no_finding(read)):
        labels.pop(NO_FINDING, None)
    return labels


def _finding_fact(label: FindingLabel | None, *, given: bool) -> dict[str, str]:
    """One observation in a sample's JSON; its source is `column` if it was given, else `report`."""
    if label is None:
        return {"status": "not mentioned", "side": "", "source": ""}
    source = "column" if given else "report"
    return {"status": label.status.value, "side": label.side.value if label.side else "", "source": source}
