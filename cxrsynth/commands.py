"""What each command does around its work: run it, render the outcome, turn our errors into exit codes."""

import errno
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from cxrsynth import console
from cxrsynth.errors import CxrsynthError
from cxrsynth.runtime.processes import Launch, read_launch
from cxrsynth.settings import AuditSettings, GenerateSettings, TuneSettings

_REWARDS = ("posture", "diagnosis", "consistency")
_JUDGE = "nano-judge"


@contextmanager
def _user_errors() -> Iterator[None]:
    """One message and exit code 2 for what the user can mend; Ctrl-C says how to go on."""
    launch = Launch()
    try:
        launch = read_launch()  # before any work
        yield
    except CxrsynthError as error:
        console.fail(f"[rank {launch.rank}] {error}" if launch.world_size > 1 else str(error))
        raise typer.Exit(2) from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        console.fail(f"{str(error.filename)[:80]}...: a name longer than the file system takes\n  choose a shorter one")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        console.say("stopped; what was finished is kept. Run the same command again to go on.")
        raise typer.Exit(130) from None


def run_generate(settings: GenerateSettings) -> None:
    """`cxrsynth generate`."""
    with _user_errors():
        _quiet_libraries()
        from cxrsynth.generation.generate import generate

        done = generate(settings)
        if done.estimate is not None:
            console.say(done.estimate)
            return
        if read_launch().rank != 0:
            return
        if done.already_complete:
            console.say(f"{settings.out}: already complete ({done.samples} images), nothing to do")
            return
        rejected = f", {done.rejected} rows set aside in rejected.csv" if done.rejected else ""
        console.say(f"{settings.out}: {done.samples} images in {done.shards} shards{rejected}")


def run_audit(settings: AuditSettings) -> None:
    """`cxrsynth audit`; exit code 3 when a stated minimum is missed."""
    with _user_errors():
        _quiet_libraries()
        from cxrsynth.auditing.audit import audit

        done = audit(settings)
        if done is None:
            return  # not the main process
        console.print_audit(done.summary, done.out)
        if not done.passed:
            raise typer.Exit(3)


def run_tune(settings: TuneSettings) -> None:
    """`cxrsynth tune`."""
    with _user_errors():
        _quiet_libraries()
        from cxrsynth.tuning.tune import tune

        done = tune(settings)
        if read_launch().rank != 0:
            return
        if done.estimate is not None:
            console.say(done.estimate)
        elif done.already_complete:
            console.say(f"{done.model}: already complete, nothing to do")
        else:
            console.say(f"{done.model}: tuned; use it with cxrsynth generate --model {done.model}")


def by_name(option: str, given: Sequence[str], *, low: float = -math.inf, high: float = math.inf) -> dict[str, float]:
    """`NAME=VALUE` of a repeatable option. Raises typer.BadParameter where one is not understood."""
    found = {}
    for one in given:
        name, _, text = one.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not name or not low <= value <= high:
            span = f" from {low:g} to {high:g}" if math.isfinite(low) else ""
            raise typer.BadParameter(f"{one!r}: expected REWARD=NUMBER{span}, as diagnosis=5", param_hint=option)
        found[name] = value
    return found


def judges_by_reward(given: Sequence[str]) -> dict[str, str]:
    """`--judge BACKEND` for all rewards and `REWARD=BACKEND` for one; the three rewards of nano-judge by default."""
    backend = _JUDGE
    own = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals:
            backend = one
        elif not name or not value:
            raise typer.BadParameter(f"{one!r}: expected BACKEND or REWARD=BACKEND", param_hint="--judge")
        else:
            own[name] = value
    return dict.fromkeys(_REWARDS, backend) | own


def _quiet_libraries() -> None:
    """Model loading prints bars and advice that are not about the user's work."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", module=r"(diffusers|transformers|torch|spacy|negspacy)\b")
