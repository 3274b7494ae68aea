"""Measurement of the generator: which prompts are used, what it is compared with, how AUROCs are related."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cxrsynth.nano.build.images import Radiograph
from cxrsynth.nano.build.measure import reliable_heads
from cxrsynth.nano.build.measure_generator import _adherence, _matched, _movement, _others, _prompted, _unrelated
from cxrsynth.reports.prompt import Subject


def radiographs(group: str, count: int) -> list[Radiograph]:
    return [Radiograph(f"{group}-{i}", f"p{i}", group, Subject(), (), (), padded=False) for i in range(count)]


def test_every_framed_image_is_used_once_before_any_is_used_again() -> None:
    framed, rest = [*radiographs("nih", 5), *radiographs("kermany_ped", 7)], radiographs("nih64", 4)
    prompted = _prompted(framed, [*rest, *framed], 20, random.Random(0))
    assert len(prompted) == 20
    assert {radiograph.image_id for radiograph in prompted[:12]} == {radiograph.image_id for radiograph in framed}
    assert {radiograph.image_id for radiograph in prompted[12:16]} == {radiograph.image_id for radiograph in rest}
    assert [radiograph.group for radiograph in prompted[:12]] != [radiograph.group for radiograph in framed]
    assert prompted == _prompted(framed, [*rest, *framed], 20, random.Random(0))


def test_train_images_are_sampled_with_the_sources_of_val() -> None:
    train = [*radiographs("nih", 30), *radiographs("hannover", 40), *radiographs("kermany_ped", 2)]
    sources = ["nih"] * 6 + ["hannover"] + ["kermany_ped"] * 3
    places = _matched(sources, train, random.Random(0))
    assert len(set(places)) == len(places)
    assert Counter(train[place].group for place in places) == {"nih": 6, "hannover": 1, "kermany_ped": 2}


class PixelLogits(torch.nn.Module):
    """A classifier that reads its logits from the first two pixels."""

    heads = ("Edema", "Child")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 0, :2]


def test_adherence_is_relative_where_real_images_are_recognized() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((80, 2)) < 0.4
    logits = truth * 1.0 + rng.normal(0, 1, truth.shape)
    images = torch.from_numpy(logits.astype(np.float32))[:, None, None, :]
    prompted = [
        Radiograph(f"f{i}", "p", "nih", Subject(age_group="child" if child else "adult"),
             ("Edema",) if edema else (), () if edema else ("Edema",), padded=False)
        for i, (edema, child) in enumerate(truth)
    ]  # fmt: skip
    real = {"Edema": {"present": 9, "auroc": {"value": 0.8, "low": 0.6, "high": 0.9}},
            "Child": {"present": 2, "auroc": {"value": 0.9, "low": 0.8, "high": 1.0}}}  # fmt: skip
    found = _adherence(PixelLogits(), prompted, images, real=real, measurable=["Edema"])  # type: ignore[arg-type]
    area = roc_auc_score(truth[:, 0], logits[:, 0])
    assert found["Edema"]["generated"]["value"] == pytest.approx(area, abs=6e-4)
    assert found["Edema"]["share"]["value"] == pytest.approx((area - 0.5) / 0.3, abs=3e-3)
    assert found["Edema"]["share"]["low"] < found["Edema"]["share"]["value"] < found["Edema"]["share"]["high"]
    assert found["Edema"]["images"] == 9
    assert found["Child"]["share"] is None
    assert found["Child"]["generated"]["value"] == pytest.approx(roc_auc_score(truth[:, 1], logits[:, 1]), abs=6e-4)


def test_a_head_is_reliable_from_five_images_on() -> None:
    auroc = {"value": 0.8, "low": 0.6, "high": 0.9}
    assert reliable_heads({"a": {"auroc": auroc, "present": 5, "absent": 90}}) == ["a"]
    assert reliable_heads({"a": {"auroc": auroc, "present": 4, "absent": 90}}) == []
    assert reliable_heads({"a": {"auroc": auroc, "present": 90, "absent": 1}}) == []
    assert reliable_heads({"a": {"auroc": auroc | {"low": 0.5}, "present": 90, "absent": 90}}) == []


HEADS = ["No Finding", "Cardiomegaly", "Lung Opacity", "Edema", "Pneumonia", "Pneumothorax", "Child"]


@pytest.mark.parametrize(
    ("changed", "unrelated", "others"),
    [
        ("Edema", {"Cardiomegaly", "Pneumothorax"}, {"Cardiomegaly", "Pneumonia", "Pneumothorax"}),
        ("Lung Opacity", {"Cardiomegaly", "Pneumothorax"}, {"Cardiomegaly", "Edema", "Pneumonia", "Pneumothorax"}),
        ("Pneumothorax", {"Cardiomegaly", "Edema", "Pneumonia"}, {"Cardiomegaly", "Edema", "Pneumonia"}),
    ],
)
def test_kinds_of_lung_opacity_are_related(changed: str, unrelated: set[str], others: set[str]) -> None:
    for beside, expected in ((_unrelated, unrelated), (_others, others)):
        assert {head for head, is_one in zip(HEADS, beside(changed, HEADS), strict=True) if is_one} == expected


def test_movement_counts_the_selected_heads_only() -> None:
    moved = torch.tensor([[0.4, -0.1, 0.3], [0.1, 0.8, 0.2]])
    beside = torch.tensor([[False, True, True], [True, False, False]])
    found = _movement(moved, torch.tensor([0.4, 0.8]), beside)
    assert found["value"] == pytest.approx((0.2 + 0.1) / 1.2)
