"""`PromptBuilder`: from a report to its de-identified text, labels, prompt and unsupported findings."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cxrsynth.reports.conditions import conditions_of
from cxrsynth.reports.deid.sanitize import Sanitized, sanitize
from cxrsynth.reports.findings.reader import FindingsReader
from cxrsynth.reports.labels import NO_FINDING, OBSERVATIONS, FindingLabel, Labels, Status
from cxrsynth.reports.prompt import (
    Depicts,
    Request,
    Subject,
    age_group,
    canonical_prompt,
    cut_at_sentence,
    limit_to_supported,
)
from cxrsynth.reports.table.rows import Report
from cxrsynth.reports.template import PromptFormat, PromptTemplate
from cxrsynth.reports.values import content_fields, field_values
from cxrsynth.settings import Deid, PromptStyle

_TEMPLATE = "template"  # prompt style of a sample whose prompt a template made


@dataclass(frozen=True)
class BuiltPrompt:
    """The prompt of one report, and what goes with it. `metadata` is part of each sample's JSON and holds no free text.

    `labels` are all labels of the report, whether or not the model can show them; `conditions` are for a model with
    ACE; `subject` is the requested view and patient, without what the model cannot show.
    """

    prompt: str = field(repr=False)
    text: str = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)
    labels: dict[str, FindingLabel] = field(repr=False)
    subject: Subject
    conditions: tuple[str, ...]
    sanitized: Counter[str]
    truncated: bool
    unsupported_findings: tuple[str, ...]


class PromptBuilder:
    """Makes prompts from reports, in one format for one model.

    Args:
        prompt_format: the prompt format.
        depicts: what the model saw in training; None if its folder does not say.
        fits: whether a text fits the tokenizer.
        classes: findings that the model is conditioned on, for the format `class`.
        deid: strength of the de-identification, of prompts and of `BuiltPrompt.text`.
    """

    def __init__(
        self,
        prompt_format: PromptFormat,
        depicts: Depicts | None,
        fits: Callable[[str], bool],
        *,
        classes: Sequence[str] = (),
        deid: Deid = Deid.STANDARD,
    ) -> None:
        self._format = prompt_format
        self._classes = tuple(classes)
        self._depicts = depicts
        self._fits = fits
        self._deid = deid
        self._reader = FindingsReader()

    def build(self, report: Report) -> BuiltPrompt:
        """Build the prompt of one report; label columns override labels read from the text."""
        clean = self._clean(report.full_text)
        if not clean.covered:
            # The sections alone may be too short to tell their language.
            report = replace(report, text="", findings="", impression="")
        labels, sources = self._labels(report)
        subject = Subject(view=report.view, age_group=age_group(report.age_years), sex=report.sex)
        request = limit_to_supported(subject, labels, self._depicts)
        sanitized = Counter(clean.removed)
        if isinstance(self._format, PromptTemplate):
            style, is_coded = _TEMPLATE, self._format.is_coded
            prompt, truncated = self._from_template(self._format, report, request, clean.text, sanitized)
        else:
            style, is_coded = self._format.value, self._format in (PromptStyle.CANONICAL, PromptStyle.CLASS)
            prompt, truncated = cut_at_sentence(self._in_style(self._format, report, request, clean.text), self._fits)
        metadata = {
            # The same keys for all samples, and no null: readers such as `datasets` infer columns from the first few.
            "view": subject.view or "",
            "sex": subject.sex or "",
            "age_group": subject.age_group or "",
            "findings": {name: _finding_fact(labels.get(name), sources.get(name, "")) for name in OBSERVATIONS},
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
            conditions=conditions_of(replace(report, labels=labels)),
            sanitized=sanitized,
            truncated=truncated,
            unsupported_findings=request.unsupported_findings,
        )

    def _clean(self, text: str) -> Sanitized:
        return sanitize(text, strength=self._deid.value)

    def _labels(self, report: Report) -> tuple[dict[str, FindingLabel], dict[str, str]]:
        parsed = self._reader.read(report.full_text) if report.full_text else {}
        merged = {**parsed, **report.labels}
        abnormal = any(
            label.status is not Status.ABSENT and name not in ("No Finding", "Support Devices")
            for name, label in merged.items()
        )
        if abnormal and "No Finding" not in report.labels:
            merged.pop("No Finding", None)
        return merged, {name: "column" if name in report.labels else "report" for name in merged}

    def _in_style(self, style: PromptStyle, report: Report, request: Request, clean_text: str) -> str:
        if style is PromptStyle.CANONICAL:
            return canonical_prompt(request.subject, request.labels)
        if style is PromptStyle.CLASS:
            return class_of(request.labels, self._classes)
        section = {
            PromptStyle.IMPRESSION: report.impression,
            PromptStyle.FINDINGS: report.findings,
            PromptStyle.REPORT: "",
        }[style]
        # If the section is missing, or nothing is left of it ("No significant change."), the prompt is all the text of
        # the report; without any text, its labels. An empty prompt would request any image at all.
        return self._clean(section).text or clean_text or canonical_prompt(request.subject, request.labels)

    def _from_template(
        self, template: PromptTemplate, report: Report, request: Request, clean_text: str, sanitized: Counter[str]
    ) -> tuple[str, bool]:
        """The prompt, and whether it was cut; what is removed from columns is added to `sanitized`."""
        canonical = canonical_prompt(request.subject, request.labels)
        values = field_values(
            template,
            report,
            request.subject,
            clean=self._clean,
            clean_text=clean_text,
            canonical=canonical,
            removed=sanitized,
        )
        # Without a word of the report, the prompt would request any image at all: as in the other formats, all text of
        # the report takes the place of a section that is missing, or else its labels.
        content = content_fields(template)
        instead = canonical if template.is_coded else clean_text or canonical
        if content and not any(values.get(name) for name in content):
            values[content[0]] = instead
        elif not any(values.values()):
            return cut_at_sentence(instead or template.render({}), self._fits)
        prompt = template.render(values)
        filled = [name for name in content if values.get(name)]
        if len(filled) == 1 and not self._fits(prompt):
            # The report is cut, not what stands after it.
            name = filled[0]
            text, _ = cut_at_sentence(values[name], lambda part: self._fits(template.render({**values, name: part})))
            return cut_at_sentence(template.render({**values, name: text}), self._fits)[0], True
        return cut_at_sentence(prompt, self._fits)


def class_of(labels: Labels, classes: Sequence[str]) -> str:
    """The first of a model's classes that a report has as present, else "No Finding"."""
    present = (name for name in classes if name != NO_FINDING and name in labels)
    return next((name for name in present if labels[name].status is Status.PRESENT), NO_FINDING)


def _finding_fact(label: FindingLabel | None, source: str) -> dict[str, str]:
    """One observation in a sample's JSON; `source` is `column` or `report`."""
    if label is None:
        return {"status": "not mentioned", "side": "", "source": ""}
    return {"status": label.status.value, "side": label.side.value if label.side else "", "source": source}
