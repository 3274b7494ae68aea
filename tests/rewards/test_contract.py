"""`cxrsynth rewards check`: each promise of the contract has a finding, and a reward that breaks it is found out."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cxrsynth.errors import ModelError
from cxrsynth.reports.labels import FindingLabel, Status
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.contract import Finding, try_reward
from tests.rewards.making import HONEST, install_reward, replaced

CPU = torch.device("cpu")
PROMISES = [
    "loading",
    "call",
    "shape and type",
    "values",
    "range",
    "gradient",
    "arguments",
    "same input",
    "batches",
    "threads",
]
_MEAN = "return images.mean((1, 2, 3))"
OTHER_IN_A_THREAD = """
here = threading.current_thread() is threading.main_thread()
return images.mean((1, 2, 3)) * (1.0 if here else 0.5)
"""


def examples() -> tuple[Tensor, list[Report]]:
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images *= torch.linspace(0.2, 1, 4)[:, None, None, None]
    labels = {"Edema": FindingLabel(Status.PRESENT)}
    return images, [Report(f"r-{place}", place, text="clear lungs", labels=dict(labels)) for place in range(4)]


def findings(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    install_reward(folder, source, monkeypatch)
    return list(try_reward("own", "any", device=CPU, examples=examples))


def test_an_honest_reward_keeps_every_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(HONEST, tmp_path, monkeypatch)
    assert [one.name for one in found] == PROMISES
    assert all(one.problem is None for one in found), found
    partly = replaced("values = images.mean((1, 2, 3))\nvalues[values < 0.2] = torch.nan\nreturn values")
    assert all(one.problem is None for one in findings(partly, tmp_path, monkeypatch))


@pytest.mark.parametrize(
    ("call", "broken", "said"),
    [
        ("raise ValueError(f'no lungs in {reports[0].text}')", ["call"], "no lungs in clear lungs"),
        ("sys.exit(3)", ["call"], "SystemExit at "),
        ("return images.mean((2, 3))", ["shape and type"], "[4, 1]"),
        ("return images.mean((1, 2, 3)).tolist()", ["shape and type"], "of type list"),
        ("return images.mean((1, 2, 3)).to('meta')", ["shape and type"], "cannot be brought to the CPU"),
        ("class Odd(Exception):\n    __str__ = None\nraise Odd", ["call"], "text cannot be shown: TypeError"),
        (f"torch.set_default_dtype(torch.float64)\n{_MEAN}", ["call"], "default dtype to torch.float64, expected no"),
        (f"torch.set_default_device('meta')\n{_MEAN}", ["call"], "default device to meta, expected no"),
        ("return images.mean((1, 2, 3)).half() / 0", ["values", "range"], "4 of 4 are infinite"),
        ("return images.mean((1, 2, 3)) * torch.nan", ["values", "range"], "nan for every image"),
        ("return images.mean((1, 2, 3)) - 0.5", ["range"], "expected 0 to 1"),
        ("return images.mean((1, 2, 3)) * torch.ones((), requires_grad=True)", ["gradient"], "inference_mode"),
        ("images *= 0.5\nreturn images.mean((1, 2, 3))", ["arguments"], "changed its images"),
        ("reports[0].labels['x'] = 1\nreturn images.mean((1, 2, 3))", ["arguments"], "changed its reports"),
        ("return images.mean((1, 2, 3)) * torch.rand(len(images))", ["same input", "batches", "threads"], "one call"),
        ("values = images.mean((1, 2, 3))\nreturn values / values.max() / 2", ["batches"], "other images of the batch"),
        ("return images.mean((1, 2, 3)).squeeze()", ["batches"], "a tensor of shape [] and type float32 for 1 images"),
        (OTHER_IN_A_THREAD, ["threads"], "two threads"),
    ],
)
def test_a_broken_promise_is_found(
    call: str, broken: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = replaced(call.strip(), top="import threading")
    try:
        found = findings(source, tmp_path, monkeypatch)
        assert (torch.get_default_dtype(), torch.get_default_device()) == (torch.float32, CPU)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert [one.name for one in found if one.problem is not None] == broken, found
    assert said in next(str(one.problem) for one in found if one.problem is not None)
    assert [one.name for one in found] == PROMISES[: len(found)]
    assert (len(found) < len(PROMISES)) is (broken[0] in ("call", "shape and type"))


def test_why_a_reward_cannot_be_loaded_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = findings(replaced(constructor="raise OSError('no weights here')"), tmp_path, monkeypatch)
    assert found.name == "loading"
    assert "OSError at " in str(found.problem)
    assert "no weights here" in str(found.problem)
    with pytest.raises(ModelError, match="unknown"):
        list(try_reward("owm", "any", device=CPU, examples=examples))


@pytest.mark.parametrize("name", ["posture", "diagnosis", "consistency"])
def test_the_built_in_rewards_keep_every_promise(name: str) -> None:
    found = list(try_reward(name, "nano", device=CPU, examples=examples))
    assert [one.name for one in found] == PROMISES
    assert all(one.problem is None for one in found), found
