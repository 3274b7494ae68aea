"""Names that a model of named entities finds, on top of what rules and dictionaries find: the extra `presidio`.

A folder of spaCy or transformers becomes a recognizer of Presidio's analyzer (github.com/microsoft/presidio), beside
its own for numbers with a form (passports, credit cards, insurance). Its findings are taken out of what the rules have
left, so there are never fewer removals than without it.
"""

import hashlib
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cxrsynth.errors import ModelError
from cxrsynth.reports.deid.entities import Entity
from cxrsynth.runtime.files import file_sha256
from cxrsynth.runtime.pretrained import (
    LOADING_ERRORS,
    check_files,
    hub_folder,
    load_pretrained,
    load_tokenizer,
    quiet_libraries,
    reason,
    unusable,
)

_ROLE = "a model of named entities"
_OPTION = "--deid-model"
_EXPECTED = (
    "a folder of spaCy (meta.json, config.cfg) with a component `ner` or `entity_ruler`, or one of transformers for"
    " token classification (config.json, tokenizer, model.safetensors)"
)
# Presidio's recognizers that are left out: two look up domains in the network, dates have rules of ours, and digits
# alone are measures as often as account numbers.
_LEFT_OUT = ("Email", "Url", "Date", "UsBank", "AbaRouting", "UsLicense", "Spacy", "UsMbi")
_LEAST_SCORE = 0.4
_SPACY_PARTS = ("tok2vec", "transformer", "ner", "entity_ruler", "span_ruler")


class EntityModel:
    """Finds entities in text with a model of the user's.

    A model of spaCy takes texts up to its `max_length`, a million characters unless it says otherwise; for longer ones
    `find` raises ModelError.

    Args:
        name: a folder, or a hub id `owner/name@revision`.
        device: where a network of transformers runs.

    Raises:
        ModelError: if the extra is not installed, or the folder cannot be loaded.
    """

    def __init__(self, name: Path, *, device: torch.device) -> None:
        folder = find_entity_model(name)
        _need_presidio()
        with quiet_libraries():
            self._analyzer = _analyzer(folder, device)

    def find(self, text: str) -> list[Entity]:
        """The entities in a text that may identify somebody, in their order; they may overlap."""
        found = self._analyzer.analyze(text, language="en", score_threshold=_LEAST_SCORE)
        return sorted(Entity(one.start, one.end, _plain(one.entity_type)) for one in found)


def find_entity_model(name: Path) -> Path:
    """The folder of a model, downloaded if need be.

    Raises:
        ModelError: if there is none.
    """
    folder = name if name.is_dir() else hub_folder(str(name), folders="a folder of spaCy or transformers")
    if folder is None:
        raise ModelError(f"{_OPTION} {name}: no such folder\n  expected: {_EXPECTED}")
    check_files(folder)
    if not (_is_spacy(folder) or (folder / "config.json").is_file()):
        raise ModelError(f"{_OPTION} {folder}: neither spaCy's nor transformers'\n  expected: {_EXPECTED}")
    return folder


def entity_model_digest(name: Path) -> str:
    """SHA-256 over all files of a model. Raises ModelError if there is none, or a file cannot be read."""
    folder = find_entity_model(name)
    total = hashlib.sha256()
    try:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            total.update(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n".encode())
    except OSError as error:
        raise ModelError(f"{_OPTION} {error.filename or folder}: cannot be read ({error.strerror})") from None
    return total.hexdigest()


@cache
def shared_entity_model(name: Path) -> EntityModel:
    """A model on the CPU that is loaded once. Raises ModelError as `EntityModel` does."""
    return EntityModel(name, device=torch.device("cpu"))


def _need_presidio() -> None:
    try:
        import presidio_analyzer  # noqa: F401
    except ImportError:
        raise ModelError(f"{_OPTION}: needs Presidio's analyzer\n  pip install 'cxrsynth[presidio]'") from None


def _is_spacy(folder: Path) -> bool:
    return (folder / "meta.json").is_file() and (folder / "config.cfg").is_file()


def _plain(kind: str) -> str:
    """A kind of entity without the mark of its place in the entity: PER of B-PER."""
    return kind.upper().removeprefix("B-").removeprefix("I-")


def _analyzer(folder: Path, device: torch.device) -> Any:
    """Presidio's analyzer with the model and the recognizers that need no network."""
    import spacy
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    # Its own engine would download a model; words are all that recognizers of numbers need for their context.
    engine: Any = SpacyNlpEngine(models=[{"lang_code": "en", "model_name": "blank"}])
    words = spacy.blank("en")
    words.max_length = sys.maxsize  # it only parts words: the limit is for networks, of which it has none
    engine.nlp = {"en": words}
    registry: Any = RecognizerRegistry(supported_languages=["en"])
    registry.load_predefined_recognizers(languages=["en"])
    registry.recognizers = [one for one in registry.recognizers if not one.name.startswith(_LEFT_OUT)]
    registry.add_recognizer(_recognizer(_of_spacy(folder) if _is_spacy(folder) else _of_transformers(folder, device)))
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=["en"])


def _recognizer(find: Any) -> Any:
    """A recognizer of Presidio's that reports what `find` finds; Presidio's own for networks hide their failures."""
    from presidio_analyzer import LocalRecognizer, RecognizerResult

    class Recognizer(LocalRecognizer):  # type: ignore[misc]
        """Reports kinds as the model names them."""

        def load(self) -> None:
            """Nothing: the model is loaded."""

        def analyze(self, text: str, entities: list[str], nlp_artifacts: Any = None) -> list[Any]:
            """All entities, whichever kinds are asked for."""
            return [RecognizerResult(kind, start, end, score) for start, end, kind, score in find(text)]

    return Recognizer(supported_entities=["ENTITY"], supported_language="en", name="EntityModel")


def _of_spacy(folder: Path) -> Any:
    import spacy

    try:
        # Other components are not needed, and may not be there for spaCy to load.
        nlp = spacy.load(folder, enable=list(_SPACY_PARTS))
    except LOADING_ERRORS as error:
        raise unusable(folder, _ROLE, reason(error), expected=_EXPECTED) from None
    if not {"ner", "entity_ruler", "span_ruler"} & set(nlp.pipe_names):
        raise unusable(folder, _ROLE, f"its components are {', '.join(nlp.pipe_names) or 'none'}", expected=_EXPECTED)

    def find(text: str) -> list[tuple[int, int, str, float]]:
        if len(text) > nlp.max_length:
            raise ModelError(
                f"{_OPTION} {folder}: a report has a text of {len(text):,} characters\n"
                f"  expected: at most {nlp.max_length:,}, which this model of spaCy can take at once (`max_length`)\n"
                "  shorten the longest cell of the table, or use a model of transformers, which has no such limit"
            )
        return [(one.start_char, one.end_char, one.label_, 1.0) for one in nlp(text).ents]

    return find


def _of_transformers(folder: Path, device: torch.device) -> Any:
    import transformers

    tokenizer = load_tokenizer(transformers.AutoTokenizer, folder, role=f"the tokenizer of {_ROLE}")
    kind = transformers.AutoModelForTokenClassification
    network, _ = load_pretrained(kind, folder, role=_ROLE, may_hold=("pooler.",))
    if not tokenizer.is_fast:
        raise unusable(folder, _ROLE, "its tokenizer does not say where words stand; save it as a fast one")
    limit = min(int(tokenizer.model_max_length), int(getattr(network.config, "max_position_embeddings", 512)), 512)
    tokenizer.model_max_length = limit
    # Windows overlap by a quarter, so that a name at the end of one is whole in the next.
    find = transformers.pipeline(
        "token-classification",
        model=network,
        tokenizer=tokenizer,
        aggregation_strategy="first",
        stride=limit // 4,
        device=device,
    )
    return lambda text: [(one["start"], one["end"], one["entity_group"], float(one["score"])) for one in find(text)]
