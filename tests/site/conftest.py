"""The built site that these tests read: ``make book`` makes it, ``make test-site`` checks it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
    if reason and os.environ.get("BOOK_SITE") == "required":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    return SITE
