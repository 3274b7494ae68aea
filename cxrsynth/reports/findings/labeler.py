"""A BERT labeler of the user's in place of the rules, in the layout of CheXbert (Smit et al., arXiv:2004.09167).

The network is BERT with one linear layer for each of 14 conditions on the output of its first token: for thirteen of
them the classes blank, positive, negative and uncertain, for No Finding blank and positive. It says nothing of sides,
which come from the rules where both agree on the status.
"""

import hashlib
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from cxrsynth.errors import ModelError
from cxrsynth.reports.findings.reader import FindingsReader
from cxrsynth.reports.labels import NO_FINDING, OBSERVATIONS, FindingLabel, Status
from cxrsynth.reports.language import is_english
from cxrsynth.reports.sections import shown_text
from cxrsynth.runtime.files import file_sha256, read_json
from cxrsynth.runtime.pretrained import (
    LOADING_ERRORS,
    Unmatched,
    check_files,
    check_size,
    hub_folder,
    load_settings,
    load_tokenizer,
    reason,
    unusable,
)

# In the order of CheXbert's layers (its `constants.py`); No Finding is the last.
CONDITIONS = (*(name for name in OBSERVATIONS if name != NO_FINDING), NO_FINDING)
_CLASSES = (None, Status.PRESENT, Status.ABSENT, Status.UNCERTAIN)
_ROLE = "a labeler"
_EXPECTED = (
    "config.json and tokenizer of a BERT, and model.safetensors with bert.* and linear_heads.0 to linear_heads.13, as"
    " CheXbert has them; convert its checkpoint with: cxrsynth convert chexbert.pth FOLDER/model.safetensors"
)
_WEIGHTS = "model.safetensors"
_FILES = ("config.json", _WEIGHTS, "tokenizer.json", "tokenizer_config.json", "vocab.txt")
_PARALLEL = "module."  # how PyTorch names the tensors of a network that was trained on several devices
_UNUSED = ("bert.pooler.",)  # in CheXbert's checkpoint, but not in the way of its heads
_CACHED = 4096  # texts: a prompt's labels are asked for more than once


OPTION = "--labeler"


class BertLabeler:
    """Labels of reports by a BERT, in the interface of `FindingsReader`; threads may share one.

    Args:
        name: a folder, or a hub id `owner/name@revision`.
        device: where it runs.
        option: how errors call what named it.

    Raises:
        ModelError: if the folder cannot be loaded as a labeler.
    """

    def __init__(self, name: Path, *, device: torch.device, option: str = OPTION) -> None:
        folder = find_labeler(name, option=option)
        self._device = device
        self._tokenizer = load_tokenizer(transformers.AutoTokenizer, folder, role=f"the tokenizer of {_ROLE}")
        self._network = _load(folder).to(device)
        self._longest = int(self._network.bert.config.max_position_embeddings)
        known = self._network.bert.get_input_embeddings().num_embeddings
        if len(self._tokenizer) > known:
            problem = f"its tokenizer has {len(self._tokenizer)} tokens, its network {known}"
            raise unusable(folder, _ROLE, problem, expected=_EXPECTED)
        self._rules = FindingsReader()
        self._lock = Lock()  # neither the rules nor the tokenizer are thread-safe
        self._statuses = lru_cache(maxsize=_CACHED)(self._labeled)

    def read(self, text: str) -> dict[str, FindingLabel]:
        """The label of each observation, as `FindingsReader.read` gives them.

        Like the rules, it is shown the sections that say what the image shows, and no report that is not in English.
        """
        shown = " ".join(shown_text(text).split()) if is_english(text) else ""
        if not shown:
            return {}
        with self._lock:
            sided = self._rules.read(text)
            labels = {name: FindingLabel(status) for name, status in self._statuses(shown).items()}
        agreed = {name: label for name, label in sided.items() if labels.get(name, label).status is label.status}
        return {name: agreed.get(name, label) for name, label in labels.items()}

    def _labeled(self, text: str) -> dict[str, Status]:
        tokens = self._tokenizer(text, truncation=True, max_length=self._longest, return_tensors="pt")
        with torch.inference_mode():
            logits = self._network(tokens.input_ids.to(self._device), tokens.attention_mask.to(self._device))
        found = dict(zip(CONDITIONS, (_CLASSES[int(one.argmax())] for one in logits), strict=True))
        return {name: status for name in OBSERVATIONS if (status := found[name]) is not None}


def load_labeler(name: Path | None, *, device: torch.device, option: str = OPTION) -> BertLabeler | None:
    """The labeler that the user named; None, for the rules, if none is. Raises ModelError as `BertLabeler` does."""
    return None if name is None else BertLabeler(name, device=device, option=option)


def labeler_record(name: Path | None) -> dict[str, str]:
    """What plans and identities of scores record of a labeler: nothing for the rules."""
    return {} if name is None else {"labeler": labeler_digest(name)}


def find_labeler(name: Path, *, option: str = OPTION) -> Path:
    """The folder of a labeler, downloaded if need be.

    Raises:
        ModelError: if there is none.
    """
    folder = name if name.is_dir() else hub_folder(str(name), folders="a labeler's folder")
    if folder is None:
        raise ModelError(f"{option} {name}: no such folder\n  expected: {_EXPECTED}")
    check_files(folder)
    missing = [file for file in ("config.json", _WEIGHTS) if not (folder / file).is_file()]
    if missing:
        raise ModelError(f"{option} {folder}: no {' and no '.join(missing)} there\n  expected: {_EXPECTED}")
    return folder


def labeler_digest(name: Path) -> str:
    """SHA-256 over all files that decide the labels. Raises ModelError if one is missing."""
    folder = find_labeler(name)
    total = hashlib.sha256()
    for file in _FILES:
        if (folder / file).is_file():
            total.update(f"{file} {file_sha256(folder / file)}\n".encode())
    return total.hexdigest()


class _Network(nn.Module):
    """CheXbert's layers; `forward` takes token numbers and mask [1, T] and gives 14 logits [1, classes]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        width = int(config.hidden_size)
        self.linear_heads = nn.ModuleList(
            nn.Linear(width, 2 if name == NO_FINDING else len(_CLASSES)) for name in CONDITIONS
        )

    def forward(self, tokens: Tensor, mask: Tensor) -> list[Tensor]:
        first = self.bert(tokens, attention_mask=mask).last_hidden_state[:, 0]
        return [head(first) for head in self.linear_heads]


def _load(folder: Path) -> _Network:
    if (kind := _kind(folder)) not in (None, "bert"):
        raise unusable(folder, _ROLE, f"config.json is of kind {kind!r}", expected=_EXPECTED)
    try:
        config = load_settings(transformers.BertConfig, folder, role=_ROLE)
        check_size(folder, _ROLE, lambda: _Network(config))
        network = _Network(config)
        state = {name.removeprefix(_PARALLEL): value for name, value in load_file(folder / _WEIGHTS).items()}
        missing, unexpected = network.load_state_dict(state, strict=False)
    except LOADING_ERRORS as error:
        raise unusable(folder, _ROLE, reason(error), expected=_EXPECTED) from None
    Unmatched(frozenset(missing), unexpected=frozenset(unexpected)).refuse(folder, _ROLE, may_hold=_UNUSED)
    return network.eval().requires_grad_(False)


def _kind(folder: Path) -> object:
    settings = read_json(folder / "config.json")  # the tokenizer's loading has read it before
    return settings.get("model_type") if isinstance(settings, dict) else None
