"""Files of answers that cannot be scored are refused in one message."""

from pathlib import Path
from typing import Any

import pytest

from cxrsynth.auditing.reader_study.answers import read_answers
from cxrsynth.errors import ShardError
from tests.auditing.reader_study.making import STUDY, answer, file_of, study_key, with_key, write


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return with_key(tmp_path / "keys", study_key(2, 2))


def test_answers_are_read(keys: Path, tmp_path: Path) -> None:
    given = file_of(
        "A", [answer("r1", "real", seconds=260_000.5), answer("s0", None, quality=None, findings=[], match=None)]
    )
    found = read_answers([write(tmp_path, "A", given)], keys)
    assert found.key == study_key(2, 2)
    [file] = found.files
    assert (file.reader.name, file.reader.years) == ("A", 5)
    assert [(one.image, one.origin, one.seconds) for one in file.answers] == [
        ("r1", "real", 260_000.5),
        ("s0", None, 10.0),
    ]


def test_any_space_in_a_name_is_one(keys: Path, tmp_path: Path) -> None:
    """A page takes what its reader types: a no-break space, say."""
    [file] = read_answers([write(tmp_path, "A", file_of("Dr\u00a0 A", [answer("r0", "real")]))], keys).files
    assert file.reader.name == "Dr A"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": [answer("r0", "fake")]}, r"answers\.0\.origin: Input should be 'real' or 'synthetic'"),
        ({"answers": [answer("r0", "real", quality=6)]}, r"answers\.0\.quality: .* less than or equal to 5"),
        ({"answers": [answer("r0", "real", quality=2.5)]}, r"answers\.0\.quality: "),
        ({"answers": [answer("r0", "real", seconds=-1.0)]}, r"answers\.0\.seconds: .* greater than or equal to 0"),
        ({"answers": [answer("r0", "real", findings=["Gout"])]}, r"answers\.0\.findings: .* findings of CheXpert"),
        ({"answers": [answer("r0", "real", match="maybe")]}, r"answers\.0\.match: "),
        ({"answers": [answer("x9", "real")]}, "image 'x9' is not one of study"),
        ({"answers": [answer("r0", "real"), answer("r0", "synthetic")]}, "an image is there twice"),
        ({"answers": [answer("r0", None)]}, "no image is answered"),
        ({"answers": []}, "no image is answered"),
        ({"format": "something else"}, "format: "),
        ({"version": 2}, "version: "),
        ({"reader": {"name": "", "role": "radiologist"}}, r"reader\.name: "),
        ({"reader": {"name": "  ", "role": "radiologist"}}, r"reader\.name: "),
        ({"reader": {"name": "\x1b[31mred", "role": "radiologist"}}, r"reader\.name: .*printable characters"),
        ({"answers": [answer("r0", "real", seconds=1e308)]}, r"answers\.0\.seconds: "),
        ({"secret": 1}, "secret: Extra inputs are not permitted"),
        ({"\x1b[2Jred": 1}, r"x1b\[2Jred: Extra inputs are not permitted"),
        ({"x" * 9999: 1}, "x{80}: Extra inputs are not permitted"),
        ({"study": "f" * 16}, "answers to study ffffffffffffffff, which has no key"),
        ({"study": "../../etc/passwd"}, "study: "),
    ],
)
def test_what_no_page_saved_is_refused(keys: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = write(tmp_path, "A", file_of("A", [answer("r0", "real")]) | change)
    with pytest.raises(ShardError, match=said) as caught:
        read_answers([path], keys)
    assert str(caught.value).startswith(f"--reader-answers {path}: ")
    assert "\n  " in str(caught.value)
    assert str(caught.value).replace("\n", "").isprintable()
    assert len(str(caught.value)) < len(str(path)) + 400


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"", b"[" * 100_000, b"[1]"])
def test_a_damaged_file_is_refused(keys: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "A.json"
    path.write_bytes(content)
    with pytest.raises(ShardError, match=r"A\.json: "):
        read_answers([path], keys)
    with pytest.raises(ShardError, match=r"none\.json: cannot be read"):
        read_answers([tmp_path / "none.json"], keys)


def test_a_mark_at_the_beginning_of_a_file_is_passed_over(keys: Path, tmp_path: Path) -> None:
    path = write(tmp_path, "A", file_of("A", [answer("r0", "real")]))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_answers([path], keys).files[0].reader.name == "A"


def test_another_kind_of_json_names_no_class(keys: Path, tmp_path: Path) -> None:
    path = tmp_path / "A.json"
    path.write_text("[]")
    with pytest.raises(ShardError, match="not the answers of a reader"):
        read_answers([path], keys)


def test_files_must_fit_together(keys: Path, tmp_path: Path) -> None:
    first = write(tmp_path, "first", file_of("Ann", [answer("r0", "real")]))
    again = write(tmp_path, "again", file_of("ANN ", [answer("r0", "real")]))
    other = write(tmp_path, "other", file_of("Bob", [answer("r0", "real")], study="e" * 16))
    with pytest.raises(ShardError, match=r"again\.json: reader 'ANN' also answered in .*first\.json"):
        read_answers([first, again], keys)
    with pytest.raises(ShardError, match="reader 'Ann' also answered"):
        read_answers([first, first], keys)
    with pytest.raises(ShardError, match=rf"other\.json: answers to study e{{16}}, those in .* are to {STUDY}"):
        read_answers([first, other], keys)


def test_a_damaged_key_is_refused_and_a_key_is_its_owners(keys: Path, tmp_path: Path) -> None:
    path = keys / f"reader-study-{STUDY}.json"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("{}")
    answers = write(tmp_path, "A", file_of("A", [answer("r0", "real")]))
    with pytest.raises(ShardError, match="not the key of a reader study"):
        read_answers([answers], keys)
