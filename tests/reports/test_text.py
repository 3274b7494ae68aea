"""What is no text is refused by the public functions on text."""

from collections.abc import Callable

import numpy as np
import pytest

import cxrsynth


@pytest.mark.parametrize("function", [cxrsynth.sanitize, cxrsynth.read_findings])
@pytest.mark.parametrize(
    ("given", "kind", "advice"),
    [
        (None, "NoneType", "for a missing report"),
        (float("nan"), "float", "for a missing report"),
        (50414267, "int", "for a missing report"),
        (["Smith has edema."], "list", "for a missing report"),
        (b"Smith has edema.", "bytes", "decode it first"),
    ],
)
def test_what_is_no_text_is_refused_by_its_type(
    function: Callable[[object], object], given: object, kind: str, advice: str
) -> None:
    with pytest.raises(cxrsynth.ReportsError) as refusal:
        function(given)

    message = str(refusal.value)
    assert message.startswith(f"{function.__name__}: text: found {kind}, expected str")
    assert advice in message
    assert "Smith" not in message
    assert "50414267" not in message


@pytest.mark.parametrize("text", ["", "Small effusion.", np.str_("Small effusion.")])
def test_any_string_is_text(text: str) -> None:
    assert cxrsynth.sanitize(text).text == text
    assert len(cxrsynth.read_findings(text)) == (2 if text else 0)


def test_half_a_surrogate_pair_is_no_letter() -> None:
    text = "Small\ud800 effusion."
    assert cxrsynth.sanitize(text).text == "Small effusion."
    assert list(cxrsynth.read_findings(text)) == ["No Finding", "Pleural Effusion"]
