"""The app in a real browser, over the real live server: what is on the screen belongs together, and goes on doing so
whoever is away for a while. How fast it is, is measured in tests/bench; here the bounds only tell that it works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from app_kit import (
    DESK,
    HOSTILE,
    PAGES,
    PHONE,
    Field,
    chromium,
    field,
    mixture,
    opened,
    own_mb,
    pace,
    painting,
    second_mixture,
    settled,
    teaching,
    took,
    window,
)
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Playwright, sync_playwright
from slow_line import SlowLine

from agrikd import site

SCALE = {"low": 0, "high": 20, "unit": "%", "beyond": 0}
PROBED = ("/_stcore/health", "/_stcore/host-config")
"""At an address like /review Streamlit first asks whether it is served below /review, and takes a 404 for an answer;
the browser writes each of them into its console."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with field(tmp_path_factory.mktemp("s")) as one:
        yield one


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as one:
        yield one


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    with chromium(playwright) as one:
        yield one


@pytest.fixture
def page(seen: Field, browser: Browser) -> Iterator[Page]:
    """The live page, which paints."""
    seen.agent.answered = 0
    one = opened(browser, seen.app.url)
    painting(one)
    yield one
    one.context.close()


def test_frames_come_to_the_screen(page: Page, seen: Field) -> None:
    found = pace(page, seen.agent, 4)
    assert found.fps > 4 and found.p95_ms < 1000, found


def test_picture_verdict_and_bars_are_of_one_frame(page: Page) -> None:
    samples = [page.evaluate("probe.sample()") for _ in range(100) if not page.wait_for_timeout(20)]
    assert [found for one in samples if (found := mixture(one))] == []
    assert len({one["frame"] for one in samples}) >= 10


@pytest.mark.parametrize("way", ["slow", "reordered", "dead"])
def test_the_teachers_answer_stays_beside_the_picture_it_is_of(page: Page, seen: Field, way: str) -> None:
    painting(page, 30)
    samples: list[dict[str, Any]] = []
    for step, _ in enumerate(teaching(seen.agent, way)):
        samples += [page.evaluate("probe.sample()") for _ in range(10) if not page.wait_for_timeout(20)]
        if step == 15:
            break
    seconds = [(one["second"], one["now"]) for one in samples if one["second"]]
    assert [found for second, now in seconds if (found := second_mixture(second, seen.agent, now))] == []
    frames = [second["frame"] for second, _ in seconds]
    assert frames == sorted(frames), "an older answer took the place of a newer one"
    assert len(frames) > 50 and (len(set(frames)) == 1 if way == "dead" else len(set(frames)) > 4)
    if way == "dead":
        ages = [second["age"] for second, _ in seconds]
        assert ages == sorted(ages) and ages[-1] >= ages[0] + 2


def test_a_page_that_is_run_again_still_has_one_stream(page: Page, seen: Field) -> None:
    """Another language, and a dialog that is opened and closed."""
    for language, said in (("Español", "EN VIVO"), ("English", "LIVE")):
        page.get_by_role("combobox").click()
        page.get_by_role("option", name=language).click()
        took(lambda said=said: page.evaluate("probe.state()") == said)
    page.get_by_role("button", name="What is it really?").click()
    page.get_by_role("dialog").wait_for()
    painting(page)
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    painting(page)
    assert mixture(page.evaluate("probe.sample()")) == ""
    assert seen.viewers == 1


def test_a_page_that_is_left_asks_for_nothing_and_goes_on_when_it_is_back(page: Page, seen: Field) -> None:
    page.get_by_role("link", name="Models").click()
    assert took(lambda: seen.agent.quiet_s > 0.5 and seen.viewers == 0) < 5
    page.get_by_role("link", name="Live").click()
    painting(page)
    assert seen.viewers == 1


def test_a_tab_that_nobody_sees_asks_for_nothing(playwright: Playwright, seen: Field, tmp_path: Path) -> None:
    with window(playwright, tmp_path / "profile") as one:
        tabs = [one.tab(seen.app.url) for _ in range(3)]
        for tab in [*tabs, tabs[0]]:
            tab.bring_to_front()
            painting(tab)
            assert [other.evaluate("document.hidden") for other in tabs] == [other is not tab for other in tabs]
            took(lambda: seen.viewers == 1)


def test_the_page_says_that_it_is_stale_and_heals(page: Page, seen: Field) -> None:
    """The camera's agent gone, then the live view, killed; the agent then counts anew and the teacher with it."""
    seen.agent.answered = seen.agent.frame
    took(lambda: page.evaluate("probe.sample().second"))
    for leave, come in ((seen.end_agent, seen.begin_agent), (seen.kill_live, seen.begin_live)):
        leave()
        assert took(lambda: page.evaluate("probe.state()").startswith("STALE"), 10) < 5
        seen.agent.frame, seen.agent.answered = 0 if come == seen.begin_live else seen.agent.frame, 0
        come()
        took(lambda: page.evaluate("probe.state()") == "LIVE")
        painting(page)
    assert page.evaluate("probe.sample().second") is None
    seen.agent.answered = seen.agent.frame - 1
    took(lambda: page.evaluate("probe.sample().second"))
    sample = page.evaluate("probe.sample()")
    assert second_mixture(sample["second"], seen.agent, sample["now"]) == ""


def test_a_camera_that_is_gone_is_never_shown_as_live(page: Page, seen: Field) -> None:
    """Its last picture comes with each new link, to who was there and to who comes later."""
    seen.agent.blind = True
    page.wait_for_function("probe.state().startsWith('STALE')")
    page.evaluate("probe.note()")
    links = page.evaluate("probe.painted()") + 1
    page.wait_for_function(f"probe.painted() >= {links}")  # the page begins its link again: the picture comes once more
    late = opened(page.context.browser, seen.app.url)
    late.wait_for_function("probe.painted()")
    found = [late.evaluate("probe.state()"), *page.evaluate("probe.states")]
    late.context.close()
    seconds = [int(one.removeprefix("STALE, ").removesuffix(" s")) for one in page.evaluate("probe.states")]
    assert all(one.startswith("STALE, ") for one in found) and seconds == sorted(seconds) and seconds[-1] >= 9
    seen.agent.blind = False
    took(lambda: page.evaluate("probe.state()") == "LIVE")


def test_a_number_is_said_with_its_unit_and_interval(page: Page, seen: Field) -> None:
    said = {"top": 0, "probabilities": [0.6, 0.4], "candidates": [0], "unsure": False, "unknown": False}
    student = {**said, "value": 15.23, "interval": [12.0, 18.4]}
    second = {"frame": seen.agent.frame, "t": seen.agent.times[seen.agent.frame], "classes": ["0 to 10", "10 to 20"]}
    second |= {
        "student_classes": second["classes"],
        "scale": SCALE,
        "student": student,
        "teacher": {**said, "value": 9},
    }
    seen.agent.more = {"scale": SCALE, "coverage": 0.8, "student": student, "second": second}
    try:
        page.wait_for_function("probe.text('.student .verdict') === '15.2 %'")
        assert page.evaluate("probe.text('.student .more')") == "From 12 % to 18.4 %, in 80 % of cases"
        page.wait_for_function("probe.text('.second .verdict') === 'The model says 15.2 %, the teacher says 9 %.'")
        assert not page.locator(".freeze").is_visible() and not page.locator(".student .bars").is_visible()
        assert page.locator(".second .row").count() == 0
    finally:
        seen.agent.more = {}
    page.locator(".freeze").wait_for()


def test_candidates_and_faults_are_said_in_words(page: Page, seen: Field) -> None:
    student = {"top": 0, "probabilities": [0.6, 0.4], "candidates": [0, 1], "unsure": True, "unknown": False}
    seen.agent.more = {"coverage": 0.8, "student": student}
    try:
        told = f"It is one of these in 80 % of cases: {' or '.join(seen.agent.classes)}"
        page.wait_for_function("text => probe.text('.student .more') === text", arg=told)
        seen.agent.more = {"quality": ["too dark"]}
        for language, said in (("Español", "Sin juzgar: demasiado oscura"), ("English", "Not judged: too dark")):
            page.get_by_role("combobox").click()
            page.get_by_role("option", name=language).click()
            page.wait_for_function("text => probe.text('.student .more') === text", arg=said)
    finally:
        seen.agent.more = {}


def test_a_link_that_dies_without_a_word_is_begun_again(browser: Browser, seen: Field) -> None:
    line = SlowLine(seen.app.port, 1e8, 0)
    page = opened(browser, f"http://127.0.0.1:{line.port}")
    painting(page)
    line.silence()
    took(lambda: page.evaluate("probe.state()").startswith("STALE"))
    assert took(lambda: page.evaluate("probe.state()") == "LIVE") < 25
    painting(page)
    page.context.close()
    line.close()


def complaints(page: Page) -> list[str]:
    """What the browser will write into its console from now on as an error, but for `PROBED`."""
    found: list[str] = []

    def heard(message: Any) -> None:
        at = urlsplit(message.location.get("url", "")).path
        if message.type == "error" and not ("404" in message.text and at.endswith(PROBED) and at.count("/") == 3):
            found.append(f"{at}: {message.text}")

    page.on("console", heard)
    page.on("pageerror", lambda error: found.append(str(error)))
    return found


def test_the_browser_has_nothing_to_complain_of_and_asks_nobody_else(browser: Browser, seen: Field) -> None:
    seen.agent.answered = 0
    page = opened(browser, "about:blank", PHONE)
    found, asked = complaints(page), set[str]()
    page.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
    for name in ["", *PAGES[1:]]:
        page.goto(f"{seen.app.url}/{name}")
        settled(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    page.goto(seen.app.url)
    painting(page)
    seen.agent.answered = seen.agent.frame
    took(lambda: page.evaluate("probe.sample().second"))
    assert page.get_by_text("Deploy").count() == 0
    page.context.close()
    assert found == [] and asked <= {urlsplit(seen.app.url).netloc, ""}


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "light"), (DESK, "light"), (DESK, "dark")], ids=str)
def test_everybody_can_read_and_use_every_page(
    browser: Browser, seen: Field, size: dict[str, int], scheme: str
) -> None:
    page = opened(browser, seen.app.url, size, color_scheme=scheme)
    found = []
    for name in PAGES:
        page.goto(f"{seen.app.url}/{'' if name == 'live' else name}")
        settled(page)
        if name == "live":
            painting(page)
            seen.agent.answered = seen.agent.frame
            took(lambda: page.evaluate("probe.sample().second"))
        for one in Axe().run(page).response["violations"]:
            if one["impact"] in ("serious", "critical"):
                found += [(name, one["id"], node["html"][:200]) for node in one["nodes"]]
    page.context.close()
    assert found == []


def test_what_people_wrote_comes_out_as_it_was_written(browser: Browser, tmp_path: Path) -> None:
    """Names of classes, places and cameras, and notes, on every page of a phone."""
    with field(tmp_path, hostile=True) as one:
        page, shown = opened(browser, one.app.url, PHONE), set[str]()
        found = complaints(page)
        for name in PAGES:
            page.goto(f"{one.app.url}/{'' if name == 'live' else name}")
            settled(page)
            if name == "live":
                painting(page)
                one.agent.answered = one.agent.frame
                took(lambda: page.evaluate("probe.sample().second"))
                shown.update(row["name"] for row in page.evaluate("probe.sample()")["rows"])
            ran, made = "window.taken ?? 0", "document.querySelectorAll('.taken, img[src=x]').length"
            assert page.evaluate(f"[{ran}, {made}, document.documentElement.scrollWidth]") == [0, 0, PHONE["width"]], (
                name
            )
            if name == "review":
                page.get_by_role("button", name=HOSTILE[1]).click()
                page.get_by_text("1 judged now").wait_for()
                assert [said["label"] for verb, said in one.agent.asked if verb == "label"] == [HOSTILE[1]]
        page.context.close()
    assert shown == set(HOSTILE[:2]) and found == []


def test_too_large_a_file_is_refused_in_words(browser: Browser, seen: Field, tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(b"\xff\xd8\xff" + bytes(21 * 2**20))
    page = opened(browser, f"{seen.app.url}/compare", PHONE)
    settled(page)
    page.locator("input[type=file]").set_input_files(tmp_path / "large.jpg")
    page.get_by_text("20.0MB or smaller").wait_for()
    page.context.close()


def contrast(one: str, other: str) -> float:
    """Of two colours, 1 to 21, as WCAG 2.2 defines it."""

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, bright = sorted((light(one), light(other)))
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colours_can_be_read_in_sunlight_and_at_night(scheme: str) -> None:
    colours = {key.rpartition(".")[2]: value for key, value in site.STREAMLIT.items() if f"theme.{scheme}" in key}
    assert contrast("#000000", "#ffffff") == 21.0
    for ground in (colours["backgroundColor"], colours["secondaryBackgroundColor"]):
        assert contrast(colours["textColor"], ground) >= 7 and contrast(colours["linkColor"], ground) >= 7
        assert contrast(colours["primaryColor"], ground) >= 4.5 and contrast(colours["borderColor"], ground) >= 3


def test_memory_is_given_back(playwright: Playwright, seen: Field, tmp_path: Path) -> None:
    """Over two minutes, in which the collector comes when it likes; tests/bench calls it, and knows slopes."""
    with window(playwright, tmp_path / "profile") as one:
        tab = one.tab(seen.app.url)
        painting(tab, 300, 120)
        pages_mb, app_mb = one.pages_mb, own_mb(seen.app.process.pid)
        painting(tab, 1200, 300)
        grown = one.pages_mb - pages_mb, own_mb(seen.app.process.pid) - app_mb
    print(f"\ngrown by {grown[0]:.1f} MB in the page and {grown[1]:.1f} MB in the app")
    assert max(grown) < 20
