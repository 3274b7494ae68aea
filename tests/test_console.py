"""Progress of a run: a live table on a terminal, plain lines when piped."""

import contextlib
import os
import pty
import sys
import threading
from typing import Any

import pytest
from rich.console import Console

from cxrsynth import console

ROW = {
    "images": 8,
    "reward/posture/mean": -0.5,
    "reward/posture/baseline": -0.75,
    "feedback/posture/mean": 0.25,
    "feedback/win_rate": 0.625,
    "policy/clip_fraction": 0.125,
    "policy/baseline_kl": 0.0625,
    "time/rollout_s": 2.0,
    "time/baseline_s": 1.0,
    "time/update_s": 1.0,
}


class Terminal:
    """A terminal as standard error. Its output is read in a thread, since its buffer is small."""

    def __init__(self) -> None:
        self.shown = b""
        self._master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO once the other end is closed
            while part := os.read(self._master, 1 << 16):
                self.shown += part

    def close(self) -> str:
        """Everything shown."""
        self.stream.close()
        self._reader.join(timeout=30)
        assert not self._reader.is_alive()
        os.close(self._master)
        return self.shown.decode()


def test_tuning_is_a_live_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal.stream)
        with console.tuning_view(20) as show:
            show(1, ROW)
            console.say("a message beside it")
            show(2, ROW | {"feedback/win_rate": 0.75})
    text = terminal.close()
    for expected in ("posture", "-0.5", "0.625", "0.75", "0.0625", "2.00 images/s", "left", "a message beside it"):
        assert expected in text, expected
    assert "\x1b[1A" in text  # redrawn in place


def test_tuning_is_a_plain_line_per_iteration_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    with console.tuning_view(20) as show:
        show(1, ROW)
        show(2, ROW)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("iteration 2/20: posture -0.500")
    assert "win rate 0.625" in lines[1]
    assert "\x1b" not in lines[1]


def test_an_evaluation_is_a_line_with_both_margins(capsys: pytest.CaptureFixture[str]) -> None:
    margins = {"evaluation/tuning/total/margin": 0.25, "evaluation/evaluator/total/margin": -0.125}
    rates = {"evaluation/tuning/total/win_rate": 0.75, "evaluation/evaluator/total/win_rate": 0.5}
    with console.tuning_view(20) as show:
        show(20, ROW)
        show(20, margins | rates)
    assert capsys.readouterr().err.splitlines()[1] == (
        "iteration 20/20 on held-out reports: tuning +0.250 (win rate 0.75), evaluator -0.125 (win rate 0.50)"
    )


def test_one_is_singular_and_thousands_are_separated() -> None:
    assert console.counted(1, "image") == "1 image"
    assert console.counted(0, "image") == "0 images"
    assert console.counted(12_000, "batch", "batches") == "12,000 batches"


def test_messages_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    # Not markup of rich: it would take the backslash, the tag, or the whole bracket.
    message = r"found '[', expected \[ for the sign itself, owner/name[@revision], [red] or [/red]"
    for show, start in ((console.say, ""), (console.warn, "warning: "), (console.fail, "error: ")):
        show(message)
        assert capsys.readouterr().err == f"{start}{message}\n"
    console.print_finding(message, None, message)
    console.print_finding(message, message)
    assert capsys.readouterr().out == f"{message}ok     {message}\n{message}failed {message}\n"
    console.print_rewards({"[red]": r"a\[b"})
    assert r"a\[b" in (printed := capsys.readouterr().out)
    assert "[red]" in printed


def test_the_floor_stands_beside_each_measure_at_its_size(capsys: pytest.CaptureFixture[str]) -> None:
    measured = {"value": 14.2, "low": 12.3, "high": 16.1}
    names = ("frechet", "kid", "mmd", "precision", "recall", "density", "coverage")
    row: dict[str, Any] = dict.fromkeys((*names, "ms_ssim_within", "ms_ssim_real", "ms_ssim_to_real"), measured)
    row |= {"frechet_infinity": None, "compared": 150, "warnings": {"frechet": "150 images for 160 features"}}
    row["not_measured"] = {"frechet_infinity": "too few"}
    floor: dict[str, Any] = {"images": 70, "audited": dict.fromkeys(names, 20.25)}
    row["floor"] = floor | {name: {"value": 6.12, "low": 5.0, "high": 7.0} for name in names}
    console._print_fidelity(Console(width=100), row, "all images")
    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines() if "frechet " in line] == [
        ["frechet", "14.2", "(12.3", "to", "16.1)", "6.12", "20.2"]
    ]
    assert "real, 70 each   audited, 70 each" in shown
    assert "frechet_infinity: not measured: too few" in shown
    assert "frechet: 150 images for 160 features" in shown
    console._print_fidelity(Console(width=100), row | {"floor": floor | row["floor"] | {"images": 150}}, "all images")
    assert "audited, " not in capsys.readouterr().out
    console._print_fidelity(Console(width=100), row | {"floor": None}, "all images")
    assert "real, " not in capsys.readouterr().out


def test_the_last_count_is_said_where_the_total_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    """A line every ten seconds alone would end on an old count, which looks like all there was."""
    with console.image_progress(None) as advance:
        for _ in range(5):
            advance(4)
    assert "20 images, " in capsys.readouterr().err
    with console.image_progress(None):
        pass
    assert capsys.readouterr().err == ""
