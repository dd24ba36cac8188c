"""The ``ledger`` directive: every theorem object of deqlib, checked while the book is built.

No number on the ledger page is typed. Each build draws the instances again, measures them, drops
each hypothesis in turn, and writes what it saw. Whatever is not as the statement says is a
warning, and `make book` treats warnings as errors. What was seen is kept beside the notebooks'
stored runs, in a folder that changes with deqlib, so an unchanged deqlib is not checked twice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from deqlib.theorems import Theorem
    from deqlib.theorems.ledger import Row

logger = logging.getLogger(__name__)


def list_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], name: str = "ledger"
) -> list[str]:
    """A table as MyST lines; each cell is MyST too."""
    lines = [":::{list-table}", ":header-rows: 1", f":class: {name}", ""]
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


def details(row: Row) -> list[str]:
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
        f"{{doc}}`/notebooks/{theorem.chapter}`. The instance that fits worst "
        f"is number {verdict.worst_index} of seed {verdict.seed}, in the conclusion "
        f"“{verdict.worst_conclusion}”.",
        "",
        *list_table(["Hypothesis", "It says", "Its part", "Without it, the check"], hypotheses),
    ]


class Ledger(SphinxDirective):
    option_spec = {"draws": directives.positive_int, "seed": directives.nonnegative_int}

    def run(self) -> list[nodes.Node]:
        from deqlib.theorems import THEOREMS

        self.env.note_reread()
        page = self.page(self.options.get("draws", 200), self.options.get("seed", 0))
        for surprise in page["surprises"]:
            logger.warning(surprise, location=self.get_location())
        sections = [self.section(THEOREMS[label], page["details"][label]) for label in THEOREMS]
        return [*self.parsed(page["summary"]), *sections]

    def page(self, draws: int, seed: int) -> dict[str, Any]:
        """The page's lines of MyST, from this build or from one with the same deqlib."""
        from deqlib.theorems import THEOREMS
        from deqlib.theorems.ledger import ledger

        stored = Path(self.config.nb_execution_cache_path) / f"ledger-{draws}-{seed}.json"
        if stored.is_file():
            return json.loads(stored.read_text(encoding="utf-8"))
        rows = ledger(THEOREMS.values(), draws, seed, progress=False)
        page = {
            "summary": summary(rows),
            "details": {row.theorem.label: details(row) for row in rows},
            "surprises": [f"{row.theorem.label}: {said}" for row in rows for said in row.surprises],
        }
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_text(json.dumps(page), encoding="utf-8")
        return page

    def parsed(self, lines: list[str]) -> list[nodes.Node]:
        parent = nodes.Element()
        source, _ = self.get_source_info()
        self.state.nested_parse(StringList(lines, source=source), 0, parent)
        return parent.children

    def section(self, theorem: Theorem[Any], lines: list[str]) -> nodes.Element:
        name = f"ledger-{theorem.label}"
        section = nodes.section(ids=[name], names=[name])
        self.state.document.note_explicit_target(section)
        title, messages = self.state.inline_text(theorem.title, self.lineno)
        section += [nodes.title(theorem.title, "", *title), *messages]
        section += self.parsed([*lines, "", f"In code: {', '.join(self.links(theorem))}."])
        return section

    def links(self, theorem: Theorem[Any]) -> list[str]:
        """The theorem's file and its tests, on the public host."""
        root = Path(self.env.srcdir)
        code = Path(*type(theorem).__module__.split(".")).with_suffix(".py")
        tests = [p.relative_to(root) for p in sorted(root.glob(f"tests/**/test_{code.stem}.py"))]
        options = self.config.html_theme_options
        blob = f"{options['repository_url']}/blob/{options['repository_branch']}"
        return [f"[`{p.as_posix()}`]({blob}/{p.as_posix()})" for p in [code, *tests]]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("ledger", Ledger)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
