"""The contract of a reward, tried out on a few images: one finding for each promise of `Reward`."""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cxrsynth.console import counted
from cxrsynth.errors import ModelError, in_words
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.backends import load_reward
from cxrsynth.rewards.base import Reward
from cxrsynth.rewards.own import OwnReward, restored_defaults, result_problem, torch_defaults

# How far apart two values of the same image may be: a share of the standard deviation between images, and rounding.
_SHARE_OF_SPREAD, _ROUNDING = 1e-3, 1e-5
_CALLS_PER_THREAD = 3
_MAX_TEXT = 300  # characters of an exception's text


@dataclass(frozen=True)
class Finding:
    """One promise of the contract: kept if `problem` is None. `detail` is what was seen."""

    name: str
    problem: str | None = None
    detail: str = ""


def try_reward(
    name: str, backend: str, *, device: torch.device, examples: Callable[[], tuple[Tensor, Sequence[Report]]]
) -> Iterator[Finding]:
    """Load a reward and try out each promise of its contract. It ends at the first call that gives no values.

    The reports must be ones that anyone may read: texts of exceptions are shown, and may quote them.

    Args:
        name: of a reward, as for `load_reward`.
        backend: as for `load_reward`.
        device: where its networks run.
        examples: gives at least two images [B, 1, H, W] float32 in [0, 1], and their reports; called once it is loaded.

    Raises:
        ModelError: if there is no such reward, or a built-in one cannot be loaded.
    """
    try:
        loaded = load_reward(name, backend, device=device)
    except ModelError as error:
        if error.__cause__ is None:
            raise
        yield Finding("loading", f"{str(error).partition(chr(10))[0]}: {_text(error.__cause__)}")
        return
    edges = f"unit {loaded.unit!r}, from {loaded.low:g} to {loaded.high:g}"
    yield Finding("loading", detail=edges if loaded.needs_report else f"{edges}, needs no report")
    yield from _Trial(loaded, *examples()).findings()


class _Trial:
    """One reward on the same images again and again."""

    def __init__(self, reward: Reward, images: Tensor, reports: Sequence[Report]) -> None:
        # Of a user's own reward the object itself: its wrapper would put right what is to be found.
        self._own = reward if isinstance(reward, OwnReward) else None
        self._call: Any = reward.reward if isinstance(reward, OwnReward) else reward
        self._low, self._high = reward.low, reward.high
        self._images, self._reports = images, list(reports)

    def findings(self) -> Iterator[Finding]:
        images, reports, defaults = self._images.clone(), copy.deepcopy(self._reports), torch_defaults()
        try:
            with torch.enable_grad():
                result = self._call(images, reports)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            yield Finding("call", self._failure(error))
            return
        changed = restored_defaults(defaults)
        if changed is not None:
            yield Finding("call", f"it changed {changed}, expected no change")
            return
        yield Finding("call", detail=counted(len(images), "image"))
        problem = result_problem(result, len(images))
        if problem is None:
            try:
                values = result.detach().float().cpu()
            except Exception as error:
                problem = f"the result cannot be brought to the CPU: {self._failure(error)}"
        yield Finding("shape and type", problem and f"{problem}, expected a float tensor of shape [{len(images)}]")
        if problem is not None:
            return
        yield self._values(values)
        yield self._range(values)
        advice = "the result has one, expected none: put @torch.inference_mode() above the call"
        yield Finding("gradient", advice if result.requires_grad else None)
        kept = {"images": torch.equal(images, self._images), "reports": reports == self._reports}
        changed = " and ".join(part for part, same in kept.items() if not same)
        yield Finding(
            "arguments", f"the call changed its {changed}, expected none: work on copies" if changed else None
        )
        yield self._compared("same input", "differ from one call to the next", values, self._again)
        yield self._compared("batches", "depend on the other images of the batch", values, self._one_by_one)
        yield self._compared("threads", "differ when two threads call it at once", values, *self._from_threads())

    def _values(self, values: Tensor) -> Finding:
        known = int((~values.isnan()).sum())
        if values.isinf().any():
            return Finding("values", f"{int(values.isinf().sum())} of {len(values)} are infinite, expected nan")
        if not known:
            return Finding("values", "nan for every image, expected a number for some")
        return Finding("values", detail=f"a number for {known} of {counted(len(values), 'image')}, nan for the others")

    def _range(self, values: Tensor) -> Finding:
        known = values[values.isfinite()]
        if not len(known):
            return Finding("range", "no finite value to look at")
        seen = f"{float(known.min()):.6g} to {float(known.max()):.6g}"
        slack = _ROUNDING * float(known.abs().max())
        outside = bool((known < self._low - slack).any() or (known > self._high + slack).any())
        return Finding("range", f"{seen}, expected {self._low:g} to {self._high:g}" if outside else None, seen)

    def _again(self) -> Tensor:
        return self._score(slice(None))

    def _one_by_one(self) -> Tensor:
        return torch.cat([self._score(slice(place, place + 1)) for place in range(len(self._images))])

    def _from_threads(self) -> list[Callable[[], Tensor]]:
        """The calls of two threads that run at the same time, each as a function that returns its result."""
        begun = threading.Barrier(2)

        def several() -> list[Tensor]:
            begun.wait()
            return [self._score(slice(None)) for _ in range(_CALLS_PER_THREAD)]

        with ThreadPoolExecutor(2) as pool:
            threads = [pool.submit(several) for _ in range(2)]
        return [
            lambda thread=thread, call=call: thread.result()[call]  # type: ignore[misc]
            for thread in threads
            for call in range(_CALLS_PER_THREAD)
        ]

    def _score(self, places: slice) -> Tensor:
        """Values of some of the images, [b] float32 on the CPU, called as in a run."""
        images, reports = self._images[places].clone(), copy.deepcopy(self._reports[places])
        with torch.inference_mode():
            result = self._call(images, reports)
        problem = result_problem(result, len(images))
        if problem is not None:
            raise ValueError(f"{problem} for {len(images)} images, expected a float tensor of shape [{len(images)}]")
        return result.float().cpu()  # type: ignore[no-any-return]

    def _compared(self, name: str, problem: str, values: Tensor, *others: Callable[[], Tensor]) -> Finding:
        """Whether the values are the same again."""
        known = values[values.isfinite()]
        allowed = 0.0
        if len(known):
            allowed = _SHARE_OF_SPREAD * float(known.max() - known.min()) + _ROUNDING * float(known.abs().max())
        for other in others:
            try:
                again = other()
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                return Finding(name, self._failure(error))
            if not torch.equal(again.isnan(), values.isnan()):
                return Finding(name, f"the values {problem}: nan for other images")
            apart = float((again - values).nan_to_num().abs().max())
            if apart > allowed:
                return Finding(name, f"the values {problem}, by up to {apart:.2g}")
        return Finding(name)

    def _failure(self, error: BaseException) -> str:
        return in_words(error) if self._own is None else f"{self._own.failure(error)}: {_text(error)}"


def _text(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())
    except Exception as another:  # raised by code of the user's, too
        return f"its text cannot be shown: {type(another).__name__}"
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."
