"""Every page in a real browser, from disk, with every other host blocked.

A failed or blocked request, an error on the console, an error inside a formula, or a page wider
than the screen fails the test. Screenshots are left in _build/screenshots for a human eye.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Browser, Page, Route, sync_playwright

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "_build" / "screenshots"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [TOC["root"]] + [c["file"] for part in TOC["parts"] for c in part["chapters"]]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
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
WRONG_FORMULAS = """[...document.querySelectorAll('mjx-merror, [data-mjx-error], mjx-mtext')]
    .filter(e => e.matches('mjx-merror, [data-mjx-error]') || e.style.color === 'red')
    .map(e => e.parentElement.textContent)"""


@pytest.fixture(scope="module")
def browser(site: Path) -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        reason = f"no browser on PATH (one of {', '.join(BROWSERS)})"
        pytest.fail(reason) if os.environ.get("BOOK_SITE") == "required" else pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=QUIET)
        yield browser
        browser.close()


class Watched:
    """A page that blocks other hosts and remembers everything that went wrong."""

    def __init__(self, browser: Browser, width: int, scheme: str) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type]
        )
        self.wrong: list[str] = []
        self.page: Page = self.context.new_page()
        self.context.route("**/*", self.own_files_only)
        self.page.on("console", lambda m: m.type == "error" and self.wrong.append(m.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("requestfailed", lambda request: self.wrong.append(f"failed: {request.url}"))

    def own_files_only(self, route: Route) -> None:
        if route.request.url.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            self.wrong.append(f"blocked: {route.request.url}")
            route.abort()

    def open(self, address: str) -> None:
        self.page.goto(address, wait_until="load")
        self.page.evaluate(SETTLED)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_page_opens_from_disk(
    site: Path, browser: Browser, name: str, width: int, scheme: str
) -> None:
    watched = Watched(browser, width, scheme)
    watched.open((site / f"{name}.html").as_uri())
    page = watched.page
    shown = page.evaluate("document.documentElement.dataset.theme")
    wider = page.evaluate(WIDER_THAN_SCREEN)
    formulas = page.evaluate(WRONG_FORMULAS)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    picture = SCREENSHOTS / f"{name.replace('/', '-')}-{width}-{scheme}.png"
    page.screenshot(path=picture, full_page=True)
    watched.context.close()
    assert watched.wrong == []
    assert formulas == []
    assert wider <= 0, f"{wider} px wider than a screen of {width} px"
    assert shown == scheme


def test_search_works_from_disk(site: Path, browser: Browser) -> None:
    watched = Watched(browser, 1280, "light")
    watched.open((site / "search.html").as_uri() + "?q=equilibrium")
    watched.page.wait_for_selector("#search-results li a", timeout=10_000)
    watched.context.close()
    assert watched.wrong == []
