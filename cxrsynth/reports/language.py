"""Whether a report is in English, the one language that findings are read in.

Evidence is words, because reports are short: spaCy's lists of function words, which come with a dependency, and words
of radiology that a report without function words has ("Pneumothorax rechts."). A detector of languages would be one
more dependency, and those made for general text are unsure of a line of nouns.
"""

import re
from functools import cache
from pathlib import Path
from runpy import run_path

import spacy.lang

from cxrsynth.reports.findings.terms import TERMS

_LANGUAGES = ("da", "de", "es", "fr", "it", "nb", "nl", "pl", "pt", "sv", "tr")
_RADIOLOGY = {
    "de": (
        "ja nein kein keine keinen keinem nicht ohne herz lunge lungen lungenfeld erguss ergüsse"
        " pleuraerguss randwinkel"
        " stauung infiltrat rechts links rechte linke rechten linken beidseits unauffällig vergrößert"
        " vergroessert verschattung zwerchfell befund beurteilung röntgen aufnahme große grosse"
    ),
    "fr": (
        "sans poumon poumons coeur cœur droit droite gauche épanchement epanchement pleurésie opacité cardiomégalie"
        " radiographie normale culs sac plèvre foyer pas thoracique bilatéral"
    ),
    "es": (
        "sin derrame derrames pulmón pulmones pulmon corazón corazon derecho derecha izquierdo izquierda neumotórax"
        " neumotorax cardiomegalia radiografía radiografia tórax torax silueta normales hallazgos aumentada"
        " pulmonar neumonía"
        " neumonia"
    ),
    "it": (
        "senza versamento polmone polmoni polmonare cuore destro destra sinistro sinistra pneumotorace ombra cardiaca"
        " cardiaco torace radiografia addensamento addensamenti pleurico cardiomegalia"
    ),
    "pt": (
        "sem derrame pulmão pulmões pulmao coração coracao direito direita esquerdo esquerda pneumotórax pneumotorax"
        " cardiomegalia pulmonar radiografia tórax torax opacidade"
    ),
    "nl": "geen zonder hart longen long rechter linker rechts links vocht vergroot pleuravocht beeld normaal",
    "sv": "ingen inga utan hjärta hjärtat lungor lungorna höger vänster pleuravätska förstorat",
    "da": "ingen uden hjerte hjertet lunger lungerne højre venstre pleuraeffusion forstørret",
    "nb": "ingen uten hjerte hjertet lunger lungene høyre venstre pleuravæske forstørret",
    "pl": "bez brak odmy serce płuca płuc prawej lewej prawego lewego odma płyn powiększone jamie opłucnej",
    "tr": "yok kalp akciğer akciğerler sağ sol plevral efüzyon pnömotoraks izlenmedi",
}
_ENGLISH = (
    "lung lungs heart clear effusion effusions oedema chest tube right left small large mild moderate"
    " seen unremarkable"
    " enlarged within limits opacity opacities line lobe lower upper pleural fracture"
    " consolidation evidence"
    " stable size view views"
)
# Words of English reports, too: parts of names, and words that are short for something.
_SHARED = (
    "de la las los le van der den von di da dos del el al yo film per via ad et thorax normal man tall age era op iv"
    " possible anterior end sent mas nad ett relative different total gross exact like bile tuberculosis fusion medial"
    " final male sex ed er sob pod mi gi lad etc ok fem bag co"
)
_WORD = re.compile(r"[^\W\d_]+")
_BEYOND_LATIN = re.compile(r"[\u0370-\u1dff\u2e80-\uabff\uac00-\ud7ff]")


def is_english(text: str) -> bool:
    """Whether a report is in English; a text with no sign of another language is.

    It is in another language if more of its different words are signs of that language than are signs of English.
    Letters other than the plain Latin ones count as signs of any other language.
    """
    text = text.replace("\u00b5", "").replace("\u03bc", "")  # the signs of micrometers are letters
    if text.isascii() and _words(text).isdisjoint(_all_signs()):
        return True
    words = _words(text)
    if len(_BEYOND_LATIN.findall(text)) > sum(len(word) for word in words if word.isascii()):
        return False
    signs = _signs()
    accented = {word for word in words if not word.isascii()}
    english = len(words & signs["en"])
    return all(len((words & own) | accented) <= english for language, own in signs.items() if language != "en")


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower()))


@cache
def _all_signs() -> frozenset[str]:
    return frozenset().union(*(words for language, words in _signs().items() if language != "en"))


@cache
def _signs() -> dict[str, frozenset[str]]:
    """Language -> words that are signs of it: none of English is one of another language, and the reverse."""
    functions = {language: _function_words(language) for language in ("en", *_LANGUAGES)}
    foreign = frozenset().union(*(functions[language] for language in _LANGUAGES))
    english = frozenset(_ENGLISH.split())
    shared = functions["en"] | english | frozenset(_SHARED.split()) | frozenset(_WORD.findall(" ".join(TERMS.values())))
    signs = {
        language: (functions[language] | frozenset(_RADIOLOGY[language].split())) - shared for language in _LANGUAGES
    }
    return {"en": (functions["en"] - foreign) | english} | signs


def _function_words(language: str) -> frozenset[str]:
    # The file alone: importing a language of spaCy compiles its tokenizer, which takes longer than all else here.
    path = Path(spacy.lang.__path__[0], language, "stop_words.py")
    words: set[str] = run_path(str(path))["STOP_WORDS"]
    # Single letters are initials and marks, whatever the language.
    return frozenset(word.lower() for word in words if len(word) > 1)
