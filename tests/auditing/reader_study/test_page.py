"""The page as a file: what it holds, and what it must not hold."""

import base64
import json
import re
from pathlib import Path

import pytest

from cxrsynth.auditing.reader_study.page import FINDING_KEYS, Shown, write_study_page
from cxrsynth.reports.labels import OBSERVATIONS

HOSTILE = "</script><script>alert(1)</script>"
SHOWN = [Shown("aa11", "No Finding"), Shown("bb22", HOSTILE), Shown("cc33", "Edema")]
LEVELS = {one.name: bytes([place]) * 64 for place, one in enumerate(SHOWN)}


@pytest.fixture
def page(tmp_path: Path) -> str:
    write_study_page(tmp_path / "page.html", "ab" * 8, SHOWN, LEVELS, side=8, text="findings")
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o600
    return (tmp_path / "page.html").read_text()


def data_of(page: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    return dict(json.loads(found[1]))


def pictures_of(page: str) -> list[str]:
    return re.findall(r'<script type="text/plain" class="picture">(.*?)</script>', page)


def test_images_stand_in_their_order_and_take_the_same_space(page: str) -> None:
    pictures = pictures_of(page)
    assert [base64.b64decode(one) for one in pictures] == [LEVELS[one.name] for one in SHOWN]
    assert len({len(one) for one in pictures}) == 1
    assert data_of(page) == {
        "format": "cxrsynth reader answers",
        "version": 1,
        "study": "ab" * 8,
        "side": 8,
        "images": ["aa11", "bb22", "cc33"],
        "texts": ["No Finding", HOSTILE, "Edema"],
    }


def test_nothing_is_loaded_and_text_runs_nothing(page: str) -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    parts = policy[1].split("; ")
    assert parts[0] == "default-src 'none'"
    assert {part.split()[0] for part in parts} == {"default-src", "style-src", "script-src", "base-uri", "form-action"}
    assert "unsafe" not in policy[1]
    assert not re.search(r"(src|href)=|https?://|@import|url\(", page)
    assert HOSTILE not in page


def test_without_texts_nobody_is_asked_about_them(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_study_page(path, "ab" * 8, [Shown(one.name, "") for one in SHOWN], LEVELS, side=8, text=None)
    page = path.read_text()
    assert data_of(page)["texts"] is None
    assert 'id="match"' not in page
    assert 'data-group="match"' not in page


def test_an_image_of_another_size_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 8 x 8"):
        write_study_page(tmp_path / "p", "ab" * 8, SHOWN, LEVELS | {"bb22": b"12"}, side=8, text=None)


def test_each_finding_has_a_key_of_its_own() -> None:
    assert set(FINDING_KEYS) == set(OBSERVATIONS)
    taken = [*FINDING_KEYS.values(), *"rsypnit0123456789"]
    assert len(set(taken)) == len(taken)
