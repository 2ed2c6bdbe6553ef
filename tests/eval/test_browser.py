"""The HTML page of a run in a real browser: what a person sees, and that the filters work.

Needs Chromium or Chrome: ``apt-get install chromium``, or ``playwright install chromium``.
"""

import io
import shutil

import pytest
from PIL import Image

from minilava.eval.__main__ import main
from minilava.eval.item import Item
from minilava.eval.page import page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except sync_api.Error as why:
            if found:
                raise
            pytest.skip(f"no browser (apt-get install chromium): {str(why).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a file in a new tab; the test fails on whatever the page complains about or asks of the network."""
    tab = browser.new_page(viewport={"width": 1000, "height": 800})
    complaints, asked = [], []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: asked.append(request.url))

    def open_file(path):
        tab.goto(path.as_uri())
        return tab

    yield open_file
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_the_page_of_a_run(opened, tmp_path):
    assert main(["world", "--limit", "2", "--out", str(tmp_path), "--html", "1", "--device", "cpu"]) == 0
    tab = opened(tmp_path / "page.html")
    cards = tab.locator("article")
    assert cards.count() == 14 and tab.locator("#count").inner_text() == "14 of 14 on this page, 28 in the run"
    for picture in tab.locator("img").all():
        picture.scroll_into_view_if_needed()
        picture.evaluate("picture => picture.decode()")  # throws where it is none
        assert picture.evaluate("picture => picture.naturalWidth") > 0

    counts = {}
    for choice in ("true", "false", "null", ""):
        tab.select_option("#right", choice)
        counts[choice] = cards.count()
    assert counts["true"] == tab.locator("article.right").count() > 0 and counts["null"] == 0
    assert counts["true"] + counts["false"] == counts[""] == 14

    tab.select_option("#task", "puzzle")
    assert cards.count() == 1 and "puzzle" in cards.first.inner_text()
    tab.fill("#words", "no such words")
    assert cards.count() == 0
    tab.fill("#words", "")
    tab.select_option("#task", "")

    tab.evaluate("scrollTo(0, 0)")
    shot = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
    colours = {colour for _, colour in shot.getcolors(1 << 24)}
    assert shot.size == (1000, 800) and len(colours) > 500  # pictures are on it
    assert {(0x2A, 0x7F, 0x3F), (0xB3, 0x26, 0x1E)} & colours  # and a card's bar, for right or for wrong


def test_text_of_strangers_does_nothing(opened, tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028"
    item = Item("a", evil, "exact", [(evil, evil)], lambda: [("image", "no such file")])
    line = {"id": "a", "turn": 0, "task": evil, "question": evil, "reference": [evil], "answer": evil, "score": None}
    path = tmp_path / "page.html"
    path.write_text(page([item], [line], {"suite": evil}, 16, 0), "utf-8")
    tab = opened(path)
    assert tab.locator("article").count() == 1 and tab.locator("img").count() == 0
    assert "<img src=x onerror=alert(2)>" in tab.locator("article").inner_text()
