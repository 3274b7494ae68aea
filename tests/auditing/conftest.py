"""The browser that pages are opened in."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.programs import require


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, headless."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: it drives the browser")
    program = require("chromium", "chromium")
    with sync_api.sync_playwright() as playwright:
        # Root in a container has no sandbox; the pages are our own.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
