"""Train two families of reward networks, of different architectures and on different patients, in parallel."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc
from transformers import CLIPTokenizer

from cxrsynth.nano.build.align import canonical_frames, registered_frames
from cxrsynth.nano.build.classifier import calibrate, choose_heads, targets, train_classifier
from cxrsynth.nano.build.config import BuildConfig
from cxrsynth.nano.build.dual_encoder import make_report_tokenizer, train_dual_encoder
from cxrsynth.nano.build.export import FAMILIES_FOLDER
from cxrsynth.nano.build.images import GROUPS, SMALL_GROUPS, Radiograph, load_images, patient_half
from cxrsynth.nano.build.posture import train_posture
from cxrsynth.nano.build.training import log
from cxrsynth.rewards.networks import FindingClassifier

FAMILIES = ("nano", "nano-judge")


@dataclass(frozen=True)
class SplitImages:
    """Images of one split: all of them resampled to one size, and those of full size with their canonical frames."""

    radiographs: list[Radiograph]
    pixels: Tensor
    framed: list[Radiograph]
    framed_pixels: Tensor
    frames: Tensor


def train_reward_models(data: Path, work: Path, settings: BuildConfig) -> None:
    """Train both families and write `work/judges/<family>/{classifier,posture,dual_encoder}`."""
    train, val = load_split(data, work, settings, split="train"), load_split(data, work, settings, split="val")
    halves = [
        [radiograph for radiograph in train.radiographs if patient_half(radiograph) == half]
        for half in range(len(FAMILIES))
    ]
    heads = choose_heads(halves, least=settings.reward_models.least_shown)
    tokenizer = _tokenizer(work / FAMILIES_FOLDER / "tokenizer", settings)

    def one(family: int) -> None:
        # One core per family: batch norm is slow on several threads.
        torch.set_num_threads(1)
        _train_family(family, train, val, heads, tokenizer, work / FAMILIES_FOLDER / FAMILIES[family], settings)

    with ThreadPoolExecutor(len(FAMILIES)) as pool:
        list(pool.map(one, range(len(FAMILIES))))


def _train_family(
    family: int,
    train: SplitImages,
    val: SplitImages,
    heads: list[str],
    tokenizer: CLIPTokenizer,
    folder: Path,
    settings: BuildConfig,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sections, own = settings.reward_models, _half(train, family)
    common = {"seed": settings.seed + 100 * (family + 1), "save_every": settings.save_every}
    trunk = sections.trunks[family].model_dump()
    name = FAMILIES[family]
    classifier = train_classifier(
        own.radiographs,
        own.pixels,
        heads,
        folder / f"{name}-classifier.pt",
        trunk=trunk,
        settings=sections.classifier,
        **common,
    )
    labels = targets(val.radiographs, heads)
    calibrate(classifier, logits_of(classifier, val.pixels), labels)
    classifier.save_pretrained(folder / "classifier")
    log.info("%s classifier, val AUROC: %s", name, json.dumps(aurocs(logits_of(classifier, val.pixels), labels, heads)))
    posture = train_posture(
        own.framed_pixels,
        own.frames,
        folder / f"{name}-posture.pt",
        trunk=trunk,
        reach=sections.posture_reach,
        settings=sections.posture,
        **common,
    )
    posture.save_pretrained(folder / "posture")
    dual = train_dual_encoder(
        own.radiographs,
        own.pixels,
        classifier,
        tokenizer,
        folder / f"{name}-dual_encoder.pt",
        trunk=trunk,
        text=sections.text,
        settings=sections.dual_encoder,
        **common,
    )
    dual.save_pretrained(folder / "dual_encoder")
    tokenizer.save_pretrained(folder / "dual_encoder")


def load_split(data: Path, work: Path, settings: BuildConfig, *, split: str) -> SplitImages:
    """All openly licensed images of a split; `val` images are registered to the mean image of `train`."""
    size = settings.reward_models.classifier.size
    radiographs, pixels = load_images(data, size=size, split=split, groups=(*GROUPS, *SMALL_GROUPS), resample=True)
    framed, large = load_images(data, size=settings.image_size, split=split)
    path = work / "frames.safetensors"
    frame = canonical_frames if split == "train" else registered_frames
    matrices, shown = frame(framed, large, path, settings=settings.align)
    kept = [radiograph for radiograph, here in zip(framed, shown.tolist(), strict=True) if here]
    return SplitImages(radiographs, pixels, kept, large[shown], matrices[shown])


def _half(images: SplitImages, half: int) -> SplitImages:
    """The images of one half of the patients."""
    own = torch.tensor([patient_half(radiograph) == half for radiograph in images.radiographs])
    framed = torch.tensor([patient_half(radiograph) == half for radiograph in images.framed])
    return SplitImages(
        [radiograph for radiograph in images.radiographs if patient_half(radiograph) == half],
        images.pixels[own],
        [radiograph for radiograph in images.framed if patient_half(radiograph) == half],
        images.framed_pixels[framed],
        images.frames[framed],
    )


@torch.no_grad()
def logits_of(classifier: FindingClassifier, pixels: Tensor) -> Tensor:
    """Logits [N, K] of images uint8 [N, 1, H, W]."""
    return torch.cat([classifier(part.float() / 255.0) for part in pixels.split(32)])


def aurocs(logits: Tensor, labels: Tensor, heads: list[str]) -> dict[str, float]:
    """Area under the ROC curve of each head that has both outcomes."""
    areas = {}
    for place, head in enumerate(heads):
        known = ~labels[:, place].isnan()
        scores, truth = logits[known, place], labels[known, place] > 0
        if truth.any() and not truth.all():
            areas[head] = round(binary_auroc(scores.double().sigmoid(), truth.long()).item(), 3)
    return areas


def _tokenizer(folder: Path, settings: BuildConfig) -> CLIPTokenizer:
    """Trained once and kept: learning merges breaks ties at random."""
    if not folder.is_dir():
        make_report_tokenizer(settings.reward_models.text).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)
