"""`python -m cxrsynth.nano.build.example_reports FILE` writes synthetic reports to tune nano on (nano-reports.csv).

`--subgroup --rows 160` writes subgroup-reports.csv: adults with at least one finding. `--rows 3200 --seed 1 --omit
0.15` writes the table that nano-fast was distilled on.

The reports belong to no patient: subjects and findings are sampled, the text comes from the build's grammar. Rows whose
text the findings reader does not read as the sampled findings are dropped.
"""

import csv
import random
from pathlib import Path
from typing import Annotated

import typer

from cxrsynth.nano.build.images import Radiograph
from cxrsynth.nano.build.phrases import varied_text
from cxrsynth.reports.findings.reader import FindingsReader
from cxrsynth.reports.labels import OPACITY_KINDS, Status
from cxrsynth.reports.prompt import Subject

# Sampling weights for adults with findings: nearly even, so that rare findings are tuned too.
_ADULT = {
    "Cardiomegaly": 3, "Lung Opacity": 4, "Lung Lesion": 3, "Edema": 3, "Pneumonia": 3,
    "Atelectasis": 4, "Pneumothorax": 2, "Pleural Effusion": 4, "Pleural Other": 2,
}  # fmt: skip
_DENIABLE = ("Cardiomegaly", "Lung Opacity", "Edema", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion")


def main(
    out: Annotated[Path, typer.Argument()],
    rows: int = 400,
    subgroup: bool = False,
    seed: int = 0,
    omit: Annotated[float, typer.Option(help="Share of rows without view, without sex, and without age.")] = 0.0,
) -> None:
    """Write the table."""
    rng, reader = random.Random(seed), FindingsReader()
    written: list[dict[str, str]] = []
    while len(written) < rows:
        age, radiograph = _sampled(rng)
        if subgroup and (age < 18 or radiograph.present == ("No Finding",)):
            continue
        text = varied_text(radiograph, rng)
        read = reader.read(text)
        present = {name for name, label in read.items() if label.status is Status.PRESENT}
        absent = {name for name, label in read.items() if label.status is Status.ABSENT}
        if present - {"No Finding"} == set(radiograph.present) - {"No Finding"} and not absent & set(
            radiograph.present
        ):
            subject = {"view": radiograph.subject.view or "", "sex": radiograph.subject.sex or "", "age": str(age)}
            if omit:
                subject = {name: value if rng.random() >= omit else "" for name, value in subject.items()}
            report_id = f"{'adult' if subgroup else 'nano'}-{len(written) + 1:03d}"
            written.append({"report_id": report_id, **subject, "report": text})
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(written[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(written)


def _sampled(rng: random.Random) -> tuple[int, Radiograph]:
    sex = rng.choice("FM")
    if rng.random() < 0.3:
        age, view = rng.randint(1, 5), "AP"
        present: tuple[str, ...] = ("Pneumonia",) if rng.random() < 0.6 else ("No Finding",)
    else:
        age, view = rng.randint(19, 88), rng.choice(("PA", "PA", "AP"))
        count = rng.choice((0, 1, 1, 1, 2, 2))
        chosen = set(rng.choices(list(_ADULT), weights=list(_ADULT.values()), k=count))
        present = tuple(name for name in _ADULT if name in chosen) or ("No Finding",)
    opacity = any(name in OPACITY_KINDS for name in present)
    absent = tuple(name for name in _DENIABLE if name not in present and not (opacity and name == "Lung Opacity"))
    subject = Subject(view=view, age_group="child" if age < 18 else "adult", sex=sex)
    return age, Radiograph("", "", "", subject, present, absent, padded=False)


if __name__ == "__main__":
    typer.run(main)
