"""Mend what the theme's and docutils' HTML lack for readers with a keyboard or a screen reader.

Each repair is for a mistake that axe-core finds (see tests/site/test_browser.py), and is made while
the site is built rather than by a script in the reader's browser.

* The sidebar lies outside every landmark: it becomes one.
* The sidebar's folds have no name.
* docutils gives bibliography entries a role that ARIA 1.3 withdrew: they become plain list items.
* An empty cell in a table's head is no heading.
* A figure leads to its file, so that a narrow screen can show it in full size.
* A folded hint says that it is one, so that print can leave it folded.
"""

from __future__ import annotations

import re
from pathlib import Path

import imagesize
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.osutil import relative_uri

WIDE = 800  # pixels; most figures are 770 wide
REPAIRS = [
    (
        re.compile(r'<div class="bd-sidebar-primary bd-sidebar([^"]*)">'),
        r'<div class="bd-sidebar-primary bd-sidebar\1" role="complementary" aria-label="Contents">',
    ),
    (
        re.compile(r'<summary>(?=<span class="toctree-toggle")'),
        '<summary aria-label="Show or hide the pages below">',
    ),
    (re.compile(r'role="doc-biblioentry"'), 'role="listitem"'),
    (re.compile(r'<th class="head">\s*</th>'), "<td></td>"),
]


def repair(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = before = page.read_text(encoding="utf-8")
        for mistake, mended in REPAIRS:
            text = mistake.sub(mended, text)
        if text != before:
            page.write_text(text, encoding="utf-8")


def link_figures(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Around every figure's image, a link to the image itself."""
    if app.builder.format != "html":
        return
    here = app.builder.get_target_uri(docname)
    for figure in doctree.findall(nodes.figure):
        for image in list(figure.findall(nodes.image)):
            if isinstance(image.parent, nodes.reference) or image["uri"] not in app.env.images:
                continue
            file = f"{app.builder.imagedir}/{app.env.images[image['uri']][1]}"
            link = nodes.reference("", "", internal=True, refuri=relative_uri(here, file))
            link["classes"].append("full-size")
            width, _ = imagesize.get(Path(app.srcdir, image["uri"]))
            if width > WIDE:
                link["classes"].append("wide")
            image.replace_self(link)
            link += image


def mark_hints(app: Sphinx, doctree: nodes.document) -> None:
    for node in doctree.findall(nodes.container):
        if node.get("design_component") == "dropdown" and node.children:
            title = node[0].astext().strip()
            if title == "Hint":
                node["container_classes"] = [*node.get("container_classes", []), "hint"]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", mark_hints)
    app.connect("doctree-resolved", link_figures)
    app.connect("build-finished", repair)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
