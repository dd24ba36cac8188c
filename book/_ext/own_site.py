"""Make every page load everything from the site itself: no page needs another host.

* MathJax is copied out of the installed package `sphinx-mathjax-offline` into `_static/mathjax`.
* Jupyter Book switches sphinx-thebe on for everybody, and its scripts, which log an error on each
  page and name a foreign host, come with it. This book has no thebe button, so they stay out.
* The theme asks browsers to load its icon fonts early, with a cross-origin request that a page
  opened from disk may not make. The fonts load without it.
* `@REPOSITORY@` in a page stands for the address in _config.yml, the only place that names it.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.fileutil import copy_asset

FONT_PRELOAD = re.compile(r'<link rel="preload" as="font"[^>]*>\s*')
THEBE_HANDLERS = {"init_thebe_core", "update_thebe_context"}
MATHJAX_FOLDERS = ("a11y", "input/tex/extensions", "output/chtml/fonts", "sre", "ui")


def without_thebe(app: Sphinx, config: Any) -> None:
    for listeners in app.events.listeners.values():
        listeners[:] = [
            listener
            for listener in listeners
            if not (
                getattr(listener.handler, "__module__", "") == "sphinx_thebe"
                and listener.handler.__name__ in THEBE_HANDLERS
            )
        ]


def name_repository(app: Sphinx, docname: str, source: list[str]) -> None:
    address = app.config.html_theme_options["repository_url"]
    source[0] = source[0].replace("@REPOSITORY@", address)


def copy_mathjax(app: Sphinx) -> None:
    package = find_spec("sphinx-mathjax-offline")
    if package is None or package.origin is None:
        raise RuntimeError("sphinx-mathjax-offline is not installed; requirements.txt names it")
    source = Path(package.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    copy_asset(str(source / Path(app.config.mathjax_path).name), str(target))
    for folder in MATHJAX_FOLDERS:
        copy_asset(str(source / folder), str(target / folder))


def drop_font_preloads(app: Sphinx) -> None:
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(FONT_PRELOAD.sub("", text), encoding="utf-8")


def finish(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        copy_mathjax(app)
        drop_font_preloads(app)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", without_thebe)
    app.connect("source-read", name_repository)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
