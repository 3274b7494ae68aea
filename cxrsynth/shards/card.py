"""What stands beside the shards for a human: the data set card and the contact sheet."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cxrsynth.shards.folder import KEYS, MANIFEST, REJECTED

_CELL = 192


def dataset_card(manifest: dict[str, Any]) -> bytes:
    """README.md of the data set, made from its manifest."""
    plan, counts = manifest["plan"], manifest["counts"]
    unsupported_findings = manifest["unsupported_findings"]
    where = f"in {len(manifest['shards'])} shards" if manifest["shards"] else "in one DICOM file-set"
    lines = [
        "# Synthetic chest X-rays",
        "",
        "**Every image here is synthetic: made by a generative model, of no patient. Not for diagnosis.**",
        "",
        f"- {counts['samples']} images {where}, from {counts['reports']} reports"
        f" ({counts['rejected']} rows could not be used, see rejected.csv)",
        f"- model: {plan['model']['name']}, SHA-256 `{plan['model']['digest']}`",
        f"- made by: cxrsynth {plan['versions']['cxrsynth']}",
        f"- format: {plan['shards']['format']}; report text: {plan['shards']['include_text']}",
        "- sample keys are keyed hashes of the report ids; the key is not part of the data set",
        "",
        "## Reading it",
        "",
        *_reading(manifest),
        "",
        "`manifest.json` tells the plan, the SHA-256 of each file and what was taken out of the reports.",
        "",
        "## Labels",
        "",
        "The JSON beside each image says which findings were requested, and under `unsupported_findings` those it was",
        "never shown: a request is not a depiction. No label was checked by a reader.",
        "",
    ]
    if unsupported_findings:
        lines += ["Asked for but not depicted:", ""]
        lines += [f"- {name}: {count} images" for name, count in sorted(unsupported_findings.items())]
        lines += [""]
    return "\n".join(lines).encode()


def _reading(manifest: dict[str, Any]) -> list[str]:
    if not manifest["shards"]:
        return ["`fileset/DICOMDIR` lists the DICOM files; `metadata.jsonl` has a line for each, by sample key."]
    return [
        "```python",
        "import webdataset as wds",
        "",
        f"shards = {[shard['name'] for shard in manifest['shards']][:3]!r}",
        "for sample in wds.WebDataset(shards, shardshuffle=False):",
        '    print(sample["__key__"], sorted(sample))',
        "```",
    ]


def kept_card(manifest: Mapping[str, Any]) -> bytes:
    """README.md of the kept images; what they are is said in the words of their source alone."""
    counts, shards = manifest["counts"], [shard["name"] for shard in manifest["shards"]]
    model = (manifest["source"].get("plan") or {}).get("model") or {}
    lines = [
        "# Chest X-rays kept by an audit",
        "",
        f"**{manifest['note']}**" if "note" in manifest else "Their source does not say whether they are synthetic.",
        "",
        f"- {counts['samples']} images in {len(shards)} shards, of {counts['samples'] + counts['rejected']} audited;"
        f" {REJECTED} says why of each that was rejected",
        *([f"- model: {model['name']}, SHA-256 `{model['digest']}`"] if {"name", "digest"} <= model.keys() else []),
        "- every member is byte for byte what it was in the audited set",
        *([f"- {counts['renamed']} images have another key than there, see {KEYS}"] if counts["renamed"] else []),
        f"- audited by: cxrsynth {manifest['plan']['versions']['cxrsynth']}",
        "",
        *_reading_kept(shards),
        f"`{MANIFEST}` tells the rules, what the audit found, and the SHA-256 of each shard.",
        "",
    ]
    return "\n".join(lines).encode()


def _reading_kept(shards: Sequence[str]) -> list[str]:
    if not shards:
        return []
    return [
        "```python",
        "import webdataset as wds",
        "",
        f"for sample in wds.WebDataset({list(shards[:3])!r}, shardshuffle=False):",
        '    print(sample["__key__"], sorted(sample))',
        "```",
        "",
    ]


def contact_sheet(images: Iterable[npt.NDArray[np.float32]], *, columns: int = 6) -> bytes:
    """Preview PNG: images [H, W] in [0, 1] side by side, each at most 192 pixels wide."""
    cells = [Image.fromarray(np.rint(image * 255).astype(np.uint8)).resize((_CELL, _CELL)) for image in images]
    columns = min(columns, len(cells))
    sheet = Image.new("L", (columns * _CELL, math.ceil(len(cells) / columns) * _CELL))
    for place, cell in enumerate(cells):
        sheet.paste(cell, (place % columns * _CELL, place // columns * _CELL))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
