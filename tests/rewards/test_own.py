"""A user's own reward: whatever its code does becomes one message without report text, or is put right."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cxrsynth.errors import ModelError
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.backends import load_reward, origin
from cxrsynth.rewards.base import Reward
from tests.rewards.making import HONEST, install_reward, replaced

CPU = torch.device("cpu")
SECRET = "Jane Roe has pneumonia"
REPORTS = [Report("r-1", 2, text=SECRET), Report("r-2", 3, text=SECRET)]


def images() -> Tensor:
    return torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def load(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Reward, Path]:
    path = install_reward(folder, source, monkeypatch)
    return load_reward("own", "a b", device=CPU), path


def refusal(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The message with which a reward is refused, when it is loaded or when it is called."""
    with pytest.raises(ModelError) as refused:
        load(source, folder, monkeypatch)[0](images(), REPORTS)
    message = str(refused.value)
    assert "reward own (backend a b)" in message
    assert SECRET not in message
    assert "cxrsynth rewards check own --backend 'a b'" in message
    return message


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("raise ValueError(reports[0].text)", "ValueError"),
        ("return int(reports[0].text)", "ValueError"),
        ("return torch.zeros(3) + torch.zeros(2)", "RuntimeError"),
        ("sys.exit(reports[0].text)", "SystemExit"),
        ("raise SystemExit", "SystemExit"),
        ("raise MemoryError", "MemoryError"),
        ("raise BaseException(reports[0].text)", "BaseException"),
        ("return eval(reports[0].text)", "SyntaxError"),
    ],
)
def test_an_exception_in_its_call_is_named_without_its_text(
    line: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(replaced(line), tmp_path, monkeypatch)
    assert message.startswith("report r-1 and 1 other of its batch: ")
    assert f"its call failed: {error} at {tmp_path}" in message
    place = replaced(line).splitlines().index(f"        {line}") + 1
    assert f".py:{place}\n" in message


@pytest.mark.parametrize("line", ["raise OSError('weights')", "sys.exit(0)", "import no_such_package"])
@pytest.mark.parametrize(("where", "said"), [("constructor", "(backend, device=device) failed"), ("top", "imported")])
def test_an_exception_while_loading_is_named_with_its_line(
    line: str, where: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = replaced(**{where: line})
    place = [text.strip() for text in source.splitlines()].index(line) + 1
    message = refusal(source, tmp_path, monkeypatch)
    assert said in message
    assert f".py:{place}\n" in message


def test_code_that_does_not_parse_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(replaced(top="return ="), tmp_path, monkeypatch)
    assert "cannot be imported: SyntaxError at " in message
    assert f".py:{replaced(top='return =').splitlines().index('return =') + 1}\n" in message


def test_an_entry_point_that_names_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "AttributeError" in refusal(HONEST.replace("class Own", "class Other"), tmp_path, monkeypatch)
    assert "TypeError" in refusal(HONEST.replace(", *, device", ""), tmp_path, monkeypatch)
    assert "an object to call" in refusal(HONEST.replace("__call__", "call"), tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("attributes", "named"),
    [
        ("low, high, needs_report = 0.0, 1.0, False", "unit"),
        ("unit, high, needs_report = 'x', 1.0, False", "low"),
        ("unit, low, high, needs_report = 'x', 0.0, None, False", "high"),
        ("unit, low, high, needs_report = 'x', 1.0, 0.0, False", "high"),
        ("unit, low, high, needs_report = 'x', float('nan'), 1.0, False", "low"),
        ("unit, low, high, needs_report = 'x', 0.0, 1.0, 'no'", "needs_report"),
        ("unit, low, high, needs_report = 'x', True, 1.0, False", "low"),
    ],
)
def test_attributes_are_checked_when_it_is_loaded(
    attributes: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = 'unit, low, high, needs_report = "mean gray level", 0.0, 1.0, False'
    message = refusal(HONEST.replace(given, attributes), tmp_path, monkeypatch)
    assert f"its attribute {named} is missing or wrong" in message


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ("images.mean()", "a tensor of shape [] and type float32"),
        ("images.mean((2, 3))", "a tensor of shape [2, 1] and type float32"),
        ("images.mean((1, 2, 3))[:1]", "a tensor of shape [1] and type float32"),
        ("images.mean((1, 2, 3)).tolist()", "an object of type list"),
        ("[reports[0].text] * 2", "an object of type list"),
        ("images.mean((1, 2, 3)).numpy()", "an object of type numpy.ndarray"),
        ("images.mean((1, 2, 3)) + 1j", "a tensor of shape [2] and type complex64"),
        ("images.mean((1, 2, 3)) > 0.5", "a tensor of shape [2] and type bool"),
        ("images.mean((1, 2, 3)).long()", "a tensor of shape [2] and type int64"),
        ("images.mean((1, 2, 3)).to_sparse()", "a tensor of shape [2] and type float32, sparse_coo"),
        ("None", "None"),
        ("0.5", "an object of type float"),
    ],
)
def test_a_result_of_another_kind_is_refused(
    result: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(replaced(f"return {result}"), tmp_path, monkeypatch)
    assert f"its call returned {found}\n  expected: a float tensor of shape [2]" in message


def test_an_infinite_value_is_named_with_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(replaced("return torch.tensor([0.5, 1e300], dtype=torch.float64)"), tmp_path, monkeypatch)
    assert message.startswith("report r-2: reward own (backend a b) is infinite")


def test_what_it_changes_or_returns_in_another_form_is_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = """
with torch.inference_mode(False), torch.enable_grad():
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    values = images.mean((1, 2, 3)).double() * weight
images.zero_()
reports[0].labels["Edema"] = None
reports.clear()
return values
"""
    reward, _ = load(replaced(lines), tmp_path, monkeypatch)
    given, reports = images(), [*REPORTS]
    found = reward(given, reports)
    assert (found.dtype, found.device, found.requires_grad) == (torch.float32, CPU, False)
    assert torch.equal(given, images())
    assert reports == REPORTS
    assert reports[0].labels == {}
    assert found.tolist() == pytest.approx(given.mean((1, 2, 3)).tolist())


def test_changing_the_default_dtype_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other tensor of the run would follow it."""
    lines = "torch.set_default_dtype(torch.float64)\nreturn images.mean((1, 2, 3))"
    message = refusal(replaced(lines), tmp_path, monkeypatch)
    assert "it changed torch's default dtype to torch.float64" in message
    assert torch.get_default_dtype() is torch.float32


def test_gradients_that_it_switches_off_are_on_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A usual line in code that only scores; the next update had nothing to learn from, and ended in a traceback."""
    off = "torch.set_grad_enabled(False)"
    for part in ({"top": off}, {"constructor": off}, {"call": f"{off}\nreturn images.mean((1, 2, 3))"}):
        try:
            reward, _ = load(replaced(**part), tmp_path, monkeypatch)
            reward(images(), REPORTS)
            assert torch.is_grad_enabled(), part
        finally:
            torch.set_grad_enabled(True)


@pytest.mark.parametrize("part", ["call", "constructor"])
def test_changing_the_default_device_is_refused(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was made next would be there: the fault showed in another reward, or in the model."""
    line = "torch.set_default_device('meta')"
    source = replaced(f"{line}\nreturn images.mean((1, 2, 3))") if part == "call" else replaced(constructor=line)
    try:
        message = refusal(source, tmp_path, monkeypatch)
        after = torch.get_default_device()
    finally:
        torch.set_default_device(None)
    assert "it changed torch's default device to meta" in message
    assert after == CPU


def test_a_result_in_memory_that_it_uses_again_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "self.memory[:] = images.mean((1, 2, 3))\nreturn self.memory"
    reward, _ = load(replaced(lines, constructor="self.memory = torch.zeros(2)"), tmp_path, monkeypatch)
    first = reward(images(), REPORTS)
    before = first.clone()
    reward(images() / 2, REPORTS)
    assert torch.equal(first, before)


@pytest.mark.parametrize(
    "source", [replaced("raise KeyboardInterrupt"), replaced(constructor="raise KeyboardInterrupt")]
)
def test_ctrl_c_passes_through(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        load(source, tmp_path, monkeypatch)[0](images(), REPORTS)


def test_rewards_of_one_family_have_one_origin(tmp_path: Path) -> None:
    assert origin("posture", "nano") == origin("diagnosis", "nano") != origin("posture", "nano-judge")
    assert origin("own", "nano") != origin("posture", "nano")
    assert origin("diagnosis", "densenet121-res224-all@sha256:00") == origin("diagnosis", "densenet121-res224-all")
    assert origin("consistency", str(tmp_path)) == origin("consistency", f"{tmp_path}/../{tmp_path.name}")
