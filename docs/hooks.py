"""Hooks of the documentation build: the recipe reference is rendered from the recipe's own schema."""

from typing import Any

from cxrsynth.recipe.reference import recipe_reference

_PLACE = "<!-- fields -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the reference where a page asks for it."""
    return markdown.replace(_PLACE, recipe_reference()) if _PLACE in markdown else markdown
