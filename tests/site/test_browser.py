"""Every page in a real browser, from disk, with every other host blocked.

A failed or blocked request, an error on the console, an error inside a formula, or a page wider
than the screen fails the test. Setting the formulas costs seconds a page, so each page is loaded
once and then shown in every width and colour scheme. Screenshots of the two extremes are left in
_build/screenshots for a human eye.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Browser
from watching import Watched

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "_build" / "screenshots"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [TOC["root"]] + [c["file"] for part in TOC["parts"] for c in part["chapters"]]
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
KEPT = {(1280, "light"), (390, "dark")}
WRONG_FORMULAS = """[...document.querySelectorAll('mjx-merror, [data-mjx-error], mjx-mtext')]
    .filter(e => e.matches('mjx-merror, [data-mjx-error]') || e.style.color === 'red')
    .map(e => e.parentElement.textContent)"""


@pytest.mark.parametrize("name", PAGES)
def test_page_opens_from_disk(site: Path, browser: Browser, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with Watched(browser) as watched:
        watched.open((site / f"{name}.html").as_uri())
        watched.wrong += watched.page.evaluate(WRONG_FORMULAS)
        for width in WIDTHS:
            watched.page.set_viewport_size({"width": width, "height": 900})
            for scheme in SCHEMES:
                watched.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                watched.look(width, scheme)
                if (width, scheme) in KEPT:
                    picture = SCREENSHOTS / f"{name.replace('/', '-')}-{width}-{scheme}.png"
                    watched.page.screenshot(path=picture, full_page=True)
        assert watched.wrong == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_first_load_on_a_phone(site: Path, browser: Browser, scheme: str) -> None:
    """What a page decides when it loads: the colours, and what a narrow window hides."""
    with Watched(browser, 390, scheme) as watched:
        watched.open((site / f"{TOC['root']}.html").as_uri())
        watched.look(390, scheme)
        assert watched.wrong == []


def test_search_works_from_disk(site: Path, browser: Browser) -> None:
    with Watched(browser) as watched:
        watched.open((site / "search.html").as_uri() + "?q=equilibrium")
        watched.page.wait_for_selector("#search-results li a")
        assert watched.wrong == []
