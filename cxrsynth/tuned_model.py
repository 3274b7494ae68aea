"""The folder a tuning run leaves: a whole Stable Diffusion layout that `generate` and plain diffusers load."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cxrsynth.diffusion.ace import ACE_CONFIG, ACE_FILE, save_ace
from cxrsynth.diffusion.model import DiffusionModel, find_model, load_model
from cxrsynth.diffusion.sampler import encode_prompts, guided_condition, predict_noise
from cxrsynth.diffusion.spec import SPEC_FILE
from cxrsynth.errors import ModelError
from cxrsynth.policy.draws import noise
from cxrsynth.recipe import DdpoStage, RlcfStage
from cxrsynth.reinforce import Reinforcement
from cxrsynth.reports.conditions import CONDITIONS
from cxrsynth.settings import Precision
from cxrsynth.tune_run import TuneRun

_PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")
_CARD = "model_card.md"
_PROBES = 4


def save_tuned(run: TuneRun, stage: Reinforcement, out: Path, *, source: str, best: int) -> None:
    """Write the tuned model beside its final name, load it back and compare, then give it its name.

    Args:
        run: of the recipe.
        stage: whose policy is saved, with the weights that are to be.
        out: folder to be.
        source: model the stage began with.
        best: iteration those weights are of.

    Raises:
        ModelError: if what was loaded back is not what was saved.
        ShardError: if it cannot be written.
    """
    folder, partial = find_model(source), out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for part in _PARTS:
            shutil.copytree(folder / part, partial / part)
        shutil.copy(folder / "model_index.json", partial)
        _write_spec(stage.policy.model, folder, partial, run)
        _save_unet(stage, source, partial / "unet")
        ace = stage.policy.model.ace
        if ace is not None:
            save_ace(ace, partial)
        _compare(stage, partial)
        (partial / _CARD).write_text(_card(run, stage, folder, best), encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    except OSError as error:
        raise run.folder.failed(error) from None


def _save_unet(stage: Reinforcement, source: str, out: Path) -> None:
    """Weights in float32: the change of tuning can be smaller than half precision tells apart. Adapters are merged."""
    unet = stage.policy.model.unet
    if stage.stage.train.unet == "lora":
        plain = load_model(source, device=torch.device("cpu"), precision=Precision.FP32).unet
        plain.add_adapter(unet.peft_config[next(iter(unet.peft_config))], adapter_name="cxrsynth")
        learned = {name.removeprefix("unet."): w for name, w in stage.policy.unet_weights.items()}
        with torch.no_grad():
            for name, weight in plain.named_parameters():
                if name in learned:
                    weight.copy_(learned[name])
        plain.fuse_lora(adapter_names=["cxrsynth"])
        plain.unload_lora()
        unet = plain
    unet.save_pretrained(out, safe_serialization=True)


def _compare(stage: Reinforcement, folder: Path) -> None:
    """Predictions of the saved model against those of the policy in memory, on fixed noise.

    Rounding may differ (merged adapters, other weights' type), but by far less than tuning changed: an adapter that is
    lost on the way would bring the baseline back.
    """
    policy = stage.policy.model
    loaded = load_model(str(folder), device=policy.device, precision=Precision.FP32)
    expected, found = _predictions(policy), _predictions(loaded)
    with stage.policy.baseline() as baseline:
        start = _predictions(baseline)
    off, changed, size = (
        (a - b).square().mean().sqrt().item()
        for a, b in ((found, expected), (expected, start), (expected, 0 * expected))
    )
    rounding = 1e-4 if policy.dtype is torch.float32 else 2e-2
    if off > rounding * size or (changed > 2 * rounding * size and off > 0.5 * changed):
        raise ModelError(
            f"{folder}: the model loaded back predicts something else than the one saved (off by {off / size:.1e} of"
            f" its size, tuning changed {changed / size:.1e})\n"
            "  this is a fault of cxrsynth or of a library: please report it"
        )


@torch.no_grad()
def _predictions(model: DiffusionModel) -> Tensor:
    """Of the UNet at one middle timestep for every condition of ACE at once, on the CPU."""
    latents = torch.stack([noise(model.latent_shape, "probe", i) for i in range(_PROBES)]).to(model.device)
    encoded = encode_prompts(model, ["", *["chest"] * _PROBES]).clone()
    mask = None if model.ace is None else model.ace.mask([CONDITIONS] * _PROBES)
    condition = guided_condition(model, encoded[1:], encoded[:1], 1.0, mask=mask)
    middle = torch.tensor(500, device=model.device)
    return predict_noise(model, latents, middle, condition, 1.0).cpu()


def _write_spec(model: DiffusionModel, folder: Path, out: Path, run: TuneRun) -> None:
    """cxrsynth.json of the source under a name of its own."""
    path = folder / SPEC_FILE
    spec: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    spec["name"] = f"{model.name}-tuned"
    (out / SPEC_FILE).write_text(json.dumps(spec, indent=1) + "\n", encoding="utf-8")


def _card(run: TuneRun, stage: Reinforcement, folder: Path, best: int) -> str:
    section: RlcfStage | DdpoStage = stage.stage
    lines = [
        f"# {stage.policy.model.name}, tuned",
        "",
        f"Made by `cxrsynth tune` ({section.stage}) from {stage.policy.model.name}, SHA-256"
        f" `{stage.policy.model.digest}`. Images are synthetic and not for diagnosis; all limits of that model hold.",
        "Implements the published description of CXRL (arXiv:2403.06516); constants not on public record are ours.",
        "",
        f"- trained: UNet {section.train.unet}, ACE {'on' if section.train.ace else 'off'}"
        f" ({', '.join(f'{n} {c}' for n, c in stage.policy.parameter_count().items())} numbers)",
        f"- rewards: {', '.join(f'{n} ({r.backend}, weight {r.weight:g})' for n, r in section.rewards.items())}",
        f"- iterations: {section.iterations} of {section.trajectories} images; weights of iteration {best},"
        " the best by the judge",
        f"- reports: {len(run.training)} to train, {len(run.held_out)} held out",
        "",
        *_result_table(stage, best),
        "The run's `recipe.yaml` holds every setting.",
        "",
    ]
    if stage.policy.model.ace is not None:
        lines += [
            f"`{ACE_FILE}` (with `{ACE_CONFIG}`) holds the adaptive condition embeddings: `cxrsynth generate --model`"
            " adds them by itself; plain diffusers takes embeddings as `prompt_embeds`.",
            "",
        ]
    return "\n".join(lines)


def _result_table(stage: Reinforcement, best: int) -> list[str]:
    rows = [
        row
        for row in stage.metrics.rows()
        if row["stage"] == stage.index and row["iteration"] == best and "evaluation/judge/total/margin" in row
    ]
    if not rows:
        return []
    row = rows[-1]
    prefix = "evaluation/"
    names = [
        key.removeprefix(prefix).removesuffix("/policy")
        for key in row
        if key.startswith(prefix) and key.endswith("/policy")
    ]
    lines = [
        "On held-out reports, baseline and policy on the same noise (95% intervals by bootstrap over reports):",
        "",
        "| reward | baseline | tuned | gain | win rate |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in names:
        values = [row[f"{prefix}{name}/{part}"] for part in ("baseline", "policy")]
        if None in values:
            continue
        lines.append(
            f"| {name.replace('/', ' ')} | {values[0]:.3f} | {values[1]:.3f} | {_with_interval(row, f'{name}/margin')}"
            f" | {_with_interval(row, f'{name}/win_rate')} |"
        )
    lines += [
        "",
        f"- win rate over all: tuning rewards {_with_interval(row, 'tuning/total/win_rate')}, judge"
        f" {_with_interval(row, 'judge/total/win_rate')}",
    ]
    if f"{prefix}frechet_to_real" in row:
        lines.append(
            f"- Frechet distance to real films: {row[f'{prefix}frechet_to_real']:.3f}, baseline"
            f" {row[f'{prefix}baseline_frechet_to_real']:.3f}"
        )
    else:
        lines.append(f"- Frechet distance to the baseline's images: {row[f'{prefix}frechet_to_baseline']:.3f}")
    lines += [
        f"- MS-SSIM between images (lower is more diverse): {row[f'{prefix}ms_ssim']:.3f}, baseline"
        f" {row[f'{prefix}baseline_ms_ssim']:.3f}",
        "",
    ]
    return lines


def _with_interval(row: dict[str, Any], name: str) -> str:
    value, low, high = (row.get(f"evaluation/{name}{end}") for end in ("", "_low", "_high"))
    return "not told" if None in (value, low, high) else f"{value:.3f} ({low:.3f} to {high:.3f})"
