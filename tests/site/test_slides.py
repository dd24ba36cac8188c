"""The slides: one deck a session, complete, readable, and whole in itself.

The second half opens them in a browser, from disk, with every other host blocked.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from bs4 import BeautifulSoup
from playwright.sync_api import Browser
from test_browser import WRONG_FORMULAS
from watching import Watched

ROOT = Path(__file__).parents[2]
PLAN: dict[str, Any] = yaml.safe_load((ROOT / "book" / "course.yml").read_text(encoding="utf-8"))
SCREENSHOTS = ROOT / "_build" / "screenshots"
SMALLEST_TEXT = 16  # pixels of a frame of 1280 by 720
# what lies beyond the frame, or is cut off inside it, or cannot be read from the last row
LOOK = """() => {
    const slide = Reveal.getCurrentSlide(), box = slide.querySelector('.fit');
    const sizes = [...box.querySelectorAll('p, li, pre, td')].filter(e => e.innerText.trim());
    return {
        over: Math.max(slide.scrollHeight - 720, slide.scrollWidth - 1280,
                       box.scrollHeight - box.clientHeight, box.scrollWidth - box.clientWidth),
        smallest: Math.min(40, ...sizes.map(e => parseFloat(getComputedStyle(e).fontSize))),
        broken: [...slide.querySelectorAll('img')].filter(i => !i.naturalWidth).length,
    };
}"""


@cache
def deck(site: Path, name: str) -> BeautifulSoup:
    text = (site / "slides" / f"{name}.html").read_text(encoding="utf-8")
    return BeautifulSoup(text, "html.parser")


def number_of_slides(name: str) -> int:
    return 1 + sum(len(step.get("slides", [])) for step in PLAN[name]["plan"])


@pytest.mark.parametrize("name", PLAN)
def test_deck_has_every_slide_and_every_minute(site: Path, name: str) -> None:
    slides = deck(site, name).select(".slides > section")
    assert len(slides) == number_of_slides(name)
    assert deck(site, name).select("section section") == []
    notes = [slide.select_one("aside.notes").get_text(" ", strip=True) for slide in slides]
    now = 0
    for step in PLAN[name]["plan"]:
        clock = f"Minutes {now}–{now + step['minutes']}:"
        now += step["minutes"]
        shown = [note for note in notes if note.startswith(clock)]
        assert len(shown) == len(step.get("slides", [])), clock
        assert all(len(note) > len(clock) + 20 for note in shown)


@pytest.mark.parametrize("name", PLAN)
def test_nothing_on_a_slide_is_raw(site: Path, name: str) -> None:
    page = deck(site, name)
    assert page.select(".problematic, .system-message") == []
    assert [tag for tag in page.select(".xref") if tag.find_parent("a") is None] == []
    text = page.get_text(" ")
    assert re.findall(r"\{[a-z:]+\}`|\\\(|\[@|:label:", re.sub(r"\\\(.*?\\\)", "", text)) == []
    for image in page.select("img"):
        assert len(image.get("alt", "")) >= 20, image


def test_statements_are_those_of_the_chapters(site: Path) -> None:
    """A theorem on a slide is the chapter's, with its number and title."""
    seen = 0
    for name in PLAN:
        for slide in deck(site, name).select("section.statement"):
            title = slide.select_one(".admonition-title").get_text(" ", strip=True)
            link = slide.select_one(".source a")["href"]
            chapter = BeautifulSoup(
                (site / "slides" / link).resolve().read_text(encoding="utf-8"), "html.parser"
            )
            titles = [t.get_text(" ", strip=True) for t in chapter.select(".admonition-title")]
            assert title in titles, (name, title)
            assert re.match(r"\w+ \d+\.\d+ ", title), title
            seen += 1
    assert seen >= 30


@pytest.mark.parametrize("name", PLAN)
def test_deck_opens_from_disk_and_nothing_is_cut_off(
    site: Path,
    browser: Browser,
    name: str,
) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with Watched(browser) as watched:
        page = watched.page
        page.set_viewport_size({"width": 1280, "height": 720})
        watched.open((site / "slides" / f"{name}.html").as_uri())
        page.wait_for_function("window.Reveal && Reveal.isReady()")
        watched.wrong += page.evaluate(WRONG_FORMULAS)
        assert page.evaluate("document.querySelectorAll('mjx-container').length") > 10
        total = page.evaluate("Reveal.getTotalSlides()")
        assert total == number_of_slides(name)
        for number in range(total):
            assert page.evaluate("Reveal.getIndices().h") == number
            seen = page.evaluate(LOOK)
            if seen["over"] > 1 or seen["broken"] or seen["smallest"] < SMALLEST_TEXT:
                watched.wrong.append(f"slide {number + 1}: {seen}")
            if number in (0, 4):
                page.screenshot(path=SCREENSHOTS / f"slides-{name}-{number + 1}.png")
            page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowLeft")
        assert page.evaluate("Reveal.getIndices().h") == total - 2
        assert watched.wrong == []


def test_deck_can_be_printed(site: Path, browser: Browser) -> None:
    with Watched(browser) as watched:
        watched.open((site / "slides" / "session-3.html").as_uri() + "?print-pdf")
        watched.page.wait_for_selector(".pdf-page")
        pages = watched.page.evaluate("document.querySelectorAll('.pdf-page').length")
        assert pages == number_of_slides("session-3")
        assert watched.wrong == []
