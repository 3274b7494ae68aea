"""Two families of judging networks, of different kind and from different patients, trained side by side."""

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
from cxrsynth.nano.build.images import GROUPS, SMALL_GROUPS, Film, load_films, patient_half
from cxrsynth.nano.build.posture import train_posture
from cxrsynth.nano.build.training import log
from cxrsynth.rewards.networks import FindingClassifier

FAMILIES = ("nano", "nano-judge")


@dataclass(frozen=True)
class JudgedFilms:
    """Films of one split: all of them resampled to one size, and those of full size with their frames."""

    films: list[Film]
    pixels: Tensor
    framed: list[Film]
    framed_pixels: Tensor
    frames: Tensor


def train_judges(data: Path, work: Path, settings: BuildConfig) -> None:
    """Train both families, leaving `work/judges/<family>/{classifier,posture,dual_encoder}`."""
    train, val = judged_films(data, work, settings, split="train"), judged_films(data, work, settings, split="val")
    halves = [[film for film in train.films if patient_half(film) == half] for half in range(len(FAMILIES))]
    heads = choose_heads(halves, least=settings.judges.least_shown)
    tokenizer = _tokenizer(work / "judges" / "tokenizer", settings)

    def one(family: int) -> None:
        # Each family has a core of its own: batch norm is not for several threads.
        torch.set_num_threads(1)
        _train_family(family, train, val, heads, tokenizer, work / "judges" / FAMILIES[family], settings)

    with ThreadPoolExecutor(len(FAMILIES)) as pool:
        list(pool.map(one, range(len(FAMILIES))))


def _train_family(
    family: int,
    train: JudgedFilms,
    val: JudgedFilms,
    heads: list[str],
    tokenizer: CLIPTokenizer,
    folder: Path,
    settings: BuildConfig,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    judges, own = settings.judges, _half(train, family)
    common = {"seed": settings.seed + 100 * (family + 1), "save_every": settings.save_every}
    trunk = judges.trunks[family].model_dump()
    name = FAMILIES[family]
    classifier = train_classifier(
        own.films,
        own.pixels,
        heads,
        folder / f"{name}-classifier.pt",
        trunk=trunk,
        settings=judges.classifier,
        **common,
    )
    wanted = targets(val.films, heads)
    calibrate(classifier, logits_of(classifier, val.pixels), wanted)
    classifier.save_pretrained(folder / "classifier")
    log.info("%s classifier, val AUROC: %s", name, json.dumps(aurocs(logits_of(classifier, val.pixels), wanted, heads)))
    posture = train_posture(
        own.framed_pixels,
        own.frames,
        folder / f"{name}-posture.pt",
        trunk=trunk,
        reach=judges.posture_reach,
        settings=judges.posture,
        **common,
    )
    posture.save_pretrained(folder / "posture")
    dual = train_dual_encoder(
        own.films,
        own.pixels,
        classifier,
        tokenizer,
        folder / f"{name}-dual_encoder.pt",
        trunk=trunk,
        text=judges.text,
        settings=judges.dual_encoder,
        **common,
    )
    dual.save_pretrained(folder / "dual_encoder")
    tokenizer.save_pretrained(folder / "dual_encoder")


def judged_films(data: Path, work: Path, settings: BuildConfig, *, split: str) -> JudgedFilms:
    """All films of a split, openly licensed; `val` films are registered to the mean film of `train`."""
    size = settings.judges.classifier.size
    films, pixels = load_films(data, size=size, split=split, groups=(*GROUPS, *SMALL_GROUPS), resample=True)
    framed, large = load_films(data, size=settings.image_size, split=split)
    path = work / "frames.safetensors"
    frame = canonical_frames if split == "train" else registered_frames
    matrices, shown = frame(framed, large, path, settings=settings.align)
    kept = [film for film, here in zip(framed, shown.tolist(), strict=True) if here]
    return JudgedFilms(films, pixels, kept, large[shown], matrices[shown])


def _half(films: JudgedFilms, half: int) -> JudgedFilms:
    """The films of one half of the patients."""
    own = torch.tensor([patient_half(film) == half for film in films.films])
    framed = torch.tensor([patient_half(film) == half for film in films.framed])
    return JudgedFilms(
        [film for film in films.films if patient_half(film) == half],
        films.pixels[own],
        [film for film in films.framed if patient_half(film) == half],
        films.framed_pixels[framed],
        films.frames[framed],
    )


@torch.no_grad()
def logits_of(classifier: FindingClassifier, pixels: Tensor) -> Tensor:
    """Logits [N, K] of films uint8 [N, 1, H, W]."""
    return torch.cat([classifier(part.float() / 255.0) for part in pixels.split(32)])


def aurocs(logits: Tensor, wanted: Tensor, heads: list[str]) -> dict[str, float]:
    """Area under the ROC curve of each head that has both outcomes."""
    areas = {}
    for place, head in enumerate(heads):
        known = ~wanted[:, place].isnan()
        scores, truth = logits[known, place], wanted[known, place] > 0
        if truth.any() and not truth.all():
            areas[head] = round(binary_auroc(scores.double().sigmoid(), truth.long()).item(), 3)
    return areas


def _tokenizer(folder: Path, settings: BuildConfig) -> CLIPTokenizer:
    """Made once and kept: learning merges breaks ties at random."""
    if not folder.is_dir():
        make_report_tokenizer(settings.judges.text).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)
