"""The ``ledger`` directive: every theorem and finding of deqlib, checked while the book is built.

No number on the ledger page is typed. Each build draws the instances again, measures them, drops
each hypothesis in turn, and writes what it saw. Whatever is not as the statement says is a
warning, and `make book` treats warnings as errors. What was seen is kept beside the notebooks'
stored runs, in a folder that changes with deqlib, so an unchanged deqlib is not checked twice.
The ``open-questions`` directive lists what the same objects say is open about them.
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


def stated(theorem: Theorem[Any]) -> str:
    """Where the book states it, as a reference."""
    return getattr(theorem, "where", f"{{prf:ref}}`{theorem.label}`")


def named(theorem: Theorem[Any]) -> str:
    """Where the book states it, and a link to what the ledger saw."""
    return f"{stated(theorem)}: {{ref}}`ledger-{theorem.label}`"


def summary(rows: Sequence[Row]) -> list[str]:
    """One line for each theorem."""
    return list_table(
        ["Statement", "Status", "Holds on", "Worst margin", "Tightness", "Fails without"],
        [
            [
                named(row.theorem),
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
    said = {"proved": "Stated and proved as", "asymptotic": "Derived to leading order in"}.get(
        theorem.status, "Measured, not proved:"
    )
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
        f"**Status: {theorem.status}.** {said} {stated(theorem)} in "
        f"{{doc}}`/notebooks/{theorem.chapter}`. It holds on "
        f"{verdict.draws - verdict.failures} of {verdict.draws} instances, with a worst margin of "
        f"{verdict.worst_margin:.2g} and a tightness of {verdict.tightness:.2g}. The instance that "
        f"fits worst "
        f"is number {verdict.worst_index} of seed {verdict.seed}, in the conclusion "
        f"“{verdict.worst_conclusion}”.",
        "",
        *list_table(["Hypothesis", "It says", "Its part", "Without it, the check"], hypotheses),
        *(f"*Open:* {question}\n" for question in theorem.open_questions),
    ]


def objects(what: str) -> dict[str, Theorem[Any]]:
    from deqlib.theorems import FINDINGS, THEOREMS

    return dict(THEOREMS) if what == "theorems" else dict(FINDINGS)


class Objects(SphinxDirective):
    """What the two directives share."""

    def parsed(self, lines: list[str]) -> list[nodes.Node]:
        parent = nodes.Element()
        source, _ = self.get_source_info()
        self.state.nested_parse(StringList(lines, source=source), 0, parent)
        return parent.children


class Ledger(Objects):
    """One table and one section for each of the ``theorems`` (default) or of the ``findings``."""

    option_spec = {
        "draws": directives.positive_int,
        "seed": directives.nonnegative_int,
        "what": lambda said: directives.choice(said, ("theorems", "findings")),
    }

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        shown = objects(self.options.get("what", "theorems"))
        page = self.page(shown)
        for surprise in page["surprises"]:
            logger.warning(surprise, location=self.get_location())
        sections = [self.section(shown[label], page["details"][label]) for label in shown]
        return [*self.parsed(page["summary"]), *sections]

    def page(self, shown: dict[str, Theorem[Any]]) -> dict[str, Any]:
        """The page's lines of MyST, from this build or from one with the same deqlib."""
        from deqlib.theorems.ledger import ledger

        draws, seed = self.options.get("draws", 200), self.options.get("seed", 0)
        name = f"{self.options.get('what', 'theorems')}-{draws}-{seed}.json"
        stored = Path(self.config.nb_execution_cache_path) / name
        if stored.is_file():
            return json.loads(stored.read_text(encoding="utf-8"))
        rows = ledger(shown.values(), draws, seed, progress=False)
        page = {
            "summary": summary(rows),
            "details": {row.theorem.label: details(row) for row in rows},
            "surprises": [f"{row.theorem.label}: {said}" for row in rows for said in row.surprises],
        }
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_text(json.dumps(page), encoding="utf-8")
        return page

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


class OpenQuestions(Objects):
    """Every open question of a theorem or finding, in the order of the book."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        every = [*objects("theorems").values(), *objects("findings").values()]
        order = sorted(every, key=lambda one: one.chapter)  # stable: theorems before findings
        return self.parsed(
            [
                line
                for theorem in order
                for question in theorem.open_questions
                for line in (f"- {named(theorem)}. {question}", "")
            ]
        )


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("ledger", Ledger)
    app.add_directive("open-questions", OpenQuestions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
