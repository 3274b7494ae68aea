"""The model card: data, recipe, numbers, limits."""

from typing import Any

from cxrsynth.diffusion.spec import ModelSpec
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
    """The card, from what the model declares and `numbers.json`; what was not measured is said to be so."""
    if spec.depicts is None:
        raise ValueError("the model does not say what it was shown")
    parameters = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in numbers["parameters"].items())
    psnr, (steps, *more_steps) = numbers["autoencoder"], numbers.get("denoiser_steps", [settings.denoiser.steps])
    lines = [
        "# nano: a small text-to-chest-X-ray latent diffusion model",
        "",
        "Version v4: made so that every command works at once on a laptop. Its images are recognisably frontal chest",
        "X-rays, and not for diagnosis, its teaching, or training of a product.",
        "",
        f"Stable Diffusion layout, {settings.image_size} x {settings.image_size} grey pixels, half-precision weights."
        f" Parameters: {parameters}.",
        "",
        "## Data",
        "",
        "Real images of split `train`, each with an open licence. No radiology report was used: the text is the",
        "canonical prompt made from each image's labels, view, age group and sex, and for a share of the captions"
        f" ({settings.denoiser.varied:.0%} in the latest training) the same in words of a grammar of ours.",
        "",
        "| source | licence | images (autoencoder) | images (denoiser) | images (judges) |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {_SOURCES[group][0]} | {_SOURCES[group][1]} | {radiographs['autoencoder']} | {radiographs['denoiser']}"
            f" | {radiographs['judges']} |"
            for group, radiographs in numbers["sources"].items()
        ),
        "",
        "The NIH images were provided by the NIH Clinical Center. NIH labels were mined from reports by software.",
        "",
        "Before the denoiser's training all images were registered to a mean image of their kind (shift, two scales,",
        "rotation), so its chests are centred and upright; letterboxed images and those that do not fill the frame",
        "served the autoencoder only. Images of rare findings were drawn more often. Images of 64 x 64 pixels had",
        "a word in their prompt that says so.",
        "",
        "## What it was shown",
        "",
        f"Views {', '.join(spec.depicts.views)}; age groups {', '.join(spec.depicts.age_groups)}"
        f" (children are mostly 1 to 5 years old); sexes {', '.join(spec.depicts.sexes)}.",
        "",
        "| finding | training images that show it |",
        "| --- | --- |",
        *(f"| {name} | {count} |" for name, count in spec.depicts.findings.items()),
        "",
        f"Findings on fewer than {settings.min_shown} images, sides (left, right), uncertain findings, lateral views",
        "count as not shown: `cxrsynth generate` leaves them out of the prompt and marks them `unsupported_findings`.",
        "",
        "## Measured",
        "",
        f"- autoencoder, images of split `val`: PSNR {psnr['psnr_db_mean']} dB"
        f" (standard deviation between images {psnr['psnr_db_std']} dB) on grey levels stretched to full range;"
        f" {psnr['top_octave']:.0%} of the energy in the upper half of spatial frequencies is kept",
        f"- training steps: autoencoder {settings.autoencoder.steps}, its decoder against a discriminator"
        f" {settings.decoder.steps} more, denoiser {steps}"
        + (
            f" and, each with a new learning-rate schedule, {', '.join(map(str, more_steps))} more"
            if more_steps
            else ""
        ),
        *_left_out(settings),
        *_generator(numbers.get("generator")),
        *_judges(numbers.get("judges")),
        "",
        "## Made by",
        "",
        "`python -m cxrsynth.nano.build --data DIR --work DIR`, settings in `cxrsynth/nano/build/config.yaml`.",
        "",
    ]
    return "\n".join(lines)


def _left_out(settings: BuildConfig) -> list[str]:
    names = [_SOURCES[group][0] for group, share in settings.denoiser.share.items() if not share]
    return [f"- not drawn by the denoiser: {', '.join(names)}"] if names else []


def _generator(numbers: dict[str, Any] | None) -> list[str]:
    if numbers is None:
        return ["- how well the images obey the prompt, and how near they are to real ones, was not measured"]
    fidelity, words, copies = numbers["fidelity"], numbers["words"], numbers["copies"]
    return [
        f"- Frechet distance to real val images in the features of `nano-judge`, {fidelity['images']} each, one image"
        f" for each image's prompt: {_interval(fidelity['frechet_made_to_val'])}; real training images alike:"
        f" {_interval(fidelity['frechet_train_to_val'])} (mean and spread of {fidelity['draws']} draws);"
        f" {fidelity['frechet_ratio']:.1f} times",
        f"- kernel distance: {_interval(fidelity['kid_made_to_val'])}; real train images:"
        f" {_interval(fidelity['kid_train_to_val'])}",
        f"- precision {fidelity['manifolds_made']['precision']:.2f}, recall {fidelity['manifolds_made']['recall']:.2f}"
        f" (real train images: {fidelity['manifolds_train']['precision']:.2f},"
        f" {fidelity['manifolds_train']['recall']:.2f})",
        f"- one finding changed in {words['pairs']} prompts, same noise: the judge's probability follows in"
        f" {_interval(words['right_way'])}; unrelated findings move {_interval(words['unrelated_to_own'])} times as"
        " much (kinds of lung opacity are related to each other; with them, all others"
        f" {_interval(words['others_to_own'])})",
        *_told(words),
        f"- {_interval(copies['nearer_than_first_percentile'], percent=True)} of images are nearer to a training image"
        " than 99% of val images",
        "",
        "Asked by the prompts of all val images, also those of 64 pixels and those beside the canonical frame, once"
        " each; the last column's interval is that of the images alone:",
        "",
        "| asked for | real images | judge's AUROC on images | on real images | (AUROC - 0.5) kept |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {head} | {one['images']} | {_interval(one['made'])} | {_interval(one['real'])} |"
            f" {_interval(one['share']) if one['share'] else 'not told'} |"
            for head, one in numbers["obedience"].items()
        ),
    ]


def _told(words: dict[str, Any]) -> list[str]:
    by_finding = ", ".join(f"{name} {share:.2f}" for name, share in words["by_finding"].items())
    lines = [f"- the same by finding: {by_finding}"]
    if words["right_way_told"] is not None:
        lines.append(
            f"- the same in the {words['pairs_told']} pairs whose finding the judge tells on real images (AUROC above"
            f" 0.5 with its interval, on five images or more): {_interval(words['right_way_told'])}"
        )
    return lines


def _judges(numbers: dict[str, Any] | None) -> list[str]:
    if numbers is None:
        return []
    lines = [
        "",
        "## The judges",
        "",
        "Two families of different architecture, each trained on its half of the patients of split `train` (by a hash",
        "of the patient): `nano` to tune with, `nano-judge` to audit with. The calibration error (15 bins) is never",
        "zero with so few images: beside it stands what a perfectly calibrated head would show.",
        "",
    ]
    for family, measured in numbers.items():
        posture, dual = measured["posture"], measured["dual_encoder"]
        lines += [
            f"`{family}`: known warps of val images recovered to {posture['rotation_deg']} degrees,"
            f" {posture['shift_percent']}% of width, {posture['scale_percent']}% of scale (medians); the right"
            f" canonical text beats one of other findings in {_interval(dual['right_over_wrong'])} of {dual['pairs']}"
            " val images.",
            "",
            "| head | AUROC on val | calibration error | by chance | with | without |",
            "| --- | --- | --- | --- | --- | --- |",
            *(
                f"| {head} | {_interval(one['auroc'])} | {one['ece']:.3f} | {one['ece_of_chance']:.3f}"
                f" | {one['present']} | {one['absent']} |"
                for head, one in measured["classifier"].items()
            ),
            "",
        ]
    return lines[:-1]


def _interval(measured: dict[str, float], *, percent: bool = False) -> str:
    value, low, high = (f"{measured[part]:.1%}" if percent else f"{measured[part]:.3g}" for part in _PARTS)
    return f"{value} ({low} to {high})"
