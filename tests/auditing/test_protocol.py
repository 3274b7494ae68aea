"""A benchmark's names for what an audit measured, and its published rows only where the features are the same."""

import copy
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from cxrsynth.auditing.page.page import write_page
from cxrsynth.auditing.protocol import apply_protocol
from cxrsynth.console import print_audit
from cxrsynth.reports.labels import OBSERVATIONS
from cxrsynth.settings import Protocol
from tests.auditing.page.page_example import example_rows, example_summary, few_images

IN_FEATURES = ("FID", "KID", "Precision", "Recall", "Density", "Coverage")
RADDINO = {"name": "microsoft/rad-dino@0123abc", "digest": "d1" * 32, "width": 768}
SUMMARY = example_summary(example_rows(60))
FEW = "80 images for 256 features: mostly bias"


def audited(**others: Any) -> dict[str, Any]:
    """The example's numbers, with parts replaced."""
    provenance = {"image_size": 256}
    return {**SUMMARY, "provenance": provenance, **others}


def enough() -> list[dict[str, Any]]:
    """The example's fidelity, as of enough images for every measure."""
    return [row | {"warnings": {}} for row in SUMMARY["fidelity"]]


def reported(**others: Any) -> dict[str, Any]:
    return apply_protocol(Protocol.CHEXGENBENCH, audited(**others))


def test_measures_of_the_audit_get_the_names_of_the_benchmark() -> None:
    found = reported()
    values = {name: one["value"] for name, one in found["metrics"].items()}
    assert values.pop("Alignment Score") == SUMMARY["rewards"]["consistency"]["mean"]
    assert values == {
        "FID": 14.213,
        "KID": 0.00213,
        "Precision": 0.8123,
        "Recall": 0.6312,
        "Density": 0.951,
        "Coverage": 0.6312,
        "Downstream AUROC": pytest.approx(0.74),  # of three findings, trained on synthetic images, on all patients
        "Avg. Re-ID Score": 0.42,
        "Max. Re-ID Score": 0.93,
        "Count Re-ID > δ": 2,
        "Avg. Latent Distance": 0.61,
    }
    assert found["metrics"]["FID"] | {"title": ""} == {
        "network": "nano-judge diagnosis", "digest": "c4" * 32, "value": 14.213, "low": 14.213 - 1.9,
        "high": 14.213 + 1.9, "title": "", "warning": FEW,
    }  # fmt: skip
    assert found["metrics"]["Downstream AUROC"]["findings"] == 3
    assert found["metrics"]["Alignment Score"]["digest"] == "2a" * 32
    titles = [one["title"] for one in found["metrics"].values()]
    assert titles[:4] == ["FID (nano-judge diagnosis)", "KID (nano-judge diagnosis)", "Alignment Score (nano-judge)",
                          "Precision"]  # fmt: skip
    assert (found["compared"], found["images"], found["real"]) == (80, 60, 512)
    assert found["features"] == SUMMARY["features"]


def test_fid_is_given_by_pathology_and_what_is_missing_has_a_reason() -> None:
    found = reported()
    assert {name: one["compared"] for name, one in found["pathologies"].items()} == dict.fromkeys(
        ("Cardiomegaly", "Edema", "Pleural Effusion", "Support Devices"), 80
    )
    assert found["not_measured"]["FID of Pneumothorax"] == "too few"
    assert found["not_measured"]["FID of Fracture"] == "no image states it"
    named = {name.removeprefix("FID of ") for name in found["not_measured"]} | found["pathologies"].keys()
    assert set(OBSERVATIONS) <= named


def test_values_of_few_images_are_named_and_have_no_published_ones_beside_them() -> None:
    found = reported(features=RADDINO)
    assert f"FID: {FEW}" in found["notes"]
    [note] = [note for note in found["notes"] if note.startswith("FID of ")]
    assert "FID of Cardiomegaly, Edema, Pleural Effusion, Support Devices: so few images" in note
    assert found["published"]["pathologies"] == {}
    notes = reported(features=RADDINO, fidelity=enough())["notes"]
    assert not [note for note in notes if note.startswith("FID")]


def test_who_is_recognized_has_the_benchmarks_names_and_the_verifiers() -> None:
    found = reported()
    verifier = SUMMARY["reidentification"]["verifier"]
    for name in ("Avg. Re-ID Score", "Max. Re-ID Score", "Count Re-ID > δ"):
        one = found["metrics"][name]
        assert (one["network"], one["digest"]) == (verifier["name"], verifier["digest"])
        assert one["title"] == f"{name} ({verifier['name']})"
    [refused] = [why for names, why in found["refused"].items() if "Re-ID" in names]
    assert "pickled" in refused
    assert any("1% of pairs of two patients" in note for note in found["notes"])
    assert "published Avg. Latent Distance is of RadDino" in found["refused"]["Avg. Latent Distance"]
    same = reported(features=RADDINO)
    assert same["published"]["overall"]["LLM-CXR"]["Avg. Latent Distance"] == 0.557
    assert not [names for names in same["refused"] if "Latent" in names]
    assert all("Re-ID" not in name for row in same["published"]["overall"].values() for name in row)
    nobody = SUMMARY["reidentification"] | {"sources": None, "sources_not_measured": "no source"}
    for other, why in ((nobody, "no source"), (None, "it was not examined")):
        found = reported(reidentification=other)
        assert "Avg. Re-ID Score" not in found["metrics"]
        assert found["not_measured"]["Count Re-ID > δ"] == f"re-identification: {why}"


def test_what_was_not_measured_is_no_number() -> None:
    measures = (*(row for row in SUMMARY["fidelity"][0] if row not in ("group", "images", "real")),)
    few = {**SUMMARY["fidelity"][0], **dict.fromkeys(measures), "not_measured": {"all": "9 audited images"}}
    found = reported(
        fidelity=[few],
        utility=None,
        rewards={"consistency": {"mean": None}},
        features=RADDINO,
        not_measured={},
        reidentification=None,
    )
    assert (found["metrics"], found["pathologies"], found["refused"]) == ({}, {}, {})
    assert found["published"] == {"overall": {}, "pathologies": {}}
    assert {found["not_measured"][name] for name in IN_FEATURES} == {"9 audited images"}
    assert found["not_measured"]["Downstream AUROC"] == "needs --utility"
    assert "consistency" in found["not_measured"]["Alignment Score"]


def test_few_images_have_a_kid_and_a_reason_for_the_rest() -> None:
    summary = copy.deepcopy(SUMMARY)
    few_images(summary)
    found = reported(fidelity=summary["fidelity"])
    assert found["metrics"]["KID"]["value"] == 0.00213
    missing = {name: found["not_measured"].get(name) for name in IN_FEATURES if name != "KID"}
    assert set(missing.values()) == {"24 audited and 512 real images, expected at least 50 of each"}


@pytest.mark.parametrize("few", [True, False])
def test_the_console_says_what_few_images_have_and_why_not_more(few: bool, capsys: pytest.CaptureFixture[str]) -> None:
    summary = copy.deepcopy(audited(membership=None, memorization=None, protocol=None))
    summary["input"] |= {"damaged_count": 0}
    few_images(summary)
    if not few:
        why = {"all": "7 audited and 512 real images, expected at least 20 of each"}
        summary["fidelity"][0] |= {"compared": None, "kid": None, "mmd": None, "floor": None, "not_measured": why}
    print_audit(summary, Path("out"))
    printed = capsys.readouterr().out
    if few:
        assert re.search(r"kid +0.00213 \(.*\) +1e-05", printed)
        assert "precision, recall, density, coverage, ms_ssim_within, ms_ssim_real, ms_ssim_to_real: not" in printed
        assert printed.count("expected at least 50 of each") == 1
    else:
        assert "all images: not measured: 7 audited and 512 real images, expected at least 20 of each" in printed


def test_all_images_count_as_no_published_model_had_its_images_chosen() -> None:
    [of_all, *rest] = SUMMARY["fidelity"]
    kept = [{**of_all, "frechet": {"value": 1.0, "low": 0.5, "high": 1.5}}, *rest]
    assert reported(fidelity=kept, fidelity_all=SUMMARY["fidelity"])["metrics"]["FID"]["value"] == 14.213


def test_values_in_other_features_are_refused_in_words() -> None:
    found = reported()
    assert found["published"] == {"overall": {}, "pathologies": {}}
    assert found["refused"]["FID, KID, Precision, Recall, Density, Coverage"] == (
        "published FID, KID, Precision, Recall, Density, Coverage are of RadDino: microsoft/rad-dino (768 numbers per"
        " image), this audit used nano-judge diagnosis (256 numbers per image): run again with --features"
        " microsoft/rad-dino@REVISION, or a folder named rad-dino"
    )
    assert found["refused"]["Alignment Score"] == (
        "published Alignment Score is of BioViL-T: microsoft/BiomedVLP-BioViL-T, this audit used nano-judge: convert it"
        " to a folder named BiomedVLP-BioViL-T, and run again with --judge consistency=FOLDER"
    )
    assert "not included" in found["refused"]["Downstream AUROC"]


@pytest.mark.parametrize(
    "others",
    [
        {"width": 384},
        {"name": "microsoft/rad-dino-maira-2@0123abc"},
        {"name": "somebody/rad-dino@0123abc"},
        {"name": "xrv:rad-dino"},
    ],
)
def test_features_that_resemble_the_published_ones_are_others(others: dict[str, Any]) -> None:
    found = reported(features=RADDINO | others)
    assert found["published"] == {"overall": {}, "pathologies": {}}
    assert ", ".join(IN_FEATURES) in found["refused"]


@pytest.mark.parametrize("name", ["microsoft/rad-dino@0123abc", "rad-dino"])
def test_in_the_same_features_published_rows_stand_beside(name: str) -> None:
    found = reported(features=RADDINO | {"name": name}, fidelity=enough())
    rows = found["published"]["overall"]
    assert len(rows) == 11
    assert rows["Sana"] == {
        "FID": 54.225, "KID": 0.016, "Precision": 0.674, "Recall": 0.614, "Density": 0.52, "Coverage": 0.548,
        "Avg. Latent Distance": 0.54,
    }  # fmt: skip
    # Of the pathologies that were measured alone.
    assert found["published"]["pathologies"]["LLM-CXR"] == {
        "Cardiomegaly": 71.37, "Edema": 83.18, "Pleural Effusion": 67.83, "Support Devices": 67.54,
    }  # fmt: skip
    recognized = "Avg. Re-ID Score, Max. Re-ID Score, Count Re-ID > δ"
    assert found["refused"].keys() == {recognized, "Alignment Score", "Downstream AUROC"}
    assert found["metrics"]["FID"]["title"] == "FID (RadDino)"
    assert any("299 x 299" in note and "256 x 256" in note for note in found["notes"])
    assert any("misprints" in note for note in found["notes"])


def test_alignment_by_the_published_network_is_compared() -> None:
    judge = {"backend": "BiomedVLP-BioViL-T", "digest": "b1" * 32, "unit": "cosine"}
    found = reported(reward_models={"consistency": judge})
    assert found["published"]["overall"]["Sana"] == {"Alignment Score": 0.695}
    assert found["published"]["pathologies"] == {}
    assert any("make sure that BiomedVLP-BioViL-T holds the released weights" in note for note in found["notes"])
    assert any("the whole prompt; this audit: the center square at 256 x 256" in note for note in found["notes"])
    assert "Alignment Score" not in found["refused"]


def test_published_tables_are_whole_and_name_their_source() -> None:
    table = json.loads(files("cxrsynth.auditing").joinpath("chexgenbench.json").read_text("utf-8"))
    for part in ("overall", "privacy", "pathologies"):
        assert "github.com/Raman1121/CheXGenBench" in table[part]["source"]
        assert len(table[part]["rows"]) == 11
        assert {len(row) for row in table[part]["rows"].values()} == {len(table[part]["columns"])}
    assert table["overall"]["rows"].keys() == table["pathologies"]["rows"].keys() == table["privacy"]["rows"].keys()
    assert set(table["pathologies"]["columns"]) == set(OBSERVATIONS)


@pytest.mark.parametrize("same", [True, False])
def test_the_page_shows_published_rows_where_they_may_be_compared_alone(same: bool, tmp_path: Path) -> None:
    summary = audited(**({"features": RADDINO} if same else {}), fidelity=enough())
    summary["protocol"] = apply_protocol(Protocol.CHEXGENBENCH, summary)
    write_page(tmp_path / "report.html", summary, example_rows(60), lambda key: None)
    page = (tmp_path / "report.html").read_text()
    assert '<a href="#protocol">CheXGenBench</a>' in page
    section = page[page.index('<section id="protocol"') :]
    section = section[: section.index("</section>")]
    assert ("54.225" in section) is same
    assert ("83.18" in section) is same
    assert ('run again with <span class="option">--features</span>' in section) is not same
    assert (">FID (RadDino)<" in section) is same
    assert summary["features"]["digest"] in section


@pytest.mark.parametrize("same", [True, False])
def test_the_console_shows_published_rows_where_they_may_be_compared_alone(
    same: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = audited(membership=None, memorization=None, **({"features": RADDINO} if same else {}))
    summary["input"] = SUMMARY["input"] | {"damaged_count": 0}
    summary["protocol"] = apply_protocol(Protocol.CHEXGENBENCH, summary)
    print_audit(summary, Path("out"))
    printed = capsys.readouterr().out
    assert re.search(rf"FID \({'RadDino' if same else 'nano-judge diagnosis'}\) +14.2 \(12.3 to 16.1\)", printed)
    assert bool(re.search(r"this audit +14.2 +0.00213 +0.812 ", printed)) is same
    assert bool(re.search(r"Sana +54.2 +0.016 +0.674 ", printed)) is same
    assert ("sana-performance.png" in printed) is same
    assert re.search(r"Edema +14.2 +80", printed)
    assert "FID of 10 pathologies: not measured" in printed


def test_copies_that_count_under_a_benchmark_s_names_are_named() -> None:
    flagged = SUMMARY["memorization"]["flagged"]
    assert flagged
    copies = [note for note in reported()["notes"] if note.startswith(f"{flagged} near-duplicate")]
    assert len(copies) == 1
    for memorization in (None, SUMMARY["memorization"] | {"flagged": 0}):
        assert not [note for note in reported(memorization=memorization)["notes"] if "near-duplicate" in note]


def test_the_console_says_who_is_recognized_what_helps_and_how_far_all_images_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    summary = audited(membership=None, memorization=None, protocol=None)
    summary["input"] = SUMMARY["input"] | {"damaged_count": 0}
    print_audit(summary, Path("out"))
    printed = capsys.readouterr().out
    recognized = "taken for a patient of the reference: 7 of 60 images; of real images of other patients, 6 of 512"
    assert recognized in printed
    assert "utility: mean AUROC of real images alone 0.8 (0.78 to 0.82); real + synthetic +0.012 (-0.003 to" in printed
    assert "rejected ones included" not in printed
    worse = SUMMARY["fidelity"][0] | {"frechet": {"value": 99.5, "low": 90.0, "high": 110.0}, "compared": 60}
    print_audit(summary | {"fidelity_all": [worse], "reidentification": None, "utility": None}, Path("out"))
    printed = capsys.readouterr().out
    words = " ".join(printed.split())
    assert words.index("80 images each") < words.index("all images, rejected") < words.index("60 images each")
    assert re.search(r"frechet +99.5 \(90 to 110\)", printed)
    assert "taken for a patient" not in printed
    assert "utility" not in printed
    print_audit(summary | {"utility": SUMMARY["utility"] | {"mean": []}}, Path("out"))
    assert "utility: no finding could be measured" in capsys.readouterr().out
