"""`python -m tests.benchmarks.tune_memory`: memory and time of one RLCF iteration at the size of Stable Diffusion 1.5.

Makes a folder of that layout and size with random weights (UNet of 860 M parameters, 64 x 64 latents), and tunes
adapters of rank 16 and ACE on it for one iteration on the CPU, once with each objective, each in a process of its own.
Both sample two images of one report with three steps and one image of the baseline, and learn from each image at two
noise levels: what differs is the objective. Beside the peak stands what the UNet's weights take: with adapters the
baseline is the same network with the adapters off, so there is no second copy. Random weights make noise: only memory
and time are measured.
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.reports.prompt import every_canonical_sentence

_OBJECTIVES: dict[str, dict[str, Any]] = {
    "policy_gradient": {
        "comparison": {"pool": 1},
        # Two of the three steps, the last of which has no noise.
        "update": {"num_minibatches": 1, "timestep_fraction": 1.0, "kl_weight": 0.05, "clip_range": 1.0e-2},
    },
    "forward": {
        "comparison": {"kind": "win_probability", "baseline_images": 1},
        "forward": {"num_minibatches": 1, "timesteps": 2, "kl_weight": 0.3},
    },
}
_REPORTS = Path(__file__).parents[2] / "recipes" / "nano-reports.csv"


def main(
    work: Annotated[Path | None, typer.Option(help="Where the model is kept; default: removed afterwards.")] = None,
    measured: Annotated[Path | None, typer.Option(hidden=True)] = None,
    objective: Annotated[str, typer.Option(hidden=True)] = "forward",
) -> None:
    """Make the model, tune it once with each objective, print a table."""
    if measured is not None:
        _tune(measured, objective)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = (work or Path(folder)) / "sd15"
        if not (model / "model_index.json").is_file():
            make_model(model)
        columns = {name: _in_process(model, name) for name in _OBJECTIVES}
    typer.echo(f"| | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for key in next(iter(columns.values())):
        typer.echo(f"| {key} | {' | '.join(found[key] for found in columns.values())} |")


def _in_process(model: Path, objective: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.tune_memory", "--measured", str(model), "--objective", objective],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def make_model(folder: Path) -> None:
    """Stable Diffusion 1.5's own sizes, weights drawn at random and kept in bfloat16."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer(model_max_length=77).train_new_from_iterator(
        [every_canonical_sentence()], vocab_size=1024, show_progress=False
    )
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    StableDiffusionPipeline(
        vae=vae.to(torch.bfloat16),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet.to(torch.bfloat16),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)


def _tune(model: Path, objective: str) -> None:
    """Tune in a process of its own, whose peak is that of the iteration. Prints JSON."""
    from cxrsynth.diffusion.parallel import SamplingPool
    from cxrsynth.settings import TuneSettings
    from cxrsynth.tuning.reinforce import Reinforcement
    from cxrsynth.tuning.setup import open_tune

    stage = {
        "stage": "rlcf",
        "objective": objective,
        "iterations": 1,
        "reports_per_iteration": 1,
        "images_per_report": 2,
        "train": {"unet": "lora", "lora": {"rank": 16}, "ace": True},
        "sampling": {"steps": 3, "guidance": 4.0, "batch_size": 1},
    } | _OBJECTIVES[objective]
    recipe = {
        "model": {"checkpoint": str(model), "device": "cpu", "gradient_checkpointing": True},
        "reports": {"table": str(_REPORTS), "limit": 3, "held_out": 2, "test": 0},
        "stages": [stage],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        run = open_tune(TuneSettings(recipe=path, out=Path(folder) / "run"))
        made = Reinforcement(run, run.recipe.stages[0], 0, checkpoint=resolve_model(str(model)))  # type: ignore[arg-type]
        loaded = _peak_bytes()
        with SamplingPool(made.policy.model, batch_size=1, threads_per_batch=torch.get_num_threads()) as pool:
            row = made.opened(pool)(0)
    unet = made.policy.model.denoiser
    own = sum(weight.numel() * weight.element_size() for name, weight in unet.named_parameters() if "lora_" not in name)
    with made.policy.baseline() as baseline:
        shared = baseline.denoiser is unet
    times = [key for key in row if key.startswith("time/")]
    seconds = sum(row[key] for key in times)
    found = {
        "UNet parameters": f"{sum(w.numel() for n, w in unet.named_parameters() if 'lora_' not in n) / 1e6:.0f} M",
        "UNet weights": _gib(own),
        "adapters and ACE": f"{sum(w.numel() for w in made.policy.weights.values()) / 1e6:.2f} M parameters",
        "baseline is the same network": str(shared),
        "peak after loading": _gib(loaded),
        "peak of the iteration": _gib(_peak_bytes()),
        "iteration": f"{seconds:.0f} s",
        "of it": ", ".join(f"{key.removeprefix('time/').removesuffix('_s')} {row[key]:.0f} s" for key in times),
    }
    typer.echo(json.dumps(found))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


if __name__ == "__main__":
    typer.run(main)
