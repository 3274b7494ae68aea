"""What the public functions on the text of a report accept."""

from cxrsynth.errors import ReportsError


def check_text(text: object, *, function: str) -> None:
    """Refuse what is no string, such as a missing cell of a table; the message names its type, never its value.

    Raises:
        ReportsError: if `text` is no `str`.
    """
    if isinstance(text, str):
        return
    advice = (
        'decode it first: text.decode("utf-8")'
        if isinstance(text, bytes | bytearray)
        else 'for a missing report give "" or leave it out; with pandas: table["report"].dropna()'
    )
    raise ReportsError(f"{function}: text: found {type(text).__name__}, expected str\n  {advice}")
