"""Reward models: their training labels and texts, and that they load as they were saved."""

import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import CLIPTokenizer

from cxrsynth.nano.build.classifier import calibrate, choose_heads, targets, train_classifier
from cxrsynth.nano.build.config import FitSettings, TextSettings
from cxrsynth.nano.build.dual_encoder import (
    _with_other_findings,
    train_dual_encoder,
)
from cxrsynth.nano.build.fitting import augmented
from cxrsynth.nano.build.images import Radiograph, patient_half
from cxrsynth.nano.build.phrases import every_phrase, varied_text
from cxrsynth.nano.build.reward_models import aurocs, logits_of
from cxrsynth.reports.findings.reader import FindingsReader
from cxrsynth.reports.labels import FindingLabel, Status
from cxrsynth.reports.prompt import Subject, canonical_prompt
from cxrsynth.rewards.networks import DualEncoder, FindingClassifier, PostureRegressor

NANO = Path(str(files("cxrsynth"))) / "nano" / "assets" / "judges" / "nano"
DENSENET = {"kind": "densenet", "size": 64, "widths": [8, 4], "depths": [1, 1]}
RESNET = {"kind": "resnet", "size": 64, "widths": [8, 8], "depths": [1, 1]}
TEXT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
DENIABLE = ("Cardiomegaly", "Edema", "Pneumonia", "Pneumothorax", "Pleural Effusion")


def radiograph(
    present: tuple[str, ...], absent: tuple[str, ...] = (), patient: str = "p", **subject: str
) -> Radiograph:
    return Radiograph("f", patient, "nih", Subject(**subject), present, absent, padded=False)


def test_targets_are_present_absent_or_unknown() -> None:
    heads = ["No Finding", "Lung Opacity", "Edema", "Pleural Effusion", "AP view", "Child", "Female"]
    radiographs = [
        radiograph(("Edema",), ("Pleural Effusion",), view="AP", age_group="adult", sex="F"),
        radiograph(("No Finding",), ("Lung Opacity", "Edema", "Pleural Effusion"), view="PA", age_group="child"),
        radiograph((), (), sex="M"),
    ]
    nan = float("nan")
    expected = torch.tensor([[0, 1, 1, 0, 1, 0, 1], [1, 0, 0, 0, 0, 1, nan], [nan, nan, nan, nan, nan, nan, 0]])
    assert torch.equal(targets(radiographs, heads).nan_to_num(9), expected.nan_to_num(9))


def test_heads_need_images_in_both_halves() -> None:
    first, second = [radiograph(("Edema", "Pneumothorax"))] * 3, [radiograph(("Edema",))] * 3
    assert choose_heads([first, second], least=3) == ["Lung Opacity", "Edema", "AP view", "Child", "Female"]


def test_halves_are_of_patients() -> None:
    halves = [patient_half(radiograph((), patient=f"nih-{number // 2}")) for number in range(400)]
    assert halves[::2] == halves[1::2]
    assert 70 < sum(halves[::2]) < 130


def test_the_grammar_makes_true_statements() -> None:
    """The report reader, written independently, never reads the contrary and reads most of the findings."""
    rng, reader = random.Random(0), FindingsReader()
    shown = [("Pleural Effusion",), ("Cardiomegaly",), ("Pneumothorax", "Edema"), ("Pneumonia",), ("No Finding",)]
    read = stated = 0
    for _ in range(60):
        present = rng.choice(shown)
        known = radiograph(
            present, tuple(n for n in DENIABLE if n not in present), view="PA", age_group="adult", sex="M"
        )
        text = varied_text(known, rng)
        labels = reader.read(text)
        for name in present:
            stated += 1
            read += labels.get(name) is not None and labels[name].status is Status.PRESENT
            assert name not in labels or labels[name].status is not Status.ABSENT, text
        for name in known.absent:
            assert name not in labels or labels[name].status is not Status.PRESENT, text
    assert read / stated > 0.6
    assert len(set(every_phrase())) > 90


def test_a_wrong_text_is_of_the_same_person_and_cannot_be_true() -> None:
    def found(own: Radiograph, *others: Radiograph) -> set[Radiograph | None]:
        rng = random.Random(0)
        return {_with_other_findings(own, [own, *others], rng) for _ in range(20)}

    own = radiograph(("Edema",), ("Pneumothorax",), view="AP", age_group="adult", sex="F")
    normal = radiograph(("No Finding",), ("Edema",), view="PA", age_group="child", sex="M")
    air = radiograph(("Pneumothorax",), view="PA")
    wrong = found(own, radiograph(("Edema",)), radiograph(()), radiograph(("Pneumonia",)), normal, air)
    assert wrong == {
        radiograph(("No Finding",), ("Edema",), view="AP", age_group="adult", sex="F"),
        radiograph(("Pneumothorax",), view="AP", age_group="adult", sex="F"),
    }
    # Findings that may be true as well make no wrong text: of an image with only some findings known, or none.
    assert found(radiograph(("Pneumonia",)), radiograph(("Lung Opacity",)), radiograph(("Edema",))) == {None}
    assert found(radiograph(()), normal, air) == {None}


def test_augmentation_warps_blurs_and_stays_in_range() -> None:
    still = FitSettings(
        size=64, steps=1, batch_size=1, learning_rate=1, weight_decay=0, shift=0, zoom=0, rotation_rad=0, gamma=0
    )
    pixels = torch.randint(0, 256, (16, 1, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    frames = torch.eye(2, 3).expand(16, -1, -1)

    def augment(settings: FitSettings, seed: int) -> torch.Tensor:
        return augmented(pixels, frames, settings, torch.Generator().manual_seed(seed))

    plain = augment(still.model_copy(update={"size": 128}), 0)
    assert plain.shape == (16, 1, 128, 128)
    assert plain.min() >= 0
    assert plain.max() <= 1
    contrast = plain.std((1, 2, 3))
    assert 3 <= (contrast < 0.7 * contrast.max()).sum() <= 13  # about half are blurred
    moving = still.model_copy(update={"shift": 0.1, "rotation_rad": 0.1})
    assert not torch.allclose(augment(moving, 0), augment(still, 0), atol=0.05)
    assert torch.equal(augment(moving, 1), augment(moving, 1))
    noisy = augment(still.model_copy(update={"noise": 0.2}), 0)
    apart = (noisy - augment(still, 0)).abs().mean((1, 2, 3))
    assert apart.max() < 0.2  # a standard deviation of at most 0.2 ...
    assert apart.max() > 4 * apart.min()  # ... that differs from image to image
    erased = augment(still.model_copy(update={"erase": 0.5}), 0) != augment(still, 0)
    share = erased.float().mean((1, 2, 3))
    assert 3 <= (share > 0).sum() <= 13
    assert share.max() < 0.36**2  # a rectangle with sides of at most 0.35
    one = erased[share.argmax(), 0]
    assert one.any(1).sum() * one.any(0).sum() == pytest.approx(int(one.sum()), rel=0.05)


def fit_settings(**given: float) -> FitSettings:
    base = {"size": 64, "steps": 60, "batch_size": 8, "learning_rate": 3e-3, "weight_decay": 0.0}
    return FitSettings.model_validate(base | {"shift": 0.0, "zoom": 0.0, "rotation_rad": 0.0, "gamma": 0.0} | given)


@pytest.mark.slow
def test_a_classifier_learns_from_its_teachers_and_not_from_labels(tmp_path: Path) -> None:
    """Two teachers disagree, and the labels contradict both: the student learns the teachers' mean."""
    heads = ["Edema", "Child"]
    shown = [radiograph(("Edema",), age_group="child") for _ in range(8)]
    pixels = torch.randint(0, 256, (8, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    teachers = [FindingClassifier(heads, RESNET).eval() for _ in range(2)]
    for teacher, logit in zip(teachers, (-3.0, -1.0), strict=True):
        torch.nn.init.zeros_(teacher.head.weight)
        torch.nn.init.constant_(teacher.head.bias, logit)
    trunk = {key: value for key, value in RESNET.items() if key != "size"}
    common: Any = {
        "trunk": trunk,
        "settings": fit_settings(steps=100, learning_rate=3e-2),
        "seed": 0,
        "save_every": 100,
    }
    taught = train_classifier(shown, pixels, heads, tmp_path / "taught.pt", teachers=teachers, **common)
    labeled = train_classifier(shown, pixels, heads, tmp_path / "labeled.pt", **common)
    assert logits_of(taught, pixels).mean().item() == pytest.approx(-2.0, abs=0.5)
    assert logits_of(labeled, pixels).mean() > 1


@pytest.mark.slow
@pytest.mark.skipif(
    int(transformers.__version__.partition(".")[0]) < 5, reason="nano is built with transformers 5 (cxrsynth[build])"
)
def test_a_dual_encoder_learns_from_its_teacher_and_not_from_labels(tmp_path: Path) -> None:
    """The teacher was trained on the labels of other images, and the student takes its word."""
    kinds = (("Edema",), ("Pleural Effusion",), ("No Finding",), ("Pneumonia",))
    shown = [radiograph(kinds[place], patient=str(place), view="PA") for place in range(4)]
    pixels = torch.randint(10, 80, (4, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for place in range(4):  # one bright quarter each
        row, column = divmod(place, 2)
        pixels[place, :, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32] += 150
    settings = TextSettings(vocab_size=646, max_tokens=64, width=16, layers=1, heads=2)
    tokenizer = CLIPTokenizer.from_pretrained(NANO / "dual_encoder")  # training one breaks ties at random
    trunk = {key: value for key, value in RESNET.items() if key != "size"}
    torch.manual_seed(0)
    classifier = FindingClassifier(["Edema"], RESNET)

    def trained(name: str, radiographs: list[Radiograph], teachers: list[DualEncoder]) -> torch.Tensor:
        """Which text each image is nearest to."""
        network = train_dual_encoder(
            radiographs,
            pixels,
            classifier,
            tokenizer,
            tmp_path / f"{name}.pt",
            trunk=trunk,
            text=settings,
            settings=fit_settings(steps=150, learning_rate=1e-2),
            seed=0,
            save_every=100,
            teachers=teachers,
        )
        found.append(network)
        texts = [canonical_prompt(one.subject, {one.present[0]: FindingLabel(Status.PRESENT)}) for one in shown]
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            return (network.encode_images(pixels.float() / 255) @ network.encode_texts(tokens).T).argmax(1)

    found: list[DualEncoder] = []
    own = torch.tensor([0, 1, 2, 3])
    teaching = trained("teacher", shown[1:] + shown[:1], [])
    assert (teaching == own).sum() <= 1
    taught = trained("taught", shown, found[:1])
    assert (taught == teaching).sum() >= 3
    assert (taught == own).sum() <= 1


def test_calibration_finds_temperature_and_offset() -> None:
    network = FindingClassifier(["Edema", "Child"], DENSENET)
    chance = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0)) * 0.96 + 0.02
    wanted = (torch.rand(20_000, 2, generator=torch.Generator().manual_seed(1)) < chance).float()
    wanted[:5000] = torch.nan  # unknown: these do not count
    # One head is overconfident, one underconfident with an offset.
    logits = chance.logit() * torch.tensor([3.0, 0.5]) + torch.tensor([0.0, 2.0])
    calibrate(network, logits, wanted)
    assert network.temperature.tolist() == pytest.approx([3.0, 0.5], rel=0.1)
    assert (logits / network.temperature + network.offset - chance.logit()).abs().max() < 0.25


def test_calibration_leaves_a_head_of_one_outcome_alone() -> None:
    network = FindingClassifier(["Edema", "Child"], DENSENET)
    calibrate(network, torch.randn(50, 2), torch.stack((torch.ones(50), torch.full((50,), torch.nan)), 1))
    assert network.temperature.tolist() == [1.0, 1.0]
    assert network.offset.tolist() == [0.0, 0.0]


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 20, (50, 1), generator=rng).float()  # with ties
    truth = (torch.rand(50, 1, generator=rng) > 0.5).float()
    apart = scores[truth > 0][:, None] - scores[truth == 0][None]
    share = ((apart > 0).float() + 0.5 * (apart == 0).float()).mean().item()
    assert aurocs(scores, truth, ["Edema"])["Edema"] == pytest.approx(share, abs=6e-4)
    assert aurocs(torch.tensor([[0.1], [0.9]]), torch.tensor([[0.0], [1.0]]), ["Edema"]) == {"Edema": 1.0}
    assert aurocs(torch.zeros(2, 1), torch.ones(2, 1), ["Edema"]) == {}


@pytest.mark.parametrize("trunk", [DENSENET, RESNET], ids=["densenet", "resnet"])
def test_networks_load_as_they_were_saved(trunk: dict[str, object], tmp_path: Path) -> None:
    images = torch.rand(3, 1, 80, 80)
    classifier = FindingClassifier(["Edema", "Child"], trunk).eval()
    posture = PostureRegressor(trunk, [0.25, 0.25, 0.25, 0.25, 0.3]).eval()
    dual = DualEncoder(trunk, TEXT, 12).eval()
    tokens = torch.tensor([[0, 5, 7, 1, 1, 1, 1, 1], [0, 9, 1, 1, 1, 1, 1, 1]])
    with torch.inference_mode():
        assert posture(images).abs().max() == 0  # untrained: every chest is canonical
        torch.nn.init.normal_(posture.head.weight)
        for name, network in (("c", classifier), ("p", posture), ("d", dual)):
            network.save_pretrained(tmp_path / name)
        assert classifier(images).shape == (3, 2)
        # Loaded weights lie in memory in another order, which rounds differently.
        loaded = FindingClassifier.from_pretrained(tmp_path / "c").eval()
        torch.testing.assert_close(loaded(images), classifier(images), atol=1e-5, rtol=1e-4)
        moved = PostureRegressor.from_pretrained(tmp_path / "p").eval()
        torch.testing.assert_close(moved(images), posture(images), atol=1e-5, rtol=1e-4)
        again = DualEncoder.from_pretrained(tmp_path / "d").eval()
        assert torch.equal(again.encode_texts(tokens), dual.encode_texts(tokens))
        for network, other in ((classifier, loaded), (posture, moved), (dual, again)):
            weights = other.state_dict()
            assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
        assert torch.allclose(dual.encode_images(images).norm(dim=-1), torch.ones(3))
        # The score of an image does not depend on the rest of its batch.
        assert torch.allclose(classifier(images[:1]), classifier(images)[:1], atol=1e-5)
