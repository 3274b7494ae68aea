"""A small grammar that describes an image in many ways: training text for the text encoders.

It was written without reference to any report. It varies synonyms, negations, severities and order, so that the text
encoders learn more than the wording of the canonical prompt.
"""

import random

from cxrsynth.nano.build.images import Radiograph
from cxrsynth.reports.prompt import Subject

_PRESENT: dict[str, tuple[str, ...]] = {
    "No Finding": ("normal chest", "no acute finding", "no abnormality is seen", "the chest is normal", "clear lungs"),
    "Cardiomegaly": ("cardiomegaly", "enlarged heart", "the heart is enlarged", "enlarged cardiac silhouette"),
    "Lung Opacity": ("lung opacity", "opacities in the lungs", "airspace opacity", "infiltrate", "hazy opacity"),
    "Lung Lesion": ("lung lesion", "pulmonary nodule", "lung mass", "a nodular lesion is seen", "rounded mass"),
    "Edema": ("pulmonary edema", "vascular congestion with edema", "edema of the lungs", "interstitial edema"),
    "Consolidation": ("consolidation", "a consolidated area", "lung consolidation", "airspace consolidation"),
    "Pneumonia": ("pneumonia", "findings of pneumonia", "pneumonic infiltrate", "infection of the lungs"),
    "Atelectasis": ("atelectasis", "atelectatic change", "volume loss", "bibasilar atelectasis", "linear atelectasis"),
    "Pneumothorax": ("pneumothorax", "air in the pleural space", "a pneumothorax is seen", "apical pneumothorax"),
    "Pleural Effusion": ("pleural effusion", "effusion", "pleural fluid", "blunted costophrenic angle"),
    "Pleural Other": ("pleural abnormality", "pleural thickening", "thickened pleura", "pleural scarring"),
}
_ABSENT: dict[str, tuple[str, ...]] = {
    "Cardiomegaly": ("no cardiomegaly", "heart size is normal", "the heart is not enlarged", "normal heart size"),
    "Lung Opacity": ("no lung opacity", "lungs are clear", "no focal opacity", "no infiltrate"),
    "Lung Lesion": ("no lung lesion", "no nodule or mass", "no suspicious nodule"),
    "Edema": ("no pulmonary edema", "no edema", "no vascular congestion"),
    "Consolidation": ("no consolidation", "no focal consolidation", "without consolidation"),
    "Pneumonia": ("no pneumonia", "no evidence of pneumonia", "no sign of infection"),
    "Atelectasis": ("no atelectasis", "no volume loss", "without atelectasis"),
    "Pneumothorax": ("no pneumothorax", "no evidence of pneumothorax", "without pneumothorax"),
    "Pleural Effusion": ("no pleural effusion", "no effusion", "costophrenic angles are sharp"),
    "Pleural Other": ("no pleural abnormality", "no pleural thickening", "pleura is normal"),
}
_SEVERITY = ("", "", "", "mild ", "moderate ", "small ", "large ", "marked ")
# Openings that may follow a severity: "small pneumothorax", not "small the heart is enlarged".
_NOUN_FIRST = ("the ", "a ", "findings", "blunted", "air ", "opacities", "enlarged", "bibasilar", "clear", "no ")
_VIEW = {
    "PA": ("PA view", "PA chest radiograph", "frontal PA projection", "posteroanterior film"),
    "AP": ("AP view", "portable AP film", "AP chest radiograph", "anteroposterior projection"),
}
_PERSON: dict[tuple[str | None, str | None], tuple[str, ...]] = {
    ("adult", "F"): ("adult woman", "female adult", "a woman"),
    ("adult", "M"): ("adult man", "male adult", "a man"),
    ("adult", None): ("adult", "adult patient"),
    ("child", "F"): ("girl", "female child"),
    ("child", "M"): ("boy", "male child"),
    ("child", None): ("child", "pediatric patient", "young child"),
    (None, "F"): ("female patient", "woman"),
    (None, "M"): ("male patient", "man"),
}


def varied_text(radiograph: Radiograph, rng: random.Random) -> str:
    """One text that is true of the image."""
    sentences = [rng.choice(_present(name, rng)) for name in radiograph.present if name in _PRESENT]
    # The sources label opacities as "infiltration": an image with pneumonia is never described as having none.
    denied = rng.sample(radiograph.absent, min(len(radiograph.absent), rng.choice((0, 1, 1, 2, 3))))
    sentences += [rng.choice(_ABSENT[name]) for name in denied if name in _ABSENT]
    rng.shuffle(sentences)
    opening = _opening(radiograph.subject, rng)
    parts = [*opening, *sentences] if rng.random() > 0.2 else [*sentences, *opening]
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in parts)


def every_phrase() -> list[str]:
    """All phrases of the grammar, severities separately: training text of a tokenizer."""
    groups = (*_PRESENT.values(), *_ABSENT.values(), *_VIEW.values(), *_PERSON.values(), _SEVERITY)
    return [phrase for group in groups for phrase in group if phrase]


def _present(name: str, rng: random.Random) -> list[str]:
    plain = list(_PRESENT[name])
    graded = [rng.choice(_SEVERITY) + phrase for phrase in plain if not phrase.startswith(_NOUN_FIRST)]
    return plain if name == "No Finding" else graded + [p for p in plain if p.startswith(_NOUN_FIRST)]


def _opening(subject: Subject, rng: random.Random) -> list[str]:
    parts = []
    if subject.view in _VIEW and rng.random() > 0.2:
        parts.append(rng.choice(_VIEW[subject.view]))
    person = _PERSON.get((subject.age_group, subject.sex))
    if person and rng.random() > 0.2:
        parts.append(rng.choice(person))
    return parts
