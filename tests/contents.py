"""The pages of the book, in the order of ``_toc.yml``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))


def files(entry: dict[str, Any]) -> Iterator[str]:
    """An entry's page, then the pages below it."""
    yield entry["file"]
    for below in entry.get("sections", []):
        yield from files(below)


PAGES = [TOC["root"], *(f for part in TOC["parts"] for c in part["chapters"] for f in files(c))]
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
THEOREM_PAGES = [p for p in PAGES if p.startswith("book/theorems/") and not p.endswith("/index")]
