"""The page in a real browser, from the first click to the last: by keyboard, by mouse and by touch, from a file."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxrsynth.auditing.reader_study.answers import read_answers
from cxrsynth.auditing.reader_study.key import KeyedImage, StudyKey, write_key
from cxrsynth.auditing.reader_study.page import FINDING_KEYS, Shown, write_study_page
from cxrsynth.auditing.reader_study.scores import score

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: it drives the browser")

STUDY, SIDE = "0123456789abcdef", 64
NAMES = [f"{place:x}" * 16 for place in range(4)]
TEXTS = ["Edema", "No Finding", "Pleural Effusion, Support Devices", "<b>Fracture</b>"]
KINDS = ("real", "synthetic", "synthetic", "real")
# Answers to the four images: origin, quality, findings, match.
GIVEN: tuple[tuple[str, int, list[str], str], ...] = (
    ("real", 5, ["Edema"], "yes"),
    ("synthetic", 2, ["No Finding", "Support Devices"], "no"),
    ("real", 3, ["Pleural Effusion", "Cardiomegaly"], "partly"),
    ("real", 4, ["Fracture"], "yes"),
)

Visit = Callable[..., "sync_api.Page"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with its key beside it; the images are ramps that get brighter from one to the next."""
    folder = tmp_path_factory.mktemp("study")
    ramp = np.add.outer(np.arange(SIDE), np.arange(SIDE))
    levels = {name: (ramp + 30 * place).clip(0, 255).astype(np.uint8).tobytes() for place, name in enumerate(NAMES)}
    shown = [Shown(name, text) for name, text in zip(NAMES, TEXTS, strict=True)]
    write_study_page(folder / "reader-study.html", STUDY, shown, levels, side=SIDE, text="findings")
    images = {
        name: KeyedImage.model_validate({"kind": kind, "key": kind + name, "sha256": "", "present": (), "absent": ()})
        for name, kind in zip(NAMES, KINDS, strict=True)
    }
    key = StudyKey(study=STUDY, seed=0, side=SIDE, text="findings", matched={"view": 2, "present": 0}, images=images)
    write_key(folder, key)
    return folder


@pytest.fixture
def visit(browser: "sync_api.Browser", folder: Path) -> Iterator[Visit]:
    """Opens the page, offline; afterwards nothing may have been complained of or asked of the network."""
    troubles: list[str] = []
    contexts: list[sync_api.BrowserContext] = []
    url = (folder / "reader-study.html").as_uri()

    def open_page(width: int = 1280, *, touch: bool = False) -> "sync_api.Page":
        context = browser.new_context(viewport={"width": width, "height": 844}, has_touch=touch, offline=True)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on(
            "request",
            lambda request: troubles.append(request.url) if not request.url.startswith((url, "blob:")) else None,
        )
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def begin(page: "sync_api.Page", name: str) -> None:
    page.locator("#name").fill(name)
    page.locator("#role").select_option("radiology resident")
    page.locator("#years").fill("2.5")
    page.keyboard.press("Enter")
    page.locator("#read").wait_for()


def saved(page: "sync_api.Page", press: Callable[[], None]) -> tuple[str, Any]:
    """Name and content of the file that a click saves."""
    with page.expect_download() as waiting:
        press()
    path = waiting.value.path()
    return waiting.value.suggested_filename, json.loads(Path(path).read_text(encoding="utf-8"))


def read_by_keyboard(page: "sync_api.Page") -> None:
    for origin, quality, findings, match in GIVEN:
        for key in (origin[0], str(quality), *(FINDING_KEYS[name] for name in findings), "Enter", match[0], "Enter"):
            page.keyboard.press(key)


def read_by_pointer(page: "sync_api.Page", press: str) -> None:
    def on(group: str, value: object) -> None:
        getattr(page.locator(f'[data-group="{group}"][data-value="{value}"]'), press)()

    for origin, quality, findings, match in GIVEN:
        on("origin", origin)
        on("quality", quality)
        for name in findings:
            on("findings", name)
        getattr(page.locator("#next"), press)()
        on("match", match)
        getattr(page.locator("#next"), press)()


@pytest.mark.parametrize(("width", "by"), [(1280, "keyboard"), (390, "keyboard"), (1280, "click"), (390, "tap")])
def test_from_first_to_last_click(visit: Visit, folder: Path, tmp_path: Path, width: int, by: str) -> None:
    page = visit(width, touch=by == "tap")
    assert page.locator("#start").is_visible()
    begin(page, f"R. {by}")
    assert page.locator("#place").text_content() == "Image 1 of 4"
    if by == "keyboard":
        read_by_keyboard(page)
    else:
        read_by_pointer(page, by)
    assert page.locator("#done").is_visible()
    press = (lambda: page.keyboard.press("Enter")) if by == "keyboard" else getattr(page.locator("#save"), by)
    name, content = saved(page, press)
    assert name == f"reader-answers-{STUDY}-R_{by}.json"
    assert "4 of 4 images answered" in (page.locator("#saved").text_content() or "")
    assert content["reader"] == {"name": f"R. {by}", "role": "radiology resident", "years": 2.5}
    answers = [(one["origin"], one["quality"], one["findings"], one["match"]) for one in content["answers"]]
    assert answers == list(GIVEN)
    assert [one["image"] for one in content["answers"]] == NAMES
    assert all(0 <= one["seconds"] < 30 for one in content["answers"])
    path = tmp_path / name
    path.write_text(json.dumps(content), encoding="utf-8")
    found = score(read_answers([path], folder))
    assert (found["accuracy"]["value"], found["sensitivity"]["value"], found["specificity"]["value"]) == (0.75, 0.5, 1)


@pytest.mark.slow
def test_progress_is_kept_and_another_reader_starts_anew(visit: Visit) -> None:
    page = visit()
    begin(page, "First")
    for key in ("r", "5", "e", "Enter", "y", "Enter", "s", "1"):
        page.keyboard.press(key)
    page.reload()
    assert page.locator("#known").text_content() == "First has answered 1 of 4 images."
    assert page.locator("#name").input_value() == "First"
    page.locator("#begin").click()
    assert page.locator("#place").text_content() == "Image 2 of 4"
    assert pressed(page) == ["synthetic", "1"]
    _, content = saved(page, page.locator(".save").first.click)
    assert [one["origin"] for one in content["answers"]] == ["real", "synthetic"]
    page.reload()
    page.locator("#other").click()
    assert "Delete the answers of First" in (page.locator("#other").text_content() or "")
    page.locator("#other").click()
    page.locator("#other").wait_for(state="hidden")
    begin(page, "Second")
    assert page.locator("#place").text_content() == "Image 1 of 4"
    assert pressed(page) == []


@pytest.mark.slow
def test_an_older_tab_does_not_write_over_answers_of_another(visit: Visit) -> None:
    page = visit()
    begin(page, "First")
    page.keyboard.press("r")
    other = page.context.new_page()
    other.goto(page.url)
    other.locator("#begin").click()
    for key in ("5", "e", "Enter", "y", "Enter", "s", "1"):
        other.keyboard.press(key)
    assert other.locator("#place").text_content() == "Image 2 of 4"
    page.locator("#start").wait_for(state="visible")  # it starts anew, with those answers
    assert page.locator("#known").text_content() == "First has answered 1 of 4 images."
    other.reload()
    assert other.locator("#known").text_content() == "First has answered 1 of 4 images."


def pressed(page: "sync_api.Page") -> list[str]:
    """The answers that are marked as given."""
    given: list[str] = page.evaluate(
        "[...document.querySelectorAll('.choice[aria-pressed=true]')].map((one) => one.dataset.value)"
    )
    return given


def test_the_text_comes_after_the_answers_and_fixes_them(visit: Visit) -> None:
    page = visit()
    begin(page, "A")
    page.keyboard.press("Enter")
    assert page.locator("#missing").text_content() == "Still to answer: real or synthetic, quality, findings"
    page.keyboard.press("y")
    for key in ("r", "4", "e"):
        page.keyboard.press(key)
    assert page.locator("#match").is_hidden()
    assert page.locator("#report").text_content() == ""
    page.keyboard.press("Enter")
    assert page.locator("#report").text_content() == "Edema"
    for key in ("s", "1", "c"):
        page.keyboard.press(key)
    assert pressed(page) == ["real", "4", "Edema"]
    page.keyboard.press("Enter")
    assert page.locator("#missing").text_content() == "Still to answer: match"
    page.keyboard.press("p")
    page.keyboard.press("Enter")
    page.keyboard.press("Backspace")
    assert page.locator("#place").text_content() == "Image 1 of 4"
    assert pressed(page) == ["real", "4", "Edema", "partly"]


@pytest.mark.slow
def test_no_finding_excludes_all_but_devices(visit: Visit) -> None:
    page = visit()
    begin(page, "A")
    for keys, given in (
        ("ec", {"Edema", "Cardiomegaly"}),
        ("z", {"No Finding"}),
        ("d", {"No Finding", "Support Devices"}),
        ("e", {"Edema", "Support Devices"}),
        ("e", {"Support Devices"}),
    ):
        for key in keys:
            page.keyboard.press(key)
        assert set(pressed(page)) == given


def level_at(page: "sync_api.Page", place: int) -> int:
    """Gray level that is drawn on the diagonal, once all is drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    level: int = page.evaluate(
        """(place) => {
            const copy = new OffscreenCanvas(64, 64).getContext("2d", {willReadFrequently: true});
            copy.drawImage(document.querySelector("#canvas"), 0, 0);
            return copy.getImageData(place, place, 1, 1).data[0];
        }""",
        place,
    )
    return level


def test_window_level_and_zoom(visit: Visit) -> None:
    page = visit()
    begin(page, "A")
    # The ramp has twice the place on its diagonal; the widest window shows levels as they are.
    assert [level_at(page, place) for place in (0, 30, 63)] == [0, 60, 126]
    for _ in range(16):
        page.keyboard.press("ArrowLeft")  # 8 levels narrower each
    assert page.locator("#window").input_value() == "128"
    assert [level_at(page, place) for place in (30, 63)] == [0, 124]
    page.keyboard.press("ArrowUp")
    assert page.locator("#level").input_value() == "124"
    assert level_at(page, 63) == round(((126 - 124) / 128 + 0.5) * 255)
    page.keyboard.press("i")
    assert level_at(page, 63) == 255 - round(((126 - 124) / 128 + 0.5) * 255)
    page.keyboard.press("0")
    assert level_at(page, 30) == 60
    box = page.locator("#frame").bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - 56, middle[1])
    page.mouse.up()
    assert page.locator("#window").input_value() == "200"
    # Slowly, a pixel at a time, the level moves as far up as down.
    for step in (-1, 1):
        page.keyboard.press("0")
        page.mouse.move(*middle)
        page.mouse.down()
        for place in range(1, 41):
            page.mouse.move(middle[0], middle[1] + step * place)
        page.mouse.up()
        assert page.locator("#level").input_value() == str(128 + step * 20)
    page.keyboard.press("0")
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - 56, middle[1])
    page.mouse.up()
    pointer = (box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.6)
    page.mouse.move(*pointer)
    page.mouse.wheel(0, -500)
    sync_api.expect(page.locator("#zoom")).to_have_text("272%")
    corner = page.locator("#canvas").bounding_box()
    assert corner is not None
    # The point under the pointer stays.
    under = [
        (pointer[place] - corner[side]) / corner[length]
        for place, side, length in ((0, "x", "width"), (1, "y", "height"))
    ]
    assert under == [pytest.approx(0.75, abs=0.005), pytest.approx(0.6, abs=0.005)]
    page.keyboard.press("t")
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - 40, middle[1] - 30)
    page.mouse.up()
    moved = page.locator("#canvas").bounding_box()
    assert moved is not None
    right, down = moved["x"] - corner["x"], moved["y"] - corner["y"]
    assert (right, down) == (pytest.approx(-40, abs=1), pytest.approx(-30, abs=1))
    assert page.locator("#window").input_value() == "200"
    # The next image starts as it is.
    for key in ("r", "4", "e", "Enter", "y", "Enter"):
        page.keyboard.press(key)
    assert page.locator("#zoom").text_content() == "100%"
    assert level_at(page, 30) == 90


@pytest.mark.slow
def test_two_fingers_zoom(visit: Visit) -> None:
    page = visit(390, touch=True)
    begin(page, "A")
    box = page.locator("#frame").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = page.context.new_cdp_session(page)
    for kind, apart in (("touchStart", 40), ("touchMove", 60), ("touchMove", 80), ("touchEnd", None)):
        points = [] if apart is None else [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert page.locator("#zoom").text_content() == "200%"
    assert page.locator("#window").input_value() == "256"


@pytest.mark.slow
def test_time_stops_while_the_page_is_hidden(visit: Visit) -> None:
    page = visit()
    hide = """(hidden) => {
        Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate("window.now = 0; performance.now = () => window.now * 1000")
    begin(page, "A")
    for step, hidden in ((5, True), (100, False), (2, None)):
        page.evaluate("(step) => { window.now += step; }", step)
        if hidden is not None:
            page.evaluate(hide, hidden)
    for key in ("r", "4", "e", "Enter"):
        page.keyboard.press(key)
    page.evaluate("window.now += 50")  # the report is read, whose answers are final
    for key in ("y", "Enter"):
        page.keyboard.press(key)
    page.evaluate("window.now += 3")
    page.keyboard.press("s")
    _, content = saved(page, page.locator(".save").first.click)
    assert [one["seconds"] for one in content["answers"]] == [7, 3]


@pytest.mark.slow
def test_a_browser_that_keeps_nothing_says_so(visit: Visit) -> None:
    page = visit()
    page.add_init_script("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }")
    page.reload()
    assert page.locator("#no-storage").is_visible()
    begin(page, "A")
    read_by_keyboard(page)
    _, content = saved(page, page.locator("#save").click)
    assert len(content["answers"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out_and_everything_has_a_name(visit: Visit, width: int) -> None:
    page = visit(width)
    beyond = """(width) => [...document.querySelectorAll("body *")]
        .filter((one) => !one.closest("#frame") && one.getBoundingClientRect().right > width + 0.5)
        .map((one) => one.tagName + "." + one.className)"""
    nameless = """() => [...document.querySelectorAll("button, input, select, canvas, progress")]
        .filter((one) => one.offsetParent !== null)
        .filter((one) => !(one.getAttribute("aria-label") || one.labels?.length || one.textContent.trim()))
        .map((one) => one.outerHTML)"""

    def check() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(beyond, width) == []
        assert page.evaluate(nameless) == []

    check()
    begin(page, "A" * 40)
    check()
    for key in ("r", "4", "e", "Enter"):
        page.keyboard.press(key)
    check()
    read_by_keyboard(page)
    page.evaluate("document.querySelectorAll('.screen').forEach((one) => { one.hidden = one.id !== 'done'; })")
    check()
