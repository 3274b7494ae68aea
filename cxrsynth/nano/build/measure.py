"""The stage that measures what was exported and writes it into `numbers.json` and the model card."""

import json
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from cxrsynth.diffusion.spec import read_spec
from cxrsynth.nano.build.card import model_card
from cxrsynth.nano.build.classifier import targets
from cxrsynth.nano.build.config import BuildConfig
from cxrsynth.nano.build.export import CARD_FILE, JUDGES, NUMBERS_FILE
from cxrsynth.nano.build.measure_generator import Framed, Maker, generator_numbers
from cxrsynth.nano.build.measure_reward_models import classifier_numbers, dual_encoder_numbers, posture_numbers
from cxrsynth.nano.build.reward_models import FAMILIES, JudgedImages, judged_images, logits_of
from cxrsynth.nano.build.training import log
from cxrsynth.rewards.networks import DualEncoder, FindingClassifier, PostureRegressor

_LEAST = 5  # images with a finding, and without, before a judge is believed on it


def measure(data: Path, work: Path, out: Path, *, settings: BuildConfig) -> None:
    """Measure judges, then the generator with the judge it was not made with; nothing but split `val` is looked at."""
    train, val = (judged_images(data, work, settings, split=split) for split in ("train", "val"))
    path = out / NUMBERS_FILE
    numbers: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    numbers["judges"] = {family: _judge_numbers(out / JUDGES / family, val, settings) for family in FAMILIES}
    log.info("judges measured")
    judge = FindingClassifier.from_pretrained(out / JUDGES / FAMILIES[1] / "classifier").eval()
    framed = [
        Framed.of(radiographs.framed, radiographs.framed_pixels, radiographs.frames) for radiographs in (train, val)
    ]
    areas = numbers["judges"][FAMILIES[1]]["classifier"]
    numbers["generator"] = generator_numbers(
        Maker(out),
        judge,
        *framed,
        known=val.radiographs,
        real=areas,
        told=[head for head, one in areas.items() if _beyond_chance(one)],
        count=settings.measure.images,
        pairs=settings.measure.pairs,
        seed=settings.seed,
        sheet=work / "sheet.png",
    )
    path.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    (out / CARD_FILE).write_text(model_card(read_spec(out), numbers, settings), encoding="utf-8")
    log.info("measured %s", out)


def _beyond_chance(head: dict[str, Any]) -> bool:
    """Whether a judge tells real images apart; of fewer than five images an interval says nothing."""
    return bool(head["auroc"]["low"] > 0.5 and min(head["present"], head["absent"]) >= _LEAST)


def _judge_numbers(folder: Path, val: JudgedImages, settings: BuildConfig) -> dict[str, Any]:
    classifier = FindingClassifier.from_pretrained(folder / "classifier").eval()
    posture = PostureRegressor.from_pretrained(folder / "posture").eval()
    dual = DualEncoder.from_pretrained(folder / "dual_encoder").eval()
    heads = list(classifier.heads)
    return {
        "classifier": classifier_numbers(logits_of(classifier, val.pixels), targets(val.radiographs, heads), heads),
        "posture": posture_numbers(
            posture, val.framed_pixels, val.frames, reach=settings.judges.posture_reach, seed=settings.seed
        ),
        "dual_encoder": dual_encoder_numbers(
            dual,
            CLIPTokenizer.from_pretrained(folder / "dual_encoder"),
            val.radiographs,
            val.pixels,
            seed=settings.seed,
        ),
    }
