"""A model of named entities on top of the rules: small ones of spaCy and transformers, made here."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import spacy
import torch
from spacy.training import Example
from transformers import BertConfig, BertForTokenClassification, BertTokenizerFast

import cxrsynth
from cxrsynth.errors import ModelError
from cxrsynth.reports.deid.entities import Entity, without_entities
from cxrsynth.reports.deid.entity_model import EntityModel, entity_model_digest, shared_entity_model
from cxrsynth.reports.deid.rules import NOUN
from tests.generation.making import command, manifest, members, write_table
from tests.generation.test_generate import refuse, run, succeed

pytest.importorskip("presidio_analyzer")

CPU = torch.device("cpu")
# In lower case, and in no dictionary: rules leave it.
NAME = "quorbax"
TEXT = f"There is {NAME} in the chest. Lungs are clear. No effusion."
LEFT = "There in the chest. Lungs are clear. No effusion."
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *f"there is in the chest {NAME} lungs are clear no effusion foley catheter .".split()]


def of_spacy(folder: Path) -> Path:
    """A component that learned one name."""
    spacy.util.fix_random_seed(0)
    nlp = spacy.blank("en")
    nlp.add_pipe("ner").add_label("PERSON")
    start = TEXT.index(NAME)
    texts = [(TEXT, [(start, start + len(NAME), "PERSON")]), ("Lungs are clear.", []), ("No effusion. Foley.", [])]
    examples = [Example.from_dict(nlp.make_doc(text), {"entities": found}) for text, found in texts]
    optimizer = nlp.initialize(lambda: examples)
    for _ in range(30):
        nlp.update(examples, sgd=optimizer)
    nlp.to_disk(folder)
    return folder


def of_transformers(folder: Path) -> Path:
    """Without layers: what a word is called depends on its embedding alone."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=0,
        num_attention_heads=2,
        max_position_embeddings=24,
        id2label={0: "O", 1: "B-PATIENT"},
        label2id={"O": 0, "B-PATIENT": 1},
    )
    network = BertForTokenClassification(config).eval()
    with torch.no_grad():
        embeddings = network.bert.embeddings
        embeddings.position_embeddings.weight.zero_()
        embeddings.token_type_embeddings.weight.zero_()
        name = embeddings(torch.tensor([[WORDS.index(NAME)]]))[0, 0]
        network.classifier.weight.copy_(torch.stack([torch.zeros(32), name]))
        network.classifier.bias.copy_(torch.tensor([0.0, -0.7 * float(name @ name)]))
    network.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=24).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[of_spacy, of_transformers])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make: Callable[[Path], Path] = request.param
    return make(tmp_path_factory.mktemp("entities") / "model")


def test_the_rules_alone_leave_the_name() -> None:
    assert cxrsynth.sanitize(TEXT).text == TEXT


def test_what_the_model_finds_is_removed_too(folder: Path) -> None:
    found = cxrsynth.sanitize(f"MRN: 12345678. {TEXT}", model=folder)
    assert found.text == LEFT
    assert found.removed["entity"] == 1
    assert found.removed["number"] == 1  # the rules' removals are the same as without
    assert cxrsynth.sanitize(found.text, model=folder).text == found.text


def test_a_name_at_the_end_of_a_long_text_is_found(tmp_path: Path) -> None:
    """Longer than the network's positions: windows overlap."""
    folder = of_transformers(tmp_path / "model")
    for before in range(15, 30):
        text = "No effusion. " * before + f"There is {NAME} in the chest."
        assert NAME not in cxrsynth.sanitize(text, model=folder).text, before


@pytest.mark.parametrize(
    ("text", "entity", "left"),
    [
        ("Karen Brown came.", (0, 11, "PERSON"), "_ _ came."),
        ("Lungs are clear.", (0, 5, "ORG"), None),  # a clinical word alone is none
        ("Foley catheter in place.", (0, 14, "PERSON"), None),
        ("Mild Ewing sarcoma.", (5, 10, "PERSON"), None),  # an eponym of an illness
        ("Mercy Hospital of the chest", (0, 27, "ORG"), "_ _ of the chest"),
        ("A man of 67 years.", (9, 17, "AGE"), None),
        ("Two days ago.", (0, 12, "DATE"), None),
        ("On May 4th again.", (3, 10, "DATE"), "On _ again."),
        ("Code AB-12x-9.", (8, 10, "ID"), "Code AB-_-9."),
        ("Three nodules.", (0, 5, "CARDINAL"), None),
    ],
)
def test_what_goes_and_what_stays(text: str, entity: tuple[int, int, str], left: str | None) -> None:
    found, count = without_entities(text, [Entity(*entity)])
    assert " ".join(found.replace(f" {NOUN} ", "_").replace("_", " _ ").split()) == " ".join(
        (text if left is None else left).replace("_", " _ ").split()
    )
    assert (count == 0) == (left is None)


def test_generate_uses_it_and_records_it(tmp_path: Path, tiny_model: Path, folder: Path) -> None:
    table = write_table(tmp_path / "reports.csv", rows=(("a", TEXT),), header=("id", "report"))
    arguments = command(table, tmp_path / "out", tiny_model, "--include-text", "sanitized", "--deid", "standard")
    succeed([*arguments, "--deid-model", str(folder)])
    (text,) = [content.decode() for name, content in members(tmp_path / "out").items() if name.endswith(".txt")]
    assert text.strip() == LEFT
    assert manifest(tmp_path / "out")["plan"]["deid_model"] == entity_model_digest(folder)
    assert "deid_model" in refuse(arguments)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda f: (f / "config.json").unlink(), "neither spaCy's nor transformers'"),
        (lambda f: (f / "config.json").write_text('{"model_type": "bert", "auto_map": {"a": "b"}}'), "auto_map"),
    ],
)
def test_folders_that_cannot_be_used_are_refused(
    tmp_path: Path, damage: Callable[[Path], object], problem: str
) -> None:
    folder = of_transformers(tmp_path / "model")
    damage(folder)
    with pytest.raises(ModelError, match=problem):
        EntityModel(folder, device=CPU)


def test_a_model_of_spacy_without_entities_is_refused(tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.to_disk(tmp_path / "model")
    with pytest.raises(ModelError, match="its components are none"):
        EntityModel(tmp_path / "model", device=CPU)


def test_no_folder_and_no_extra_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"--deid-model .*: no such folder"):
        EntityModel(tmp_path / "none", device=CPU)
    folder = of_transformers(tmp_path / "model")
    monkeypatch.setitem(__import__("sys").modules, "presidio_analyzer", None)
    with pytest.raises(ModelError, match=r"pip install 'cxrsynth\[presidio\]'"):
        EntityModel(folder, device=CPU)


@pytest.mark.parametrize("entity", [Entity(0, 5, "X"), Entity(5, 6, "X"), Entity(3, 8, "X"), Entity(6, 99, "X")])
def test_an_entity_touches_the_words_it_overlaps(entity: Entity) -> None:
    text = "Karen Brown, Zyxkowitz"
    words = [(0, 5), (6, 11), (13, 22)]
    touched = [span for span in words if span[0] < entity.end and span[1] > entity.start]
    _, count = without_entities(text, [entity])
    assert count == len(touched)


def test_many_entities_in_a_long_text_take_linear_time() -> None:
    def seconds(words: int) -> float:
        entities = [Entity(start, start + 5, "PERSON") for start in range(0, 6 * words, 6)]
        text = "Karen " * words
        times = []
        for _ in range(3):
            started = time.process_time()
            _, count = without_entities(text, entities)
            times.append(time.process_time() - started)
            assert count == words
        return min(times)

    assert seconds(8_000) < 8 * seconds(2_000)


def test_a_text_beyond_the_limit_of_spacy_is_one_message(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = of_spacy(tmp_path / "model")
    load = spacy.load

    def with_limit(*arguments: object, **options: object) -> object:
        nlp = load(*arguments, **options)  # type: ignore[arg-type]
        nlp.max_length = 100
        return nlp

    monkeypatch.setattr(spacy, "load", with_limit)
    table = write_table(tmp_path / "reports.csv", rows=(("a", TEXT * 3),), header=("id", "report"))
    shared_entity_model.cache_clear()
    result = run([*command(table, tmp_path / "out", tiny_model), "--deid-model", str(folder)])
    assert result.code == 2, result.text
    assert result.text.count("error:") == 1
    assert "expected: at most 100, which" in result.text
    assert NAME not in result.text


def test_a_network_of_transformers_has_no_limit_of_spacy(tmp_path: Path) -> None:
    model = EntityModel(of_transformers(tmp_path / "model"), device=CPU)
    assert model.find("") == []
    engine = model._analyzer.nlp_engine
    assert engine.nlp["en"].max_length > 10**9
