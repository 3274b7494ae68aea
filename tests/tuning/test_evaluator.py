"""The evaluator of a tuning run: the baseline's images are kept in a file, and a damaged file is made again."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cxrsynth.diffusion.model import DiffusionModel, load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.metrics.features import Extractor, load_extractor
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.base import RewardSuite
from cxrsynth.rewards.posture import PostureReward
from cxrsynth.rl.rollouts import PromptExample
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.runtime.processes import ProcessGroup
from cxrsynth.settings import Precision, Sampler
from cxrsynth.tuning.evaluator import EvaluationSampling, Evaluator, FeatureSpace, HeldOut, RewardPair

CPU = torch.device("cpu")


class _Still(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(5))

    def forward(self, images: Tensor) -> Tensor:
        return self.weight.expand(len(images), 5)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> DiffusionModel:
    return load_model(resolve_model(str(tiny_model)), device=CPU, precision=Precision.FP32)


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return load_extractor("nano-judge", device=CPU)


def make_evaluator(extractor: Extractor, pool: OrderedPool) -> Evaluator:
    suite = RewardSuite({"posture": PostureReward(_Still())})
    return Evaluator(
        HeldOut([PromptExample(Report(f"r{i}", i), "normal", ()) for i in range(2)], 2, noise_seed=0),
        RewardPair(suite, {"posture": 1.0}, suite),
        features=FeatureSpace(extractor),
        sampling=EvaluationSampling(Sampler.DDIM, steps=2, guidance=1.0, batch_size=3),
        pool=pool,
        group=ProcessGroup(),
    )


def test_images_of_a_report_are_consecutive_and_do_not_depend_on_the_batch(
    model: DiffusionModel, extractor: Extractor
) -> None:
    with OrderedPool(1, threads=1) as pool:
        evaluator = make_evaluator(extractor, pool)
        together = evaluator.evaluate(model)
        alone = evaluator._evaluate_batch(model, [3], evaluator.sampling)
    assert together.images.shape == (4, *model.image_shape)
    assert (together.images[3].int() - alone[0][0].int()).abs().max() <= 1
    assert [(one.report.report_id, image) for one, image in evaluator.held_out.samples] == [
        ("r0", 0),
        ("r0", 1),
        ("r1", 0),
        ("r1", 1),
    ]


@pytest.mark.parametrize("damage", ["cut", "bit", "features", "rewards", "images", "count", "missing", "type"])
def test_a_damaged_file_of_the_baselines_images_is_made_again(
    damage: str, model: DiffusionModel, extractor: Extractor, tmp_path: Path
) -> None:
    cache = tmp_path / "0.safetensors"
    with OrderedPool(1, threads=1) as pool:
        first = make_evaluator(extractor, pool).baseline(lambda: nullcontext(model), cache)
        whole = cache.read_bytes()
        tensors = load_file(cache)
        match damage:
            case "cut":
                cache.write_bytes(whole[: len(whole) // 2])
            case "bit":  # of a number: shapes and types are as they were
                cache.write_bytes(whole[:-2] + bytes([whole[-2] ^ 0x40, whole[-1]]))
            case "features" | "rewards":
                save_file(tensors | {damage: tensors[damage][:, 1:].contiguous()}, cache)
            case "images":
                save_file(tensors | {damage: tensors[damage][:, :16, :16].contiguous()}, cache)
            case "count":
                save_file({name: tensor[1:].contiguous() for name, tensor in tensors.items()}, cache)
            case "missing":
                save_file({name: tensor for name, tensor in tensors.items() if name != "rewards"}, cache)
            case "type":
                save_file(tensors | {"images": tensors["images"].float()}, cache)
        again = make_evaluator(extractor, pool).baseline(lambda: nullcontext(model), cache)
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in tensors)
    assert cache.read_bytes() == whole


def test_a_whole_file_of_the_baselines_images_is_used(
    model: DiffusionModel, extractor: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "0.safetensors"
    with OrderedPool(1, threads=1) as pool:
        first = make_evaluator(extractor, pool).baseline(lambda: nullcontext(model), cache)
        monkeypatch.delattr(Evaluator, "evaluate")
        again = make_evaluator(extractor, pool).baseline(lambda: nullcontext(model), cache)
    assert torch.equal(again.rewards, first.rewards)
