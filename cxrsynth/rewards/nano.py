"""A family of rewards: posture, diagnosis and consistency from one folder of three networks."""

import threading
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizerFast

from cxrsynth.errors import ModelError, in_words
from cxrsynth.reports.prompt import Subject, age_group, canonical_prompt
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.base import Reward
from cxrsynth.rewards.consistency import ConsistencyReward
from cxrsynth.rewards.diagnosis import DiagnosisReward
from cxrsynth.rewards.networks import DualEncoder, FindingClassifier, PostureRegressor
from cxrsynth.rewards.posture import PostureReward
from cxrsynth.runtime.pretrained import LOADING_ERRORS, load_tokenizer

_PARTS = ("classifier", "posture", "dual_encoder")


def load_family(folder: Path, *, device: torch.device) -> dict[str, Reward]:
    """Load posture, diagnosis and consistency from a folder of `posture/`, `classifier/` and `dual_encoder/`.

    Raises:
        ModelError: if a part is missing or cannot be loaded.
    """
    check_family(folder)
    try:
        classifier = FindingClassifier.from_pretrained(folder / "classifier").eval().to(device)
        posture = PostureRegressor.from_pretrained(folder / "posture").eval().to(device)
        dual = DualEncoder.from_pretrained(folder / "dual_encoder").eval().to(device)
    except LOADING_ERRORS as error:
        raise ModelError(f"{folder}: cannot be loaded: {in_words(error)}") from None
    tokenizer = load_tokenizer(CLIPTokenizerFast, folder / "dual_encoder", role="a dual encoder's tokenizer")

    # A tokenizer shared by threads returns wrong tokens without an error.
    tokenizer_lock = threading.Lock()

    def encode_texts(texts: list[str]) -> Tensor:
        with tokenizer_lock:
            ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return dual.encode_texts(ids.to(device))

    return {
        "posture": PostureReward(posture),
        "diagnosis": DiagnosisReward(lambda images: classifier(images.to(device)), classifier.heads),
        "consistency": ConsistencyReward(
            lambda images: dual.encode_images(images.to(device)), encode_texts, text_of=canonical_text
        ),
    }


def check_family(folder: Path) -> None:
    """Raises ModelError if a folder lacks a network of a reward family."""
    missing = [f"{part}/" for part in _PARTS if not (folder / part / "model.safetensors").is_file()]
    if missing:
        raise ModelError(
            f"{folder}: not a family of reward models, missing {', '.join(missing)}\n"
            f"  expected: {', '.join(f'{part}/' for part in _PARTS)}, each with config.json and model.safetensors"
        )


def canonical_text(report: Report) -> str:
    """The canonical prompt of a report's subject and labels: the wording nano's text encoders were trained on."""
    group = report.stated_age_group or age_group(report.age_years)
    subject = Subject(view=report.view, age_group=group, sex=report.sex)
    return canonical_prompt(subject, report.labels)
