"""`python -m cxrsynth.nano.build.fast --model MODEL --data DIR --work DIR` writes nano-fast.

MODEL is what the recipe `nano-distill` left. With `--autoencoder VAE`, what `cxrsynth.nano.build.fast_autoencoder` left
takes the place of nano's autoencoder. The UNet is stored in half precision, the folder is named nano-fast, and both
models are measured in one run on the prompts of val images: fidelity, prompt adherence, prompt pairs, memorization, and
images per second.
"""

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from cxrsynth.diffusion.networks import load_unet
from cxrsynth.diffusion.resolve import find_model
from cxrsynth.diffusion.spec import SPEC_FILE, read_spec
from cxrsynth.nano.build.config import BuildConfig, load_config
from cxrsynth.nano.build.export import CARD_FILE, FAMILIES_FOLDER, NUMBERS_FILE
from cxrsynth.nano.build.measure import reliable_heads
from cxrsynth.nano.build.measure_generator import Framed, ImageGenerator, generator_numbers
from cxrsynth.nano.build.reward_models import FAMILIES, load_split
from cxrsynth.nano.build.training import log
from cxrsynth.rewards.networks import FindingClassifier
from cxrsynth.runtime.files import folder_atomically, read_json

NAME, TEACHER = "nano-fast", "nano"
_OUT = Path(__file__).parents[1] / "fast"
_CONFIG = Path(__file__).with_name("config.yaml")
_ROUNDS, _PER_ROUND = 6, 32
_MODEL, _WORK = "--model runs/nano-fast/model", "--work checkpoints/"  # in the card's commands


def main(
    model: Annotated[Path, typer.Option(help="Model folder that `cxrsynth tune nano-distill` left.")],
    data: Annotated[Path, typer.Option(help="Folder with images/ and manifests/.")],
    work: Annotated[Path, typer.Option(help="Work folder, for the sheets of images.")],
    out: Annotated[Path, typer.Option(help="The model folder to write.")] = _OUT,
    autoencoder: Annotated[Path | None, typer.Option(help="Autoencoder that `fast_autoencoder` left.")] = None,
) -> None:
    """Write nano-fast and measure it beside nano."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    settings = load_config(_CONFIG)
    work.mkdir(parents=True, exist_ok=True)
    with folder_atomically(out) as partial:
        export_fast(model, partial, autoencoder=autoencoder)
        numbers = {
            "made_by": {
                "recipe": "nano-distill",
                "steps": read_spec(model).defaults.steps,
                "own_autoencoder": autoencoder is not None,
            },
            **_measured({NAME: partial, TEACHER: find_model(TEACHER)}, data, work, settings),
        }
        (partial / NUMBERS_FILE).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
        (partial / CARD_FILE).write_text(fast_card(numbers), encoding="utf-8")
    log.info("wrote %s", out)


def export_fast(model: Path, out: Path, *, autoencoder: Path | None = None) -> None:
    """Copy a distilled nano to `out` as nano-fast: UNet in half precision, `autoencoder` in place of nano's."""
    ignored = shutil.ignore_patterns(CARD_FILE, "unet", "vae")
    shutil.copytree(model, out, ignore=ignored, dirs_exist_ok=True)
    shutil.copytree(autoencoder or model / "vae", out / "vae")
    unet = load_unet(model / "unet").half()
    unet.save_pretrained(out / "unet", safe_serialization=True)
    config = read_json(out / "unet" / "config.json")
    config.pop("_name_or_path", None)
    (out / "unet" / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    spec = read_json(out / SPEC_FILE) | {"name": NAME}
    (out / SPEC_FILE).write_text(json.dumps(spec, indent=1) + "\n", encoding="utf-8")


def _measured(models: dict[str, Path], data: Path, work: Path, settings: BuildConfig) -> dict[str, Any]:
    """Numbers of each model on the same prompts and noise, and how fast they are."""
    train, val = (load_split(data, work, settings, split=split) for split in ("train", "val"))
    framed = [Framed.of(one.framed, one.framed_pixels, one.frames) for one in (train, val)]
    real = read_json(find_model(TEACHER) / NUMBERS_FILE)["reward_models"][FAMILIES[1]]["classifier"]
    classifier = FindingClassifier.from_pretrained(
        find_model(TEACHER) / FAMILIES_FOLDER / FAMILIES[1] / "classifier"
    ).eval()
    generators = {name: ImageGenerator(folder) for name, folder in models.items()}
    numbers: dict[str, Any] = {"images_per_second": images_per_second(generators)}
    for name, generator in generators.items():
        numbers[name] = generator_numbers(
            generator,
            classifier,
            *framed,
            known=val.radiographs,
            real=real,
            measurable=reliable_heads(real),
            count=settings.measure.images,
            pairs=settings.measure.pairs,
            seed=settings.seed,
            sheet=work / f"sheet-{name}.png",
        )
        log.info("%s measured", name)
    return numbers


def images_per_second(generators: dict[str, ImageGenerator]) -> dict[str, Any]:
    """Images per second of each model, decoding included, in turns; `times` is the ratio of the first to the second.

    Medians of rounds; the interval of the ratio is the range that holds 95% of the rounds' medians, resampled.
    """
    rates: dict[str, list[float]] = {name: [] for name in generators}
    prompts = ["PA chest radiograph. Adult woman. Normal chest."] * _PER_ROUND
    for turn in range(_ROUNDS + 1):
        for name, generator in generators.items():
            names = [f"speed-{turn}-{place}" for place in range(_PER_ROUND)]
            started = time.monotonic()
            generator.generate(prompts, names)
            if turn:  # the first round warms up
                rates[name].append(_PER_ROUND / (time.monotonic() - started))
    first, second = (np.asarray(one) for one in rates.values())
    ratios = first / second
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return {
        **{name: float(np.median(one)) for name, one in rates.items()},
        "times": {"value": float(np.median(ratios)), "low": float(low), "high": float(high)},
        "threads": torch.get_num_threads(),
    }


def fast_card(numbers: dict[str, Any]) -> str:
    """The model card as Markdown: both models side by side."""
    fast, nano, speed = numbers[NAME], numbers[TEACHER], numbers["images_per_second"]
    steps, own = numbers["made_by"]["steps"], numbers["made_by"].get("own_autoencoder", False)
    unchanged = f"{'' if own else 'autoencoder, '}text encoder and tokenizer"
    times = speed["times"]
    rows = [
        ("Frechet distance to real val images", _interval(fast, nano, "fidelity", "frechet_generated_to_val")),
        ("kernel distance to real val images", _interval(fast, nano, "fidelity", "kid_generated_to_val")),
        *(
            (name, [f"{one['fidelity']['manifolds_generated'][name]:.2f}" for one in (fast, nano)])
            for name in ("precision", "recall", "density", "coverage")
        ),
        ("pairs that follow a changed finding", _interval(fast, nano, "words", "right_way")),
        ("the same, findings that `nano-judge` recognizes", _interval(fast, nano, "words", "right_way_measurable")),
        (
            "closer to a training image than 99% of val images",
            _interval(fast, nano, "memorization", "nearer_than_first_percentile"),
        ),
        *(
            (f"AUROC of a prompted finding: {head}", _interval(fast, nano, "adherence", head, "generated"))
            for head, one in fast["adherence"].items()
            if one["share"] is not None
        ),
    ]
    ratio = (
        fast["fidelity"]["frechet_generated_to_val"]["value"] / nano["fidelity"]["frechet_generated_to_val"]["value"]
    )
    return "\n".join(
        [
            f"# {NAME}: nano in {steps} steps without guidance",
            "",
            f"Distilled from nano by `cxrsynth tune nano-distill` on synthetic reports and nano's own images: {steps}"
            f" passes of the UNet in place of 40. No real image was used beyond those that trained nano; {unchanged}"
            " are nano's. All that nano's model card says of use, data, licenses and limits holds.",
            "",
            *(
                ["Its autoencoder is narrower than nano's, and learned from it on nano-fast's images.", ""]
                if own
                else []
            ),
            f"Use it as its `cxrsynth.json` says ({steps} steps of DDIM, guidance 1): it knows no other noise levels.",
            *([numbers["made_by"]["note"]] if "note" in numbers["made_by"] else []),
            "",
            "## Evaluation",
            "",
            f"{NAME} and nano at their recommended settings, on the same prompts of split `val` and the same noise; 95%"
            " intervals, as in nano's model card.",
            "",
            f"| measure | {NAME} | nano |",
            "| --- | --- | --- |",
            *(f"| {name} | {of_fast} | {of_nano} |" for name, (of_fast, of_nano) in rows),
            "",
            f"- The Frechet distance is {ratio:.2f} times that of nano.",
            f"- {speed[NAME]:.1f} images per second against {speed[TEACHER]:.1f} on {speed['threads']} CPU cores,"
            f" decoding included: {times['value']:.1f} times as many ({times['low']:.1f} to {times['high']:.1f})."
            + ("" if own else " Decoding takes as long as before."),
            "",
            "## How to reproduce",
            "",
            "```",
            "python -m cxrsynth.nano.build.example_reports reports.csv --rows 3200 --seed 1 --omit 0.15",
            "cxrsynth tune nano-distill --set reports.table=reports.csv --out runs/nano-fast",
            *(
                [f"python -m cxrsynth.nano.build.fast_autoencoder {_MODEL} --reports reports.csv {_WORK}"]
                if own
                else []
            ),
            f"python -m cxrsynth.nano.build.fast {_MODEL} --data DIR {_WORK}"
            + (" --autoencoder checkpoints/fast-autoencoder" if own else ""),
            "```",
            "",
        ]
    )


def _interval(fast: dict[str, Any], nano: dict[str, Any], *path: str) -> list[str]:
    """A number of both models with its interval."""
    cells = []
    for numbers in (fast, nano):
        one: Any = numbers
        for key in path:
            one = one[key]
        cells.append(f"{one['value']:.3g} ({one['low']:.3g} to {one['high']:.3g})")
    return cells


if __name__ == "__main__":
    typer.run(main)
