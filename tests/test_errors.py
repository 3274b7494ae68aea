"""What the user is told of damaged files: words, never the names of Python's classes."""

import ast
import io
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import cxrsynth
from cxrsynth.errors import CxrsynthError, in_words
from cxrsynth.images.collection import open_collection
from cxrsynth.metrics.memorization.registration import load_posture
from cxrsynth.metrics.quality.likeness import TEMPLATES_FILE, Likeness
from cxrsynth.reports.table.columns import column_names
from cxrsynth.rewards.backends import family_folder
from tests.images.making import dicom_of, encoded, levels, read_all, write

PACKAGE = Path(cxrsynth.__file__).parent
CLASS = re.compile(r"\w+(Error|Exception)\b")
# Messages on a user's own Python code (docs/rewards.md), and states that only go into digests.
NAMED = {"rewards/own.py", "images/unit.py"}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "/a/b"), "No such file or directory"),
        (OSError("image file is truncated"), "image file is truncated"),
        (KeyError("width"), "'width' is missing"),
        (ValueError("first\nsecond"), "first"),
        (RuntimeError("Error(s) in loading:\n\tMissing key(s): a."), "Error(s) in loading: Missing key(s): a."),
        (RuntimeError("ConnectTimeoutError: no answer (ReadError)"), "no answer ()"),
        (ValueError(), "no reason is given"),
        (ValueError("x" * 400), "x" * 300 + "..."),
    ],
)
def test_an_exception_in_words(error: Exception, said: str) -> None:
    assert in_words(error) == said


def nano() -> Path:
    folder = family_folder("nano")
    assert folder is not None
    return folder


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def deflated() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\x89PNG" + bytes(4000))
        archive.writestr("b.png", encoded(levels(0)))
    content = bytearray(buffer.getvalue())
    content[40:44] = b"\xff" * 4
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", half(encoded(levels(0, side=64)))),
        ("a.jpg", half(encoded(levels(0, side=64), "JPEG"))),
        ("a.tif", half(encoded(levels(0, side=64), "TIFF"))),
        ("a.dcm", half(dicom_of(levels(0)))),
        ("b.dcm", dicom_of(levels(0))[:-40]),
        ("c.dcm", bytes(200)),
        ("a.zip", deflated()),
    ],
)
def test_a_damaged_image_is_reported_in_words(name: str, content: bytes, tmp_path: Path) -> None:
    _, damaged = read_all(open_collection(write(tmp_path / "set" / name, content).parent))
    assert len(damaged) == 1
    assert damaged[0].reason
    assert not CLASS.search(damaged[0].reason)


def workbook(folder: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["report_id", "impression"])
    book.save(folder / "t.xlsx")
    content = (folder / "t.xlsx").read_bytes()
    write(folder / "t.xlsx", content.replace(b"xl/workbook.xml", b"xl/workbook.xmm"))
    column_names(folder / "t.xlsx")


def mean_chests(folder: Path) -> None:
    save_file({"other": torch.zeros(2)}, folder / TEMPLATES_FILE)
    Likeness.load(folder, load_posture(nano(), torch.device("cpu")))


def half_of_the_weights(folder: Path) -> None:
    shutil.copytree(nano() / "posture", folder / "posture")
    weights = folder / "posture" / "model.safetensors"
    write(weights, half(weights.read_bytes()))
    load_posture(folder, torch.device("cpu"))


@pytest.mark.parametrize("load", [workbook, mean_chests, half_of_the_weights])
def test_a_damaged_file_is_one_message_in_words(load: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(CxrsynthError) as caught:
        load(tmp_path)
    assert not CLASS.search(str(caught.value))


def test_no_message_is_made_of_the_class_of_an_exception() -> None:
    """Wherever `type(error).__name__` stands in the package."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "__name__" and isinstance(node.value, ast.Call):
                of = ast.unparse(node.value)
                if of in ("type(error)", "type(said)", "type(exception)"):
                    found.add(path.relative_to(PACKAGE).as_posix())
    assert found == NAMED


def test_what_safetensors_says_names_no_class_of_python(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    write(tmp_path / "a.safetensors", np.arange(100).tobytes())
    with pytest.raises(SafetensorError) as caught:
        load_file(tmp_path / "a.safetensors")
    assert not CLASS.search(in_words(caught.value))
