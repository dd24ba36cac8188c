"""What these tests share: the built site (``make book``) and the machine's own browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import chromium, missing
from playwright.sync_api import Browser

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
    if reason:
        missing(reason)
    return SITE


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser
