"""`open_dataset`: the same samples from every format, split and shuffled as webdataset does, and a training run."""

import json
import math
import multiprocessing
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import cxrsynth
from cxrsynth.reports.labels import OBSERVATIONS
from tests.generation.making import write_table

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "train_classifier.py"
FORMATS: dict[str, dict[str, Any]] = {
    "webdataset": {},
    "dicom": {"shard_format": "dicom"},
    "unpacked": {"shard_format": "dicom", "unpacked": True},
}


@pytest.fixture(scope="module")
def sets(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same seven images in every format, three a shard."""
    folder = tmp_path_factory.mktemp("sets")
    id_key = folder / "id.key"
    id_key.write_text("a key of more than sixteen bytes")
    id_key.chmod(0o600)
    table = write_table(folder / "reports.csv")
    for name, chosen in FORMATS.items():
        cxrsynth.generate(
            table, folder / name, model=str(tiny_model), steps=1, shard_size=3, device="cpu", id_key=id_key, **chosen
        )
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_samples(name: str, sets: Path) -> None:
    samples = {metadata["key"]: (image, labels) for image, labels, metadata in cxrsynth.open_dataset(sets / name)}
    expected = {
        metadata["key"]: (image, labels) for image, labels, metadata in cxrsynth.open_dataset(sets / "webdataset")
    }
    assert len(samples) == 7
    assert samples.keys() == expected.keys()
    for key, (image, labels) in samples.items():
        assert image.shape == (1, 32, 32)
        assert image.dtype == labels.dtype == torch.float32
        assert image.min() >= 0
        assert image.max() <= 1
        torch.testing.assert_close(image, expected[key][0], atol=1 / 255, rtol=0)
        torch.testing.assert_close(labels, expected[key][1], equal_nan=True)


def test_labels_are_those_of_the_report_and_nan_where_it_does_not_know(sets: Path) -> None:
    for _, labels, metadata in cxrsynth.open_dataset(sets / "webdataset"):
        findings = json.loads(metadata["json"])["findings"]
        for name, value in zip(OBSERVATIONS, labels.tolist(), strict=True):
            status = findings[name]["status"]
            assert value == {"present": 1.0, "absent": 0.0}.get(status) or (
                math.isnan(value) and status in ("uncertain", "not mentioned")
            )
    statuses = {value for _, labels, _ in cxrsynth.open_dataset(sets / "webdataset") for value in labels.tolist()}
    assert {1.0} < statuses


def test_metadata_are_texts_with_the_view_and_sex_of_the_report(sets: Path) -> None:
    metadata = [sample[2] for sample in cxrsynth.open_dataset(sets / "webdataset")]
    assert all(isinstance(value, str) for one in metadata for value in one.values())
    assert sorted(one["view"] for one in metadata) == ["", "AP", "AP", "LATERAL", "PA", "PA", "PA"]
    assert {one["sex"] for one in metadata} == {"", "F", "M"}
    assert all(one["key"].startswith(one["patient"]) and one["patient"] for one in metadata)


def test_shuffling_follows_the_seed_and_changes_with_the_pass(sets: Path) -> None:
    def order(dataset: Any) -> list[str]:
        return [metadata["key"] for _, _, metadata in dataset]

    plain = order(cxrsynth.open_dataset(sets / "webdataset"))
    dataset = cxrsynth.open_dataset(sets / "webdataset", shuffle=100, seed=3)
    first, second = order(dataset), order(dataset)
    assert first == order(cxrsynth.open_dataset(sets / "webdataset", shuffle=100, seed=3))
    assert len({tuple(plain), tuple(first), tuple(second)}) == 3
    assert sorted(plain) == sorted(first) == sorted(second)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_loader_share_the_samples(start: str, sets: Path) -> None:
    dataset = cxrsynth.open_dataset(sets / "dicom", shuffle=10)
    loader = DataLoader(
        dataset, batch_size=2, num_workers=2, multiprocessing_context=multiprocessing.get_context(start)
    )
    keys = [key for _, _, metadata in loader for key in metadata["key"]]
    assert len(keys) == len(set(keys)) == 7


def test_processes_share_the_shards_and_too_few_are_refused(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        shares.append({metadata["key"] for _, _, metadata in cxrsynth.open_dataset(sets / "webdataset", shuffle=10)})
    assert sum(map(len, shares)) == len(set.union(*shares)) == 7
    assert all(shares)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(cxrsynth.ShardError, match="3 shards for 4 processes"):
        next(iter(cxrsynth.open_dataset(sets / "webdataset")))


def test_a_damaged_shard_raises_or_is_left_out(sets: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    for path in (sets / "webdataset").iterdir():
        if path.is_file():
            (whole / path.name).write_bytes(path.read_bytes())
    shard = whole / "cxr-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(cxrsynth.ShardError, match=r"cxr-000001\.tar.*sha256"):
        list(cxrsynth.open_dataset(whole))
    assert len(list(cxrsynth.open_dataset(whole, skip_damaged=True))) == 4


def test_shards_of_other_programs_are_read_with_a_table(sets: Path, tmp_path: Path) -> None:
    with tarfile.open(sets / "webdataset" / "cxr-000000.tar") as tar:
        tar.extractall(tmp_path / "images", filter="data")
    for path in (tmp_path / "images").glob("*.json"):
        path.unlink()
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    (tmp_path / "table.csv").write_text("image,Edema,v\n" + "".join(f"{name},1,AP\n" for name in names))
    found = list(cxrsynth.open_dataset(tmp_path / "images", table=tmp_path / "table.csv", columns={"view": "v"}))
    assert len(found) == 3
    for _, labels, metadata in found:
        assert metadata["view"] == "AP"
        assert labels[OBSERVATIONS.index("Edema")] == 1
        assert labels.isnan().sum() == 13


def test_an_unknown_role_is_named_and_a_split_is_chosen(sets: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"columns: 'patient', expected roles among age, findings, impression"):
        cxrsynth.open_dataset(sets / "webdataset", columns={"patient": "x"})
    with pytest.raises(cxrsynth.ShardError, match="a data set of cxrsynth has no splits"):
        cxrsynth.open_dataset(sets / "webdataset", split="train")
    content = (sets / "webdataset" / "preview.png").read_bytes()
    for split, name in (("train", "person1_bacteria_1"), ("train", "person2_virus_2"), ("test", "person3_virus_9")):
        folder = tmp_path / "chest_xray" / split / "PNEUMONIA"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.png").write_bytes(content)
    for split, count in (("train", 2), ("test", 1), (None, 3)):
        assert len(list(cxrsynth.open_dataset(tmp_path / "chest_xray", split=split))) == count


def test_the_pipeline_takes_webdatasets_own_methods(sets: Path) -> None:
    dataset = cxrsynth.open_dataset(sets / "unpacked").map_tuple(lambda image: image * 2).batched(4, partial=False)
    ((images, _, metadata),) = dataset
    assert images.shape == (4, 1, 32, 32)
    assert len(metadata) == 4


def test_a_classifier_learns_from_a_generated_set(sets: Path) -> None:
    import torchxrayvision as xrv

    torch.manual_seed(0)
    model = xrv.models.DenseNet(num_classes=14, in_channels=1, growth_rate=4, block_config=(1, 1), num_init_features=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        for images, labels, _ in DataLoader(cxrsynth.open_dataset(sets / "dicom"), batch_size=7):
            known = ~labels.isnan()
            logits = model(images * 2048 - 1024)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_the_example_trains(name: str, sets: Path) -> None:
    done = subprocess.run([sys.executable, EXAMPLE, sets / name], capture_output=True, text=True, check=True)
    assert done.stdout.count("loss") == 1
    assert "of 7 images" in done.stdout


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 25
