"""The page of an audit: its content, its words for what is missing, and that nothing in it can run or load."""

import base64
import copy
import hashlib
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cxrsynth.auditing.page.figures import (
    MEASURES,
    UNMEASURED,
    Compared,
    count,
    figure,
    flat,
    interval,
    quantiles,
    share,
)
from cxrsynth.auditing.page.gallery import PICTURE_BYTES, choose
from cxrsynth.auditing.page.page import write_page
from cxrsynth.auditing.page.reasons import meaning
from cxrsynth.auditing.reader_study.numbered import number_readers
from cxrsynth.metrics.membership.inference import COMBINED
from cxrsynth.metrics.quality.checks import CHECKS
from tests.auditing.page.page_example import (
    ENDING,
    FINDINGS,
    HOSTILE,
    MATHS,
    REASONS,
    REWARDS,
    everything_measured,
    example_rows,
    example_summary,
    few_images,
    radiograph,
    without,
)

_INLINE = {"span", "strong", "small", "a", "text"}
_VOID = {"meta", "img", "input", "link", "br", "path", "use"}


class Page(HTMLParser):
    """Elements with their attributes and all text below them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, list[str]]] = []
        self.feed(text)
        self.close()
        assert self._open == []  # every element was closed

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        text: list[str] = []
        self.found.append((tag, dict(attrs), text))
        if tag not in _VOID:
            self._open.append((tag, text))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self._open.pop()[0] == tag
        if tag not in _INLINE:
            self.handle_data(" ")

    def handle_data(self, data: str) -> None:
        for _, text in self._open:
            text.append(data)

    def all(self, tag: str, **attributes: str) -> list[str]:
        """Text of each element of a tag with these attributes, white space made single."""
        wanted = attributes.items()
        return [
            " ".join("".join(text).split())
            for name, own, text in self.found
            if name == tag and all(own.get(key.rstrip("_")) == value for key, value in wanted)
        ]

    def one(self, tag: str, **attributes: str) -> str:
        (text,) = self.all(tag, **attributes)
        return text

    def section(self, name: str) -> str:
        return self.one("section", id=name)


def picture(key: str) -> bytes:
    """A gray picture that depends on its key; quicker than `radiograph`."""
    level = hashlib.sha256(key.encode("utf-8", "replace")).digest()[:16]
    buffer = io.BytesIO()
    Image.frombytes("L", (4, 4), level).save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return example_rows(60)


@pytest.fixture
def summary(rows: pa.Table) -> dict[str, Any]:
    return example_summary(rows)


Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(summary: dict[str, Any], rows: pa.Table, **options: Any) -> str:
        write_page(tmp_path / "report.html", summary, rows, picture, **options)
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write


@pytest.fixture(scope="module")
def shared(rows: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the example, real images shown."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, example_summary(rows), rows, picture, reference_thumbnails=picture)
    return path.read_text(encoding="utf-8")


def images_of(text: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="images">(.*?)</script>', text, re.S)
    assert found is not None
    radiographs: list[dict[str, Any]] = json.loads(found[1])
    return radiographs


def test_every_part_stands_in_its_section(summary: dict[str, Any], shared: str) -> None:
    page = Page(shared)
    header = page.one("header")
    assert page.one("h1") == "winter-2031"
    assert f"Kept {summary['kept']} " in header
    assert f"Rejected {summary['rejected']} " in header
    assert "a generative model made them. Not for diagnosis." in header
    assert "no patient" not in header  # no measure here can say that
    assert "coverage is 0.631; at least 0.700 was required" in header
    assert all(f"{reason} {found} " in page.section("reasons") for reason, found in summary["reasons"].items())
    assert "at least diagnosis -1.20" in page.section("reasons")
    assert all(name in page.section("rewards") for name in REWARDS)
    edema = summary["findings"]["Edema"]
    assert f"Edema {edema['images']} {edema['kept']} " in page.section("findings")
    assert "14.2 12.3 to 16.1 real: 6.12 8.0 5.8 to 10.2" in page.section("fidelity")
    assert "Fréchet distance: 80 images for 256 features: mostly bias" in page.section("fidelity")
    assert "Pneumothorax 7 9 too few images to measure" in page.section("fidelity")
    assert "child 7 9 too few images to measure" in page.section("subgroups")
    assert "with equal counts" in page.section("fidelity")
    assert "rotated 190 of 200 95.0% 91.1% to 97.3%" in page.section("memorization")
    assert "held-out real patients 1 of 400 0.2% 0.0% to 1.4%" in page.section("memorization")
    assert "0.740 0.709 to 0.771" in page.section("utility")
    assert "Edema all 0.0210 0.0030 to 0.0390 0.0320 0.0140 to 0.0500" in page.section("utility")
    assert "synthetic then real 3 0.820 0.800 to 0.840 0.0230 0.0080 to 0.0380" in page.section("utility")
    assert "Edema sex: F 41 0.370 0.290 to 0.450" in page.section("utility")
    assert "Edema sex: F minus sex: M 0.120 0.040 to 0.200" in page.section("utility")
    assert "real + balanced synthetic: not measured, 3 synthetic images show F, child" in page.section("utility")
    assert "Pneumothorax, sex: F: 3 images with it and 90 without" in page.section("utility")
    assert "../../<b>.png leaves its folder" in page.section("damage")
    assert "c4" * 32 in page.section("provenance")
    assert summary["provenance"]["command"] in page.section("provenance")
    assert "shards" not in page.section("provenance").replace("shard-", "")
    assert [name for name, _, text in page.found if name == "svg"] == ["svg"] * 11


def test_a_floor_of_fewer_images_stands_beside_the_audited_ones_at_its_size(
    summary: dict[str, Any], rows: pa.Table, write: Write
) -> None:
    [of_all, *others] = summary["fidelity"]
    floor = of_all["floor"] | {"images": 40, "audited": of_all["floor"]["audited"] | {"frechet": 20.2}}
    missing = {"frechet_infinity": None, "not_measured": {"frechet_infinity": "80 images for 256 features"}}
    summary |= {"fidelity": [of_all | missing | {"floor": floor}, *others]}
    section = Page(write(summary, rows)).section("fidelity")
    assert "80 real: 40 14.2 12.3 to 16.1 real: 6.12, 20.2 here" in section
    assert "Fréchet distance, extrapolated: not measured: 80 images for 256 features" in section
    summary |= {"fidelity": [of_all | {"floor": None, "not_measured": {"floor": "no known patients"}}]}
    section = Page(write(summary, rows)).section("fidelity")
    assert "real: " not in section
    assert "Floor (real against real): not measured: no known patients" in section


def test_few_images_have_a_row_and_a_plot_of_what_is_measured_of_them(
    summary: dict[str, Any], rows: pa.Table, write: Write
) -> None:
    few_images(summary)
    section = Page(write(summary, rows)).section("fidelity")
    assert "Distance of few images" in section
    assert "24 real: 24 not measured not measured 0.00213 0.00003 to 0.00423 real: 0.000010 0.00201" in section
    left = "Fréchet distance, Fréchet distance, extrapolated, Precision, Recall, Density, Coverage, MS-SSIM, audited"
    assert f"{left}, MS-SSIM, real, MS-SSIM, across: not measured: 24 audited and 512 real images" in section
    assert "KID: 24 images: wide intervals" in section


def test_subgroups_are_counted_in_the_rows(rows: pa.Table, shared: str) -> None:
    radiographs = [row for row in rows.to_pylist() if row["view"] == "AP"]
    mean = figure(float(np.mean([row["reward_posture"] for row in radiographs])))
    kept = sum(row["kept"] for row in radiographs)
    expected = f"AP {len(radiographs)} {kept} {share(kept, len(radiographs))} {mean} "
    assert expected in Page(shared).section("subgroups")


def test_pairs_show_both_pictures_and_flag_near_duplicates(
    summary: dict[str, Any], rows: pa.Table, write: Write
) -> None:
    nearest = [
        {"key": "made-1", "real": "real-1", "similarity": 0.97, "flagged": True},
        {"key": "made-2", "real": "real-2", "similarity": 0.41, "flagged": False},
        {"key": "made-3", "real": "", "similarity": 0.0, "flagged": False},
    ]
    summary["memorization"]["patients_known"] = False
    summary["memorization"]["nearest"] = nearest
    summary["reidentification"]["nearest"] = [nearest[0] | {"real": "real-9", "similarity": 0.88}]
    page = Page(write(summary, rows, reference_thumbnails=picture))
    shown = {own["alt"]: own["src"] for name, own, _ in page.found if name == "img"}
    assert shown["Audited image made-1"] == data_uri(picture("made-1"))
    assert shown["Real image real-2"] == data_uri(picture("real-2"))
    assert "made-1 real-1 Similarity 0.970 above the threshold made-2 real-2 Similarity 0.410" in page.section(
        "memorization"
    )
    assert "made-1 real-9 Similarity 0.880 above the threshold" in page.section("reidentification")
    assert page.section("memorization").count("above the threshold") == 1
    assert "shows 3 real radiographs of the reference. Treat it as you treat the reference" in page.one("header")
    assert "patients are unknown, so it may show the same one" in page.section("memorization")
    summary["memorization"]["nearest"] = [pair | {"real": "real-1"} for pair in nearest[:2]]
    page = Page(write(summary | {"reidentification": None}, rows, reference_thumbnails=picture))
    assert "shows 1 real radiograph of the reference" in page.one("header")
    alone = Page(write(summary, rows))
    assert not any((own.get("alt") or "").startswith("Real image") for _, own, _ in alone.found)
    assert "of the reference. Treat it" not in alone.one("header")
    assert "run audit again with --show-real" in alone.section("memorization")


@pytest.mark.parametrize("searched", [True, False])
@pytest.mark.parametrize("real", [None, picture])
def test_the_owners_page_names_the_one_to_hand_on(
    searched: bool, real: Callable[[str], bytes] | None, summary: dict[str, Any], rows: pa.Table, write: Write
) -> None:
    pointer = "The page to hand on is share/report.html."
    summary |= {} if searched else {"memorization": None}
    assert pointer in Page(write(summary, rows, reference_thumbnails=real)).one("header")
    assert pointer not in Page(write(summary, rows, handed_on=True)).one("header")
    # Of images that may be real there is no such page.
    summary["input"]["manifest"] = None
    assert pointer not in Page(write(summary, rows, reference_thumbnails=real)).one("header")


def test_all_images_stand_beside_the_kept_ones(summary: dict[str, Any], rows: pa.Table, write: Write) -> None:
    assert "Kept images" not in Page(write(summary, rows)).section("fidelity")
    [of_all, *_] = summary["fidelity"]
    summary |= {"fidelity_all": [of_all | {"images": 321}]}
    section = Page(write(summary, rows)).section("fidelity")
    assert section.index("Kept images") < section.index("copies of real images make a set look better")
    assert section.index("copies of real images make a set look better") < section.index("All images 321")


def test_reasons_of_what_was_not_measured_are_given(summary: dict[str, Any], rows: pa.Table, write: Write) -> None:
    reasons = {"memorization": "reference: 5 images of 5 patients", "utility": "no image has a finding"}
    summary |= {"memorization": None, "utility": None, "not_measured": reasons}
    page = Page(write(summary, rows))
    assert f"not examined: {reasons['memorization']}. This page" in page.section("memorization")
    assert f"not measured: {reasons['utility']}." in page.section("utility")


def test_rewards_and_obedience_of_the_kept_images_stand_beside_those_of_all(
    summary: dict[str, Any], rows: pa.Table, write: Write
) -> None:
    area = {"value": 0.8123, "low": 0.7, "high": 0.9}
    row = {"finding": "Edema", "requested": 40, "not_requested": 60}
    summary |= {"obedience": [{**row, "auroc": area}], "obedience_kept": [{**row, "auroc": area | {"value": 0.8456}}]}
    page = Page(write(summary, rows))
    assert "Rewards over all images and over the kept ones" in page.section("rewards")
    assert "posture, kept" in page.section("rewards")
    assert "AUROC, kept images" in page.section("obedience")
    assert "0.846" in page.section("obedience")
    page = Page(write(summary | {"rejected": 0, "obedience_kept": None}, rows))
    assert "kept" not in page.section("rewards").partition("Rewards over all images")[2]
    assert "kept" not in page.section("obedience")


def test_what_was_not_measured_is_said_and_is_no_zero(summary: dict[str, Any], rows: pa.Table, write: Write) -> None:
    rows = without(rows, "reward_consistency", "nearest_real", "nearest_real_similarity", "memorized")
    summary |= {
        "reference": None,
        "fidelity": [],
        "memorization": None,
        "reidentification": None,
        "utility": None,
        "failed": [],
    }
    summary["input"] |= {"manifest": None, "damaged": []}
    nothing = dict.fromkeys(("mean", "std", "p5", "p25", "p50", "p75", "p95"))
    summary["rewards"]["consistency"] = {**nothing, "unscored": len(rows)}
    for finding in summary["findings"].values():
        finding["consistency"] = None
    text = write(summary, rows)
    page = Page(text)
    assert "not examined" in page.section("memorization")
    assert "not measured: no reference of real images was given." in page.section("fidelity")
    assert "Near-duplicates of real images not examined" in page.one("header")
    assert "treat them as images of patients" in page.one("header")
    assert page.section("utility") == "Utility not measured: no classifier was trained on these images."
    assert page.section("damage") == "Damage Every shard and member could be read."
    assert f"consistency {'not measured ' * 7}{len(rows)}" in page.section("rewards")
    assert "not measured: undefined for every image" in page.section("rewards")
    assert all(radiograph["numbers"]["similarity"] is None for radiograph in images_of(text))
    assert "consistency not measured" in page.section("gallery")


def test_a_set_without_images_or_models_has_a_page(summary: dict[str, Any], rows: pa.Table, write: Write) -> None:
    none = rows.slice(0, 0)
    empty: dict[str, Any] = {
        "kept": 0,
        "rejected": 0,
        "reasons": {},
        "rewards": {},
        "rewards_kept": {},
        "reward_models": {},
        "findings": {},
    }
    empty |= {"thresholds": [], "fidelity": [], "memorization": None}
    page = Page(write(summary | empty, none))
    assert "No image was rejected." in page.section("reasons")
    assert "0 of 0 rejected images" in page.section("gallery")
    unscored = none.drop_columns([f"reward_{name}" for name in REWARDS])
    assert "no reward was requested" in Page(write(summary | empty, unscored)).section("rewards")


def test_damage_that_is_not_listed_is_counted(summary: dict[str, Any], rows: pa.Table, write: Write) -> None:
    one = {"source": "shard-1.tar", "member": "a.png", "reason": "no image"}
    summary["input"] |= {"damaged": [one] * 1000, "damaged_count": 1500}
    page = Page(write(summary, rows))
    assert "Damaged, skipped 1,500" in page.one("header")
    assert page.section("damage").count("no image") == 200
    assert "1,300 more are not shown" in page.section("damage")


def test_nan_counts_as_unscored(summary: dict[str, Any], rows: pa.Table, write: Write) -> None:
    values = rows["reward_posture"].to_numpy().copy()
    values[::2] = np.nan
    place = rows.column_names.index("reward_posture")
    page = write(summary, rows.set_column(place, rows.field(place), pa.array(values)))
    undefined = [radiograph for radiograph in images_of(page) if radiograph["numbers"]["reward posture"] is None]
    assert undefined
    assert "nan" not in Page(page).section("subgroups")


@pytest.mark.usefixtures("charts_anew")
def test_equal_inputs_give_equal_bytes(summary: dict[str, Any], rows: pa.Table, write: Write, shared: str) -> None:
    other_chunks = pa.concat_tables([rows.slice(0, 25), rows.slice(25)])
    assert write(json.loads(json.dumps(summary)), other_chunks, reference_thumbnails=picture) == shared


def test_ids_are_unique_and_every_reference_within_the_page_leads_somewhere(shared: str) -> None:
    page = Page(shared)
    ids = [own["id"] for _, own, _ in page.found if "id" in own]
    assert len(ids) == len(set(ids))
    named = {value for _, own, _ in page.found for key, value in own.items() if key == "aria-labelledby"}
    linked = {value[1:] for _, own, _ in page.found if (value := own.get("href") or "").startswith("#")}
    clipped = {value[5:-1] for _, own, _ in page.found if (value := own.get("clip-path") or "")}
    assert named
    assert clipped
    assert named | linked | clipped <= set(ids)


def test_tables_and_pictures_can_be_read_aloud(shared: str) -> None:
    page = Page(shared)
    assert len(page.all("table")) == len(page.all("caption")) > 10
    assert all(own.get("scope") in ("col", "row", "rowgroup") for name, own, _ in page.found if name == "th")
    assert all(own.get("alt") for name, own, _ in page.found if name == "img")
    assert all(own.get("aria-label") and own.get("role") == "img" for name, own, _ in page.found if name == "svg")
    levels = [int(name[1]) for name, _, _ in page.found if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_only_the_page_s_own_style_and_script_may_run(shared: str) -> None:
    page = Page(shared)
    policy = next(own["content"] for _, own, _ in page.found if own.get("http-equiv") == "Content-Security-Policy")
    style = re.findall(r"<style>(.*?)</style>", shared, re.S)
    script = re.findall(r"<script>(.*?)</script>", shared, re.S)
    digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in style + script]
    assert len(digests) == 2
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    for _, own, _ in page.found:
        assert "style" not in own
        assert not any(name.startswith("on") for name in own)
        assert (own.get("src") or "data:image/").startswith("data:image/")
        assert (own.get("href") or "#").startswith("#")
    assert "http://" not in shared
    assert "https://" not in shared


@pytest.mark.parametrize("text", [HOSTILE + ENDING + MATHS + "\u202egnp.exe\u4e2d\u6587\x1b[0m\x00", "\ud800"])
def test_what_others_wrote_is_only_text(
    text: str, summary: dict[str, Any], rows: pa.Table, write: Write, shared: str
) -> None:
    quiet = Page(shared)
    summary["input"] |= {"path": f"sets/{text}", "damaged": [{"source": text, "member": text, "reason": text}]}
    summary["reasons"] = {text: 3, "below $x^2$": 2}
    summary["reward_models"]["posture"] = {"backend": text, "digest": text, "unit": text}
    summary["thresholds"] = [{"rule": text, "on": text, "value": text}]
    summary["findings"] = {text: summary["findings"]["Edema"]}
    summary["provenance"] = {text: text}
    summary["memorization"]["nearest"][0] |= {"key": text, "real": text}
    summary["memorization"]["sensitivity"] = {text: {"caught": 1, "of": 2, "low": 0.1, "high": 0.9}}
    if text != "\ud800":  # no such text fits into a column
        radiographs = rows.to_pylist()
        radiographs[0] |= {
            "key": text,
            "source": text,
            "present": [text],
            "reasons": [text],
            "view": text,
            "kept": False,
        }
        rows = pa.Table.from_pylist(radiographs, rows.schema)
    page = write(summary, rows)
    loud = Page(page)
    kinds = {name for name, _, _ in quiet.found}
    assert {name for name, _, _ in loud.found} <= kinds
    assert len(loud.all("script")) == len(quiet.all("script")) == 2
    assert "below $x^2$" in loud.all("text")
    assert "<" not in loud.all("script")[0]
    if text != "\ud800":
        assert text in [radiograph["key"] for radiograph in images_of(page)]


def test_the_gallery_holds_rejected_images_of_every_reason_and_kept_ones_of_every_finding(
    summary: dict[str, Any], write: Write
) -> None:
    rows = example_rows(400, seed=1)
    summary |= {"kept": sum(rows["kept"].to_pylist()), "rejected": len(rows) - sum(rows["kept"].to_pylist())}
    text = write(summary, rows, gallery=40)
    radiographs = images_of(text)
    rejected = [radiograph for radiograph in radiographs if not radiograph["kept"]]
    assert (len(radiographs), len(rejected)) == (40, 20)
    assert f"20 of {summary['rejected']} rejected images" in Page(text).section("gallery")
    assert f"20 of {summary['kept']} kept images" in Page(text).section("gallery")
    assert {reason for radiograph in rejected for reason in radiograph["reasons"]} == set(REASONS)
    assert all(
        sum(finding in radiograph["findings"] for radiograph in radiographs if radiograph["kept"]) >= 3
        for finding in FINDINGS
    )
    keys = rows["key"].to_pylist()
    places = [keys.index(radiograph["key"]) for radiograph in radiographs]
    assert places == sorted(places)
    assert len(images_of(write(summary, rows, gallery=4000))) == 400
    assert images_of(write(summary, rows, gallery=0)) == []


def test_reasons_are_explained_and_cards_say_what_was_measured(
    summary: dict[str, Any], rows: pa.Table, write: Write
) -> None:
    reasons = ["check: blank", "duplicate", "posture<-2.5", "memorized", "diagnosis below p5 of reference", "mine"]
    radiographs = rows.to_pylist()
    radiographs[0] |= {"reasons": reasons, "kept": False, "check_blank": 0.0123}
    summary["reasons"] = dict.fromkeys(reasons, 1)
    page = Page(write(summary, pa.Table.from_pylist(radiographs, rows.schema)))
    section = page.section("reasons")
    for expected in (
        "hardly any structure: blank, or noise (range of coarse gray levels, of full range: below 0.0500)",
        "the same picture as another image of the set",
        "posture is worse than --min posture=-2.5",
        "more similar to a real image than",
        "(--beat-reference)",
    ):
        assert expected in section
    assert "check: blank 0.0123, at least 0.0500" in page.section("gallery")
    assert all(meaning(f"check: {name}") for name in CHECKS)
    assert meaning("outside best 0.50 of Edema")
    assert meaning("<b>") == meaning("mine") == meaning("check: other") == ""


def test_cards_say_what_was_measured_and_the_limit(summary: dict[str, Any], rows: pa.Table, write: Write) -> None:
    measured = {
        "check: blank": ("check_blank", 0.0123, "0.0123, at least 0.0500"),
        "duplicate": ("duplicate_similarity", 0.913, "0.913, below 0.700"),
        "memorized": ("nearest_real_similarity", 0.957, "0.957, at most 0.920"),
        "posture<-2.5": ("reward_posture", -3.25, "-3.25, at least -2.50"),
        "consistency below p0.5 of reference": ("reward_consistency", 0.123, "0.123, at least 0.234"),
        "outside best 0.50 of Edema": (None, None, ""),
    }
    summary["thresholds"] = [
        {"rule": "at least", "on": "posture", "value": -2.5},
        {"rule": "p0.5 of reference", "on": "consistency", "value": 0.234},
        {"rule": "best of each finding", "on": "all rewards", "value": 0.5},
    ]
    radiographs = rows.to_pylist()
    for place, (reason, (column, value, _)) in enumerate(measured.items()):
        radiographs[place] |= {"reasons": [reason], "kept": False} | ({column: value} if column else {})
    page = Page(write(summary, pa.Table.from_pylist(radiographs, rows.schema)))
    why = page.all("ul", class_="why")
    assert why[: len(measured)] == [f"{reason} {text}".strip() for reason, (_, _, text) in measured.items()]
    summary["memorization"] = None
    assert "0.957, at most" not in write(summary, pa.Table.from_pylist(radiographs, rows.schema))


def test_a_duplicate_stands_beside_what_it_repeats(summary: dict[str, Any], rows: pa.Table, write: Write) -> None:
    radiographs = [row | {"reasons": [], "kept": True, "duplicate_of": None} for row in rows.to_pylist()]
    first, last = radiographs[3]["key"], radiographs[-1]["key"]
    repeats = {"reasons": ["duplicate"], "kept": False, "duplicate_similarity": 0.9, "duplicate_of": first}
    radiographs[-1] |= repeats
    changed = pa.Table.from_pylist(radiographs, rows.schema)
    # One image of the gallery is rejected, one kept: the original need not be the latter.
    page = Page(write(summary | {"memorization": None, "reidentification": None}, changed, gallery=2))
    images = [(own["alt"], own["src"]) for name, own, _ in page.found if name == "img"]
    beside = [(f"Image {last}, rejected", last), (f"Image {first}, which it repeats", first)]
    assert len(images) == 3
    assert images[-2:] == [(alt, data_uri(picture(key))) for alt, key in beside]
    assert f"this image repeats {first} {last} rejected" in page.section("gallery")
    assert "3 pictures" in page.one("footer")
    assert len(page.all("li", class_="card is-rejected is-pair")) == len(page.all("span", class_="two")) == 1


@pytest.mark.parametrize("copy", ["first", "second", "third"])
def test_what_repeats_a_copy_of_a_real_image_is_not_handed_on(
    copy: str, summary: dict[str, Any], rows: pa.Table, write: Write
) -> None:
    """The others of its group may lie just below the threshold, and show the same patient."""
    radiographs = [
        row | {"reasons": [], "kept": True, "duplicate_of": None, "memorized": False} for row in rows.to_pylist()[:8]
    ]
    first = radiographs[0]["key"]
    group = dict(zip(("first", "second", "third"), radiographs[:3], strict=True))
    for other in (group["second"], group["third"]):
        other |= {"reasons": ["duplicate"], "kept": False, "duplicate_similarity": 0.9, "duplicate_of": first}
    group[copy] |= {"memorized": True}
    changed = pa.Table.from_pylist(radiographs, rows.schema)
    nearest = [pair | {"key": radiographs[2]["key"]} for pair in summary["memorization"]["nearest"][:1]]
    searched = {"memorization": summary["memorization"] | {"nearest": nearest}, "reidentification": None}
    page = Page(write(summary | searched, changed, handed_on=True))
    shown = {own["src"] for name, own, _ in page.found if name == "img"}
    assert shown == {data_uri(picture(row["key"])) for row in radiographs[3:]}


def test_caveats_stand_at_the_top(summary: dict[str, Any], rows: pa.Table, write: Write) -> None:
    said = "4 of 24 reference images have no known patient"
    assert said in Page(write(summary | {"caveats": [said]}, rows)).one("header")
    assert "Read the numbers with care" not in Page(write(summary, rows)).one("header")


def test_the_page_says_what_to_do_next(summary: dict[str, Any], rows: pa.Table, write: Write) -> None:
    assert "--write-kept FOLDER" in Page(write(summary, rows)).one("header")
    clean = summary | {"rejected": 0, "reference": None, "fidelity": [], "memorization": None, "utility": None}
    header = Page(write(clean, rows)).one("header")
    assert "No image was rejected: look through the gallery" in header
    assert "--reference FOLDER" in header


def test_choosing_takes_groups_in_turn() -> None:
    many, few = np.arange(1000), np.arange(1000, 1003)
    chosen = choose([many, few], 20)
    assert len(set(chosen)) == 20
    assert {1000, 1001, 1002} <= set(chosen)
    assert max(place for place in chosen if place < 1000) > 500  # from all of the group, not from its start
    assert choose([many, few], 20) == chosen
    assert choose([many[:5], many[3:8]], 20) == list(range(8))
    assert choose([], 20) == choose([many], 0) == []


def test_a_rule_on_a_share_of_images_is_no_line_on_a_reward(
    summary: dict[str, Any], rows: pa.Table, write: Write
) -> None:
    rules = zip(("at least", "p5 of reference", "best of each finding"), REWARDS, strict=True)
    summary["thresholds"] = [{"rule": rule, "on": name, "value": 0.4} for rule, name in rules]
    page = Page(write(summary, rows))
    figures = [text for text in page.all("figure") if "share of images" in text]
    assert ["threshold" in text for text in figures[:3]] == [True, True, False]


def test_large_pictures_are_made_smaller(summary: dict[str, Any], rows: pa.Table, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 500), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    write_page(
        tmp_path / "report.html", summary, without(rows, "duplicate_of"), lambda key: buffer.getvalue(), gallery=4
    )
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    sources = [own["src"] or "" for name, own, _ in page.found if name == "img"]
    assert len(sources) == 4 + 2 * 12
    assert all(len(source) < PICTURE_BYTES * 4 / 3 + 50 for source in sources)
    image = Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2])))
    assert (image.format, image.size) == ("JPEG", (183, 256))
    assert f"{len(sources)} pictures, {sum(map(len, sources)) / 1e6:.1f} MB" in page.one("footer")


def test_pictures_are_png_or_jpeg_or_missing(summary: dict[str, Any], rows: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(path, summary, rows, lambda key: None)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.all("img") == []
    assert "no picture" in page.section("gallery")
    write_page(path, summary, rows, radiograph, gallery=2)
    assert path.read_text(encoding="utf-8").count("data:image/jpeg;base64,/9j/") == 2 + 2 * 12
    before = path.read_bytes()
    with pytest.raises(ValueError, match="neither PNG nor JPEG"):
        write_page(path, summary, rows, lambda key: b"<svg onload=alert(1)>")
    assert path.read_bytes() == before


def test_the_wording_promises_nothing(summary: dict[str, Any], rows: pa.Table, write: Write, shared: str) -> None:
    body = Page(shared).one("body") + Page(write(summary | {"memorization": None}, rows)).one("body")
    assert [word for word in ("safe", "anonym", "private", "guarantee") if word in body.lower()] == []
    # A heading, the link to it, and the pointer of a fold, on each of the two pages: nothing is said to have it.
    assert body.lower().count("privacy") == 2 * 3


def sections(text: str) -> dict[str, str]:
    """What each section holds, sections within it excepted, by its id."""
    found: dict[str, str] = {}
    within: list[str] = []
    for part in re.split(r"(<section [^>]*>|</section>)", text):
        if part.startswith("<section "):
            [name] = re.findall(r'id="([^"]+)"', part)
            within.append(name)
        elif part == "</section>":
            within.pop()
        elif within:
            found[within[-1]] = found.get(within[-1], "") + part
    return found


def test_every_section_with_a_number_says_how_it_is_computed(rows: pa.Table, write: Write) -> None:
    found = sections(write(everything_measured(rows), rows))
    with_numbers = {name for name, held in found.items() if 'td class="number"' in held or 'class="answer"' in held}
    folds = {name for name, held in found.items() if '<details class="how">' in held}
    assert {"verdicts", "membership", "reasons", "subgroups", "readers", "protocol", "compared"} <= with_numbers
    assert with_numbers - folds == set()
    assert all(re.search(r'<details class="how">.*?<p class="note">\w', found[name], re.S) for name in folds)


def test_plots_stand_before_tables(rows: pa.Table, write: Write) -> None:
    found = sections(write(everything_measured(rows), rows))
    for name in ("fidelity", "obedience", "memorization", "reidentification", "membership", "readers"):
        assert 0 < found[name].find("<svg") < found[name].index("<table"), name
    few = everything_measured(rows)
    few["fidelity"][0] |= {"floor": None, "not_measured": {"floor": "too few patients"}}
    few["reidentification"]["reference"]["others"] = {}
    held = sections(write(few, without(rows, "nearest_patient_score")))
    assert [name for name in ("fidelity", "reidentification") if "<svg" in held[name]] == []


def test_privacy_says_what_was_tested_what_would_be_found_and_what_cannot(
    summary: dict[str, Any], rows: pa.Table, write: Write
) -> None:
    page = Page(write(everything_measured(rows), rows))
    section = page.section("privacy")
    assert all(page.section(name) in section for name in ("memorization", "reidentification", "membership"))
    assert "each of 60 images against 512 real ones 66% to 98% of planted copies, depending on the kind" in section
    assert "22% of the patients with another image in the reference" in section
    assert (
        "4 attacks on nano: 50 members, 50 others a leak that gives all attacks together an AUC of about 0.68"
        in section
    )
    caught = everything_measured(rows)
    caught["membership"]["attacks"][COMBINED]["auc"] = {"value": 0.997, "low": 0.984, "high": 1.0}
    assert "an AUC of about 0.68 or more" in Page(write(caught, rows)).section("privacy")
    wide = everything_measured(rows)
    wide["membership"]["members"]["patients"] = wide["membership"]["non_members"]["patients"] = 2
    assert "50 others nothing for certain: with so few images" in Page(write(wide, rows)).section("privacy")
    summary |= {"memorization": None, "reidentification": None}
    summary["not_measured"] = {"memorization": "reference: 5 images\n  expected: 20"}
    section = Page(write(summary, rows)).section("privacy")
    assert "not tested: reference: 5 images; expected: 20 nothing copies of images that are not" in section
    assert "not tested: no reference of real images was given nothing patients who" in section
    assert "not tested: no training images of the model (--model, --members, --non-members) nothing what" in section


def test_readers_have_names_on_the_owner_s_page_alone(rows: pa.Table, write: Write) -> None:
    summary = everything_measured(rows)
    before = copy.deepcopy(summary)
    own, numbered = write(summary, rows), number_readers(summary)
    handed_on = write(numbered, rows, handed_on=True)
    secrets = ("Quibble", "Roe", "radiologist", "17 years")
    assert all(secret in own for secret in secrets)
    for text in (handed_on, json.dumps(numbered)):
        assert [secret for secret in secrets if secret in text] == []
    assert "Cohen, reader 1 and reader 2" in Page(handed_on).section("readers")
    assert "reader 1 answered 9 of 12 images" in Page(handed_on).one("header")
    assert summary == before
    for part in (None, summary["reader_study"] | {"scores": None}):
        assert number_readers(summary | {"reader_study": part}) == summary | {"reader_study": part}


def test_a_group_of_which_something_was_measured_is_not_too_few() -> None:
    nothing = {measure.name: None for measure in MEASURES}
    some = nothing | {"frechet": {"value": 0.0, "low": 0.0, "high": 1.0}}
    assert Compared("Edema", 60, 60, nothing).too_few
    assert not Compared("Edema", 60, 60, some).too_few


def test_numbers() -> None:
    assert [figure(value) for value in (0.0, 1.0, -1.234, 12.345, 1234.5, 0.00123)] == [
        "0", "1.00", "-1.23", "12.3", "1,234", "0.00123",
    ]  # fmt: skip
    assert figure(None) == figure(float("nan")) == count(None) == share(0, 0) == UNMEASURED
    assert (count(0), count(12345), share(1, 8)) == ("0", "12,345", "12.5%")
    assert (
        interval({"value": 0.0, "low": 0.0, "high": 0.012}) == '0.0000 <span class="interval">0.0000 to 0.0120</span>'
    )
    assert interval({"value": 12.0, "low": None, "high": None}) == "12.0"
    assert interval(None) == interval({"value": None}) == UNMEASURED
    assert quantiles({"p50": 0.4, "min": 0.1, "p99.5": 0.9, "mean": 0.5, "max": None}) == [
        (0.0, 0.1), (0.5, 0.4), (0.995, 0.9),
    ]  # fmt: skip
    assert list(flat({"a": {"b": [1, "x"]}, "c": None, "d": [{"e": 1}]})) == [
        ("a.b", "1, x"), ("c", "not set"), ("d", '[{"e": 1}]'),
    ]  # fmt: skip
    assert len(dict(flat({"long": "x" * 10_000}))["long"]) < 700


def test_the_page_to_hand_on_has_no_picture_of_a_real_image_or_its_copy(tmp_path: Path) -> None:
    rows = example_rows(60)
    first_of = {row["key"]: row["duplicate_of"] or row["key"] for row in rows.to_pylist()}
    copied = {first_of[row["key"]] for row in rows.to_pylist() if row["memorized"]}
    copies = {key for key, first in first_of.items() if first in copied}
    summary = example_summary(rows)
    pairs = summary["memorization"]["nearest"]
    assert copies & {pair["key"] for pair in pairs}
    limit = summary["reidentification"]["reference"]["threshold"]
    recognized = {row["key"] for row in rows.to_pylist() if (row["nearest_patient_score"] or 0) > limit}
    recognized |= {own := rows["key"][40].as_py()}  # by the image that its own report is of
    rows = rows.append_column(
        "source_score", pa.array([0.72 if key == own else None for key in rows["key"].to_pylist()])
    )
    # What repeats one of them, though its own report is another's, shows the same patient.
    keys, firsts = rows["key"].to_pylist(), rows["duplicate_of"].to_pylist()
    again = next(
        key
        for key, first in zip(keys, firsts, strict=True)
        if first is None and key not in {*recognized, *copies, *firsts}
    )
    repeats = [own if key == again else first for key, first in zip(keys, firsts, strict=True)]
    rows = rows.set_column(rows.column_names.index("duplicate_of"), "duplicate_of", pa.array(repeats, pa.string()))
    heads = {key: first or key for key, first in zip(keys, repeats, strict=True)}
    recognized = {key for key in keys if heads[key] in {heads[one] for one in recognized}}
    assert again in recognized
    assert recognized - copies
    for handed_on in (False, True):
        made: set[str] = set()
        real: set[str] = set()
        path = tmp_path / f"{handed_on}.html"
        write_page(
            path,
            summary,
            rows,
            lambda key: (made.add(key), radiograph(key))[1],  # noqa: B023
            reference_thumbnails=lambda name: (real.add(name), radiograph(name))[1],  # noqa: B023
            handed_on=handed_on,
        )
        page = path.read_text()
        pictured = {pair["key"] for pair in pairs} | set(rows["key"].to_pylist())
        assert made == (pictured - copies - recognized if handed_on else pictured)
        assert bool(real) is not handed_on
        assert ("may be handed on" in page) is handed_on
        assert ("share this page only with people who may see the reference" in page) is not handed_on
    write_page(path, summary | {"memorization": None}, rows, radiograph, handed_on=True)
    assert "may be handed on" not in path.read_text()
    assert "were not searched for" in path.read_text()
