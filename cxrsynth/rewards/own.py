"""A user's own reward: foreign code, held to the contract of `Reward` whenever it is loaded or called.

Whatever goes wrong in it becomes one `ModelError`. The message names the reward, the first report of the batch, and the
type and place of an exception, never its text: a reward reads reports, and its messages could quote them.
"""

import copy
import math
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor

from cxrsynth.errors import ModelError
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.base import Reward
from cxrsynth.rewards.installed import own_reward

_ATTRIBUTES = {
    "unit": "a text",
    "low": "a number, -math.inf for none",
    "high": "a number above `low`, math.inf for none",
    "needs_report": "True or False",
}


class OwnReward:
    """A user's own reward behind the `Reward` protocol.

    It gets copies of the images and reports, so what it does to them changes nothing. Its result is converted to
    float32 on the CPU, without a gradient. Everything else is refused.

    Args:
        name: of an entry point in group `cxrsynth.rewards`.
        backend: passed to its class.
        device: passed to its class.

    Raises:
        ModelError: if there is no such entry point, or its import or constructor fails, or an attribute is missing.
    """

    def __init__(self, name: str, backend: str, *, device: torch.device) -> None:
        found = own_reward(name)
        self._defaults = torch_defaults()
        self._title = f"reward {name} (backend {backend})"
        self._module = found.module
        self._advice = f"try it with: cxrsynth rewards check {shlex.quote(name)} --backend {shlex.quote(backend)}"
        with self._guarded(f"{found.value} cannot be imported"):
            made = found.load()
        with self._guarded(f"{found.value}(backend, device=device) failed"):
            reward = made(backend, device=device)
        if not callable(reward):
            raise self._refused(f"{found.value} made {_kind(reward)}", "an object to call with images and reports")
        with self._guarded("its attributes cannot be read"):
            given = {attribute: getattr(reward, attribute, None) for attribute in _ATTRIBUTES}
        self.unit, self.low, self.high, self.needs_report = self._attributes(**given)
        self.reward: Reward = reward

    def __call__(self, images: Tensor, reports: Sequence[Report]) -> Tensor:
        """As `Reward.__call__`; [B] float32 on the CPU, without a gradient.

        Raises:
            ModelError: if the reward raises or exits, or its result is not a float tensor [B] of finite numbers or nan.
        """
        where = _batch(reports)
        with self._guarded("its call failed", where):
            result = self.reward(images.clone(), copy.deepcopy(list(reports)))
        problem = result_problem(result, len(images))
        if problem is not None:
            raise self._refused(f"its call returned {problem}", f"a float tensor of shape [{len(images)}]", where)
        with self._guarded("its result cannot be brought to the CPU", where):
            # A copy: a reward may use the same memory for its next result.
            values = result.detach().to("cpu", torch.float32, copy=True)
        infinite = values.isinf()
        if infinite.any():
            raise ModelError(
                f"report {reports[int(infinite.int().argmax())].report_id}: {self._title} is infinite\n"
                f"  expected: a finite number, or nan where it has no answer; {self._advice}"
            )
        return values

    def failure(self, error: BaseException) -> str:
        """Type of an exception, and the line of the user's code that it went through last."""
        name = type(error).__name__
        if isinstance(error, SyntaxError) and error.filename and not error.filename.startswith("<"):
            return f"{name} at {error.filename}:{error.lineno}"
        package = self._module.partition(".")[0]
        own = [
            f"{frame.f_code.co_filename}:{line}"
            for frame, line in walk_tb(error.__traceback__)
            if str(frame.f_globals.get("__name__")).partition(".")[0] == package
        ]
        return f"{name} at {own[-1]}" if own else name

    @contextmanager
    def _guarded(self, problem: str, where: str = "") -> Iterator[None]:
        """Everything the user's code raises becomes a ModelError, `sys.exit` too; Ctrl-C remains."""
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled()):  # what it switches off is on again afterwards
                yield
            changed = restored_defaults(self._defaults)
            if changed is not None:
                raise self._refused(f"it changed {changed}", "no change", where)
        except (KeyboardInterrupt, ModelError):
            raise
        except BaseException as error:
            raise ModelError(
                f"{where}{self._title}: {problem}: {self.failure(error)}\n"
                f"  its text is not shown, as a reward's messages may quote a report; {self._advice}"
            ) from error

    def _refused(self, found: str, expected: str, where: str = "") -> ModelError:
        return ModelError(f"{where}{self._title}: {found}\n  expected: {expected}; {self._advice}")

    def _attributes(self, unit: Any, low: Any, high: Any, needs_report: Any) -> tuple[str, float, float, bool]:
        numbers = [isinstance(edge, Real) and not isinstance(edge, bool) for edge in (low, high)]
        right = {
            "unit": isinstance(unit, str),
            "low": numbers[0] and not math.isnan(low),
            "high": numbers[1] and not (numbers[0] and not low < high),
            "needs_report": isinstance(needs_report, bool),
        }
        for attribute, fine in right.items():
            if not fine:
                raise self._refused(f"its attribute {attribute} is missing or wrong", _ATTRIBUTES[attribute])
        return unit, float(low), float(high), needs_report


def torch_defaults() -> dict[str, Any]:
    """What every tensor follows that is made without further words: dtype and device."""
    return {"dtype": torch.get_default_dtype(), "device": torch.get_default_device()}


def restored_defaults(before: dict[str, Any]) -> str | None:
    """Put torch's defaults back to those of `before`: what had changed, None if nothing had."""
    now = torch_defaults()
    changed = [f"torch's default {name} to {now[name]}" for name in before if now[name] != before[name]]
    if not changed:
        return None
    torch.set_default_dtype(before["dtype"])
    torch.set_default_device(before["device"])
    return " and ".join(changed)


def result_problem(result: Any, count: int) -> str | None:
    """What is wrong with a reward's result for `count` images, whatever its values; None if nothing is."""
    fine = (
        isinstance(result, Tensor)
        and not result.is_nested
        and result.layout is torch.strided
        and result.is_floating_point()
        and result.shape == (count,)
    )
    return None if fine else _kind(result)


def _kind(value: Any) -> str:
    """A value's type, for a tensor also its shape: never its content."""
    if value is None:
        return "None"
    if isinstance(value, Tensor) and not value.is_nested:
        layout = "" if value.layout is torch.strided else f", {str(value.layout).removeprefix('torch.')}"
        return f"a tensor of shape {list(value.shape)} and type {str(value.dtype).removeprefix('torch.')}{layout}"
    kind = type(value)
    return f"an object of type {kind.__qualname__ if kind.__module__ == 'builtins' else _full_name(kind)}"


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _batch(reports: Sequence[Report]) -> str:
    """A batch by its first report, as the beginning of a message."""
    if not reports:
        return ""
    count = len(reports) - 1
    others = f" and {count} other{'s' * (count > 1)} of its batch" if count else ""
    return f"report {reports[0].report_id}{others}: "
