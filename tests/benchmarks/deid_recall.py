"""Recall and precision of the sanitizer on surrogates planted in Open-i reports, and its speed.

Run: python -m tests.benchmarks.deid_recall --data reports_openi.csv [--identities 50] [--reports 500]
     [--beside presidio philter-lite] [--spacy-model en_core_web_sm] [--beside-texts 2000]
     python -m tests.benchmarks.deid_recall --cases FOLDER

Names, towns, hospitals, numbers and dates of invented people are planted where radiologists write them: in a header, in
the history, inside the findings, and in the signature. The lists below were written for this script. They are not those
of the sanitizer; how many of their words its dictionaries have is printed.

Harmless are the distinct sentences of the reports as they were published, without those that have a mark of Open-i's
own de-identification (XXXX) or compare with an earlier study, which the sanitizer removes on purpose: nothing in them
may change. `--beside` measures other tools on the first texts, and the sanitizer once more on just these. Presidio
needs presidio-analyzer and a model of spaCy; philter-lite needs nltk's averaged_perceptron_tagger_eng.

`--cases` scores sentences written by hand: `identifiers.jsonl` has lines of `kind`, `text` and `secrets`, each put
between two harmless sentences that must stay, and `harmless.jsonl` lines of `text` that must come back unchanged, but
for the words that compare with an earlier study.
"""

import argparse
import csv
import json
import platform
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

import cxrsynth
from cxrsynth.reports.deid.comparisons import COMPARISON, COMPARISON_WORD
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


def measure(title: str, clean: Callable[[str], str], planted: list[Planted], harmless: list[str]) -> str:
    """Markdown row: recall by kind, words kept, harmless sentences unchanged, texts a second of processor time."""
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
    unchanged = sum(" ".join(clean(sentence).split()) == sentence for sentence in harmless)
    cells += [interval(found.total(), count.total()), interval(words_left, words), interval(unchanged, len(harmless))]
    cells.append(f"{len(planted) / seconds:.0f}")
    return f"| {title} | {' | '.join(cells)} |"


def harmless_sentences(path: Path) -> list[str]:
    """Distinct sentences of the published reports that name nobody and compare with nothing."""
    with path.open(newline="", encoding="utf-8") as file:
        texts = [f"{row['findings']} {row['impression']}" for row in csv.DictReader(file)]
    sentences = {" ".join(sentence.split()) for text in texts for sentence in re.split(r"(?<=[.?!])\s+", text)}
    return sorted(
        sentence
        for sentence in sentences
        if re.search(r"[a-z]{2}", sentence)
        and not re.search(r"X{3,}|<BR>", sentence)
        and not COMPARISON.search(sentence.lower())
        and not COMPARISON_WORD.search(sentence)
    )


@dataclass(frozen=True)
class CaseScore:
    """How many secrets a folder of cases has, how many survived, by kind, and what happened to the other sentences."""

    secrets: Counter[str]
    survived: Counter[str]
    neighbors_lost: int
    harmless: int
    unchanged: int
    sentences: int

    def row(self, title: str) -> str:
        """Markdown row: secrets removed, neighbors kept, harmless sentences unchanged."""
        total, left = self.secrets.total(), self.survived.total()
        neighbors = 2 * self.sentences
        kept = interval(neighbors - self.neighbors_lost, neighbors)
        return f"| {title} | {interval(total - left, total)} | {kept} | {interval(self.unchanged, self.harmless)} |"


def score_cases(folder: Path, clean: Callable[[str], str]) -> CaseScore:
    """Score a folder of cases.

    Raises:
        OSError, KeyError, ValueError: if a file is missing, a line is not JSON, or has not the keys named on top.
    """
    before, after = "The heart is normal in size.", "No pleural effusion."
    secrets: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    lost = 0
    cases = _lines(folder / "identifiers.jsonl")
    for case in cases:
        left = clean(f"{before} {case['text']} {after}")
        secrets[case["kind"]] += len(case["secrets"])
        survived[case["kind"]] += sum(secret in left for secret in case["secrets"])
        lost += (before not in left) + (after not in left)
    texts = [line["text"] for line in _lines(folder / "harmless.jsonl")]
    texts = [text for text in texts if not COMPARISON.search(text.lower()) and not COMPARISON_WORD.search(text)]
    unchanged = sum(clean(text) == text for text in texts)
    return CaseScore(secrets, survived, lost, len(texts), unchanged, len(cases))


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def print_cases(folder: Path) -> None:
    """Print the scores of both strengths, and which kinds of secrets survived."""
    cleaners: dict[str, Callable[[str], str]] = {
        "standard": lambda text: sanitize(text).text,
        "strict": lambda text: sanitize(text, strength="strict").text,
    }
    scores = {strength: score_cases(folder, clean) for strength, clean in cleaners.items()}
    sys.stdout.write(
        f"cxrsynth {cxrsynth.__version__}, {scores['strict'].sentences} sentences with"
        f" {scores['strict'].secrets.total()} secrets, {scores['strict'].harmless} harmless\n\n"
        "| % (95% interval) | secrets removed | neighbors kept | harmless unchanged |\n| --- | --- | --- | --- |\n"
    )
    for strength, score in scores.items():
        sys.stdout.write(score.row(strength) + "\n")
    for strength, score in scores.items():
        for kind, count in sorted((+score.survived).items()):
            sys.stdout.write(f"\n{strength}, {kind}: {count} of {score.secrets[kind]} survived")
    sys.stdout.write("\n")


def presidio(model: str) -> Callable[[str], str]:
    """Presidio's analyzer as it comes, with a model of spaCy; what it finds becomes a blank."""
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    models = [{"lang_code": "en", "model_name": model}]
    provider = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models})
    engine = AnalyzerEngine(nlp_engine=provider.create_engine())

    def clean(text: str) -> str:
        letters = list(text)
        for span in engine.analyze(text, language="en"):
            letters[span.start : span.end] = " " * (span.end - span.start)
        return "".join(letters)

    return clean


def philter() -> Callable[[str], str]:
    """philter-lite with all filters of its own configuration; what it finds becomes asterisks."""
    import philter_lite

    module: Any = philter_lite
    filters = module.load_filters(str(Path(module.__file__).parent / "configs" / "philter_delta.toml"))

    def clean(text: str) -> str:
        include, _, _ = module.detect_phi(text, patterns=filters)
        return str(module.transform_text_asterisk(text, include))

    return clean


def other_tools(names: list[str], model: str) -> Iterator[tuple[str, Callable[[str], str]]]:
    """Title and function of each tool, tried once.

    Raises:
        ImportError, LookupError: if one, or the data it needs, is not installed.
    """
    for name in names:
        tool = presidio(model) if name == "presidio" else philter()
        tool("The lungs are clear.")
        package = {"presidio": "presidio-analyzer"}.get(name, name)
        with_model = f", {Path(model).name}" if name == "presidio" else ""
        yield f"{package} {metadata.version(package)}{with_model}", tool


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="CSV of Open-i with columns findings and impression")
    parser.add_argument("--cases", type=Path, help="folder with identifiers.jsonl and harmless.jsonl")
    parser.add_argument("--identities", type=int, default=50)
    parser.add_argument("--reports", type=int, default=500)
    parser.add_argument("--beside", nargs="+", default=[], choices=["presidio", "philter-lite"])
    parser.add_argument("--spacy-model", default="en_core_web_sm", help="package or folder, for Presidio")
    parser.add_argument("--beside-texts", type=int, default=2000, help="texts and sentences of the comparison")
    options = parser.parse_args()
    if options.cases is not None:
        try:
            print_cases(options.cases)
        except (OSError, KeyError, ValueError) as error:
            parser.error(f"--cases {options.cases}: {type(error).__name__}: {error}")
    if options.data is None:
        if options.cases is None:
            parser.error("needs --data FILE or --cases FOLDER")
        return
    try:
        others = list(other_tools(options.beside, options.spacy_model))
    except (ImportError, LookupError, OSError) as error:
        parser.error(f"--beside: not installed: {str(error).strip()}")
    reports = read_reports(options.data, options.reports)
    planted = [
        plant(report, random.Random(f"{identity}/{number}"))
        for identity in range(options.identities)
        for number, report in enumerate(reports)
    ]
    harmless = harmless_sentences(options.data)
    known = sum(fold(name) in names() for name in (*GIVEN, *SURNAMES))
    sys.stdout.write(
        f"cxrsynth {cxrsynth.__version__}, Python {platform.python_version()}, {platform.machine()}\n"
        f"{len(reports)} reports x {options.identities} identities; {len(harmless)} harmless sentences;"
        f" {known} of {len(GIVEN) + len(SURNAMES)} names are in the dictionaries\n\n"
        f"| % (95% interval) | {' | '.join(KINDS)} | all | clinical words kept | harmless unchanged | texts/s |\n"
        f"|{' --- |' * (len(KINDS) + 5)}\n"
    )
    sanitize("Warm. Nkosi.")
    started = time.process_time()
    for report in reports:
        sanitize(report)
    speed = len(reports) / (time.process_time() - started)
    own: list[tuple[str, Callable[[str], str]]] = [
        ("standard", lambda text: sanitize(text).text),
        ("strict", lambda text: sanitize(text, strength="strict").text),
    ]
    for title, tool in own:
        sys.stdout.write(measure(title, tool, planted, harmless) + "\n")
        sys.stdout.flush()
    sys.stdout.write(f"\nWithout surrogates, standard: {speed:.0f} reports a CPU second\n")
    few, sentences = planted[: options.beside_texts], random.Random(0).sample(harmless, len(harmless))
    for title, tool in [*own, *others] if others else []:
        row = measure(f"{title}, {len(few)} texts", tool, few, sentences[: options.beside_texts])
        sys.stdout.write(row + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
