"""What these tests share: the built site (``make book``) and the machine's own browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from watching import PATIENCE

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
SOURCES = (
    "_config.yml",
    "_toc.yml",
    "book/*.*",
    "book/_ext/*.py",
    "book/_tools/student.py",
    "book/_static/*",
    "notebooks/*.ipynb",
    "course/*.ipynb",
    "deqlib/**/*.py",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def why_not() -> str | None:
    """Why there is no site to check, or None where there is one."""
    index = SITE / "index.html"
    if not index.is_file():
        return "there is no built site; run make book"
    newest = max(p.stat().st_mtime for s in SOURCES for p in ROOT.glob(s) if p.is_file())
    if newest > index.stat().st_mtime:
        return "the built site is older than its sources; run make book"
    return None


@pytest.fixture(scope="session")
def site() -> Path:
    reason = why_not()
    if reason and os.environ.get("BOOK_SITE") == "required":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    return SITE


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        reason = f"no browser on PATH (one of {', '.join(BROWSERS)})"
        pytest.fail(reason) if os.environ.get("BOOK_SITE") == "required" else pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=QUIET, timeout=PATIENCE)
        yield browser
        browser.close()
