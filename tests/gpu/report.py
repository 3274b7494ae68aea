"""`python -m tests.gpu.report`: what works on this machine's GPU, how fast, and in how much memory.

Runs the three commands as a user would, on nano and on a randomly initialised model of the size of Stable
Diffusion 1.5, each in a process of its own, without network. Every step is independent: one that fails is a row that
says so. A command that takes more than 300 seconds has failed. Prints a Markdown table and writes it, with the output
of failed commands, under `--out`.

Images of the GPU are compared with the CPU's in float32: at most 1 of 255 gray levels apart on average.
"""

import hashlib
import io
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml
from PIL import Image

_RECIPES = Path(__file__).resolve().parents[2] / "recipes"
_REPORTS = _RECIPES / "reports.csv"
_MANY_REPORTS = _RECIPES / "nano-reports.csv"
_COMMAND_LIMIT_S = 300.0
# 192 images in 12 shards.
_SET = ("--images-per-report", "8", "--shard-size", "16", "--batch-size", "8")
_TOLERANCE = 1.0  # gray levels of 255, mean


@dataclass(frozen=True)
class Run:
    """One finished command."""

    code: int
    seconds: float
    peak_bytes: int
    output: str


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    outcome: str
    ok: bool


class Failed(Exception):
    """A step whose command or check failed."""


def run(work: Path, *arguments: str) -> Run:
    """A `cxrsynth` command in a process of its own. Raises Failed unless it exits with 0 within the limit."""
    result = work / "measured.json"
    result.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.gpu.measured", str(result), *arguments],
            cwd=Path(__file__).resolve().parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_LIMIT_S,
        )
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""  # bytes, whatever was asked for
        printed = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
        raise Failed(
            f"cxrsynth {' '.join(arguments)}\n{printed[-3000:]}\nnot done after {_COMMAND_LIMIT_S:g} s"
        ) from None
    if done.returncode != 0 or not result.is_file():
        raise Failed(f"cxrsynth {' '.join(arguments)}\nexit code {done.returncode}\n{done.stdout[-3000:]}")
    found = json.loads(result.read_text())
    return Run(done.returncode, found["seconds"], found["peak_bytes"], done.stdout)


def generate(work: Path, name: str, *arguments: str, reports: Path = _REPORTS) -> Run:
    """`cxrsynth generate` on the GPU, unless the arguments say otherwise."""
    device = () if "--device" in arguments else ("--device", "cuda")
    return run(work, "generate", str(reports), "--out", str(work / name), *device, *arguments)


def tars(folder: Path) -> dict[str, str]:
    """SHA-256 of every tar of a set."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.tar"))}


def pixels(folder: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    """All PNG images of a set in their order, [N, H, W], gray levels of 255."""
    images = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".png"):
                    content = tar.extractfile(member)
                    assert content is not None
                    image = np.asarray(Image.open(io.BytesIO(content.read())), dtype=np.float32)
                    images.append(image / (257.0 if image.max() > 255 else 1.0))
    return np.stack(images)


def gib(count: float) -> str:
    """Bytes in GiB."""
    return f"{count / 2**30:.2f} GiB"


def same_pixels(work: Path) -> str:
    """GPU against CPU, both in float32."""
    generate(work, "cpu32", "--device", "cpu", "--precision", "fp32", "--limit", "8")
    outcomes = []
    for precision in ("fp32", "bf16", "fp16"):
        generate(work, f"gpu-{precision}", "--precision", precision, "--limit", "8")
        difference = np.abs(pixels(work / f"gpu-{precision}") - pixels(work / "cpu32"))
        outcomes.append(f"{precision} mean {difference.mean():.2f}, largest {difference.max():.0f}")
        if difference.mean() > _TOLERANCE:
            raise Failed(f"{precision}: mean difference {difference.mean():.2f} of 255, at most {_TOLERANCE}")
    return "; ".join(outcomes) + " of 255"


def same_bytes(work: Path) -> str:
    """The same command twice, and once killed in the middle."""
    generate(work, "first", *_SET)
    generate(work, "again", *_SET)
    if tars(work / "first") != tars(work / "again"):
        raise Failed("the same command gave other bytes")
    command = [sys.executable, "-m", "cxrsynth", "generate", str(_REPORTS), "--out", str(work / "killed")]
    process = subprocess.Popen([*command, "--device", "cuda", *_SET], stdout=subprocess.DEVNULL)
    late = time.monotonic() + _COMMAND_LIMIT_S
    while len(list((work / "killed").glob("*.tar"))) < 3 and process.poll() is None and time.monotonic() < late:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(tars(work / "killed"))
    generate(work, "killed", *_SET)
    if tars(work / "first") != tars(work / "killed"):
        raise Failed("a killed and resumed run gave other bytes")
    return f"{len(tars(work / 'first'))} shards equal; killed after {kept} and resumed: equal"


def generation_rate(work: Path, model: str, batch: int, *, few: int, many: int, extra: tuple[str, ...] = ()) -> str:
    """Images per second between a short and a long run, so that start-up cancels."""
    _check_batches(batch, few, many)
    seconds, peak = [], 0
    for count in (few, many):
        arguments = ("--model", model, "--batch-size", str(batch), "--limit", str(count), *extra)
        name = "-".join(("rate", Path(model).name, str(batch), str(count), *extra))
        done = generate(work, name.replace("/", "_"), *arguments, reports=_MANY_REPORTS)
        seconds.append(done.seconds)
        peak = max(peak, done.peak_bytes)
    rate = (many - few) / (seconds[1] - seconds[0])
    return f"{rate:.2f} images/s, {gib(peak)} (start-up and {few} images {seconds[0]:.0f} s)"


def _check_batches(batch: int, *counts: int) -> None:
    """Refuse a last batch that is not full: compiled, it is filled up, and more is computed than is counted."""
    for count in counts:
        if count % batch:
            raise ValueError(f"{count} images are no whole number of batches of {batch}")


def encoding_workers(work: Path) -> str:
    """Images per second with the thread that writes alone, and with worker processes that encode; the same bytes."""
    outcomes = []
    for workers in ("0", "1", "4"):
        rate = generation_rate(work, "nano", 64, few=64, many=384, extra=("--workers", workers))
        outcomes.append(f"{workers}: {rate}")
    without, *others = (tars(folder) for folder in sorted(work.glob("rate-nano-64-384---workers-*")))
    if not without or any(other != without for other in others):
        raise Failed("another number of workers gave other bytes")
    return "; ".join(outcomes)


def compiled(work: Path, model: str, batch: int, *, few: int, many: int, extra: tuple[str, ...] = ()) -> str:
    """Images per second compiled, and how far pixels are from those without compiling; the same bytes twice."""
    _check_batches(batch, few, many)
    arguments = ("--model", model, "--batch-size", str(batch), "--limit", str(few), *extra)
    name = f"compile-{Path(model).name}"
    for made, more in (("plain", ()), ("first", ("--compile",)), ("again", ("--compile",))):
        generate(work, f"{name}-{made}", *arguments, *more, reports=_MANY_REPORTS)
    if tars(work / f"{name}-first") != tars(work / f"{name}-again"):
        raise Failed("the same command gave other bytes")
    difference = np.abs(pixels(work / f"{name}-first") - pixels(work / f"{name}-plain"))
    # With what is in torch's cache by now: else compiling would count in the shorter run alone.
    rate = generation_rate(work, model, batch, few=few, many=many, extra=(*extra, "--compile"))
    return f"{rate}; mean difference {difference.mean():.2f}, largest {difference.max():.0f} of 255"


def dicom(work: Path) -> str:
    """DICOM shards, read back."""
    import pydicom

    generate(work, "dicom", "--format", "dicom", "--limit", "4")
    with tarfile.open(next((work / "dicom").glob("*.tar"))) as tar:
        names = [name for name in tar.getnames() if name.endswith(".dcm")]
        content = tar.extractfile(names[0])
        assert content is not None
        data = pydicom.dcmread(io.BytesIO(content.read()))
    return f"{len(names)} objects, {data.Rows} x {data.Columns}, SyntheticData {data.SyntheticData}"


def tune_rate(work: Path, name: str, recipe: Path, *settings: str) -> str:
    """A recipe on the GPU: images per second, its parts, and how far the policy is from its start."""
    overrides = [word for one in ("model.device=cuda", *settings) for word in ("--set", one)]
    done = run(work, "tune", str(recipe), "--out", str(work / name), *overrides)
    rows = [json.loads(line) for line in (work / name / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "time/update_s" in row]
    last = rows[-1]
    parts = {part: last[f"time/{part}_s"] for part in ("rollout", "baseline", "update")}
    spent = sum(parts.values())
    split = ", ".join(f"{part} {value:.1f} s" for part, value in parts.items())
    if "policy/ratio_error" in last:
        of_objective = f"ratio off by {rows[0]['policy/ratio_error']:.1e}, clipped {last['policy/clip_fraction']:.0%}"
    else:
        of_objective = f"distance to the baseline {last['policy/baseline_distance']:.2g}"
    return (
        f"{last['images'] / spent:.2f} images/s ({split}), {gib(done.peak_bytes)}, {of_objective}, whole command"
        f" {done.seconds:.0f} s"
    )


def learning_rate(work: Path, name: str, recipe: Path) -> str:
    """A recipe of one stage `sft` or `distill` on the GPU: images per second of its steps, the first ones left out."""
    done = run(work, "tune", str(recipe), "--out", str(work / name), "--set", "model.device=cuda")
    rows = [json.loads(line) for line in (work / name / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "time/images_per_s" in row]
    rate = float(np.median([row["time/images_per_s"] for row in rows[len(rows) // 4 :]]))
    loss = next(key for key in rows[0] if key.endswith("/loss"))
    return (
        f"{rate:.1f} images/s, {gib(done.peak_bytes)}, loss {rows[0][loss]:.3g} at first, {rows[-1][loss]:.3g} at step"
        f" {len(rows)}, whole command {done.seconds:.0f} s"
    )


def finetune(work: Path) -> str:
    """`stage: sft` on images that nano made, with the text of their reports."""
    generate(
        work, "sft-images", "--limit", "128", "--batch-size", "64", "--include-text", "sanitized", reports=_MANY_REPORTS
    )
    return learning_rate(work, "sft", sft_recipe(work, work / "sft-images"))


def audit(work: Path, name: str, *arguments: str, reports: Path = _REPORTS) -> str:
    """`audit` of a generated set on the GPU, its keep list against the CPU's. The set is made unless it is there."""
    generate(work, name, *arguments, reports=reports)
    out, out_cpu = work / f"{name}-audit", work / f"{name}-audit-cpu"
    done = run(work, "audit", str(work / name), "--out", str(out), "--device", "cuda")
    on_cpu = run(work, "audit", str(work / name), "--out", str(out_cpu), "--device", "cpu")
    kept, kept_cpu = ((folder / "keep.csv").read_text().splitlines() for folder in (out, out_cpu))
    if kept != kept_cpu:
        differing = sum(one != other for one, other in zip(kept, kept_cpu, strict=True))
        raise Failed(f"other decisions than on the CPU: {differing} of {len(kept) - 1} rows of keep.csv")
    return (
        f"{len(kept) - 1} images, {done.seconds:.0f} s, {gib(done.peak_bytes)}; on the CPU {on_cpu.seconds:.0f} s, same"
        " decisions"
    )


def sd15(work: Path) -> Path:
    """The folder of the large model, made once."""
    folder = work / "sd15"
    if not (folder / "model_index.json").is_file():
        from tests.benchmarks.tune_memory import make_sd15

        make_sd15(folder)
        config = folder / "unet" / "config.json"
        assert config.is_file()
    return folder


def peak_share(work: Path) -> str:
    """Floating-point operations of the large UNet, at the rate of its own bare forward, of a large matmul's."""
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    unet = UNet2DConditionModel.from_pretrained(sd15(work) / "unet", torch_dtype=torch.bfloat16)
    unet = unet.to("cuda", memory_format=torch.channels_last).eval()
    outcomes = []
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    matmul = 2 * 8192**3 / _seconds(lambda: a @ b)
    for batch in (2, 16):
        latents = torch.randn(batch, 4, 64, 64, device="cuda", dtype=torch.bfloat16)
        latents = latents.to(memory_format=torch.channels_last)
        text = torch.randn(batch, 77, 768, device="cuda", dtype=torch.bfloat16)

        def forward(latents: torch.Tensor = latents, text: torch.Tensor = text) -> None:
            with torch.no_grad():
                unet(latents, 500, text)

        with FlopCounterMode(display=False) as counter:
            forward()
        flops, taken = counter.get_total_flops(), _seconds(forward)
        outcomes.append(f"batch {batch}: {taken * 1e3:.1f} ms, {flops / taken / matmul:.0%} of the matmul rate")
    return f"{flops / batch / 1e12:.2f} TFLOP a pass; matmul {matmul / 1e12:.0f} TFLOP/s; " + "; ".join(outcomes)


def _seconds(work: Callable[[], object], repeats: int = 10) -> float:
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


_UPDATES: dict[str, dict[str, Any]] = {
    "policy_gradient": {
        "comparison": {"pool": 1},
        "update": {
            "num_minibatches": 2,
            "timestep_fraction": 0.5,
            "kl_weight": 0.05,
            "grad_norm": 0.1,
            "micro_batch": 8,
        },
    },
    "forward": {
        "comparison": {"baseline_images": 4},
        "forward": {"num_minibatches": 2, "timesteps": 4, "micro_batch": 8},
    },
}


def large_recipe(work: Path, unet: str, *, objective: str = "policy_gradient") -> Path:
    """RLCF with ACE on the large model, updates as in `recipes/sd15-*`: LoRA, or all weights of the UNet."""
    train: dict[str, Any] = {"unet": unet, "ace": {"subspace": 8, "exploration_std": 0.3}, "learning_rate": 1.0e-5}
    if unet == "lora":
        train["lora"] = {"rank": 16}
    stage = {
        "stage": "rlcf",
        "objective": objective,
        "iterations": 2,
        "reports_per_iteration": 4,
        "images_per_report": 4,
        "train": train,
        "sampling": {"steps": 20, "guidance": 4.0, "batch_size": 8},
    } | _UPDATES[objective]
    recipe = {
        "model": {"checkpoint": str(sd15(work)), "precision": "bf16", "gradient_checkpointing": True},
        "reports": {"table": str(_REPORTS), "held_out": 4},
        "stages": [stage],
        "evaluation": {"every": 2, "reports": 4, "steps": 8, "sheet": 4},
    }
    path = work / f"large-{unet}-{objective}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def ddpo_recipe(work: Path) -> Path:
    """`smoke.yaml` with direct rewards, which compare the images of a report with each other: these are four."""
    recipe = yaml.safe_load((_RECIPES / "smoke.yaml").read_text())
    recipe["reports"]["table"] = str(_MANY_REPORTS)
    recipe["stages"][0] |= {"stage": "ddpo", "images_per_report": 4}
    recipe["stages"][0].pop("comparison")
    path = work / "ddpo.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def sft_recipe(work: Path, images: Path) -> Path:
    """The first stage of `nano-sft-then-rlcf.yaml` on these images, with few steps."""
    recipe = yaml.safe_load((_RECIPES / "nano-sft-then-rlcf.yaml").read_text())
    [stage, _] = recipe["stages"]
    recipe["stages"] = [stage | {"data": str(images), "steps": 40}]
    recipe["reports"]["table"] = str(_MANY_REPORTS)
    path = work / "sft.yaml"
    path.write_text(yaml.safe_dump({name: recipe[name] for name in ("seed", "model", "reports", "stages")}))
    return path


def distill_recipe(work: Path) -> Path:
    """`nano-distill.yaml` with few trajectories and few steps, compared with its teacher on few reports."""
    recipe = yaml.safe_load((_RECIPES / "nano-distill.yaml").read_text())
    recipe["reports"] = {"table": str(_MANY_REPORTS), "held_out": 8, "test": 8}
    recipe["stages"][0] |= {"trajectories": 256, "steps": 40}
    path = work / "distill.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def environment() -> str:
    """Card and software."""
    names = ("torch", "diffusers", "transformers", "accelerate", "peft")
    software = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{torch.cuda.get_device_name()}, Python {platform.python_version()}, {software}"


def all_steps(work: Path, *, large: bool) -> dict[str, Callable[[], str]]:
    """What is done, by name; each gives the outcome of its row, or raises."""
    smoke, rlcf = _RECIPES / "smoke.yaml", _RECIPES / "nano-rlcf.yaml"
    gradient = _RECIPES / "nano-policy-gradient.yaml"
    two = ("stages.0.iterations=2", "evaluation.every=2", "evaluation.reports=16")
    full = ("stages.0.train.unet=full", "stages.0.train.learning_rate=1.0e-5")
    wide = ("stages.0.sampling.batch_size=64",)  # also the size of the forward passes of the update
    steps: dict[str, Callable[[], str]] = {
        "environment": environment,
        "nano, pixels against the CPU's float32": lambda: same_pixels(work),
        "nano, same bytes, kill -9 and resume": lambda: same_bytes(work),
        "nano, DICOM": lambda: dicom(work),
        "nano, generate, batch 8": lambda: generation_rate(work, "nano", 8, few=16, many=400),
        "nano, generate, batch 64": lambda: generation_rate(work, "nano", 64, few=64, many=384),
        "nano, generate, batch 64, worker processes that encode": lambda: encoding_workers(work),
        "nano, generate, batch 64, compiled": lambda: compiled(work, "nano", 64, few=64, many=384),
        "nano, tune smoke.yaml": lambda: tune_rate(work, "smoke", smoke),
        "nano, tune nano-rlcf.yaml": lambda: tune_rate(work, "rlcf", rlcf, *two),
        "nano, tune nano-rlcf.yaml, batch 64": lambda: tune_rate(work, "rlcf-wide", rlcf, *two, *wide),
        "nano, tune nano-policy-gradient.yaml, LoRA": lambda: tune_rate(work, "pg", gradient, *two),
        "nano, tune nano-policy-gradient.yaml, whole UNet": lambda: tune_rate(work, "pg-full", gradient, *two, *full),
        "nano, tune nano-policy-gradient.yaml, batch 64": lambda: tune_rate(work, "pg-wide", gradient, *two, *wide),
        "nano, tune, direct rewards (DDPO)": lambda: tune_rate(work, "ddpo", ddpo_recipe(work)),
        "nano, tune, sft": lambda: finetune(work),
        "nano, tune, distill": lambda: learning_rate(work, "distill", distill_recipe(work)),
        "nano, audit": lambda: audit(work, "first", *_SET),
    }
    if large:
        eight = ("--steps", "8", "--batch-size", "8", "--prompt", "impression")
        fifty = ("--steps", "50", "--guidance", "4", "--prompt", "impression")
        steps |= {
            "SD 1.5 size, bare UNet in bfloat16": lambda: peak_share(work),
            "SD 1.5 size, generate, 50 steps, batch 8": lambda: generation_rate(
                work, str(sd15(work)), 8, few=8, many=40, extra=fifty
            ),
            "SD 1.5 size, generate, 50 steps, batch 8, compiled": lambda: compiled(
                work, str(sd15(work)), 8, few=8, many=40, extra=fifty
            ),
            "SD 1.5 size, audit of 40 images": lambda: audit(
                work, "large", "--model", str(sd15(work)), *eight, "--limit", "40", reports=_MANY_REPORTS
            ),
            "SD 1.5 size, tune, LoRA and ACE": lambda: tune_rate(work, "sd-lora", large_recipe(work, "lora")),
            "SD 1.5 size, tune, forward, LoRA and ACE": lambda: tune_rate(
                work, "sd-forward", large_recipe(work, "lora", objective="forward")
            ),
            "SD 1.5 size, tune, whole UNet and ACE": lambda: tune_rate(work, "sd-full", large_recipe(work, "full")),
        }
    return steps


def main(
    out: Annotated[Path, typer.Option(help="Folder for the table and the output of what failed.")] = Path("gpu-report"),
    only: Annotated[str, typer.Option(help="Steps whose name contains one of these words, comma-separated.")] = "",
    large: Annotated[bool, typer.Option(help="Also the model of the size of Stable Diffusion 1.5.")] = True,
) -> None:
    """Run every step, print the table; exit code 1 if one failed."""
    if not torch.cuda.is_available():
        typer.echo("no CUDA device: nothing measured")
        raise typer.Exit(2)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        steps = all_steps(Path(folder), large=large)
        wanted = [word for word in only.split(",") if word]
        rows = [
            _step(name, work_of_step, out)
            for name, work_of_step in steps.items()
            if not wanted or any(word in name for word in wanted)
        ]
    table = "\n".join(["| step | outcome |", "| --- | --- |", *(f"| {row.what} | {row.outcome} |" for row in rows)])
    (out / "report.md").write_text(table + "\n", encoding="utf-8")
    typer.echo(table)
    if not all(row.ok for row in rows):
        raise typer.Exit(1)


def _step(name: str, work: Callable[[], str], out: Path) -> Row:
    started = time.perf_counter()
    try:
        row = Row(name, work(), True)
    except Exception as error:  # every step gets its turn; what went wrong is in the log
        said = str(error) if isinstance(error, Failed) else traceback.format_exc()
        with (out / "failures.log").open("a", encoding="utf-8") as log:
            log.write(f"== {name}\n{said}\n")
        typer.echo(f"FAILED {name}\n{said[-2500:]}", err=True)
        row = Row(name, f"failed: {said.splitlines()[-1][:200] if said else type(error).__name__}", False)
    typer.echo(f"[{math.ceil(time.perf_counter() - started)} s] {name}: {row.outcome}", err=True)
    return row


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    typer.run(main)
