"""The course's plan and its slides, from one file and from the chapters.

`book/course.yml` says, session by session, what happens in which minutes, and which pieces of the
chapters stand on the slides meanwhile. The ``course-plan`` directive makes a session's table of it.
When the site has been written, each session becomes a deck of slides, `slides/session-1.html`: a
statement, a figure, or what a cell printed is taken from the chapter's own page, with its numbers
and references as they stand there, so a slide cannot differ from the book. Only the few connecting
sentences are the course's own. reveal.js comes out of the installed package sphinx-revealjs, and
MathJax is the site's own copy.
"""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from docutils.core import publish_doctree
from docutils.statemachine import StringList
from myst_parser.parsers.docutils_ import Parser
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective, new_document
from sphinx.util.fileutil import copy_asset

PLAN = Path("book") / "course.yml"
DECKS = "slides"
SLIDES = "https://slides.invalid/"
REVEAL = ("dist/reveal.js", "dist/reveal.css", "plugin/notes/notes.js", "LICENSE")
ACTIVITIES = {
    "talk": "Talk",
    "guess": "Predict, then run",
    "board": "On the board",
    "run": "Run",
    "exercise": "Exercise",
    "discuss": "Discuss",
    "pause": "Break",
}
PIECES = ("say", "takeaway", "statement", "proof", "figure", "cell", "exercise")


@cache
def plan(path: Path) -> dict[str, Any]:
    """Sessions by name. Raises ExtensionError with a sentence where the file is wrong."""
    sessions = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, session in sessions.items():
        total = sum(step["minutes"] for step in session["plan"])
        if total != session["minutes"]:
            raise ExtensionError(
                f"{path.name}: {name} lasts {session['minutes']} minutes, and its steps {total}"
            )
        for step in session["plan"]:
            if step["kind"] not in ACTIVITIES:
                raise ExtensionError(
                    f"{path.name}: {name} has a step of kind {step['kind']!r}; it must be one of "
                    + ", ".join(ACTIVITIES)
                )
            for piece in step.get("slides", []):
                if len(set(PIECES) & piece.keys()) != 1:
                    raise ExtensionError(
                        f"{path.name}: a slide of {name} is {piece}; it must hold one of "
                        + ", ".join(PIECES)
                    )
    return sessions


def clock(session: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each step with its minutes as "10–25"."""
    now = 0
    for step in session["plan"]:
        yield f"{now}–{now + step['minutes']}", step
        now += step["minutes"]


# --- the tables on the course's pages ----------------------------------------------------------


class CoursePlan(SphinxDirective):
    """``:::{course-plan} session-1``: its aims, its minutes, and the way to its slides."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        path = Path(self.env.srcdir) / PLAN
        self.env.note_dependency(str(path))
        name = self.arguments[0]
        session = plan(path)[name]
        lines = ["**Afterwards a student can**", ""]
        lines += [f"* {aim}" for aim in session["aims"]]
        lines += ["", "**Read before:** " + session["read"], "", self.way_to_slides(), ""]
        lines += [
            ":::{list-table}",
            ":header-rows: 1",
            ":class: course-plan",
            ":widths: 12 8 20 60",
        ]
        lines += ["", "* - Clock", "  - Min", "  - How", "  - What"]
        for minutes, step in clock(session):
            what = " ".join(step["what"].split())
            lines += [f"* - {minutes}", f"  - {step['minutes']}"]
            lines += [f"  - {ACTIVITIES[step['kind']]}", f"  - {what}"]
        lines += ["* -", f"  - **{session['minutes']}**", "  -", "  - in all", ":::", ""]
        parent = nodes.Element()
        source, _ = self.get_source_info()
        self.state.nested_parse(StringList(lines, source=source), 0, parent)
        for number, row in enumerate(step_rows(parent)):
            row["course-step"] = f"{name}/{number}"
        for link in parent.findall(nodes.reference):
            if link.get("refuri") == SLIDES:  # a page that does not exist yet
                link["refuri"] = "../" * self.env.docname.count("/") + f"{DECKS}/{name}.html"
        return parent.children

    def way_to_slides(self) -> str:
        return (
            f"**On the screen:** [the slides of this session]({SLIDES}), with speaker's notes "
            "(press S, or ? for all keys)."
        )


def step_rows(tree: nodes.Node) -> list[nodes.Element]:
    """The cells that say what happens, one for each step."""
    rows = [row for body in tree.findall(nodes.tbody) for row in body.children]
    return [row.children[3] for row in rows[:-1]]


# --- pieces of the chapters --------------------------------------------------------------------


class Book:
    """The chapters as the site shows them, with every reference resolved."""

    def __init__(self, app: Sphinx) -> None:
        self.app = app
        self.builder: Any = app.builder
        self.chapters = sorted(name for name in app.env.found_docs if name.startswith("notebooks/"))
        self.trees: dict[str, nodes.document] = {}

    def chapter(self, number: int) -> str:
        return next(c for c in self.chapters if c.startswith(f"notebooks/{number:02d}_"))

    def tree(self, docname: str) -> nodes.document:
        if docname not in self.trees:
            tree = self.app.env.get_and_resolve_doctree(docname, self.builder)
            self.builder.post_process_images(tree)  # where its pictures lie in the site
            self.trees[docname] = tree
        return self.trees[docname]

    def labelled(
        self, label: str, kind: Callable[[nodes.Node], bool], chapters: list[str] | None = None
    ) -> tuple[str, nodes.Element]:
        """The chapter and the node of that kind that carry the label."""
        for docname in chapters or self.chapters:
            for node in self.tree(docname).findall(kind):
                marks = [*node.get("ids", []), *node.get("names", []), node.get("label", "")]
                if label in marks:
                    return docname, node
        raise ExtensionError(f"course.yml: no chapter holds {label!r}")

    def statement(self, label: str) -> tuple[str, nodes.Element]:
        return self.labelled(label, lambda n: type(n).__name__ in STATEMENTS)

    def proof(self, label: str) -> tuple[str, nodes.Element]:
        """The first proof after the statement."""
        docname, stated = self.statement(label)
        everything = list(self.tree(docname).findall(nodes.Element))
        after = everything[everything.index(stated) + 1 :]
        found = next((n for n in after if type(n).__name__ == "proof_node"), None)
        if found is None:
            raise ExtensionError(f"course.yml: no proof after {label!r}")
        return docname, found

    def exercise(self, label: str) -> tuple[str, nodes.Element]:
        return self.labelled(label, lambda n: type(n).__name__.startswith("exercise"))

    def figure(self, label: str) -> tuple[str, nodes.Element]:
        return self.labelled(label, lambda n: isinstance(n, nodes.figure))

    def takeaway(self, number: int) -> tuple[str, nodes.Element]:
        docname = self.chapter(number)
        tip = next(n for n in self.tree(docname).findall(nodes.admonition) if "tip" in n["classes"])
        return docname, tip

    def cell(self, section: str, number: int) -> tuple[str, nodes.Element]:
        """The cell of that number, counted from 1, in a section: its label, or chapter/heading."""
        chapter, _, heading = section.rpartition("/")
        docname, found = self.labelled(
            heading,
            lambda n: isinstance(n, nodes.section),
            [self.chapter(int(chapter))] if chapter else self.chapters,
        )
        cells = [n for n in found.findall(nodes.container) if "cell" in n["classes"]]
        if not 1 <= number <= len(cells):
            raise ExtensionError(f"course.yml: {section!r} has {len(cells)} cells, not {number}")
        return docname, cells[number - 1]

    # --- as HTML

    def html(self, docname: str, node: nodes.Element) -> str:
        """A node as the site shows it, with its links as seen from the slides' folder."""
        node = node.deepcopy()
        for link in node.findall(nodes.reference):
            if "refid" in link:
                link["refuri"] = (
                    posixpath.basename(docname) + ".html#" + link.attributes.pop("refid")
                )
            if "://" not in link.get("refuri", "://"):
                page = posixpath.join(posixpath.dirname(docname), link["refuri"])
                link["refuri"] = posixpath.relpath(page, DECKS)
        plain = IDS.sub("", self.rendered(docname, node))
        return plain.replace("<section", "<div").replace("</section>", "</div>")

    def rendered(self, docname: str, node: nodes.Node) -> str:
        builder = self.builder
        builder.current_docname, builder.add_permalinks = docname, False
        builder.imgpath = posixpath.relpath(builder.imagedir, DECKS)
        builder.fignumbers = self.app.env.toc_fignumbers.get(docname, {})
        document = new_document(docname)
        document.settings = builder.docsettings
        document += node
        translator = builder.create_translator(document, builder)
        node.walkabout(translator)
        return "".join(translator.body)

    def inline(self, text: str) -> str:
        """The course's own words: MyST with formulas, and no references."""
        settings = {"myst_enable_extensions": ["dollarmath"], "report_level": 2, "halt_level": 2}
        tree = publish_doctree(text, parser=Parser(), settings_overrides=settings)
        return "".join(self.rendered("", child) for child in tree.children)


IDS = re.compile(r'\sid="[^"]*"')  # a piece may stand on two slides; and a section is a slide
STATEMENTS = {
    "theorem_node",
    "proposition_node",
    "lemma_node",
    "corollary_node",
    "definition_node",
    "remark_node",
}


# --- slides ------------------------------------------------------------------------------------


def children_of(node: nodes.Element) -> list[nodes.Node]:
    """The paragraphs, lists and formulas of a statement, without its title."""
    body = [c for c in node.children if not isinstance(c, nodes.title)]
    if len(body) == 1 and isinstance(body[0], nodes.section):
        body = body[0].children
    return [c for c in body if not isinstance(c, nodes.target)]


def chosen(node: nodes.Element, piece: dict[str, Any]) -> nodes.Element:
    """The statement with only the paragraphs that ``only`` names, counted from 1."""
    node = node.deepcopy()
    body = children_of(node)
    only = piece.get("only")
    if only is None:
        return node
    if max(only) > len(body):
        raise ExtensionError(f"course.yml: {piece} asks for part {max(only)} of {len(body)}")
    for number, child in enumerate(body, 1):
        if number not in only:
            child.parent.remove(child)
    return node


def without_reading_times(node: nodes.Element) -> nodes.Element:
    node = node.deepcopy()
    for child in list(node.children):
        if isinstance(child, nodes.title) or child.astext().startswith("Read:"):
            node.remove(child)
    return node


def part_of_cell(node: nodes.Element, show: str) -> nodes.Element:
    """The cell's code, what it printed, or both. A figure of the cell is left to ``figure``."""
    node = node.deepcopy()
    dropped = {"output": ["cell_input"], "code": ["cell_output"], "both": []}[show]
    for part in list(node.findall(nodes.container)):
        if set(dropped) & set(part["classes"]):
            part.parent.remove(part)
    node["classes"] = ["cell"]
    return node


def slide(book: Book, piece: dict[str, Any]) -> tuple[str, str, str, str]:
    """Kind, heading, body, and the way to the chapter, of one slide."""
    kind = next(k for k in PIECES if k in piece)
    what = piece[kind]
    say = book.inline(piece["with"]) if "with" in piece else ""
    if kind == "say":
        return kind, piece.get("title", ""), book.inline(what), ""
    if kind == "takeaway":
        docname, node = book.takeaway(what)
        node = without_reading_times(node)
    elif kind == "cell":
        docname, node = book.cell(what, piece.get("number", 1))
        node = part_of_cell(node, piece.get("show", "output"))
    else:
        docname, node = getattr(book, kind)(what)
        node = chosen(node, piece)
    chapter = int(posixpath.basename(docname)[:2])
    address = posixpath.relpath(f"{docname}.html", DECKS)
    source = f'<p class="source"><a href="{address}">Chapter {chapter}</a></p>'
    return kind, piece.get("title", ""), say + book.html(docname, node), source


def section(kind: str, heading: str, body: str, source: str, notes: str) -> str:
    head = f"<h2>{html.escape(heading)}</h2>" if heading else ""
    return (
        f'<section class="{kind}"><div class="fit">{head}{body}</div>{source}'
        f'<aside class="notes">{notes}</aside></section>'
    )


def deck(book: Book, name: str, session: dict[str, Any], rows: list[nodes.Element]) -> str:
    """The slides of one session as a page."""
    aims = "".join(f"<li>{book.inline(aim)}</li>" for aim in session["aims"])
    title = html.escape(session["title"])
    length = session["minutes"]
    slides = [
        section(
            "opening",
            "",
            f'<p class="over">The Equilibrium Book · {length} minutes</p><h1>{title}</h1>'
            f"<ul>{aims}</ul>",
            "",
            f"<p>Before the class: {book.inline(session['before'])}</p>",
        )
    ]
    for (minutes, step), row in zip(clock(session), rows, strict=True):
        said = "".join(book.html(row["docname"], child) for child in row.children)
        notes = f"<p><strong>Minutes {minutes}: {ACTIVITIES[step['kind']]}</strong></p>{said}"
        for piece in step.get("slides", []):
            more = book.inline(piece["note"]) if "note" in piece else ""
            slides.append(section(*slide(book, piece), notes + more))
    return PAGE.format(title=title, slides="\n".join(slides), name=name)


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · The Equilibrium Book</title>
<link rel="icon" href="../_static/favicon.svg">
<link rel="stylesheet" href="reveal/reveal.css">
<link rel="stylesheet" href="../_static/pygments.css">
<link rel="stylesheet" href="../_static/slides.css">
</head>
<body data-session="{name}">
<div class="reveal"><div class="slides">
{slides}
</div></div>
<script src="reveal/reveal.js"></script>
<script src="reveal/notes.js"></script>
<script id="mathjax" defer src="../_static/mathjax/tex-chtml-full.js"></script>
<script src="../_static/slides.js"></script>
</body>
</html>
"""


def plan_rows(app: Sphinx) -> dict[str, list[nodes.Element]]:
    """What the course's pages say of each step, with references resolved."""
    found: dict[str, dict[int, nodes.Element]] = {}
    for docname in sorted(app.env.found_docs):
        if not posixpath.basename(docname).startswith("course"):
            continue
        for entry in app.env.get_and_resolve_doctree(docname, app.builder).findall(nodes.entry):
            if "course-step" in entry:
                name, number = entry["course-step"].split("/")
                entry["docname"] = docname
                found.setdefault(name, {})[int(number)] = entry
    return {name: [rows[n] for n in sorted(rows)] for name, rows in found.items()}


def write_decks(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    package = find_spec("sphinx_revealjs")
    if package is None or package.origin is None:
        raise ExtensionError("sphinx-revealjs is not installed; requirements.txt names it")
    folder = Path(app.outdir) / DECKS
    for name in REVEAL:
        source = Path(package.origin).parent / "_static" / "revealjs" / name
        copy_asset(str(source), str(folder / "reveal"))
    book = Book(app)
    rows = plan_rows(app)
    for name, session in plan(Path(app.srcdir) / PLAN).items():
        page = deck(book, name, session, rows[name])
        (folder / f"{name}.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("course-plan", CoursePlan)
    app.connect("build-finished", write_decks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
