"""The model card, rendered from the model's declaration, its measurements and the build settings."""

from typing import Any

from cxrsynth.diffusion.spec import ModelSpec
from cxrsynth.metrics.membership.inference import COMBINED, WITHOUT_MODEL
from cxrsynth.nano.build.config import BuildConfig

_PARTS = ("value", "low", "high")
_SOURCES = {
    "nih": ("NIH ChestX-ray14 (Wang et al., CVPR 2017)", "no restrictions on use; NIH Clinical Center acknowledged"),
    "nih_more": ("NIH ChestX-ray14, further images", "as above"),
    "hannover": ("MHH COVID-19 Image Repository, doi 10.25835/0090041", "CC BY 3.0"),
    "kermany_ped": ("Kermany et al. 2018, doi 10.17632/rscbjbr9sj.2: children aged 1 to 5", "CC BY 4.0"),
    "nih64": ("NIH ChestX-ray14, further images, 64 x 64 pixels", "as above"),
    "cohen_open": ("ieee8023/covid-chestxray-dataset, openly licensed images only", "per image, open"),
}


def model_card(spec: ModelSpec, numbers: dict[str, Any], settings: BuildConfig) -> str:
    """The model card as Markdown; it states which measurements are missing.

    Args:
        spec: what the model declares about itself, with `depicts`.
        numbers: contents of `numbers.json`.
        settings: of the build.

    Raises:
        ValueError: if the model does not declare what its training images show.
    """
    if spec.depicts is None:
        raise ValueError("the model does not declare what its training images show")
    sections = (
        _details(numbers, settings),
        _use(),
        _data(spec, numbers, settings),
        _evaluation(numbers, settings),
        _limitations(settings),
        _reproduction(),
    )
    return "\n".join(line for section in sections for line in section)


def _details(numbers: dict[str, Any], settings: BuildConfig) -> list[str]:
    parameters = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in numbers["parameters"].items())
    return [
        "# nano: a small text-to-chest-X-ray latent diffusion model",
        "",
        "## Model details",
        "",
        "nano (version v4) generates frontal chest X-rays from text. It is embedded in cxrsynth so that every command",
        "works at once, on a laptop and without a download.",
        "",
        "- Architecture: latent diffusion in Stable Diffusion layout (autoencoder, UNet, CLIP text encoder).",
        f"- Output: {settings.image_size} x {settings.image_size} gray pixels.",
        f"- Parameters: {parameters}; half-precision weights.",
        f"- Training steps: {_steps(numbers, settings)}.",
        "- Included: two families of reward models, `nano` and `nano-judge`, in `judges/`, and a network that",
        "  recognizes patients, in `verifier/`. It was trained on all images of split `train`, so on the patients of",
        "  both families and of the denoiser: too few have several images to set some aside. It recognizes patients of",
        "  split `train` far better than others.",
        "- Included, too: a network that tells how a chest is framed, in `framing/`, for four of the quality checks of",
        "  `audit`. It was trained on the images of split `train`, with faults made in them.",
        "",
    ]


def _steps(numbers: dict[str, Any], settings: BuildConfig) -> str:
    steps, *more_steps = numbers.get("denoiser_steps", [settings.denoiser.steps])
    denoiser = f"denoiser {steps}"
    if more_steps:
        denoiser += f" and, each with a new learning-rate schedule, {', '.join(map(str, more_steps))} more"
    return (
        f"autoencoder {settings.autoencoder.steps}, its decoder {settings.decoder.steps} more against a discriminator,"
        f" {denoiser}"
    )


def _use() -> list[str]:
    return [
        "## Intended use",
        "",
        "- Trying out cxrsynth: generation, tuning and audit on a CPU.",
        "- Tests, tutorials and the development of methods, where a small and fast model is enough.",
        "",
        "## Out of scope",
        "",
        "- Diagnosis, the teaching of diagnosis, and any other clinical use. The images are recognizable as frontal",
        "  chest X-rays, but they are not of diagnostic quality.",
        "- Training of a product.",
        "- Lateral views, sides (left, right) and uncertain findings: the model does not support them.",
        "",
    ]


def _data(spec: ModelSpec, numbers: dict[str, Any], settings: BuildConfig) -> list[str]:
    depicts = spec.depicts
    assert depicts is not None  # checked by `model_card`
    return [
        "## Training data",
        "",
        "Real images of split `train`, all openly licensed. No radiology report was used. The training text is the",
        "canonical prompt made from each image's labels, view, age group and sex; a share of the captions"
        f" ({settings.denoiser.varied:.0%} in the",
        "latest training run) has the same content in the wording of a small grammar.",
        "",
        "| source | license | images (autoencoder) | images (denoiser) | images (reward models) |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {_SOURCES[group][0]} | {_SOURCES[group][1]} | {images['autoencoder']} | {images['denoiser']}"
            f" | {images['reward_models']} |"
            for group, images in numbers["sources"].items()
        ),
        "",
        "The NIH images were provided by the NIH Clinical Center. NIH labels were mined from reports by software.",
        *_not_sampled(settings),
        "",
        "Before the denoiser was trained, all images were registered to a mean image of their kind (shift, two scales,",
        "rotation), so its chests are centered and upright. Letterboxed images, and images that do not fill the frame,",
        "trained the autoencoder only. Images with rare findings were sampled more often. Images of 64 x 64 pixels",
        "were marked as such in their prompt.",
        "",
        f"The training images show views {', '.join(depicts.views)}; age groups {', '.join(depicts.age_groups)}"
        f" (children are mostly 1 to 5 years old); sexes {', '.join(depicts.sexes)}.",
        "",
        "| finding | training images that show it |",
        "| --- | --- |",
        *(f"| {name} | {count} |" for name, count in depicts.findings.items()),
        "",
    ]


def _not_sampled(settings: BuildConfig) -> list[str]:
    names = [_SOURCES[group][0] for group, share in settings.denoiser.share.items() if not share]
    return [f"The latest training run of the denoiser did not use: {', '.join(names)}."] if names else []


def _evaluation(numbers: dict[str, Any], settings: BuildConfig) -> list[str]:
    psnr = numbers["autoencoder"]
    return [
        "## Evaluation",
        "",
        "All numbers are measured on images of split `val`; intervals are 95% intervals.",
        "",
        "### Autoencoder",
        "",
        f"- PSNR {psnr['psnr_db_mean']} dB (standard deviation between images {psnr['psnr_db_std']} dB), on gray levels"
        " stretched to the full range.",
        f"- {psnr['top_octave']:.0%} of the energy in the upper half of spatial frequencies is preserved.",
        "",
        *_generator(numbers.get("generator")),
        *_membership(numbers.get("membership")),
        *_reward_models(numbers.get("reward_models")),
    ]


def _generator(numbers: dict[str, Any] | None) -> list[str]:
    if numbers is None:
        return [
            "### Generated images",
            "",
            "Fidelity and prompt adherence were not measured.",
            "",
        ]
    fidelity, memorization = numbers["fidelity"], numbers["memorization"]
    return [
        "### Fidelity and memorization",
        "",
        f"{fidelity['images']} generated images, one from the prompt of each real val image in the canonical frame, in"
        " the features of `nano-judge`. For comparison, real training images: mean and 95% range over"
        f" {fidelity['resamples']} random samples.",
        "",
        "| measure | generated images | real training images |",
        "| --- | --- | --- |",
        f"| Frechet distance to real val images | {_interval(fidelity['frechet_generated_to_val'])}"
        f" | {_interval(fidelity['frechet_train_to_val'])} |",
        f"| kernel distance to real val images | {_interval(fidelity['kid_generated_to_val'])}"
        f" | {_interval(fidelity['kid_train_to_val'])} |",
        f"| precision | {fidelity['manifolds_generated']['precision']:.2f}"
        f" | {fidelity['manifolds_train']['precision']:.2f} |",
        f"| recall | {fidelity['manifolds_generated']['recall']:.2f} | {fidelity['manifolds_train']['recall']:.2f} |",
        "",
        f"- The Frechet distance is {fidelity['frechet_ratio']:.1f} times that of real training images.",
        f"- {_interval(memorization['nearer_than_first_percentile'], percent=True)} of the generated images are closer"
        " to a training image than 99% of real val images are.",
        "",
        *_adherence(numbers),
    ]


def _membership(numbers: dict[str, Any] | None) -> list[str]:
    if numbers is None:
        return ["### Membership", "", "Not measured: whether the weights tell whom nano was trained on.", ""]
    attacks = numbers["attacks"]
    together, alone = attacks[COMBINED]["auc"], attacks[WITHOUT_MODEL]["auc"]
    return [
        "### Membership",
        "",
        "Can whoever holds the weights tell the images that nano was trained on from others?"
        f" {numbers['members']} images of split `train` and {numbers['non_members']} of split `val` in the canonical"
        " frame, from the same sources, each with its own prompt, attacked as `cxrsynth audit --members` does:",
        "",
        "| attack | AUC (0.5 is guessing) | members found at 1% false alarms |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {_interval(one['auc'])} | {_interval(one['true_positives']['0.01'], percent=True)} |"
            if one["true_positives"]["0.01"]
            else f"| {name} | {_interval(one['auc'])} | not measurable |"
            for name, one in attacks.items()
        ),
        "",
        f"- All attacks together reach an AUC of {_interval(together)}, the images alone {_interval(alone)}: "
        + ("part of that may be in the weights." if together["low"] > 0.5 else "they find nothing in the weights."),
        "",
    ]


def _adherence(numbers: dict[str, Any]) -> list[str]:
    words = numbers["words"]
    by_finding = ", ".join(f"{name} {share:.2f}" for name, share in words["by_finding"].items())
    measurable = []
    if words["right_way_measurable"] is not None:
        measurable = [
            f"- In the {words['pairs_measurable']} pairs whose finding `nano-judge` recognizes on real images (interval"
            " of its AUROC above 0.5, at least five images with the finding and five without):"
            f" {_interval(words['right_way_measurable'])}."
        ]
    return [
        "### Prompt adherence",
        "",
        f"{words['pairs']} pairs of images from the same noise, with one finding present in one prompt and absent in"
        " the other:",
        "",
        "- Share of pairs in which the probability that `nano-judge` gives the finding follows the prompt:"
        f" {_interval(words['right_way'])}.",
        *measurable,
        f"- By finding: {by_finding}.",
        f"- Unrelated findings move {_interval(words['unrelated_to_own'])} times as much as the changed one; all"
        f" others, including related kinds of lung opacity, {_interval(words['others_to_own'])} times.",
        "",
        "Images from the prompts of all val images, one each, including images of 64 pixels and images outside the"
        " canonical frame. The last column is the AUROC above chance on generated images, relative to that on real"
        " images; its interval covers the generated images only.",
        "",
        "| prompt states | real images | AUROC on generated images | AUROC on real images | relative |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {head} | {one['images']} | {_interval(one['generated'])} | {_interval(one['real'])} |"
            f" {_interval(one['share']) if one['share'] else 'not measurable'} |"
            for head, one in numbers["adherence"].items()
        ),
        "",
    ]


def _reward_models(numbers: dict[str, Any] | None) -> list[str]:
    if numbers is None:
        return []
    lines = [
        "### Reward models",
        "",
        "Two families of different architecture, each trained on one half of the patients of split `train` (by a hash",
        "of the patient): `nano` to tune with, `nano-judge` to evaluate and audit with. With so few images the",
        "calibration error (15 bins) is never zero; beside it is the error of a perfectly calibrated head.",
        "",
    ]
    for family, measured in numbers.items():
        posture, dual = measured["posture"], measured["dual_encoder"]
        lines += [
            f"`{family}`:",
            "",
            f"- Posture: known warps of val images are recovered to {posture['rotation_deg']} degrees,"
            f" {posture['shift_percent']}% of width and {posture['scale_percent']}% of scale (medians).",
            "- Consistency: an image is closer to its own canonical text than to one with other findings in"
            f" {_interval(dual['right_over_wrong'])} of {dual['pairs']} val images.",
            "- Diagnosis:",
            "",
            "| head | AUROC on val | calibration error | by chance | images with | images without |",
            "| --- | --- | --- | --- | --- | --- |",
            *(
                f"| {head} | {_interval(one['auroc'])} | {one['ece']:.3f} | {one['ece_of_chance']:.3f}"
                f" | {one['present']} | {one['absent']} |"
                for head, one in measured["classifier"].items()
            ),
            "",
        ]
    return lines


def _limitations(settings: BuildConfig) -> list[str]:
    return [
        "## Limitations",
        "",
        f"- Findings on fewer than {settings.min_shown} training images, sides (left, right), uncertain findings and"
        " lateral views are unsupported: `cxrsynth generate` leaves them out of the prompt and lists them under"
        " `unsupported_findings`.",
        "- The model was trained on few images from few sources. Age, view, source and findings are correlated: most"
        " children come from one hospital, and most of them have pneumonia or no finding.",
        "- Chests are centered and upright, because the training images were registered; real images vary more.",
        "- Several findings rest on a handful of val images: their intervals are wide, or they are not measurable.",
        "- The absence of a close training image does not prove that an image is not memorized.",
        "",
    ]


def _reproduction() -> list[str]:
    return [
        "## How to reproduce",
        "",
        "`python -m cxrsynth.nano.build --data DIR --work DIR` trains the networks with the settings in",
        "`cxrsynth/nano/build/config.yaml`, exports them, measures them and renders this card from `numbers.json`. It",
        "leaves out two networks, which have a command each and write to the work folder:",
        "",
        "- `framing/`: `python -m cxrsynth.nano.build.framing --data DIR --work DIR`",
        "- `verifier/`: `python -m cxrsynth.nano.build.verifier --data DIR --work DIR`",
        "",
    ]


def _interval(measured: dict[str, float], *, percent: bool = False) -> str:
    value, low, high = (f"{measured[part]:.1%}" if percent else f"{measured[part]:.3g}" for part in _PARTS)
    return f"{value} ({low} to {high})"
