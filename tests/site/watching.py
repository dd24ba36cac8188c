"""A page that is watched: no other host, and nothing wrong goes unnoticed."""

from __future__ import annotations

from typing import Any

import browsing
from playwright.sync_api import Browser, Page, Route, TimeoutError

PATIENCE = 1000 * browsing.PATIENCE  # in milliseconds, as Playwright counts
SETTLED = """async () => {
    if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
    await document.fonts.ready;
}"""
WIDER_THAN_SCREEN = "document.documentElement.scrollWidth - window.innerWidth"
THEME_IS = "scheme => document.documentElement.dataset.theme === scheme"


class Watched:
    """A page that blocks other hosts and remembers everything that went wrong."""

    def __init__(
        self, browser: Browser, width: int = 1280, scheme: str = "light", **options: Any
    ) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type]
            **options,
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
