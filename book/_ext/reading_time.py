"""The ``chapters`` directive: the table of contents with the minutes that each chapter takes.

The minutes stand in each chapter's takeaway, and only there; tests/test_reading_time.py holds them
against the chapter's length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from docutils.statemachine import StringList
from ledger_page import list_table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

STATED = re.compile(r"\*\*Read:\*\* (\d+) min · \*\*Do:\*\* (\d+) min")


class Minutes(NamedTuple):
    read: int
    do: int


def minutes(notebook: Path) -> Minutes | None:
    """The minutes that a chapter states in its first cell, or None where it states none."""
    first = json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]
    found = STATED.search("".join(first["source"]))
    return Minutes(int(found.group(1)), int(found.group(2))) if found else None


class Chapters(SphinxDirective):
    """Every numbered part, with its chapters and their minutes."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # it changes with the chapters
        parent = nodes.Element()
        lines = StringList(list(self.lines()), source=self.get_source_info()[0])
        self.state.nested_parse(lines, 0, parent)
        return parent.children

    def lines(self) -> Iterator[str]:
        root, number = Path(self.env.srcdir), 0
        for part in self.config.external_site_map.root.subtrees:
            if not part.numbered:
                continue
            rows = []
            for name in part.files():
                number += 1
                stated = minutes(root / f"{name}.ipynb")
                cells = [f"{m} min" for m in stated] if stated else ["–", "–"]
                rows.append([f"{number}. {{doc}}`/{name}`", *cells])
            yield from (f":::{{rubric}} {part.caption}", ":::", "")
            yield from list_table(["Chapter", "Read", "Do"], rows, "minutes")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("chapters", Chapters)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
