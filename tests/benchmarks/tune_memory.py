"""`python -m tests.benchmarks.tune_memory`: memory and time of one RLCF iteration at the size of a large model.

Makes a folder of the layout and size of Stable Diffusion 1.5 (UNet of 860 M parameters, 64 x 64 latents), or with
`--size` of PixArt-Sigma or Sana 0.6B at 512 pixels (transformers of 600 M parameters; their text
encoders of billions are replaced by one layer of the same width), with random weights.

Samples two images with two steps, and tunes adapters of rank 16 and ACE for one iteration on the CPU, with each
objective that the model allows, each in a process of its own. An iteration samples two images of one report with three
steps and one image of the baseline, and learns from each image at two noise levels: what differs is the objective.
Beside the peak stands what the denoiser's weights take: with adapters the baseline is the same network with the
adapters off, so there is no second copy. Random weights make noise: only memory and time are measured.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
)

from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.reports.prompt import every_canonical_sentence
from tests.families import word_tokenizer

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
_REPORTS = Path(__file__).resolve().parents[2] / "recipes" / "nano-reports.csv"


def main(
    size: Annotated[str, typer.Option(help="sd15, pixart or sana.")] = "sd15",
    work: Annotated[Path | None, typer.Option(help="Where the model is kept; default: removed afterwards.")] = None,
    measured: Annotated[Path | None, typer.Option(hidden=True)] = None,
    objective: Annotated[str, typer.Option(hidden=True)] = "forward",
) -> None:
    """Make the model, sample from it, tune it once with each objective, print a table."""
    if measured is not None:
        _generate(measured) if objective == "generate" else _tune(measured, objective)
        return
    if size not in SIZES:
        raise typer.BadParameter(f"--size {size}: expected {', '.join(SIZES)}")
    with tempfile.TemporaryDirectory() as folder:
        model = (work or Path(folder)) / size
        if not (model / "model_index.json").is_file():
            SIZES[size](model)
        for key, value in _in_process(model, "generate").items():
            typer.echo(f"{key}: {value}")
        objectives = [name for name in _OBJECTIVES if size != "sana" or name == "forward"]
        columns = {name: _in_process(model, name) for name in objectives}
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


def make_sd15(folder: Path) -> None:
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
    StableDiffusionPipeline(
        vae=_sd_vae(),
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


def make_pixart(folder: Path) -> None:
    """PixArt-Sigma XL/2's own sizes at 512 pixels, with a T5 of one layer."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=64,
        num_layers=28,
        num_attention_heads=16,
        attention_head_dim=72,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=1152,
        caption_channels=4096,
        patch_size=2,
        interpolation_scale=1,
    )
    text = T5EncoderModel(T5Config(vocab_size=1024, d_model=4096, d_kv=64, d_ff=256, num_layers=1, num_heads=4))
    PixArtSigmaPipeline(
        tokenizer=word_tokenizer(300),
        text_encoder=text.to(torch.bfloat16),
        vae=_sd_vae(),
        transformer=transformer.to(torch.bfloat16),
        scheduler=DPMSolverMultistepScheduler(),
    ).save_pretrained(folder, safe_serialization=True)


def make_sana(folder: Path) -> None:
    """Sana 0.6B's own sizes at 512 pixels, with a Gemma 2 of one layer and its deep-compression autoencoder."""
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=32,
        out_channels=32,
        num_attention_heads=36,
        attention_head_dim=32,
        num_layers=28,
        num_cross_attention_heads=16,
        cross_attention_head_dim=72,
        cross_attention_dim=1152,
        caption_channels=2304,
        mlp_ratio=2.5,
        sample_size=16,
        patch_size=1,
    )
    gemma = Gemma2Config(
        vocab_size=1024,
        hidden_size=2304,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    vae = AutoencoderDC(
        latent_channels=32,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        encoder_layers_per_block=(2, 2, 2, 3, 3, 3),
        decoder_layers_per_block=(3, 3, 3, 3, 3, 3),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )
    SanaPipeline(
        tokenizer=word_tokenizer(2048),
        text_encoder=Gemma2Model(gemma).to(torch.bfloat16),
        vae=vae.to(torch.bfloat16),
        transformer=transformer.to(torch.bfloat16),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder, safe_serialization=True)


def _sd_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    ).to(torch.bfloat16)


SIZES = {"sd15": make_sd15, "pixart": make_pixart, "sana": make_sana}


def _generate(model: Path) -> None:
    """Two images in a process of its own. Prints JSON."""
    from cxrsynth.generation.generate import generate
    from cxrsynth.settings import Device, GenerateSettings, SamplingSettings

    with tempfile.TemporaryDirectory() as folder:
        sampling = SamplingSettings(steps=2, batch_size=1, device=Device.CPU, threads_per_batch=torch.get_num_threads())
        started = time.monotonic()
        done = generate(
            GenerateSettings(reports=_REPORTS, out=Path(folder) / "out", model=str(model), limit=2, sampling=sampling)
        )
        taken = time.monotonic() - started
    found = {"images": str(done.samples), "two steps each": f"{taken:.0f} s", "peak": _gib(_peak_bytes())}
    typer.echo(json.dumps(found))


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
        # The small tokenizers know few words: to them the prompts do not differ, and there is no subspace of them.
        "train": {"unet": "lora", "lora": {"rank": 16}, "ace": True if model.name == "sd15" else {"tokens": 4}},
        "sampling": {"steps": 3, "guidance": 4.0, "batch_size": 1},
    } | _OBJECTIVES[objective]
    recipe = {
        "model": {"checkpoint": str(model), "device": "cpu", "gradient_checkpointing": True},
        "reports": {"table": str(_REPORTS), "limit": 6, "held_out": 2, "test": 0},  # one prompt has no directions
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
    plain = [weight.numel() for name, weight in unet.named_parameters() if "lora_" not in name]
    found = {
        "parameters of the denoiser": f"{sum(plain) / 1e6:.0f} M",
        "its weights": _gib(own),
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
