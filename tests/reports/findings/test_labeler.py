"""A BERT labeler in CheXbert's layout: a small one with random or set weights, on disk as the published one is."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizerFast

from cxrsynth.errors import ModelError
from cxrsynth.reports.findings.labeler import CONDITIONS, BertLabeler, labeler_digest
from cxrsynth.reports.findings.reader import FindingsReader
from cxrsynth.reports.labels import NO_FINDING, OBSERVATIONS, FindingLabel, Side, Status
from tests.generation.making import command, manifest, metadata
from tests.generation.test_generate import refuse, succeed

CPU = torch.device("cpu")
TEXT = "FINDINGS: Small left pleural effusion. No pneumothorax. IMPRESSION: Left pleural effusion."
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *"small left right pleural effusion no lungs are clear . :".split()]  # noqa: SIM905
PRESENT, ABSENT, UNCERTAIN = Status.PRESENT, Status.ABSENT, Status.UNCERTAIN
CLASS = {None: 0, PRESENT: 1, ABSENT: 2, UNCERTAIN: 3}


def save_labeler(folder: Path, *, said: dict[str, Status] | None = None, prefix: str = "module.") -> Path:
    """A labeler with random weights; `said` sets its layers so that it says this of any text, and nothing else."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    bert = BertModel(config)
    heads = nn.ModuleList(nn.Linear(16, 2 if name == NO_FINDING else 4) for name in CONDITIONS)
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
        for name, head in zip(CONDITIONS, heads, strict=True):
            if said is not None:
                head.weight.zero_()
                head.bias.copy_(torch.arange(head.out_features) == CLASS[said.get(name)])
    state = {f"{prefix}bert.{name}": value for name, value in bert.state_dict().items()}
    state |= {f"{prefix}linear_heads.{name}": value for name, value in heads.state_dict().items()}
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(config.to_json_string())
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_order_is_chexberts() -> None:
    """From `constants.py` of the published code."""
    assert CONDITIONS == (
        "Enlarged Cardiomediastinum",
        "Cardiomegaly",
        "Lung Opacity",
        "Lung Lesion",
        "Edema",
        "Consolidation",
        "Pneumonia",
        "Atelectasis",
        "Pneumothorax",
        "Pleural Effusion",
        "Pleural Other",
        "Fracture",
        "Support Devices",
        "No Finding",
    )


@pytest.mark.parametrize("prefix", ["", "module."])
def test_labels_are_those_of_the_published_forward_pass(tmp_path: Path, prefix: str) -> None:
    folder = save_labeler(tmp_path / "labeler", prefix=prefix)
    labels = BertLabeler(folder, device=CPU).read(TEXT)
    # CheXbert's own: BERT, then each linear layer on the output of the first token, then argmax.
    state = {name.removeprefix(prefix): value for name, value in load_file(folder / "model.safetensors").items()}
    bert = BertModel(BertConfig.from_pretrained(folder)).eval()
    bert.load_state_dict({name.removeprefix("bert."): v for name, v in state.items() if name.startswith("bert.")})
    shown = "Small left pleural effusion. No pneumothorax. Left pleural effusion."
    tokens = BertTokenizerFast.from_pretrained(folder)(shown, return_tensors="pt")
    with torch.inference_mode():
        first = bert(**tokens)[0][:, 0]
    expected = {}
    for number, name in enumerate(CONDITIONS):
        logits = first @ state[f"linear_heads.{number}.weight"].T + state[f"linear_heads.{number}.bias"]
        status = (None, PRESENT, ABSENT, UNCERTAIN)[int(logits.argmax())]
        if status is not None:
            expected[name] = status
    assert {name: label.status for name, label in labels.items()} == expected
    assert 3 <= len(expected) <= 13  # of random weights, some say nothing
    assert list(labels) == [name for name in OBSERVATIONS if name in labels]


def test_classes_and_sides(tmp_path: Path) -> None:
    said = {"Pleural Effusion": PRESENT, "Pneumothorax": UNCERTAIN, "Edema": ABSENT, NO_FINDING: PRESENT}
    labels = BertLabeler(save_labeler(tmp_path / "labeler", said=said), device=CPU).read(TEXT)
    assert labels == {
        NO_FINDING: FindingLabel(PRESENT),
        "Edema": FindingLabel(ABSENT),
        "Pneumothorax": FindingLabel(UNCERTAIN),  # the rules say absent: theirs does not count
        "Pleural Effusion": FindingLabel(PRESENT, Side.LEFT),  # the side is theirs
    }
    assert FindingsReader().read(TEXT)["Pneumothorax"] == FindingLabel(ABSENT)


def test_only_what_the_image_shows_is_read_and_only_in_english(tmp_path: Path) -> None:
    labeler = BertLabeler(save_labeler(tmp_path / "labeler", said={"Edema": PRESENT}), device=CPU)
    assert labeler.read("INDICATION: Cough and fever.") == {}
    assert labeler.read("Kein Pneumothorax. Das Herz ist nicht vergrößert. Keine Ergüsse beidseits.") == {}
    assert set(labeler.read(TEXT)) == {"Edema"}


def test_long_reports_are_cut(tmp_path: Path) -> None:
    labeler = BertLabeler(save_labeler(tmp_path / "labeler"), device=CPU)
    assert labeler.read("Lungs are clear. " * 2000)


def test_generate_uses_its_labels(tmp_path: Path, tiny_model: Path) -> None:
    table = tmp_path / "reports.csv"
    table.write_text(f'id,report\na,"{TEXT}"\n')
    folder = save_labeler(tmp_path / "labeler", said={"Edema": PRESENT})
    arguments = command(table, tmp_path / "out", tiny_model, "--labeler", str(folder))
    succeed(arguments)
    (sample,) = metadata(tmp_path / "out").values()
    findings = sample["findings"]
    assert [name for name, fact in findings.items() if fact["status"] == "present"] == ["Edema"]
    assert manifest(tmp_path / "out")["plan"]["labeler"] == labeler_digest(folder)
    save_labeler(tmp_path / "other", said={"Edema": ABSENT})
    for changed in ([*arguments[:-1], str(tmp_path / "other")], arguments[:-2]):
        assert "labeler" in refuse(changed)


def test_the_published_checkpoint_is_converted(tmp_path: Path) -> None:
    folder = save_labeler(tmp_path / "labeler")
    wanted = BertLabeler(folder, device=CPU).read(TEXT)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    checkpoint = {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {"state": {}, "param_groups": []}}
    torch.save(checkpoint, tmp_path / "chexbert.pth")
    succeed(["convert", str(tmp_path / "chexbert.pth"), str(folder / "model.safetensors")])
    assert BertLabeler(folder, device=CPU).read(TEXT) == wanted


def _without(name: str, folder: Path) -> None:
    weights = folder / "model.safetensors"
    save_file({key: value for key, value in load_file(weights).items() if key != name}, weights)


def _with(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors there"),
        (lambda f: (f / "config.json").unlink(), "no config.json there"),
        (lambda f: (f / "config.json").write_text("["), "no JSON"),
        (lambda f: _with(f, model_type="roberta"), "of kind 'roberta'"),
        (lambda f: _with(f, auto_map={"AutoModel": "code.Model"}), "asks for Python code of its own"),
        (lambda f: _with(f, vocab_size=10**9), "describes a network of 16,0"),
        (lambda f: _with(f, hidden_size=32), "another shape"),
        (
            lambda f: _without("module.linear_heads.9.bias", f),
            r"missing from its weights, such as linear_heads\.9\.bias",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "cannot be loaded as a labeler"),
        (lambda f: [(f / name).unlink() for name in ("vocab.txt", "tokenizer.json")], "vocabulary"),
    ],
)
def test_folders_that_are_no_labelers_are_refused(tmp_path: Path, damage: object, found: str) -> None:
    folder = save_labeler(tmp_path / "labeler")
    assert callable(damage)
    damage(folder)
    with pytest.raises(ModelError, match=found):
        BertLabeler(folder, device=CPU)


def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    table = tmp_path / "reports.csv"
    table.write_text(f'id,report\na,"{TEXT}"\n')
    message = refuse(command(table, tmp_path / "out", tiny_model, "--labeler", str(tmp_path / "none")))
    assert "--labeler" in message
    assert "no such folder" in message
    assert not (tmp_path / "out").exists()
