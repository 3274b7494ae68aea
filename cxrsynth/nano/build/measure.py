"""Measure the exported model, and write the results to `numbers.json` and the model card."""

import json
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from cxrsynth.diffusion.spec import read_spec
from cxrsynth.nano.build.card import model_card
from cxrsynth.nano.build.classifier import targets
from cxrsynth.nano.build.config import BuildConfig
from cxrsynth.nano.build.export import CARD_FILE, FAMILIES_FOLDER, NUMBERS_FILE
from cxrsynth.nano.build.measure_generator import Framed, ImageGenerator, generator_numbers
from cxrsynth.nano.build.measure_membership import membership_numbers
from cxrsynth.nano.build.measure_reward_models import classifier_numbers, dual_encoder_numbers, posture_numbers
from cxrsynth.nano.build.reward_models import FAMILIES, SplitImages, load_split, logits_of
from cxrsynth.nano.build.training import log
from cxrsynth.rewards.networks import DualEncoder, FindingClassifier, PostureRegressor

_LEAST = 5  # images with a finding, and without, for a head to count as reliable


def measure(data: Path, work: Path, out: Path, *, settings: BuildConfig) -> None:
    """Measure the reward models, then the generator with those it was not built with; only on split `val`."""
    train, val = (load_split(data, work, settings, split=split) for split in ("train", "val"))
    path = out / NUMBERS_FILE
    numbers: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    families = out / FAMILIES_FOLDER
    numbers["reward_models"] = {name: _reward_model_numbers(families / name, val, settings) for name in FAMILIES}
    log.info("reward models measured")
    classifier = FindingClassifier.from_pretrained(families / FAMILIES[1] / "classifier").eval()
    framed = [
        Framed.of(radiographs.framed, radiographs.framed_pixels, radiographs.frames) for radiographs in (train, val)
    ]
    areas = numbers["reward_models"][FAMILIES[1]]["classifier"]
    numbers["generator"] = generator_numbers(
        ImageGenerator(out),
        classifier,
        *framed,
        known=val.radiographs,
        real=areas,
        measurable=reliable_heads(areas),
        count=settings.measure.images,
        pairs=settings.measure.pairs,
        seed=settings.seed,
        sheet=work / "sheet.png",
    )
    log.info("generator measured")
    model = ImageGenerator(out).model
    numbers["membership"] = membership_numbers(model, classifier, *framed, seed=settings.seed)
    log.info("membership measured")
    path.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    (out / CARD_FILE).write_text(model_card(read_spec(out), numbers, settings), encoding="utf-8")
    log.info("measured %s", out)


def reliable_heads(heads: dict[str, dict[str, Any]]) -> list[str]:
    """Heads that are better than chance on real images; with fewer than five images an interval means nothing."""
    return [
        name
        for name, head in heads.items()
        if head["auroc"]["low"] > 0.5 and min(head["present"], head["absent"]) >= _LEAST
    ]


def _reward_model_numbers(folder: Path, val: SplitImages, settings: BuildConfig) -> dict[str, Any]:
    classifier = FindingClassifier.from_pretrained(folder / "classifier").eval()
    posture = PostureRegressor.from_pretrained(folder / "posture").eval()
    dual = DualEncoder.from_pretrained(folder / "dual_encoder").eval()
    heads = list(classifier.heads)
    return {
        "classifier": classifier_numbers(logits_of(classifier, val.pixels), targets(val.radiographs, heads), heads),
        "posture": posture_numbers(
            posture, val.framed_pixels, val.frames, reach=settings.reward_models.posture_reach, seed=settings.seed
        ),
        "dual_encoder": dual_encoder_numbers(
            dual,
            CLIPTokenizer.from_pretrained(folder / "dual_encoder"),
            val.radiographs,
            val.pixels,
            seed=settings.seed,
        ),
    }
