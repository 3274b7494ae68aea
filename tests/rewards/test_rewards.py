"""Rewards: values computed by hand, what they mask, and what holds for all of them."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cxrsynth.errors import ModelError
from cxrsynth.reports.labels import FindingLabel, Status
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.base import Reward, RewardSuite, RewardTable
from cxrsynth.rewards.consistency import ConsistencyReward
from cxrsynth.rewards.diagnosis import DiagnosisReward
from cxrsynth.rewards.nano import canonical_text, load_family
from cxrsynth.rewards.networks import DualEncoder, FindingClassifier, PostureRegressor
from cxrsynth.rewards.posture import PostureReward
from tests.conftest import make_tokenizer

TRUNK = {"kind": "resnet", "size": 64, "widths": [8, 8], "depths": [1, 1]}
CPU = torch.device("cpu")


def report(text: str = "", **labels: Status) -> Report:
    known = {name.replace("_", " "): FindingLabel(status) for name, status in labels.items()}
    return Report("r", 2, text=text, labels=known)


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 1, 48, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained networks in the layout of a reward family."""
    folder = tmp_path_factory.mktemp("families") / "family"
    tokenizer = make_tokenizer(48)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 48,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    posture = PostureRegressor(TRUNK, [0.25, 0.25, 0.25, 0.25, 0.3])
    torch.nn.init.normal_(posture.head.weight)
    FindingClassifier(["Edema", "Pneumonia", "Child"], TRUNK).save_pretrained(folder / "classifier")
    posture.save_pretrained(folder / "posture")
    DualEncoder(TRUNK, text, 12).save_pretrained(folder / "dual_encoder")
    tokenizer.save_pretrained(folder / "dual_encoder")
    return folder


def test_posture_is_minus_the_distance_in_its_units() -> None:
    network = PostureRegressor(TRUNK, [1.0] * 5)
    reward = PostureReward(network)
    assert reward(images(), []).tolist() == [0, 0, 0]
    # 5% of width to the side, and 5 degrees.
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([0.1, 0, 0, 0, math.radians(5)]))
    assert reward(images(), []).tolist() == pytest.approx([-(2**0.5)] * 3, rel=1e-5)
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([0, 0, 0, 2 * math.log(1.1), 0]))
    assert reward(images(), []).tolist() == pytest.approx([-2.0] * 3, rel=1e-5)


def test_diagnosis_is_the_balanced_mean_log_likelihood() -> None:
    heads = ("Edema", "Pneumonia", "Atelectasis", "Pneumothorax")
    logits = torch.tensor([2.0, -1.0, 0.5, -3.0])
    reward = DiagnosisReward(lambda x: logits.expand(len(x), -1), heads)

    def expected(present: list[int], absent: list[int]) -> float:
        halves = [sum(math.log(1 / (1 + math.exp(-logits[i]))) for i in present) / len(present)] if present else []
        halves += [sum(math.log(1 / (1 + math.exp(logits[i]))) for i in absent) / len(absent)] if absent else []
        return sum(halves) / len(halves)

    yes, no, maybe = Status.PRESENT, Status.ABSENT, Status.UNCERTAIN
    reports = [
        report(Edema=yes, Pneumonia=no, Atelectasis=no),
        report(Edema=no),
        report(Pneumothorax=yes, Edema=maybe, Fracture=yes),
        report(Edema=maybe),
        report(Fracture=yes),
        report(),
    ]
    values = reward(images(6), reports)
    assert values[:3].tolist() == pytest.approx([expected([0], [1, 2]), expected([], [0]), expected([3], [])], rel=1e-5)
    assert values[3:].isnan().all()
    assert values.dtype == torch.float32


def test_diagnosis_never_overflows() -> None:
    reward = DiagnosisReward(lambda x: torch.full((len(x), 1), 1000.0), ("Edema",))
    assert reward(images(1), [report(Edema=Status.ABSENT)]).tolist() == [-1000.0]
    assert reward(images(1), [report(Edema=Status.PRESENT)]).tolist() == [0.0]


def test_consistency_is_the_cosine_of_the_pair() -> None:
    places = {"left": [1.0, 0.0], "up": [0.0, 1.0], "away": [-1.0, 0.0], " ": [1.0, 0.0]}
    reward = ConsistencyReward(
        lambda x: torch.tensor([[1.0, 0.0]]).expand(len(x), -1),
        lambda texts: torch.tensor([places[text] for text in texts]),
        text_of=lambda one: one.text,
    )
    values = reward(images(4), [report(text) for text in places])
    assert values[:3].tolist() == [1, 0, -1]
    assert values[3].isnan()


def test_images_without_a_text_are_not_encoded() -> None:
    seen: list[Tensor] = []

    def encode(batch: Tensor) -> Tensor:
        seen.append(batch)
        means = batch.mean((1, 2, 3))
        return torch.stack([means, (1 - means**2).sqrt()], 1)

    reward = ConsistencyReward(encode, lambda t: torch.tensor([[1.0, 0.0]] * len(t)), text_of=lambda one: one.text)
    batch = torch.tensor([0.2, 0.4, 0.6, 0.8])[:, None, None, None].expand(-1, 1, 2, 2)
    values = reward(batch, [report(" "), report("a"), report(""), report("b")])
    assert values[[1, 3]].tolist() == pytest.approx([0.4, 0.8])
    assert values[[0, 2]].isnan().all()
    assert [len(one) for one in seen] == [2]
    assert reward(batch, [report("")] * 4).isnan().all()
    assert len(seen) == 1
    assert reward(batch, [report("a")] * 4).tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert seen[1] is batch  # see `features_once`


def test_every_reward_of_a_family_follows_the_protocol(family: Path) -> None:
    reports = [report(Edema=Status.PRESENT), report(Pneumonia=Status.ABSENT), report(Edema=Status.ABSENT)]
    for name, reward in load_family(family, device=CPU).items():
        checked: Reward = reward
        batch = images().requires_grad_()
        values = checked(batch, reports)
        assert values.shape == (3,), name
        assert values.dtype == torch.float32
        assert not values.requires_grad
        assert ((values >= checked.low) & (values <= checked.high)).all()
        one_by_one = torch.cat([checked(batch[i : i + 1], reports[i : i + 1]) for i in range(3)])
        assert torch.allclose(values, one_by_one, atol=1e-5), name
        assert torch.equal(values, checked(batch, reports))
        other = checked(batch, list(reversed(reports)))
        assert torch.equal(values, other) is not checked.needs_report
        assert len(set(values.tolist())) == 3  # depends on the image


def test_a_family_without_a_network_is_refused(family: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="missing classifier/, posture/, dual_encoder/"):
        load_family(tmp_path, device=CPU)
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "model.safetensors").write_bytes(b"no tensors")
    for part in ("posture", "dual_encoder"):
        (tmp_path / part).symlink_to(family / part)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_family(tmp_path, device=CPU)


def test_a_suite_keeps_columns_apart_until_weighted() -> None:
    def constant(value: float) -> Reward:
        return ConsistencyReward(
            lambda x: torch.full((len(x), 1), value), lambda t: torch.ones(len(t), 1), text_of=lambda r: r.text
        )

    table = RewardSuite({"a": constant(0.5), "b": constant(-1.0)})(images(2), [report("x"), report("")])
    assert table.names == ("a", "b")
    assert table.column("b")[0] == -1
    assert table.total({"a": 3.0, "b": 1.0})[0] == pytest.approx((3 * 0.5 - 1) / 4)
    assert table.total({"a": 3.0, "b": 1.0})[1].isnan()
    partly = RewardTable(("a", "b"), torch.tensor([[0.25, float("nan")]]))
    assert partly.total({"a": 3.0, "b": 1.0}).tolist() == [0.25]


@pytest.mark.parametrize(
    ("bad", "count", "message"),
    [
        (torch.rand(2, 3, 8, 8), 2, "shape"),
        (torch.rand(2, 1, 8, 8).double(), 2, "float64"),
        (torch.rand(2, 1, 8, 8), 3, "2 images for 3 reports"),
        (torch.rand(2, 1, 8, 8) + 1, 2, "outside"),
        (torch.full((2, 1, 8, 8), float("nan")), 2, "outside"),
    ],
)
def test_a_suite_refuses_anything_but_images(bad: Tensor, count: int, message: str) -> None:
    suite = RewardSuite({"posture": PostureReward(PostureRegressor(TRUNK, [1.0] * 5))})
    with pytest.raises(ValueError, match=message):
        suite(bad, [report()] * count)


def test_canonical_text_has_the_wording_of_training() -> None:
    one = Report("r", 2, view="PA", sex="F", age_years=61, labels={"Edema": FindingLabel(Status.PRESENT)})
    assert canonical_text(one) == "PA view. Adult woman. Pulmonary edema."
