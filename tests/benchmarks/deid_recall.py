"""Recall and precision of the sanitizer on surrogates planted in Open-i reports, and its speed.

Run: python -m tests.benchmarks.deid_recall --data reports_openi.csv [--identities 50] [--reports 500]

Names, towns, hospitals, numbers and dates of invented people are planted where radiologists write them: in a header, in
the history, inside the findings, and in the signature. The lists below were written for this script. They are not those
of the sanitizer; how many of their words its dictionaries have is printed. Presidio (with spaCy's en_core_web_sm) and
philter-lite are measured on the same texts where they are installed, on the first `--others` of them.
"""

import argparse
import csv
import importlib.util
import platform
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

import cxrsynth
from cxrsynth.reports.deid.lexicon import fold, names
from cxrsynth.reports.deid.sanitize import sanitize


def _words(text: str) -> list[str]:
    return text.split()


GIVEN = _words("""Adaeze Alistair Anneliese Bartholomew Beatriz Bogdan Brynhild Caoimhe Chidi Clementine Dagny Dimitrios
Eleonora Emeka Fatoumata Fiorella Gaurav Giuseppina Gwendolyn Hamza Hyacinth Ignatius Ikram Ingeborg Jadwiga Jaroslav
Kamala Kwabena Lakshmi Leocadia Ludovic Marisol Mbali Montserrat Nadezhda Nkechi Octavio Olumide Perpetua Philippa
Rosalind Rupert Saoirse Siobhan Sunniva Taavi Thaddeus Tomoko Ulrike Umberto Valentina Wilhelmina Xiomara Yevgenia
Yolanda Zainab Zoltan Mary John David Susan Robert Linda""")
SURNAMES = _words("""Abernathy Achterberg Adeyemi Anagnostopoulos Asante Baptiste Bhattacharya Brzezinski Castellanos
Chatterjee Czerwinski Delacroix Dombrowski Echeverria Eriksson Fitzwilliam Fujimoto Gaspard Georgiadis Gopalakrishnan
Guttierez Haverford Hendriksen Ivanovic Jankowski Jayawardena Kariuki Kazantzakis Kirkpatrick Kowalczyk Lagerfeld
Lundgren MacAllister Mbeki Mehrotra Montgomery Mukherjee Nakagawa Nwosu Oberholtzer Okafor Oyelaran Papadakis Petrossian
Quispe Ramanathan Ruaridh Santangelo Schwarzkopf Siddiqui Sokolov Szczepaniak Tanaka Thorvaldsen Tremblay Uzun
Vanterpool Villanueva Wijesinghe Wozniak Yamashita Zapatero Zielinski Smith Johnson Garcia Nguyen Patel Kim""")
TOWNS = _words("""Ashby_Falls Birchwater Cold_Spring Dunmore Eastleigh Fernandina Galway Harlow_Junction Ironwood Juneau
Kettering Laredo Malmo Novi_Sad Ostrava Pocatello Queenstown Rosario Sacramento Tillamook Utica Valparaiso Waukesha
Yonkers Zanesville Chicago Boston Toronto""")
HOSPITALS = _words("""Ashby_Falls_Hospital Birchwater_Medical_Center St._Aldhelm's_Hospital Dunmore_Clinic
Ironwood_General_Hospital Kettering_Infirmary University_of_Tillamook_Hospital Rosario_Memorial_Hospital
Good_Shepherd_Medical_Center Pocatello_Regional_Medical_Center Queenstown_Health_Centre Lakeshore_Imaging_Center
Mercy_Valley_Hospital Northfield_Nursing_Home""")
STREETS = _words(
    "Alder Birch Cloverdale Dogwood Evergreen Foxglove Garfield Hawthorne Juniper Larkspur Quarry Wisteria"
)
ROADS = ("Street", "Ave", "Rd", "Lane")
MONTHS = _words("January February March April May June July August September October November December")
TEMPLATES = {
    "header": [
        "Patient: {name}. MRN: {number}. DOB: {date}.",
        "PATIENT NAME: {NAME}. ACCESSION: {number}. EXAM DATE: {date} {time}.",
        "Name: {reversed}. Room {room}. Account number {number}.",
        "{hl7} {number} {date}.",
        "Address: {address}. Phone: {phone}.",
    ],
    "history": [
        "{age}-year-old patient of Dr. {surname}.",
        "Transferred from {hospital}.",
        "Lives in {town}.",
        "{given} has had a cough since {date}.",
        "Referred by {name}.",
        "Fall on {date}, seen at {hospital}.",
    ],
    "findings": [
        "Line placed on {date}.",
        "Pacemaker, serial number {number}.",
        "{surname}'s cardiac silhouette is normal.",
        "Outside images from {hospital} were loaded.",
        "Bedside film in room {room} at {time}.",
    ],
    "signature": [
        "Electronically signed by {name}, MD on {date} at {time}.",
        "Electronically signed on {date} by {name}.",
        "Dictated by: {name}. Transcribed: {initials}.",
        "Discussed with {name} at {time}.",
        "cc: {name}.",
        "{name} was notified at {time}. Pager {phone}.",
        "Attending: {surname}. Technologist: {given}.",
        "Questions: {phone} or {email}.",
    ],
}
KIND_OF_FIELD = {
    **dict.fromkeys(("name", "NAME", "reversed", "hl7", "surname", "given", "initials"), "name"),
    **dict.fromkeys(("hospital", "town", "address", "room"), "place"),
    **dict.fromkeys(("number",), "number"),
    **{kind: kind for kind in ("date", "time", "phone", "email", "age")},
}
KINDS = sorted(set(KIND_OF_FIELD.values()))


@dataclass(frozen=True)
class Planted:
    """A report with surrogates; `secrets` are (kind, text that may not survive)."""

    clean: str
    text: str
    secrets: list[tuple[str, str]]


def surrogates(chance: random.Random) -> dict[str, str]:
    """The fields of the templates for one identity."""
    given, surname = chance.choice(GIVEN), chance.choice(SURNAMES)
    day, month, year = chance.randint(1, 28), chance.randint(1, 12), chance.randint(1930, 2024)
    date = chance.choice(
        [
            f"{month}/{day}/{year}",
            f"{year}-{month:02}-{day:02}",
            f"{MONTHS[month - 1]} {day}, {year}",
            f"{day} {MONTHS[month - 1][:3]} {year}",
            f"{day:02}-{MONTHS[month - 1][:3].upper()}-{year % 100:02}",
        ]
    )
    middle = chance.choice(["", f" {chance.choice('ABCDEHJKLMPRST')}."])
    digits = "".join(chance.choices("0123456789", k=10))
    return {
        "name": f"{given}{middle} {surname}",
        "NAME": f"{surname}, {given}".upper(),
        "reversed": f"{surname}, {given}",
        "hl7": f"{surname}^{given}^^".upper(),
        "surname": surname,
        "given": given,
        "initials": (given[0] + surname[:2]).lower(),
        "hospital": chance.choice(HOSPITALS).replace("_", " "),
        "town": chance.choice(TOWNS).replace("_", " "),
        "address": f"{chance.randint(1, 9999)} {chance.choice(STREETS)} {chance.choice(ROADS)}",
        "room": f"{chance.randint(2, 12)}{chance.randint(10, 49)}",
        "number": chance.choice([digits[:7], digits[:9], f"{chance.choice('ABCEHM')}{digits[:6]}"]),
        "date": date,
        "time": f"{chance.randint(0, 23):02}:{chance.randint(10, 59)}",
        "phone": chance.choice(
            [f"{digits[:3]}-555-{digits[3:7]}", f"5-{digits[3:7]}", f"({digits[:3]}) 555-{digits[3:7]}"]
        ),
        "email": f"{given[0]}{surname}@hospital.example.org".lower(),
        "age": str(chance.randint(90, 103)),
    }


def parts(kind: str, value: str) -> Iterator[str]:
    """What may not survive of a surrogate: each word of a name, the whole of anything else."""
    if kind == "name":
        yield from (word for word in re.findall(r"[^\W\d_]+", value) if len(word) > 2)
    else:
        yield value


def plant(report: str, chance: random.Random) -> Planted:
    """Plant one passage of each place: header, history, inside the findings, signature."""
    fields = surrogates(chance)
    passages = {where: chance.choice(templates) for where, templates in TEMPLATES.items()}
    filled = {where: passage.format(**fields) for where, passage in passages.items()}
    sentences = re.split(r"(?<=\.)\s+", report)
    sentences.insert(chance.randint(0, len(sentences)), filled["findings"])
    text = " ".join([filled["header"], filled["history"], *sentences, filled["signature"]])
    used = [name for passage in passages.values() for name in re.findall(r"{(\w+)}", passage)]
    secrets = [
        (KIND_OF_FIELD[name], part)
        for name in used
        for part in parts(KIND_OF_FIELD[name], fields[name])
        if part.lower() not in report.lower()
    ]
    return Planted(report, text, secrets)


def read_reports(path: Path, count: int) -> list[str]:
    """Findings and impression of the first `count` longer reports; Open-i's own marks are replaced by a word."""
    with path.open(newline="", encoding="utf-8") as file:
        texts = [f"{row['findings']} {row['impression']}".strip() for row in csv.DictReader(file)]
    return [re.sub(r"\S*X{3,}\S*|<BR>", "chest", text) for text in texts if len(text) > 80][:count]


def interval(hits: int, count: int) -> str:
    """A share in percent with its 95% interval (Wilson)."""
    if not count:
        return "-"
    low, high = binomtest(hits, count).proportion_ci(method="wilson")
    return f"{100 * hits / count:.2f} ({100 * low:.2f}-{100 * high:.2f})"


def measure(title: str, clean: Callable[[str], str], planted: list[Planted]) -> str:
    """Markdown row: recall by kind, share of clinical words kept, texts per second of processor time."""
    found: Counter[str] = Counter()
    count: Counter[str] = Counter()
    words_left = words = 0
    reports = {one.clean for one in planted}
    originals = {report: Counter(re.findall(r"[a-z]+", clean(report).lower())) for report in reports}
    started = time.process_time()
    texts = [clean(one.text) for one in planted]
    seconds = time.process_time() - started
    for one, text in zip(planted, texts, strict=True):
        lower = text.lower()
        for kind, secret in one.secrets:
            count[kind] += 1
            found[kind] += secret.lower() not in lower
        # What goes from the report without surrogates, as comparisons do, is not counted.
        expected = originals[one.clean]
        words += expected.total()
        words_left += (expected & Counter(re.findall(r"[a-z]+", lower))).total()
    cells = [interval(found[kind], count[kind]) for kind in KINDS]
    cells += [interval(found.total(), count.total()), interval(words_left, words), f"{len(planted) / seconds:.0f}"]
    return f"| {title} | {' | '.join(cells)} |"


def presidio() -> Callable[[str], str] | None:
    """Presidio's analyzer with spaCy's small English model; None if either is not installed."""
    if importlib.util.find_spec("presidio_analyzer") is None or importlib.util.find_spec("en_core_web_sm") is None:
        return None
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    models = [{"lang_code": "en", "model_name": "en_core_web_sm"}]
    provider = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models})
    engine = AnalyzerEngine(nlp_engine=provider.create_engine())

    def clean(text: str) -> str:
        for span in sorted(engine.analyze(text, language="en"), key=lambda span: -span.start):
            text = text[: span.start] + " " + text[span.end :]
        return text

    return clean


def philter() -> Callable[[str], str] | None:
    """philter-lite with its own filters; None if it, or the tagger of nltk it needs, is not installed."""
    if importlib.util.find_spec("philter_lite") is None:
        return None
    import philter_lite

    module: Any = philter_lite
    filters = module.load_filters(str(Path(module.__file__).parent / "configs" / "philter_delta.toml"))

    def clean(text: str) -> str:
        return str(module.transform_text_asterisk(text, module.detect_phi(text, patterns=filters)))

    try:
        clean("The lungs are clear.")
    except LookupError:
        return None
    return clean


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="CSV of Open-i with columns findings and impression")
    parser.add_argument("--identities", type=int, default=50)
    parser.add_argument("--reports", type=int, default=500)
    parser.add_argument("--others", type=int, default=500, help="texts that Presidio and philter-lite are measured on")
    options = parser.parse_args()
    reports = read_reports(options.data, options.reports)
    planted = [
        plant(report, random.Random(f"{identity}/{number}"))
        for identity in range(options.identities)
        for number, report in enumerate(reports)
    ]
    known = sum(fold(name) in names() for name in (*GIVEN, *SURNAMES))
    sys.stdout.write(
        f"cxrsynth {cxrsynth.__version__}, Python {platform.python_version()}, {platform.machine()}\n"
        f"{len(reports)} reports x {options.identities} identities;"
        f" {known} of {len(GIVEN) + len(SURNAMES)} names are in the dictionaries\n\n"
        f"| % (95% interval) | {' | '.join(KINDS)} | all | clinical words kept | texts/s |\n"
        f"|{' --- |' * (len(KINDS) + 4)}\n"
    )
    sanitize("Warm.")
    sys.stdout.write(measure("standard", lambda text: sanitize(text).text, planted) + "\n")
    sys.stdout.write(measure("strict", lambda text: sanitize(text, strength="strict").text, planted) + "\n")
    for title, tool in (("Presidio, en_core_web_sm", presidio()), ("philter-lite", philter())):
        few = planted[: options.others]
        sys.stdout.write(
            f"{title}: not installed\n" if tool is None else measure(f"{title}, {len(few)} texts", tool, few) + "\n"
        )


if __name__ == "__main__":
    main()
