"""Charts are most of the time that a page takes, and those of one example are alike on all its pages."""

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cxrsynth.auditing.page import charts

_DRAWN: dict[bytes, Any] = {}


def _once(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Draws a chart of the same name and numbers once; equal drawings have equal bytes."""

    def drawn(*arguments: Any, **options: Any) -> Any:
        wanted = pickle.dumps((draw.__name__, arguments, options))
        if wanted not in _DRAWN:
            _DRAWN[wanted] = draw(*arguments, **options)
        return _DRAWN[wanted]

    return drawn


@pytest.fixture(scope="module", autouse=True)
def _charts_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("histogram", "bars", "cumulative", "intervals", "differences", "amounts"):
            patch.setattr(charts, name, _once(getattr(charts, name)))
        yield


@pytest.fixture
def charts_anew() -> None:
    """Draws every chart of this test, whatever others have drawn."""
    _DRAWN.clear()
