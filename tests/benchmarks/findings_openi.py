"""Score FindingsReader against the Open-i reports and their MeSH annotations, half by half.

Run: python -m tests.benchmarks.findings_openi

Reference: Demner-Fushman et al. 2016 (doi:10.1093/jamia/ocv080), the report archive in torchxrayvision. Two annotators
coded what each report calls present, hedged or not, so a finding read as uncertain counts as positive.
"""

import hashlib
import importlib.util
import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cxrsynth.reports.findings.reader import FindingsReader
from cxrsynth.reports.labels import OBSERVATIONS, FindingLabel, Side, Status

MIN_POSITIVES = 30

# A major heading ("Opacity/lung/base/left") maps to an observation if its first part is listed there and, where
# qualifiers are listed too, one of them is among the rest. Headings without a CheXpert counterpart map to none.
_ANY: tuple[str, ...] = ()
MAJORS: dict[str, dict[str, tuple[str, ...]]] = {
    "Enlarged Cardiomediastinum": {"Mediastinum": ("prominent", "enlarged", "widened")},
    "Cardiomegaly": {"Cardiomegaly": _ANY, "Cardiac Shadow": ("enlarged", "borderline")},
    "Lung Opacity": {
        "Opacity": _ANY,
        "Infiltrate": _ANY,
        "Airspace Disease": _ANY,
        "Density": ("lung", "retrocardiac"),
        "Markings": ("interstitial",),
        "Lung Diseases, Interstitial": _ANY,
    },
    # "round" is how Open-i codes "nodular"; CheXpert counts a nodular opacity as a lesion too.
    "Lung Lesion": {"Nodule": _ANY, "Mass": _ANY, "Opacity": ("round",), "Density": ("round",)},
    "Edema": {"Pulmonary Edema": _ANY, "Pulmonary Congestion": _ANY, "Heart Failure": _ANY},
    "Consolidation": {"Consolidation": _ANY},
    "Pneumonia": {"Pneumonia": _ANY},
    "Atelectasis": {"Pulmonary Atelectasis": _ANY},
    "Pneumothorax": {"Pneumothorax": _ANY, "Hydropneumothorax": _ANY},
    "Pleural Effusion": {"Pleural Effusion": _ANY, "Hydropneumothorax": _ANY, "Hemothorax": _ANY},
    "Pleural Other": {"Thickening": ("pleura",), "Cicatrix": ("pleura",), "Calcinosis": ("pleura",)},
    "Fracture": {"Fractures, Bone": _ANY},
    "Support Devices": {
        "Catheters, Indwelling": _ANY,
        "Implanted Medical Device": _ANY,
        "Medical Device": _ANY,
        "Tube, Inserted": _ANY,
        "Stents": _ANY,
        "Spinal Fusion": _ANY,
    },
    "No Finding": {"normal": _ANY},
}


@dataclass(frozen=True, slots=True)
class Reference:
    """One Open-i report and the observations its annotators coded."""

    uid: str
    text: str
    positives: frozenset[str]
    sides: dict[str, Side]
    is_dev: bool


@dataclass(frozen=True, slots=True)
class Score:
    """Counts for one observation."""

    true_positives: int
    false_positives: int
    false_negatives: int

    @property
    def positives(self) -> int:
        return self.true_positives + self.false_negatives

    @property
    def precision(self) -> float:
        return self.true_positives / max(1, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        return self.true_positives / max(1, self.positives)

    @property
    def f1(self) -> float:
        return 2 * self.true_positives / max(1, 2 * self.true_positives + self.false_positives + self.false_negatives)


def archive() -> Path:
    """Where torchxrayvision keeps the reports, found without importing it (that would import torch)."""
    spec = importlib.util.find_spec("torchxrayvision")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("torchxrayvision is not installed; its data/NLMCXR_reports.tgz is the reference")
    return Path(spec.submodule_search_locations[0]) / "data" / "NLMCXR_reports.tgz"


def observations(majors: Sequence[str]) -> frozenset[str]:
    """The observations that a report's MeSH major headings map to."""
    found = set()
    for major in majors:
        head, *rest = (part.strip() for part in major.split("/"))
        for name, heads in MAJORS.items():
            if head in heads and (not heads[head] or set(heads[head]) & set(rest)):
                found.add(name)
    return frozenset(found)


def coded_sides(majors: Sequence[str]) -> dict[str, Side]:
    """Side of each observation whose headings carry one; both sides among them make it bilateral."""
    coded: dict[str, set[str]] = {}
    for major in majors:
        parts = set(major.split("/"))
        sides = parts & set(Side)
        if "lingula" in parts:
            sides.add("left")
        for name in observations([major]) if sides else ():
            coded.setdefault(name, set()).update(sides)
    return {name: Side(next(iter(sides))) if len(sides) == 1 else Side.BILATERAL for name, sides in coded.items()}


def side_line(references: Sequence[Reference], labels: Sequence[dict[str, FindingLabel]]) -> str:
    """How often the side read is the side coded, among observations that are read and coded with a side."""
    kinds: Counter[str] = Counter()
    for reference, read in zip(references, labels, strict=True):
        for name, side in reference.sides.items():
            if name in positives(read):
                kinds["same" if read[name].side is side else "other" if read[name].side else "none"] += 1
    return f"Sides: {kinds['same']} same, {kinds['none']} none read, {kinds['other']} other"


def read_references(path: Path) -> list[Reference]:
    """All coded reports that have findings or an impression; development or held-out by a hash of the uid."""
    references = []
    with tarfile.open(path) as tar:
        for member in tar:
            if not member.name.endswith(".xml"):
                continue
            file = tar.extractfile(member)
            if file is None:
                continue
            root = ElementTree.fromstring(file.read())
            uid_node = root.find("uId")
            uid = uid_node.get("id", "") if uid_node is not None else ""
            sections = {node.get("Label"): (node.text or "").strip() for node in root.iter("AbstractText")}
            text = " ".join(f"{name}: {sections[name]}" for name in ("FINDINGS", "IMPRESSION") if sections.get(name))
            majors = [node.text or "" for node in root.iter("major")]
            if text and majors != ["No Indexing"]:
                is_dev = hashlib.sha256(uid.encode()).digest()[0] % 2 == 0
                references.append(Reference(uid, text, observations(majors), coded_sides(majors), is_dev))
    return references


def positives(labels: dict[str, FindingLabel]) -> frozenset[str]:
    """Observations read as present or uncertain."""
    return frozenset(name for name, label in labels.items() if label.status is not Status.ABSENT)


def stated(labels: dict[str, FindingLabel]) -> frozenset[str]:
    """Observations read as present."""
    return frozenset(name for name, label in labels.items() if label.status is Status.PRESENT)


def score(references: Sequence[Reference], read: Sequence[frozenset[str]]) -> dict[str, Score]:
    """Per observation: presence as read against presence as coded."""
    pairs = list(zip((reference.positives for reference in references), read, strict=True))
    return {
        name: Score(
            true_positives=sum(name in coded and name in found for coded, found in pairs),
            false_positives=sum(name not in coded and name in found for coded, found in pairs),
            false_negatives=sum(name in coded and name not in found for coded, found in pairs),
        )
        for name in OBSERVATIONS
    }


def macro_f1(scores: dict[str, Score]) -> float:
    """Mean F1 over the observations coded at least MIN_POSITIVES times."""
    counted = [one.f1 for one in scores.values() if one.positives >= MIN_POSITIVES]
    return sum(counted) / max(1, len(counted))


def table(scores: dict[str, Score]) -> str:
    """Markdown table, one observation per line."""
    lines = ["| Observation | Positives | Precision | Recall | F1 |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, one in scores.items():
        lines.append(f"| {name} | {one.positives} | {one.precision:.3f} | {one.recall:.3f} | {one.f1:.3f} |")
    return "\n".join(lines)


def error_table(references: Sequence[Reference], labels: Sequence[dict[str, FindingLabel]]) -> str:
    """Markdown: for each observation, disagreements by how the reader read the text."""
    lines = ["| Observation | Hedged, not coded | Said, not coded | Coded, denied | Coded, not mentioned |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for name in OBSERVATIONS:
        kinds: Counter[tuple[bool, Status | None]] = Counter()
        for reference, read in zip(references, labels, strict=True):
            kinds[name in reference.positives, read[name].status if name in read else None] += 1
        counts = (
            kinds[False, Status.UNCERTAIN],
            kinds[False, Status.PRESENT],
            kinds[True, Status.ABSENT],
            kinds[True, None],
        )
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables of both halves, and the speed on one core: cold (every sentence is new) and warm."""
    references = read_references(archive())
    started = time.process_time()
    reader = FindingsReader()
    built = time.process_time()
    labels = list(reader.read_many(r.text for r in references))
    cold = time.process_time()
    for _ in reader.read_many(r.text for r in references):
        pass
    warm = time.process_time()
    read = [positives(one) for one in labels]
    for title, wanted in (("Development", (True,)), ("Held-out", (False,)), ("All", (True, False))):
        kept = [i for i, reference in enumerate(references) if reference.is_dev in wanted]
        scores = score([references[i] for i in kept], [read[i] for i in kept])
        sys.stdout.write(f"\n{title}: {len(kept)} reports, macro F1 {macro_f1(scores):.3f}\n\n{table(scores)}\n")
        sys.stdout.write(f"\n{side_line([references[i] for i in kept], [labels[i] for i in kept])}\n")
    sure = [stated(one) for one in labels]
    for title, wanted in (("Development", (True,)), ("Held-out", (False,)), ("All", (True, False))):
        kept = [i for i, reference in enumerate(references) if reference.is_dev in wanted]
        scores = score([references[i] for i in kept], [sure[i] for i in kept])
        sys.stdout.write(f"\n{title}, uncertain not counted: macro F1 {macro_f1(scores):.3f}\n")
    sys.stdout.write(
        f"\n{error_table(references, labels)}\n"
        f"\nBuild {built - started:.2f} s; cold {len(references) / (cold - built):.0f} reports a CPU second; "
        f"warm {len(references) / (warm - cold):.0f}\n"
    )


if __name__ == "__main__":
    main()
