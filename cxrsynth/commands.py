"""What each command does around its work: run it, render the outcome, turn our errors into exit codes."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from cxrsynth import console
from cxrsynth.errors import CxrsynthError
from cxrsynth.settings import GenerateSettings


@contextmanager
def _user_errors() -> Iterator[None]:
    """One message and exit code 2 for what the user can mend; Ctrl-C says how to go on."""
    rank = os.environ.get("RANK")
    try:
        yield
    except CxrsynthError as error:
        console.fail(f"[rank {rank}] {error}" if rank else str(error))
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        console.say("stopped; finished shards are kept. Run the same command again to go on.")
        raise typer.Exit(130) from None


def run_generate(settings: GenerateSettings) -> None:
    """`cxrsynth generate`."""
    with _user_errors():
        _quiet_libraries()
        from cxrsynth.generate import generate

        done = generate(settings)
        if done.estimate is not None:
            console.say(done.estimate)
            return
        if int(os.environ.get("RANK", "0")) != 0:
            return
        if done.already_complete:
            console.say(f"{settings.out}: already complete ({done.samples} images), nothing to do")
            return
        rejected = f", {done.rejected} rows set aside in rejected.csv" if done.rejected else ""
        console.say(f"{settings.out}: {done.samples} images in {done.shards} shards{rejected}")


def _quiet_libraries() -> None:
    """Model loading prints bars and advice that are not about the user's work."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", module=r"(diffusers|transformers|torch|spacy|negspacy)\b")
