"""The page in a real browser: Debian's Chromium, headless, from a file."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cxrsynth.auditing.page.methods import METHODS
from cxrsynth.auditing.page.page import write_page
from tests.auditing.page.page_example import (
    ENDING,
    HOSTILE,
    everything_measured,
    example_rows,
    example_summary,
    radiograph,
)

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: it drives the browser")

FILTERS: tuple[tuple[str, str, Callable[[dict[str, Any]], bool]], ...] = (
    ("decision", "kept", lambda row: row["kept"]),
    ("decision", "rejected", lambda row: not row["kept"]),
    ("reason", "duplicate", lambda row: "duplicate" in row["reasons"]),
    ("finding", "Edema", lambda row: "Edema" in row["present"]),
    ("view", "AP", lambda row: row["view"] == "AP"),
)

PALETTE = """() => Object.fromEntries(
    ["paper", "panel", "ink", "muted", "kept", "rejected", "real", "link", "alert"]
    .map((name) => [name, getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim()]))"""

Visit = Callable[..., "sync_api.Page"]


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return example_rows(60)


@pytest.fixture(scope="module")
def url(rows: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, everything_measured(rows), rows, radiograph, reference_thumbnails=radiograph)
    return path.as_uri()


@pytest.fixture
def visit(browser: "sync_api.Browser", url: str) -> Iterator[Visit]:
    """Opens the page; afterwards nothing may have been complained of, asked of the network, or popped up."""
    troubles: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    context.set_default_timeout(10_000)

    def open_page(address: str = url) -> "sync_api.Page":
        page = context.new_page()
        page.on("console", lambda message: troubles.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: troubles.append(request.url) if is_foreign(request.url, address) else None)
        page.goto(address)
        return page

    yield open_page
    context.close()
    assert troubles == []


def is_foreign(asked: str, address: str) -> bool:
    return asked != address and not asked.startswith("data:image/")


def shown(page: "sync_api.Page") -> list[str]:
    """Keys of the cards to be seen, in their order."""
    keys: list[str] = page.locator(".card:visible .key").all_text_contents()
    return keys


def test_opens_with_every_image_and_picture(visit: Visit, rows: pa.Table) -> None:
    page = visit()
    assert page.title() == "Audit of winter-2031"
    assert shown(page) == rows["key"].to_pylist()
    assert page.locator("#shown").text_content() == "60 of 60 images of the gallery shown"
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.querySelectorAll('svg path').length") > 20


@pytest.mark.slow
def test_sorting_orders_the_cards(visit: Visit, rows: pa.Table) -> None:
    radiographs = rows.to_pylist()
    page = visit()
    for by in ("key", "reward posture", "reward diagnosis", "reward consistency", "similarity"):
        column = {"similarity": "nearest_real_similarity"}.get(by, by.replace(" ", "_"))
        page.locator("#sort").select_option(by)
        assert shown(page) == [row["key"] for row in sorted(radiographs, key=lambda row: row[column])]
        page.locator("#direction").select_option("down")
        # Equal ones keep the order of the set.
        assert shown(page) == [row["key"] for row in sorted(radiographs, key=lambda row: row[column], reverse=True)]
        page.locator("#reset").click()
        assert shown(page) == [row["key"] for row in radiographs]


@pytest.mark.slow
def test_what_was_not_measured_is_sorted_last(visit: Visit, rows: pa.Table, tmp_path: Path) -> None:
    radiographs = rows.to_pylist()
    for place in (3, 7):
        radiographs[place]["reward_posture"] = None
    path = tmp_path / "report.html"
    write_page(path, example_summary(rows), pa.Table.from_pylist(radiographs, rows.schema), lambda key: None)
    page = visit(path.as_uri())
    page.locator("#sort").select_option("reward posture")
    for direction in ("up", "down"):
        page.locator("#direction").select_option(direction)
        assert shown(page)[-2:] == [radiographs[3]["key"], radiographs[7]["key"]]


@pytest.mark.slow
def test_each_filter_leaves_what_it_asks_for(visit: Visit, rows: pa.Table) -> None:
    page = visit()
    for control, value, wanted in FILTERS:
        expected = [row["key"] for row in rows.to_pylist() if wanted(row)]
        assert 0 < len(expected) < len(rows)
        page.locator(f"#{control}").select_option(value)
        assert shown(page) == expected
        assert page.locator("#shown").text_content() == f"{len(expected)} of 60 images of the gallery shown"
        page.locator("#reset").click()


@pytest.mark.slow
def test_search_and_filters_work_together(visit: Visit, rows: pa.Table) -> None:
    page = visit()
    page.locator("#search").fill("ONERROR")
    assert shown(page) == [HOSTILE]
    page.locator("#search").fill("-1")
    page.locator("#decision").select_option("kept")
    expected = [row["key"] for row in rows.to_pylist() if row["kept"] and "-1" in row["key"]]
    assert shown(page) == expected
    page.locator("#search").fill("no such key")
    assert shown(page) == []
    assert page.locator("#none").is_visible()
    page.locator("#reset").click()
    assert len(shown(page)) == 60


def test_many_images_are_shown_in_parts(visit: Visit, tmp_path: Path) -> None:
    rows = example_rows(150, seed=3)
    path = tmp_path / "report.html"
    write_page(path, example_summary(rows), rows, radiograph)
    page, keys = visit(path.as_uri()), rows["key"].to_pylist()
    assert shown(page) == keys[:60]
    assert page.locator("#shown").text_content() == "60 of 150 images of the gallery shown, 150 match"
    page.locator("#more").click()
    assert shown(page) == keys[:120]
    sync_api.expect(page.locator(".enlarge").nth(60)).to_be_focused()
    # Stepping through the large pictures goes beyond what is shown, and back to a card that is there.
    page.locator(".enlarge").nth(119).click()
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-title").text_content() == keys[120]
    page.keyboard.press("Escape")
    sync_api.expect(page.locator(".enlarge").nth(120)).to_be_focused()  # closing is reported a little later
    assert shown(page) == keys[:121]
    page.locator("#more").click()
    assert shown(page) == keys
    assert page.locator("#more").is_hidden()
    page.locator("#decision").select_option("kept")
    kept = [row["key"] for row in rows.to_pylist() if row["kept"]]
    assert shown(page) == kept[:60]
    page.locator("#reset").click()
    assert shown(page) == keys[:60]


def test_choices_can_be_read_in_full(visit: Visit) -> None:
    page = visit()
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        cut = page.evaluate(
            """() => [...document.querySelectorAll("#sort, #direction, #decision")].filter((select) => {
                const probe = document.createElement("span");
                probe.style.font = getComputedStyle(select).font;
                probe.style.position = "absolute";
                probe.textContent = select.selectedOptions[0].text;
                document.body.append(probe);
                const wide = probe.getBoundingClientRect().width;
                probe.remove();
                return wide + 40 > select.getBoundingClientRect().width;  // 40: padding and arrow
            }).map((select) => select.id)"""
        )
        assert cut == []


def test_options_are_not_broken_at_their_hyphens(visit: Visit) -> None:
    page = visit()
    for width in (1280, 600, 390):
        page.set_viewport_size({"width": width, "height": 900})
        found = page.evaluate(
            """() => {
                const pieces = [];
                const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
                while (walker.nextNode()) {
                    for (const one of walker.currentNode.data.matchAll(/--[a-z]+(-[a-z]+)*/g)) {
                        const range = document.createRange();
                        range.setStart(walker.currentNode, one.index);
                        range.setEnd(walker.currentNode, one.index + one[0].length);
                        const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
                        if (range.getClientRects().length) pieces.push([one[0], lines.size]);
                    }
                }
                return pieces;
            }"""
        )
        assert len(found) > 3
        assert [name for name, lines in found if lines > 1] == []


@pytest.mark.slow
def test_an_image_is_enlarged_and_closed_by_keyboard(visit: Visit, rows: pa.Table) -> None:
    keys = rows["key"].to_pylist()
    page = visit()
    page.locator(".enlarge").nth(2).focus()
    page.keyboard.press("Enter")
    viewer, title = page.locator("#viewer"), page.locator("#viewer-title")
    assert viewer.is_visible()
    assert title.text_content() == keys[2]
    assert viewer.locator("img").get_attribute("alt") == page.locator(".enlarge img").nth(2).get_attribute("alt")
    small, large = page.locator(".enlarge img").nth(2).bounding_box(), viewer.locator("img").bounding_box()
    assert large["width"] > 1.5 * small["width"]
    assert "Nearest real image" in (viewer.text_content() or "")
    page.keyboard.press("ArrowRight")
    assert title.text_content() == keys[3]
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert title.text_content() == keys[0]
    page.keyboard.press("Escape")
    assert viewer.is_hidden()
    sync_api.expect(page.locator(".enlarge").nth(0)).to_be_focused()
    page.keyboard.press("Space")
    assert viewer.is_visible()
    page.keyboard.press("Enter")  # on "Close"
    assert viewer.is_hidden()


def test_a_duplicate_stands_beside_what_it_repeats(visit: Visit, rows: pa.Table) -> None:
    duplicates = [row["key"] for row in rows.to_pylist() if row["duplicate_of"]]
    page = visit()
    cards = page.locator(".card.is-pair")
    assert cards.locator(".key").all_text_contents() == duplicates
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        first, second = (cards.first.locator("img").nth(place).bounding_box() for place in (0, 1))
        single = page.locator(".card:not(.is-pair) img").first.bounding_box()
        assert first["y"] == second["y"]
        assert first["x"] + first["width"] <= second["x"]
        # As large as a card of its own shows it.
        assert min(first["width"], second["width"]) > 0.9 * single["width"]
        cards.first.locator(".enlarge").click()
        viewer = page.locator("#viewer")
        assert viewer.locator("img").count() == 2
        assert f"repeats {HOSTILE}" in viewer.text_content()
        shown = [viewer.locator("img").nth(place).bounding_box() for place in (0, 1)]
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in shown)
        page.keyboard.press("Escape")


@pytest.mark.slow
def test_nothing_sticks_out(visit: Visit) -> None:
    page = visit()
    beyond = """(width) => [...document.querySelectorAll("body *")]
        .filter((one) => !one.closest(".scroll, .skip, svg") && one.getBoundingClientRect().right > width + 0.5)
        .map((one) => one.tagName + "." + one.className)"""
    assert page.locator(".is-pair").count() > 0
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(beyond, width) == []
        for card in (".card:not(.is-pair)", ".is-pair"):
            page.locator(f"{card} .enlarge").first.click()
            assert page.evaluate("document.querySelector('#viewer').scrollWidth") <= width
            assert page.evaluate(beyond, width) == []
            page.keyboard.press("Escape")


@pytest.mark.slow
def test_text_stands_out_from_its_ground_in_light_and_dark(visit: Visit) -> None:
    page = visit()
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        palette = page.evaluate(PALETTE)
        for ground in ("paper", "panel"):
            for name in ("ink", "muted", "kept", "rejected", "real", "link", "alert"):
                # WCAG 2.2, success criterion 1.4.3: 4.5 for text.
                assert contrast(palette[name], palette[ground]) >= 4.5, (scheme, name, ground)
        for style, element, name in (("stroke", ".line-kept", "kept"), ("backgroundColor", "body", "paper")):
            drawn = page.evaluate(f"getComputedStyle(document.querySelector('{element}')).{style}")
            assert drawn == f"rgb({', '.join(str(level) for level in bytes.fromhex(palette[name][1:]))})"
        grounds.append(palette["paper"])
    assert grounds[0] != grounds[1]


@pytest.mark.slow
def test_on_paper_everything_is_there_on_white_within_the_page(visit: Visit) -> None:
    page = visit()
    # A4, landscape, less margins of 12 mm, at 96 dots an inch.
    page.set_viewport_size({"width": int((297 - 24) / 25.4 * 96), "height": 700})
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(PALETTE)["paper"] == "#ffffff"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for gone in ("nav", ".controls", ".skip", "#more"):
        assert page.locator(gone).filter(visible=True).count() == 0, gone
    folds = page.locator("details:not([open])")
    before = folds.count()
    assert before > 3
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert folds.count() == 0
    width = page.evaluate("document.documentElement.clientWidth")
    beyond = """(width) => [...document.querySelectorAll("body *")]
        .filter((one) => !one.closest("svg, dialog, .skip") && one.getBoundingClientRect().right > width + 0.5)
        .map((one) => one.tagName + "." + one.className + " " + one.textContent.trim().slice(0, 30))"""
    assert page.evaluate(beyond, width) == []
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert folds.count() == before


def test_each_section_with_numbers_says_how_they_are_computed(visit: Visit) -> None:
    page = visit()
    own = "(name) => [...new Set([...document.querySelectorAll(name)].map((one) => one.closest('section').id))].sort()"
    numbers = page.evaluate(own, "td.number, .verdicts .answer")
    found = page.evaluate(own, "details.how")
    assert len(numbers) > 10
    assert set(numbers) <= set(found) == METHODS.keys()
    for section in found:
        fold = page.locator(f"#{section} > details.how")
        assert not fold.locator("p").first.is_visible()
        fold.locator("summary").click()
        assert fold.locator("p").all_text_contents() == list(METHODS[section])
        assert fold.locator("p").last.is_visible()


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, as WCAG defines it."""

    def luminance(colour: str) -> float:
        levels = [level / 255 for level in bytes.fromhex(colour[1:])]
        linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_keys_that_attack_do_nothing(visit: Visit) -> None:
    page = visit()
    for place, key in enumerate((HOSTILE, ENDING)):
        page.locator(".enlarge").nth(place).click()
        assert page.locator("#viewer-title").text_content() == key
        page.keyboard.press("Escape")
    assert page.locator("img[src='x']").count() == 0
    assert page.locator("script").count() == 2


@pytest.mark.slow
def test_a_script_that_got_in_would_not_run(browser: "sync_api.Browser", url: str) -> None:
    page = browser.new_page()
    page.goto(url)
    page.evaluate("document.body.insertAdjacentHTML('afterbegin', '<button id=p onclick=\"run = 1\">x</button>')")
    page.locator("#p").click()
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'run = 2'}))")
    assert page.evaluate("typeof run") == "undefined"
    page.close()
