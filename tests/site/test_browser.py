"""Every page in a real browser, from disk, with every other host blocked.

A failed or blocked request, an error on the console, an error inside a formula, or a page wider
than the screen fails the test. Setting the formulas costs seconds a page, so each page is loaded
once and then shown in every width and colour scheme. Screenshots of the two extremes are left in
_build/screenshots for a human eye.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Browser, Page, Route, TimeoutError, sync_playwright

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "_build" / "screenshots"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [TOC["root"]] + [c["file"] for part in TOC["parts"] for c in part["chapters"]]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
KEPT = {(1280, "light"), (390, "dark")}
PATIENCE = 120_000  # milliseconds: a busy machine is slow, and slow is not wrong
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTLED = """async () => {
    if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
    await document.fonts.ready;
}"""
WIDER_THAN_SCREEN = "document.documentElement.scrollWidth - window.innerWidth"
THEME_IS = "scheme => document.documentElement.dataset.theme === scheme"
WRONG_FORMULAS = """[...document.querySelectorAll('mjx-merror, [data-mjx-error], mjx-mtext')]
    .filter(e => e.matches('mjx-merror, [data-mjx-error]') || e.style.color === 'red')
    .map(e => e.parentElement.textContent)"""


@pytest.fixture(scope="session")
def browser(site: Path) -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        reason = f"no browser on PATH (one of {', '.join(BROWSERS)})"
        pytest.fail(reason) if os.environ.get("BOOK_SITE") == "required" else pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=QUIET, timeout=PATIENCE)
        yield browser
        browser.close()


class Watched:
    """A page that blocks other hosts and remembers everything that went wrong."""

    def __init__(self, browser: Browser, width: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type]
        )
        self.context.set_default_timeout(PATIENCE)
        self.wrong: list[str] = []
        self.page: Page = self.context.new_page()
        self.context.route("**/*", self.own_files_only)
        self.page.on("console", lambda m: m.type == "error" and self.wrong.append(m.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("requestfailed", lambda request: self.wrong.append(f"failed: {request.url}"))

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def own_files_only(self, route: Route) -> None:
        if route.request.url.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            self.wrong.append(f"blocked: {route.request.url}")
            route.abort()

    def open(self, address: str) -> None:
        self.page.goto(address, wait_until="load")
        self.page.evaluate(SETTLED)

    def look(self, width: int, scheme: str) -> None:
        """Note what is wrong with the page at this width and in this colour scheme."""
        wider = self.page.evaluate(WIDER_THAN_SCREEN)
        if wider > 0:
            self.wrong.append(f"{wider} px wider than a screen of {width} px")
        try:  # the page hears of a change a moment after it is made
            self.page.wait_for_function(THEME_IS, arg=scheme, timeout=PATIENCE / 10)
        except TimeoutError:
            self.wrong.append(f"not {scheme} where that is preferred")


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
