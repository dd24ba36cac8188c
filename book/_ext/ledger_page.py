"""The ``ledger`` directive: every theorem object of deqlib, checked while the book is built.

No number on the ledger page is typed. Each build draws the instances again, measures them, drops
each hypothesis in turn, and writes what it saw. Whatever is not as the statement says is a
warning, and `make book` treats warnings as errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from deqlib.theorems.ledger import Row

logger = logging.getLogger(__name__)


def list_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as MyST lines; each cell is MyST too."""
    lines = [":::{list-table}", ":header-rows: 1", ":class: ledger", ""]
    for row in [header, *rows]:
        lines += [f"* - {row[0]}", *(f"  - {cell}" for cell in row[1:])]
    return [*lines, ":::", ""]


def summary(rows: Sequence[Row]) -> list[str]:
    """One line for each theorem."""
    return list_table(
        ["Statement", "Status", "Holds on", "Worst margin", "Tightness", "Fails without"],
        [
            [
                f"{{prf:ref}}`{row.theorem.label}`: {{ref}}`ledger-{row.theorem.label}`",
                row.theorem.status,
                f"{row.verdict.draws - row.verdict.failures} of {row.verdict.draws}",
                f"{row.verdict.worst_margin:.2g}",
                f"{row.verdict.tightness:.2g}",
                ", ".join(n for n, v in row.dropped.items() if v.failures) or "–",
            ]
            for row in rows
        ],
    )


def details(row: Row, links: Sequence[str]) -> list[str]:
    """One theorem: statement, where it stands, and what each hypothesis is worth."""
    theorem, verdict = row.theorem, row.verdict
    hypotheses = []
    for name, hypothesis in theorem.hypotheses.items():
        dropped = row.dropped.get(name)
        hypotheses.append(
            [
                name,
                hypothesis.statement,
                "necessary" if hypothesis.necessary else "serves the proof",
                f"fails on {dropped.failures} of {dropped.draws}" if dropped else "not dropped",
            ]
        )
    return [
        theorem.statement,
        "",
        f"Stated and proved as {{prf:ref}}`{theorem.label}` in "
        f"{{doc}}`/notebooks/{theorem.chapter}`. In code: {', '.join(links)}. "
        f"The instance that fits worst is number {verdict.worst_index} of seed {verdict.seed}, "
        f"in the conclusion “{verdict.worst_conclusion}”.",
        "",
        *list_table(["Hypothesis", "It says", "Its part", "Without it, the check"], hypotheses),
    ]


class Ledger(SphinxDirective):
    option_spec = {"draws": directives.positive_int, "seed": directives.nonnegative_int}

    def run(self) -> list[nodes.Node]:
        from deqlib.theorems import THEOREMS
        from deqlib.theorems.ledger import ledger

        self.env.note_reread()
        draws, seed = self.options.get("draws", 200), self.options.get("seed", 0)
        rows = ledger(THEOREMS.values(), draws, seed, progress=False)
        for row in rows:
            for surprise in row.surprises:
                logger.warning("%s: %s", row.theorem.label, surprise, location=self.get_location())
        return [*self.parsed(summary(rows)), *map(self.section, rows)]

    def parsed(self, lines: list[str]) -> list[nodes.Node]:
        parent = nodes.Element()
        source, _ = self.get_source_info()
        self.state.nested_parse(StringList(lines, source=source), 0, parent)
        return parent.children

    def section(self, row: Row) -> nodes.Element:
        name = f"ledger-{row.theorem.label}"
        section = nodes.section(ids=[name], names=[name])
        self.state.document.note_explicit_target(section)
        title, messages = self.state.inline_text(row.theorem.title, self.lineno)
        section += [nodes.title(row.theorem.title, "", *title), *messages]
        section += self.parsed(details(row, self.links(row)))
        return section

    def links(self, row: Row) -> list[str]:
        """The theorem's file and its tests, on the public host."""
        root = Path(self.env.srcdir)
        code = Path(*type(row.theorem).__module__.split(".")).with_suffix(".py")
        tests = [p.relative_to(root) for p in sorted(root.glob(f"tests/**/test_{code.stem}.py"))]
        options = self.config.html_theme_options
        blob = f"{options['repository_url']}/blob/{options['repository_branch']}"
        return [f"[`{p.as_posix()}`]({blob}/{p.as_posix()})" for p in [code, *tests]]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("ledger", Ledger)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
