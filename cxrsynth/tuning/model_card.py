"""The model card of a tuned model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from cxrsynth.console import counted
from cxrsynth.diffusion.ace import ACE_CONFIG, ACE_FILE
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.recipe.schema import DdpoStage, RewardSection, RlcfStage
from cxrsynth.tuning.run import TuneRun
from cxrsynth.tuning.verdict import EVALUATION, TEST

if TYPE_CHECKING:  # stages write their own cards
    from cxrsynth.tuning.distill import Distillation
    from cxrsynth.tuning.finetune import Supervision
    from cxrsynth.tuning.reinforce import Reinforcement

_LAST = 100
_METHOD = {
    "forward": [
        "Comparative feedback after CXRL (arXiv:2403.06516), learned by an objective on the forward process"
        " (DiffusionNFT, arXiv:2509.16117)."
    ],
    "policy_gradient": [
        "Implements the published description of CXRL (arXiv:2403.06516); unpublished constants are our own choice."
    ],
}


_MEMORIZED = "- It may have memorized training images: `cxrsynth audit --reference` searches for near-duplicates."


def supervision_card(run: TuneRun, stage: "Supervision") -> str:
    """Of a stage of supervised fine-tuning."""
    section, train = stage.section, stage.section.train
    losses = [row["sft/loss"] for row in stage.progress.metrics.rows() if row["stage"] == stage.index][-_LAST:]
    trained = sum(weight.numel() for weight in stage.weights.values())
    network = run.model.family.denoiser_title
    return "\n".join(
        [
            *_head(run, stage.model, section.stage),
            "",
            f"- trained: {network} {train.unet}{', text encoder' if train.text_encoder else ''} ({trained} numbers)",
            f"- {counted(section.steps, 'step')} of {counted(section.batch_size, 'image')},"
            f" learning rate {train.learning_rate:g}"
            + ("" if train.ema_decay is None else f", averaged weights (decay {train.ema_decay:g})"),
            f"- data: {stage.images.text}; {counted(len(run.held_out), 'report')} held out, {len(run.test)} for a test",
            *_mean_loss(losses),
            _MEMORIZED,
            "",
            "All settings are in the run's `recipe.yaml`.",
            "",
        ]
    )


def distillation_card(run: TuneRun, stage: "Distillation") -> str:
    """Of a stage of distillation."""
    section, train, teaching = stage.section, stage.section.train, stage.teaching
    rows = [row for row in stage.progress.metrics.rows() if row["stage"] == stage.index]
    losses = [row["distill/loss"] for row in rows if "distill/loss" in row][-_LAST:]
    trained = sum(weight.numel() for weight in stage.weights.values())
    passes = teaching.steps * (1 if teaching.guidance == 1 or stage.model.takes_guidance else 2)
    lines = [
        *_head(run, stage.model, section.stage),
        f"It takes {counted(section.sampling_steps, 'pass', 'passes')} of the network in place of {passes}: along its"
        " teacher's trajectories, after progressive distillation (arXiv:2202.00512) with guidance baked in"
        " (arXiv:2210.03142).",
        "",
        f"- use: {counted(stage.defaults.steps, 'step')} of {stage.defaults.sampler.value}, guidance"
        f" {stage.defaults.guidance:g}, as `cxrsynth.json` says; other steps give other images than these",
        f"- teacher: {counted(teaching.steps, 'step')} of {teaching.sampler.value}, guidance {teaching.guidance:g}",
        f"- trained: {run.model.family.denoiser_title} {train.unet} ({trained:,} numbers)",
        f"- {counted(section.steps, 'step')} of {section.batch_size} on"
        f" {counted(section.trajectories, 'trajectory', 'trajectories')} of"
        f" {'training reports' if section.data is None else 'images with noise'}, learning rate {train.learning_rate:g}"
        + ("" if train.ema_decay is None else f", averaged weights (decay {train.ema_decay:g})"),
        f"- reports: {run.reports.summary}",
        *([] if section.data is None else [f"- images: {stage.summary.text}", _MEMORIZED]),
        *_mean_loss(losses),
        "",
        *_table_of_teacher(rows, len(run.test)),
        "All settings are in the run's `recipe.yaml`.",
        "",
    ]
    return "\n".join(lines)


def _mean_loss(losses: Sequence[float]) -> list[str]:
    """A line of the card; none where the rows of metrics were lost."""
    return [f"- mean loss of the last {counted(len(losses), 'step')}: {fmean(losses):.4f}"] if losses else []


def _table_of_teacher(rows: Sequence[Mapping[str, Any]], test: int) -> list[str]:
    """Student and teacher on reports that neither chose."""
    own = [row for row in rows if f"{TEST}/evaluator/total/margin" in row]
    if not own:
        return []
    row = {key.removeprefix(f"{TEST}/"): value for key, value in own[-1].items()}
    names = [key.removesuffix("/policy") for key in row if key.endswith("/policy")]
    return [
        f"On {'test' if test else 'held-out'} reports, with the same noise for both models (95% intervals by bootstrap"
        " over reports):",
        "",
        "| reward | teacher | distilled | difference | win rate |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {name.replace('/', ' ')} | {row[f'{name}/baseline']:.3f} | {row[f'{name}/policy']:.3f}"
            f" | {_with_interval(row, f'{name}/margin')} | {_with_interval(row, f'{name}/win_rate')} |"
            for name in names
            if None not in (row[f"{name}/baseline"], row[f"{name}/policy"])
        ),
        "",
        _frechet_line(row, "teacher"),
        f"- MS-SSIM between images (lower is more diverse): {row['ms_ssim']:.3f}, teacher"
        f" {row['baseline_ms_ssim']:.3f}",
        "",
    ]


def _frechet_line(row: Mapping[str, Any], baseline: str) -> str:
    if "frechet_to_real" in row:
        return (
            f"- Frechet distance to real images: {row['frechet_to_real']:.3f}, {baseline}"
            f" {row['baseline_frechet_to_real']:.3f}"
        )
    return f"- Frechet distance to the {baseline}'s images: {row['frechet_to_baseline']:.3f}"


def _head(run: TuneRun, model: DiffusionModel, stage: str) -> list[str]:
    """Title, and what the stage began with; `model` is a stage's own, which may be what an earlier stage left."""
    repository = run.recipe.model.checkpoint.partition("@")[0]
    lines = [
        f"# {model.name.removesuffix('-tuned')}, {'distilled' if stage == 'distill' else 'tuned'}",
        "",
        f"Made by `cxrsynth tune` ({stage}) from {model.name}, SHA-256"
        f" `{model.digest}`. Images are synthetic and not for diagnosis; all limits of that model apply.",
    ]
    if run.model.revision is not None:
        lines.append(f"The run began with `{repository}` from the Hugging Face hub, commit `{run.model.revision}`.")
    return lines


def reinforcement_card(run: TuneRun, stage: "Reinforcement", best: int) -> str:
    """Of a stage of reinforcement learning, with the weights of iteration `best`."""
    section: RlcfStage | DdpoStage = stage.section
    lines = [
        *_head(run, stage.policy.model, section.stage),
        *_METHOD[section.objective],
        "",
        f"- trained: {run.model.family.denoiser_title} {section.train.unet}, ACE {'on' if section.train.ace else 'off'}"
        f" ({' and '.join(f'{count:,}' for count in stage.policy.parameter_count().values())} numbers)",
        f"- rewards: {', '.join(_reward(name, reward) for name, reward in section.rewards.items())}",
        f"- iterations: {section.iterations} of {counted(section.images, 'image')}; weights of iteration {best}"
        + (", the best according to the evaluator" if best == stage.best.iteration else ""),
        f"- reports: {run.reports.summary}",
        "",
        *_result_table(stage, best),
        "All settings are in the run's `recipe.yaml`.",
        "",
    ]
    if stage.policy.model.ace is not None:
        lines += [
            f"`{ACE_FILE}` (with `{ACE_CONFIG}`) holds the adaptive condition embeddings: `cxrsynth generate --model`"
            " adds them automatically; with plain diffusers, pass the embeddings as `prompt_embeds`.",
            "",
        ]
    return "\n".join(lines)


def _reward(name: str, reward: RewardSection) -> str:
    """Name, backend and weight. A folder is given by its name only: the card may be shared, its path is private."""
    models = " and ".join(Path(backend).name for backend in reward.backends)
    return f"{name} ({models}, weight {reward.weight:g})"


def _chosen_by_test(stage: "Reinforcement") -> str:
    looks = stage.run.folder.earlier_tests()
    if not looks:
        return "nothing was chosen by"
    return f"chose no weights, but were looked at {counted(looks, 'time')} before the run went on with other settings"


def _result_table(stage: "Reinforcement", best: int) -> list[str]:
    """Baseline and tuned model on test reports; where there are none, on those that chose the weights."""
    own = [row for row in stage.progress.metrics.rows() if row["stage"] == stage.index]
    tested = [row for row in own if f"{TEST}/evaluator/total/margin" in row]
    chosen = [row for row in own if row["iteration"] == best and f"{EVALUATION}/evaluator/total/margin" in row]
    if not tested and not chosen:
        return []
    row, prefix = (tested[-1], f"{TEST}/") if tested else (chosen[-1], f"{EVALUATION}/")
    row = {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}
    names = [key.removesuffix("/policy") for key in row if key.endswith("/policy")]
    chose = ", which chose these weights" if stage.run.folder.best(stage.index).is_dir() else ""
    reports = f"test reports, which {_chosen_by_test(stage)}" if tested else f"held-out reports{chose}"
    lines = [
        f"On {reports}, with the same noise for both models (95% intervals by bootstrap over reports):",
        "",
        "| reward | baseline | tuned | gain | win rate |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in names:
        values = [row[f"{name}/{part}"] for part in ("baseline", "policy")]
        if None in values:
            continue
        lines.append(
            f"| {name.replace('/', ' ')} | {values[0]:.3f} | {values[1]:.3f} | {_with_interval(row, f'{name}/margin')}"
            f" | {_with_interval(row, f'{name}/win_rate')} |"
        )
    lines += [
        "",
        f"- win rate over all rewards: tuning {_with_interval(row, 'tuning/total/win_rate')}, evaluator"
        f" {_with_interval(row, 'evaluator/total/win_rate')}",
    ]
    lines += [
        _frechet_line(row, "baseline"),
        f"- MS-SSIM between images (lower is more diverse): {row['ms_ssim']:.3f}, baseline"
        f" {row['baseline_ms_ssim']:.3f}",
        "",
    ]
    return lines


def _with_interval(row: dict[str, Any], name: str) -> str:
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    return "not measured" if None in (value, low, high) else f"{value:.3f} ({low:.3f} to {high:.3f})"
