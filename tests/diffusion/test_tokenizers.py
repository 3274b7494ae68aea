"""Tokenizers as models are published with them: without their class, or in one vocabulary file."""

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece

from cxrsynth.diffusion.model import DiffusionModel
from tests.diffusion.test_families import loaded
from tests.families import build

TEXT = "left lower lobe pneumonia"


def bert(folder: Path, tmp_path: Path) -> Path:
    """The tiny model with BERT, with the files that BERT was published with."""
    shutil.copytree(folder, tmp_path / "model")
    tokenizer = tmp_path / "model" / "tokenizer"
    shutil.rmtree(tokenizer)
    tokenizer.mkdir()
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "heart",
        "size",
        "left",
        "right",
        "lower",
        "lobe",
        "pneumonia",
        "clear",
        "lungs",
    ]
    (tokenizer / "vocab.txt").write_text("\n".join(words))
    return tmp_path / "model"


def ids(model: DiffusionModel, text: str = TEXT) -> list[int]:
    return list(model.components.tokenizers["tokenizer"](text).input_ids)


@pytest.mark.parametrize("settings", [None, {"do_lower_case": True}, {"tokenizer_class": "BertTokenizer"}])
def test_the_class_of_the_index_counts_where_the_settings_name_none(
    settings: dict[str, object] | None, tmp_path: Path
) -> None:
    model = bert(build("stable_diffusion with BERT", tmp_path / "built"), tmp_path)
    if settings is not None:
        (model / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"tokenizer": ["transformers", "BertTokenizer"]}))
    assert ids(loaded(model)) == [2, 7, 9, 10, 11, 3]


def test_a_vocabulary_of_sentencepiece_alone(tmp_path: Path) -> None:
    """PixArt and other models with T5 are published like this."""
    model = build("pixart", tmp_path / "model")
    tokenizer = model / "tokenizer"
    shutil.rmtree(tokenizer)
    tokenizer.mkdir()
    text = tmp_path / "text"
    text.write_text("left elf felt\n" * 20)  # of few letters: the tiny encoder knows few tokens
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tokenizer / "spiece"), vocab_size=14, hard_vocab_limit=False, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, model_type="bpe",
    )  # fmt: skip
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 300, "pad_token": "<pad>"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    network = model / "text_encoder" / "config.json"
    plain = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "spiece.model"))
    expected = [*plain.encode("felt left"), 1]
    assert json.loads(network.read_text())["vocab_size"] >= plain.vocab_size()
    assert ids(loaded(model), "felt left") == expected
