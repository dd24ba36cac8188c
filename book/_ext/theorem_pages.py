"""A page for every theorem, at an address that stays, and every statement in the search.

* ``theorem-page`` stands alone in ``book/theorems/LABEL.md``. It takes the label from the file's
  name and writes the page from the theorem's object: nothing there is typed.
* ``theorem-index`` lists the pages by chapter.
* Search finds a theorem's page by its title and by its label, and every other titled statement
  (lemma, proposition, definition …) by its title, at the place where it stands.
* In its chapter a theorem shows its label, which leads to its page.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from docutils import nodes
from ledger_page import Ledger, list_table
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains import Domain, ObjType
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import clean_astext
from sphinx_proof.nodes import NODE_TYPES

if TYPE_CHECKING:
    from deqlib.theorems import Theorem

FOLDER = "book/theorems"
KINDS = {
    "identity": "two sides are equal, up to rounding",
    "bound": "one side is never above the other",
    "rate": "how fast something falls",
    "asymptotic": "leading order, derived and measured",
    "evidence": "measured, not proved",
}
STATEMENTS = sorted({name for name in NODE_TYPES if name != "theorem"})


def cite(theorem: Theorem[Any], address: str, book: str) -> list[str]:
    return [
        "```bibtex",
        f"@misc{{equilibrium-book-{theorem.label},",
        f"  title        = {{{theorem.title}}},",
        f"  howpublished = {{{book}, theorem {theorem.label}}},",
        f"  url          = {{{address}}}",
        "}",
        "```",
    ]


class TheoremPage(Ledger):
    """The page of the theorem whose label is the file's name."""

    option_spec = {}

    def run(self) -> list[nodes.Node]:
        from deqlib.theorems import THEOREMS

        self.env.note_reread()  # it changes with deqlib, not with its own file
        label = PurePosixPath(self.env.docname).name
        if label not in THEOREMS:
            raise self.error(
                f"{self.env.docname} is the page of no theorem; its name must be a label, one of "
                f"{', '.join(THEOREMS)}"
            )
        theorem = THEOREMS[label]
        self.env.metadata[self.env.docname]["og:description"] = (
            f"{theorem.title}: a theorem of {self.config.html_title}, with its hypotheses, its "
            "proof, its code and its tests."
        )
        name = f"theorem-{label}"
        section = nodes.section(ids=[name], names=[name])
        self.state.document.note_explicit_target(section)
        title, messages = self.state.inline_text(theorem.title, self.lineno)
        section += [nodes.title(theorem.title, "", *title), *messages, self.entries(theorem)]
        section += self.parsed(self.lines(theorem))
        return [section]

    def entries(self, theorem: Theorem[Any]) -> nodes.Node:
        """What the index and the search know the page by: the page itself, no place in it."""
        words = dict.fromkeys([theorem.title, theorem.label, theorem.label.replace("-", " ")])
        # a semicolon would split an entry in two
        entries = [("single", w.replace(";", ","), "", "main", None) for w in words]
        return addnodes.index(entries=entries)

    def lines(self, theorem: Theorem[Any]) -> list[str]:
        label, chapter = theorem.label, f"/notebooks/{theorem.chapter}"
        address = f"{self.config.html_baseurl}{self.env.docname}.html"
        part = {True: "necessary", False: "serves the proof"}
        hypotheses = [
            [f"*{name}*", h.statement, part[h.necessary]] for name, h in theorem.hypotheses.items()
        ]
        first = next(iter(theorem.drop), None)
        commands = [f"python -m deqlib {label} --draws 1000"]
        commands += [f"python -m deqlib {label} --drop {first}"] if first else []
        return [
            ":::{admonition} Statement",
            theorem.statement,
            ":::",
            "",
            f"{{prf:ref}}`{label}` is stated in full and proved in {{doc}}`{chapter}`. "
            f"Its label, in the text, the code and the tests, is `{label}`.",
            "",
            *list_table(["Hypothesis", "It says", "Its part"], hypotheses),
            "A hypothesis is *necessary* where the check fails without it; the others serve the "
            "proof.",
            "",
            "",
            f"Status\n: {theorem.status}",
            "",
            f"Kind\n: {theorem.kind}: {KINDS[theorem.kind]}",
            "",
            f"Checked\n: {{ref}}`on drawn instances, and without each hypothesis, in the ledger "
            f"<ledger-{label}>`",
            "",
            f"Code and tests\n: {', '.join(self.links(theorem))}",
            "",
            f"This page\n: <{address}>",
            "",
            ":::{rubric} Check it yourself",
            ":::",
            "",
            "```",
            *commands,
            "```",
            "",
            ":::{rubric} Cite it",
            ":::",
            "",
            *cite(theorem, address, self.config.html_title),
        ]


class TheoremIndex(Ledger):
    """All theorem pages, by chapter, in the order of the book."""

    option_spec = {}

    def run(self) -> list[nodes.Node]:
        from deqlib.theorems import THEOREMS

        self.env.note_reread()
        lines: list[str] = []
        for chapter, theorems in groupby(THEOREMS.values(), key=lambda one: one.chapter):
            lines += [f":::{{rubric}} {{doc}}`/notebooks/{chapter}`", ":::", ""]
            lines += [f"- {{prf:ref}}`{one.label}`: {self.entry(one)}" for one in theorems]
            lines += [""]
        return self.parsed(lines)

    @staticmethod
    def entry(theorem: Theorem[Any]) -> str:
        return f"[{theorem.title}](/{FOLDER}/{theorem.label}.md) (`{theorem.label}`)"


class Statements(Domain):
    """Titled lemmas, propositions and the like, so that the search finds them by their title."""

    name = "statement"
    label = "Statements"
    object_types = {name: ObjType(name.title()) for name in STATEMENTS}
    initial_data: dict[str, Any] = {"titled": {}}

    def process_doc(self, env: BuildEnvironment, docname: str, document: nodes.document) -> None:
        self.data["titled"][docname] = [
            (node["realtype"], title, node["ids"][0])
            for node in document.findall(nodes.Element)
            if node.get("realtype") in STATEMENTS
            if (title := self.title(node))
        ]

    @staticmethod
    def title(node: nodes.Element) -> str:
        """The words in the brackets of "Lemma 2.3 (Title)", up to a citation in them."""
        title = clean_astext(node[0]).strip().removeprefix("(").removesuffix(")")
        cites = next(node[0].findall(addnodes.pending_xref), None) is not None
        return title.partition(" (")[0] if cites else title

    def clear_doc(self, docname: str) -> None:
        self.data["titled"].pop(docname, None)

    def get_objects(self) -> Iterator[tuple[str, str, str, str, str, int]]:
        for docname, found in self.data["titled"].items():
            for kind, title, target in found:
                # a point would be read as the end of a module's name
                yield target, title.replace(".", ""), kind, docname, target, 1


def show_labels(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Beside the title of a theorem in its chapter, its label, which leads to its page."""
    for node in doctree.findall(NODE_TYPES["theorem"]):
        page = f"{FOLDER}/{node['label']}"
        if node.get("realtype") != "theorem" or page not in app.env.found_docs:
            continue
        address = app.builder.get_relative_uri(docname, page)
        link = nodes.reference("", node["label"], internal=True, refuri=address)
        link["classes"].append("theorem-label")
        node[0] += [nodes.Text(" "), link]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("theorem-page", TheoremPage)
    app.add_directive("theorem-index", TheoremIndex)
    app.add_domain(Statements)
    app.connect("doctree-resolved", show_labels)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
