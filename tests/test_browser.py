"""The pages in a real browser: sorted and filtered, by mouse and by keys, asking nobody."""

import shutil
from dataclasses import replace

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright
from test_page import HOSTILE, content, match
from test_review import KEYS, NAME, decisions, serving

from deepssim_scan.audit.config.quantities import QUANTITIES
from deepssim_scan.audit.drift import BINS
from deepssim_scan.audit.history import History, SetOfNight, now
from deepssim_scan.audit.trend import TREND, write_trend
from deepssim_scan.errors import WriteFailed
from deepssim_scan.reporting.html.page import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
COUNT = 20_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report with 20,000 findings, some of hostile names."""
    names = dict(enumerate(HOSTILE))
    findings = [match(number, synthetic=names.get(number)) for number in range(COUNT)]
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(content(findings)), "utf-8")
    return path


@pytest.fixture(scope="module")
def trend(tmp_path_factory):
    """The page of forty nights of two synthetic sets."""
    folder = tmp_path_factory.mktemp("trend")
    known = dict.fromkeys(QUANTITIES, 0) | {"judged": 2000, "canary_recall": 0.97}
    with History(folder, begin=True) as history:
        for number in range(40):
            night, _ = history.begin()
            for name, count in (("ldm-v3", number % 7), ("gan-with-a-long-name", number // 20)):
                values = known | {"duplicates": count, "similar_rate": number / 4000}
                history.put(night, SetOfNight(name, {}, values, [0] * BINS, []))
            history.finish(replace(night, finished=now(), state="failed"))
        write_trend(history)
    return folder / TREND


@pytest.fixture
def opened(browser, written):
    """Open the report; what it asks for, and what it complains of, is collected."""
    contexts = []

    def open_page(path=written, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        tab = context.new_page()
        tab.asked, tab.said = [], []
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.on("console", lambda message: tab.said.append(message.text))
        tab.on("pageerror", lambda error: tab.said.append(str(error)))
        tab.on("dialog", lambda dialog: tab.said.append("a dialog opened"))
        tab.goto(path.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()


def names(tab):
    """The synthetic images of the rows that are shown."""
    return tab.locator("#findings tbody tr td:nth-child(2)").all_inner_texts()


def test_it_asks_nobody_and_nothing_of_a_name_acts(opened):
    tab = opened()
    outside = [url for url in tab.asked if not url.startswith(("data:", "file:"))]
    assert outside == []
    assert [url for url in tab.asked if url.startswith("file:")] == [tab.url]
    assert tab.said == []
    shown = tab.locator("#findings tbody tr td:nth-child(2)")
    for number, name in enumerate(HOSTILE):
        assert shown.nth(number).evaluate("cell => cell.textContent") == name


def test_a_script_of_others_does_not_run(opened):
    tab = opened()
    tab.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            const image = document.createElement("img");
            image.src = "https://example.invalid/x.png";
            document.body.append(image);
        }"""
    )
    tab.wait_for_timeout(100)
    assert tab.evaluate("window.ran") is None
    assert any("Content Security Policy" in text for text in tab.said)


def test_it_is_paged_sorted_and_filtered_by_mouse(opened):
    tab = opened()
    assert tab.locator("#shown").inner_text() == f"1 to 100 of {COUNT}"
    tab.get_by_role("button", name="Next").click()
    assert names(tab)[0] == "00100.png"
    score = tab.get_by_role("button", name="score")
    score.click()
    assert names(tab)[0] == f"{COUNT - 1:05d}.png"
    assert tab.locator("th", has=score).get_attribute("aria-sort") == "ascending"
    score.click()
    assert tab.locator("th", has=score).get_attribute("aria-sort") == "descending"
    assert names(tab)[10] == "00010.png"
    tab.get_by_label("Filter").fill("19998.PNG p1")
    assert names(tab) == ["19998.png"]
    tab.get_by_label("Filter").fill("no such name")
    assert tab.locator("#shown").inner_text() == "none"


def test_keys_do_what_the_mouse_does(opened):
    tab = opened()
    tab.get_by_label("Filter").focus()
    tab.keyboard.type("19999")
    assert names(tab) == ["19999.png"]
    tab.keyboard.press("ControlOrMeta+a")
    tab.keyboard.press("Delete")
    tab.get_by_role("button", name="score").focus()
    tab.keyboard.press("Enter")
    assert names(tab)[0] == f"{COUNT - 1:05d}.png"
    tab.get_by_role("button", name="Next").focus()
    tab.keyboard.press("Space")
    assert names(tab)[0] == f"{COUNT - 101:05d}.png"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 375)])
def test_nothing_serious_is_found_by_axe(opened, scheme, width):
    """On a phone, tables of subjects and of volumes could not be scrolled by keys."""
    tab = opened(color_scheme=scheme, viewport={"width": width, "height": 700})
    found = Axe().run(tab).response["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 375)])
def test_the_trend_asks_nobody_and_nothing_serious_is_found_by_axe(opened, trend, scheme, width):
    tab = opened(trend, color_scheme=scheme, viewport={"width": width, "height": 700})
    assert tab.asked == [trend.as_uri()] + [url for url in tab.asked if url.startswith("data:")]
    assert tab.said == []
    assert tab.locator("tbody tr").count() == 80
    found = Axe().run(tab).response["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []


@pytest.mark.parametrize("which", ["written", "trend"])
def test_it_fits_on_a_phone(opened, request, which):
    tab = opened(request.getfixturevalue(which), viewport={"width": 375, "height": 700})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 375


def test_without_scripts_the_first_findings_are_there(opened):
    tab = opened(java_script_enabled=False)
    assert len(names(tab)) == 100
    assert not tab.locator("#findings-bar").is_visible()
    assert tab.get_by_text(f"the first 100 of {COUNT:,} are here; flagged.csv has all").is_visible()


def test_what_is_printed_says_which_findings_it_has(opened):
    """The first hundred were printed as if they were all."""
    tab = opened()
    tab.emulate_media(media="print")
    assert tab.get_by_text(f"1 to 100 of {COUNT}").is_visible()
    assert not tab.locator("#cut").is_visible()
    assert not tab.get_by_label("Filter").is_visible()
    assert not tab.get_by_role("button", name="Next").is_visible()


def test_the_light_plot_is_printed_whatever_the_screen_has(opened):
    tab = opened(color_scheme="dark")
    images = tab.locator("picture img").first
    dark = images.evaluate("image => image.currentSrc")
    tab.emulate_media(media="print")
    tab.wait_for_timeout(200)
    assert images.evaluate("image => image.currentSrc") != dark


def test_a_decision_is_of_the_finding_that_is_shown(browser, tmp_path):
    with serving(tmp_path, reader="B") as review:
        tab = browser.new_page()
        tab.goto(review.address)
        held = []  # the server is busy with pictures
        tab.route("**/decide", lambda route: held.append(route))
        for key in ("c", "n", "ArrowLeft"):
            tab.keyboard.press(key)
            tab.wait_for_timeout(50)
        assert len(held) == 1
        held[0].continue_()
        tab.get_by_text("Finding 2 of 4").wait_for()
        assert review.decided == {KEYS[0]: "copy"}
        tab.unroute("**/decide")
        tab.keyboard.down("u")
        tab.get_by_text("Finding 3 of 4").wait_for()
        tab.keyboard.down("u")  # is repeated, since it was not let go
        tab.wait_for_timeout(200)
        assert tab.locator("#progress").inner_text() == "Finding 3 of 4"
        assert review.decided == {KEYS[0]: "copy", KEYS[1]: "unsure"}
        tab.close()
    assert {key: each.get("B") for key, each in decisions(tmp_path).items() if "B" in each} == {
        KEYS[0]: "copy",
        KEYS[1]: "unsure",
    }


def test_a_reader_is_told_why_a_decision_was_not_taken_down(browser, tmp_path, monkeypatch):
    def full(*_, **__):
        raise WriteFailed("the disk is full")

    with serving(tmp_path, reader="B") as review:
        tab = browser.new_page()
        tab.goto(review.address)
        with monkeypatch.context() as patch:
            patch.setattr(History, "decide", full)
            tab.keyboard.press("c")
            tab.get_by_text("Not taken down: the disk is full").wait_for(timeout=5000)
        tab.keyboard.press("C")
        tab.get_by_text("Finding 2 of 4").wait_for(timeout=5000)
        tab.close()
        address = review.address
        tab = browser.new_page()
        tab.goto(address)
    tab.keyboard.press("c")
    tab.get_by_text("the command that serves this page has ended").wait_for(timeout=5000)
    tab.close()


@pytest.mark.parametrize("blinded", [False, True])
def test_a_reader_decides_with_keys_and_with_the_mouse(browser, tmp_path, blinded):
    with serving(tmp_path, reader="B", blinded=blinded) as review:
        tab = browser.new_page()
        said = []
        tab.on("console", lambda message: said.append(message.text))
        tab.goto(review.address)
        assert tab.locator("#progress").inner_text() == "Finding 1 of 4"
        assert ("a.png" in tab.locator("#facts").inner_text()) == (not blinded)
        found = Axe().run(tab).response["violations"]
        assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
        tab.keyboard.press("c")
        tab.get_by_text("Finding 2 of 4").wait_for()
        if not blinded:
            assert tab.locator("#facts dd").nth(2).inner_text() == NAME
        tab.get_by_role("button", name="No copy (n)").click()
        tab.get_by_text("Finding 3 of 4").wait_for()
        tab.keyboard.press("ArrowLeft")
        assert tab.locator("#progress").inner_text() == "Finding 2 of 4, decided: no copy"
        tab.keyboard.press("u")
        tab.get_by_text("Finding 3 of 4").wait_for()
        tab.keyboard.press("n")
        tab.get_by_text("Finding 4 of 4").wait_for()
        tab.keyboard.press("c")
        tab.get_by_text("All 4 findings are decided.").wait_for()
        assert review.decided == dict(zip(KEYS, ("copy", "unsure", "no copy", "copy"), strict=True))
        assert [text for text in said if "Content Security Policy" in text] == []
        tab.close()
    assert {key: each["B"] for key, each in decisions(tmp_path).items()} == review.decided
