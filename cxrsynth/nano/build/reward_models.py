"""Train two families of reward networks, of different architectures and on different patients, in parallel."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc
from transformers import CLIPTokenizer

from cxrsynth.nano.build.align import canonical_frames, registered_frames
from cxrsynth.nano.build.classifier import calibrate, choose_heads, targets, train_classifier
from cxrsynth.nano.build.config import BuildConfig, FitSettings, TrunkSettings
from cxrsynth.nano.build.dual_encoder import make_report_tokenizer, train_dual_encoder
from cxrsynth.nano.build.export import FAMILIES_FOLDER, START
from cxrsynth.nano.build.images import GROUPS, SMALL_GROUPS, Radiograph, load_images, patient_half
from cxrsynth.nano.build.posture import train_posture
from cxrsynth.nano.build.training import cores, log
from cxrsynth.rewards.networks import DualEncoder, FindingClassifier

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
    """Train both families and write `work/judges/<family>/{classifier,posture,dual_encoder}`.

    Where the build continues from a model folder, only the classifier and dual encoder of family nano are trained:
    those of the model folder are the first members of the ensembles that they are distilled from.
    """
    train, val = load_split(data, work, settings, split="train"), load_split(data, work, settings, split="val")
    started, folders = work / START / FAMILIES_FOLDER, [work / FAMILIES_FOLDER / name for name in FAMILIES]
    if started.is_dir():
        known = started / FAMILIES[0]
        classifier = FindingClassifier.from_pretrained(known / "classifier").eval()
        dual = DualEncoder.from_pretrained(known / "dual_encoder").eval()
        tokenizer = CLIPTokenizer.from_pretrained(known / "dual_encoder")
        trainer = _Trainer(_half(train, 0), val, list(classifier.heads), tokenizer, folders[0], settings)
        _save(folders[0], *trainer.distilled(classifier, dual), tokenizer)
        return
    halves = [
        [radiograph for radiograph in train.radiographs if patient_half(radiograph) == half]
        for half in range(len(FAMILIES))
    ]
    heads = choose_heads(halves, least=settings.reward_models.least_shown)
    tokenizer = _tokenizer(work / FAMILIES_FOLDER / "tokenizer", settings)

    def one(family: int) -> None:
        # One core per family: batch norm is slow on several threads.
        torch.set_num_threads(1)
        _train_family(family, _Trainer(_half(train, family), val, heads, tokenizer, folders[family], settings))

    with ThreadPoolExecutor(len(FAMILIES)) as pool:
        list(pool.map(one, range(len(FAMILIES))))


def _train_family(family: int, trainer: "_Trainer") -> None:
    """Train and save the networks of a family; two of the first family's are distilled from ensembles."""
    settings, folder, name = trainer.settings, trainer.folder, FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    sections = settings.reward_models
    first = Member(name, sections.trunks[family], settings.seed + 100 * (family + 1))
    classifier = trainer.classifier(first, sections.classifier)
    posture = train_posture(
        trainer.own.framed_pixels,
        trainer.own.frames,
        folder / f"{name}-posture.pt",
        trunk=first.trunk.model_dump(),
        reach=sections.posture_reach,
        settings=sections.posture,
        seed=first.seed,
        save_every=settings.save_every,
    )
    posture.save_pretrained(folder / "posture")
    dual = trainer.dual_encoder(first, classifier, sections.dual_encoder)
    if family == 0:
        classifier, dual = trainer.distilled(classifier, dual)
    _save(folder, classifier, dual, trainer.tokenizer)


def _save(folder: Path, classifier: FindingClassifier, dual: DualEncoder, tokenizer: CLIPTokenizer) -> None:
    classifier.save_pretrained(folder / "classifier")
    dual.save_pretrained(folder / "dual_encoder")
    tokenizer.save_pretrained(folder / "dual_encoder")


@dataclass(frozen=True)
class Member:
    """A network of a family: its name in the work folder, trunk and seed."""

    name: str
    trunk: TrunkSettings
    seed: int


@dataclass(frozen=True)
class _Trainer:
    """Trains classifiers and dual encoders on a family's images; what is in the work folder already is loaded."""

    own: SplitImages
    val: SplitImages
    heads: list[str]
    tokenizer: CLIPTokenizer
    folder: Path
    settings: BuildConfig

    def distilled(self, classifier: FindingClassifier, dual: DualEncoder) -> tuple[FindingClassifier, DualEncoder]:
        """Classifier and dual encoder with the trunk of the given ones, from ensembles of which these are the first."""
        sections, seed = self.settings.reward_models, self.settings.seed
        others = [
            Member(f"member-{place}", trunk, seed + place)
            for place, trunk in enumerate(sections.distillation.trunks, 1)
        ]

        def train(member: Member) -> tuple[FindingClassifier, DualEncoder]:
            torch.set_num_threads(1)
            trained = self.classifier(member, sections.classifier)
            return trained, self.dual_encoder(member, trained, sections.dual_encoder)

        with ThreadPoolExecutor(cores()) as pool:
            members = [(classifier, dual), *pool.map(train, others)]
        torch.set_num_threads(1)  # the teachers need the other core
        student, settings = Member("distilled", sections.trunks[0], seed), sections.distillation
        taught = self.classifier(student, settings.classifier, [one for one, _ in members])
        return taught, self.dual_encoder(student, taught, settings.dual_encoder, [one for _, one in members])

    def classifier(
        self, member: Member, settings: FitSettings, teachers: Sequence[FindingClassifier] = ()
    ) -> FindingClassifier:
        """Trained and calibrated."""
        network = train_classifier(
            self.own.radiographs,
            self.own.pixels,
            self.heads,
            self.folder / f"{member.name}-classifier.pt",
            trunk=member.trunk.model_dump(),
            settings=settings,
            seed=member.seed,
            save_every=self.settings.save_every,
            teachers=teachers,
        )
        labels = targets(self.val.radiographs, self.heads)
        calibrate(network, logits_of(network, self.val.pixels), labels)
        found = aurocs(logits_of(network, self.val.pixels), labels, self.heads)
        log.info("%s classifier, val AUROC: %s", member.name, json.dumps(found))
        return network

    def dual_encoder(
        self,
        member: Member,
        classifier: FindingClassifier,
        settings: FitSettings,
        teachers: Sequence[DualEncoder] = (),
    ) -> DualEncoder:
        """Trained from the classifier's trunk."""
        return train_dual_encoder(
            self.own.radiographs,
            self.own.pixels,
            classifier,
            self.tokenizer,
            self.folder / f"{member.name}-dual_encoder.pt",
            trunk=member.trunk.model_dump(),
            text=self.settings.reward_models.text,
            settings=settings,
            seed=member.seed,
            save_every=self.settings.save_every,
            teachers=teachers,
        )


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
