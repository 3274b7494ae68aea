"""The dataset card and the contact sheet that accompany the shards."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cxrsynth.console import counted
from cxrsynth.settings import Deid, IncludeText
from cxrsynth.shards.folder import FILE_SET, KEYS, MANIFEST, METADATA, NOT_ACCEPTED, PREVIEW, REJECTED
from cxrsynth.shards.plan import as_generated

_CELL = 192
# Percent of planted names and places that were removed, as docs/privacy.md gives them (tests.benchmarks.deid_recall).
_RECALL = {Deid.STANDARD: ("99.97", "100"), Deid.STRICT: ("99.98", "100")}
_INTENDED_USE = [
    "Research: developing and testing software for chest radiographs, and adding to real training data.",
    "Confirm on real images whatever you find on these.",
    "",
    "Out of scope: diagnosis or treatment, teaching diagnosis, and conclusions about how common a disease is or how it",
    "looks.",
]
_FEW = 3  # shards that a card names one by one


def dataset_card(manifest: dict[str, Any]) -> bytes:
    """README.md of a generated data set, made from its manifest."""
    lines = [
        "# Synthetic chest X-rays",
        "",
        "**Every image in this data set is synthetic: made by a generative model, of no patient. Not for diagnosis.**",
        "",
        *_summary(manifest),
        "",
        "## Intended use",
        "",
        *_INTENDED_USE,
        "",
        "## How it was made",
        "",
        *_how_made(manifest),
        "",
        *_acceptance(manifest),
        "## Contents",
        "",
        *_contents(manifest),
        "",
        "## Labels",
        "",
        *_labels(manifest),
        "",
        *_unsupported(manifest),
        "## What it cannot show",
        "",
        *_frequencies(manifest),
        "- The images carry the biases of the model's training data, and vary no more than the model allows.",
        "- Distances and sizes cannot be measured: there is no pixel spacing.",
        "- Image quality, agreement with the reports and similarity to real images are not assessed here"
        + (" beyond what Selection says;" if "acceptance" in manifest["plan"] else ";"),
        "  `cxrsynth audit` measures them.",
        "",
        "## Privacy",
        "",
        *_privacy(manifest),
        "",
    ]
    return "\n".join(lines).encode()


def _frequencies(manifest: Mapping[str, Any]) -> list[str]:
    """How often findings occur."""
    if manifest["plan"].get("acceptance", {}).get("only_accepted"):
        return [
            "- Findings do not occur as often as in the reports: images that never passed the rules of Selection are",
            "  left out, and some findings pass less often than others.",
        ]
    return ["- Findings occur as often as in the reports, not as often as in any population of patients."]


def _labels(manifest: Mapping[str, Any]) -> list[str]:
    if not manifest["plan"].get("conditioned", True):
        return [
            "The JSON of each image lists the findings that its report states. The model was not told of them, and the",
            "image does not show them: do not use them as labels. `unsupported_findings` lists them all.",
        ]
    return [
        "The JSON of each image lists the findings its report states. They were requested from the model; no",
        "radiologist checked that the image shows them. Findings and views that the model never saw in training are",
        "listed under `unsupported_findings`: do not use those labels.",
    ]


def _summary(manifest: Mapping[str, Any]) -> list[str]:
    plan, counts, shards = manifest["plan"], manifest["counts"], manifest["shards"]
    where = f"in {counted(len(shards), 'shard')}" if shards else "in one DICOM file-set"
    rejected = counted(counts["rejected"], "row")
    unused = f"; {rejected} could not be used" if counts["rejected"] else ""
    text = IncludeText(plan["shards"]["include_text"])
    return [
        "| | |",
        "| --- | --- |",
        f"| Images | {counted(counts['samples'], 'image')} {where} |",
        f"| Reports | {counts['reports']}{unused} |",
        f"| Format | {plan['shards']['format']} |",
        f"| Report text | {'sanitized' if text is IncludeText.SANITIZED else 'not included'} |",
        f"| De-identification | {plan['deid']} |",
        f"| Model | {plan['model']['name']}, SHA-256 `{plan['model']['digest']}` |",
        f"| Software | cxrsynth {plan['versions']['cxrsynth']} |",
    ]


def _how_made(manifest: Mapping[str, Any]) -> list[str]:
    plan = manifest["plan"]
    sampling = plan["sampling"]
    lines = [
        "The model generated each image from a prompt, and each prompt was made from one radiology report:"
        if plan.get("conditioned", True)
        else "The model takes no prompt: an image does not depend on the report that it is named after.",
        f"{sampling['steps']} {sampling['sampler']} steps, guidance scale {sampling['guidance']:g},"
        f" seed {plan['seed']}, {counted(plan['images_per_report'], 'image')} per report.",
    ]
    if unread := manifest["reports_not_in_english"]:
        lines += [f"Not in English, so that no findings were read: {counted(unread, 'report')}."]
    if left_out := manifest["sanitized"].get("language"):
        what = counted(left_out, "report")
        lines += [f"In a language that de-identification does not cover, so that no text was used: {what}."]
    if cells := manifest["unread_cells"]:
        named = ", ".join(f"{name} {count:,}" for name, count in sorted(cells.items()))
        lines += [f"Cells of the table that were not understood and left out: {named}."]
    if manifest["prompts_truncated"]:
        cut = counted(manifest["prompts_truncated"], "prompt")
        lines += [f"Cut to fit the model, at the end of a sentence or word where one fits: {cut}."]
    if len(made_on := manifest["hardware"]) > 1:
        named = "; ".join(f"{name} ({counted(count, 'shard')})" for name, count in made_on.items())
        lines += [f"Made on different hardware: {named}. The last bits of pixels depend on it."]
    return [*lines, f"`{MANIFEST}` records the whole plan."]


def _acceptance(manifest: Mapping[str, Any]) -> list[str]:
    """Which images were drawn again, and how many passed: the set is no plain sample of the model then."""
    rules = manifest["plan"].get("acceptance")
    if rules is None:
        return []
    judged = manifest["acceptance"]
    total, missed = judged["total"], judged["total"]["images"] - judged["total"]["accepted"]
    ignored = f" (but for {', '.join(rules['ignored_checks'])})" if rules["ignored_checks"] else ""
    passing = [
        f"the quality checks{ignored}",
        *(f"{name} at least {value:g}" for name, value in rules["at_least"].items()),
    ]
    never = "left out" if rules["only_accepted"] else 'in the set with `"accepted": false`'
    return [
        "## Selection",
        "",
        "**Not an unfiltered sample of the model.** An image was drawn until it passed the rules, at most"
        f" {counted(rules['attempts'], 'time')} in all:",
        f"{', '.join(passing)}.",
        f"Of {counted(total['images'], 'image')}, {total['accepted_at_first']} passed at once,"
        f" {total['accepted']} in the end; {missed} never did and are {never} (`{NOT_ACCEPTED}`).",
        "The networks that judged can be wrong, and images that please them are more alike than others.",
        "",
        "| Finding stated as present | Images | Passed at once | Passed | Passed, of all drawn |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {n['images']} | {n['accepted_at_first']} | {n['accepted']} | {n['accepted_per_draw']:.0%} |"
            for name, n in judged["by_finding"].items()
        ),
        "",
    ]


def _contents(manifest: Mapping[str, Any]) -> list[str]:
    beside = [
        f"- `{MANIFEST}`: the plan, counts, and the SHA-256 of each file but this one and the preview",
        f"- `{PREVIEW}`: the first images",
    ]
    if "acceptance" in manifest["plan"]:
        beside.insert(0, f"- `{NOT_ACCEPTED}`: the images that never passed, with attempts made and rules failed")
    if not manifest["shards"]:
        return [
            f"- `{FILE_SET}/`: the images; `{FILE_SET}/DICOMDIR` lists them",
            f"- `{METADATA}`: one line of JSON per image: sample key, path, SOP Instance UID and labels",
            *beside,
            "",
            "To send the images to an archive with DCMTK:",
            "",
            "```",
            f'storescu +sd +r +sp "IM*" -aec ARCHIVE HOST PORT {FILE_SET}/',
            "```",
        ]
    return [
        "- `cxr-*.tar`: shards in WebDataset layout; each image has a JSON file of the same name",
        *beside,
        "",
        *_reading([shard["name"] for shard in manifest["shards"]]),
    ]


def _unsupported(manifest: Mapping[str, Any]) -> list[str]:
    counts = manifest["unsupported_findings"]
    if not counts:
        return []
    return [
        "Unsupported findings in this data set:",
        "",
        *(f"- {n}: {counted(c, 'image')}" for n, c in sorted(counts.items())),
        "",
    ]


def _privacy(manifest: Mapping[str, Any]) -> list[str]:
    lines = [
        "- Sample keys and patient IDs are keyed hashes (HMAC-SHA-256) of the report IDs. The key is not part of the",
        "  data set; anyone who has it can link images to reports.",
        "- A generative model can reproduce images it was trained on. This data set was not searched for such images",
        "  when it was made; `cxrsynth audit --reference` compares it with the training images. The absence of a flag",
        "  does not prove that an image is not a copy.",
    ]
    if IncludeText(manifest["plan"]["shards"]["include_text"]) is IncludeText.SANITIZED:
        # Of a language that is not covered, whole reports are left out, which are counted above.
        removed = sum(count for kind, count in manifest["sanitized"].items() if kind != "language")
        names, places = _RECALL[Deid(manifest["plan"]["deid"])]
        lines += [
            f"- Report text was sanitized by rules and dictionaries (strength `{manifest['plan']['deid']}`):",
            f"  {removed} passages removed, listed by kind in `{MANIFEST}`. They can miss identifiers: have the text",
            "  reviewed before you share it. Of names planted in 500 English reports of Open-i this strength removed",
            f"  {names}%, of places {places}%; other reports, forms and languages were not measured.",
        ]
    return lines


def _reading(shards: Sequence[str]) -> list[str]:
    if not shards:
        return []
    return [
        "```python",
        *(["from glob import glob", ""] if len(shards) > _FEW else []),
        "import webdataset as wds",
        "",
        f"for sample in wds.WebDataset({_all_of(shards)}, shardshuffle=False):",
        '    print(sample["__key__"], sorted(sample))',
        "```",
    ]


def _all_of(shards: Sequence[str]) -> str:
    """All shards, as Python writes them."""
    return 'sorted(glob("*.tar"))' if len(shards) > _FEW else repr(list(shards))


def kept_card(manifest: Mapping[str, Any]) -> bytes:
    """README.md of the images an audit kept; only their source says what they are."""
    counts, shards = manifest["counts"], [shard["name"] for shard in manifest["shards"]]
    model = (manifest["source"].get("plan") or {}).get("model") or {}
    reading = _reading(shards)
    lines = [
        "# Chest X-rays kept by an audit",
        "",
        f"**{manifest['note']}**" if "note" in manifest else "Their source does not say whether they are synthetic.",
        "",
        f"- {counted(counts['samples'], 'image')} in {counted(len(shards), 'shard')}, of"
        f" {counts['samples'] + counts['rejected']} audited; {REJECTED} gives the reasons for each rejected one",
        *([f"- model: {model['name']}, SHA-256 `{model['digest']}`"] if {"name", "digest"} <= model.keys() else []),
        *_selected(manifest),
        "- every file is byte for byte the one in the audited set",
        *([f"- {counted(counts['renamed'], 'image')} with a new key, see {KEYS}"] if counts["renamed"] else []),
        f"- audited by: cxrsynth {manifest['plan']['versions']['cxrsynth']}",
        "",
        *([*reading, ""] if reading else []),
        f"`{MANIFEST}` records the rules, the results of the audit, and the SHA-256 of each shard.",
        "",
        "An audit measures; it does not certify. The images it keeps are not for diagnosis, and the absence of a",
        "near-duplicate flag does not prove that an image is not a copy.",
        "",
    ]
    return "\n".join(lines).encode()


def _selected(manifest: Mapping[str, Any]) -> list[str]:
    """Where the images were drawn until they passed, before any audit."""
    judged = as_generated(manifest).get("acceptance")
    if judged is None:
        return []
    total = judged["total"]
    return [
        f"- no unfiltered sample of the model: `generate --accept` drew images again until they passed its rules; of"
        f" {counted(total['images'], 'image')}, {total['accepted_at_first']} passed at once, {total['accepted']} in the"
        f" end (`{MANIFEST}`, `source`)"
    ]


def contact_sheet(images: Iterable[npt.NDArray[np.float32]], *, columns: int = 6, comment: str = "") -> bytes:
    """Preview PNG of images [H, W] in [0, 1], side by side, each resized to 192 x 192 pixels; its comment, if any."""
    cells = [Image.fromarray(np.rint(image * 255).astype(np.uint8)).resize((_CELL, _CELL)) for image in images]
    columns = min(columns, len(cells))
    sheet = Image.new("L", (columns * _CELL, math.ceil(len(cells) / columns) * _CELL))
    for place, cell in enumerate(cells):
        sheet.paste(cell, (place % columns * _CELL, place // columns * _CELL))
    buffer = io.BytesIO()
    note = PngInfo()
    if comment:
        note.add_text("Comment", comment)
    sheet.save(buffer, "PNG", pnginfo=note)
    return buffer.getvalue()
