"""Texts in CSV files that people open in a spreadsheet."""

from typing import Final

# What a spreadsheet takes for the start of a formula, which may run a command or send cells elsewhere.
FORMULA_STARTS: Final = "=+-@\t\r"


def as_text_cell(text: str) -> str:
    """The text, behind an apostrophe where a spreadsheet would take it for a formula."""
    return f"'{text}" if text.startswith(tuple(FORMULA_STARTS)) else text
