"""Ctrl-C while Python clears up."""

import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from cxrsynth.runtime.interrupt import Terminated, kept_interrupts, terminated_as_interrupted


@pytest.fixture(autouse=True)
def default_handler() -> Iterator[None]:
    """As a shell starts a command; in the background, SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_end_the_work_and_keep_their_number(name: str) -> None:
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        for begin in (press, Closing):
            with pytest.raises(Terminated) as ended, terminated_as_interrupted(), kept_interrupts():
                _begin_and_wait(begin, number)
            assert ended.value.number == number
        assert signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)  # as nohup leaves SIGHUP
        with terminated_as_interrupted():
            press(number)
    finally:
        signal.signal(number, before)


def _begin_and_wait(begin: Callable[[int], object], number: int) -> None:
    begin(number)
    time.sleep(2)


def press(number: int = signal.SIGINT) -> None:
    signal.pthread_kill(threading.main_thread().ident, number)  # type: ignore[arg-type]


class Closing:
    """Presses Ctrl-C while it is cleared up."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        self._number = number

    def __del__(self) -> None:
        press(self._number)
        time.sleep(0)


def test_ctrl_c_in_a_destructor_ends_the_work() -> None:
    def work() -> None:
        Closing()
        time.sleep(2)

    with pytest.raises(KeyboardInterrupt), kept_interrupts():
        work()


def test_ctrl_c_in_a_callback_of_a_weak_reference_ends_the_work() -> None:
    class Thing:
        pass

    def work() -> None:
        thing = Thing()
        watched = weakref.ref(thing, lambda _: press())
        del thing
        time.sleep(2)
        assert watched() is None

    with pytest.raises(KeyboardInterrupt), kept_interrupts():
        work()


def test_ctrl_c_in_the_last_destructor_is_not_left_for_what_follows() -> None:
    with pytest.raises(KeyboardInterrupt), kept_interrupts():
        Closing()


def test_other_exceptions_in_destructors_go_where_they_went(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __del__(self) -> None:
            raise ValueError("closed twice")

    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(str(unraisable.exc_value)))
    before = sys.unraisablehook
    with kept_interrupts():
        Failing()
    assert seen == ["closed twice"]
    assert sys.unraisablehook is before
