"""What the site needs at its public address, all of it derived from `repository.url`.

A repository https://github.com/OWNER/NAME is published at https://OWNER.github.io/NAME/. Every page
says its address there (canonical link), what it is about, and which card a shared link shows; the
site has a map for search engines, a page for wrong addresses, and a front page that leads on to
the book and shows the same card. Nothing is loaded from that address.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

DESCRIPTION = "og:description"
CARD = (1200, 630)
LONGEST = 300  # characters of a description; cards and search engines cut there or earlier
SYMBOLS = {
    r"\top": "ᵀ", r"\star": "⋆", r"\mapsto": "↦", r"\nabla": "∇", r"\sqrt": "√", r"\le": "≤",
    r"\alpha": "α", r"\beta": "β", r"\delta": "δ", r"\Delta": "Δ", r"\lambda": "λ", r"\mu": "μ",
    r"\rho": "ρ", r"\sigma": "σ", r"\theta": "θ", r"\varphi": "φ", r"\min": "min", r"\max": "max",
    r"\partial": "∂", r"\mathrm": "", r"\mathbb": "", r"\bigl": "", r"\bigr": "", r"\,": " ",
}  # fmt: skip
NOT_FOUND = """
<h1>Page not found</h1>
<p>Nothing stands at this address. The page may have moved, or the address has a slip in it.</p>
<form class="not-found-search" action="{prefix}search.html" method="get">
  <label for="not-found-query">Search the book</label>
  <input type="search" id="not-found-query" name="q" class="form-control">
  <button type="submit" class="btn btn-primary">Search</button>
</form>
<p>Or start from the <a href="{prefix}{root}.html">first page</a>, from
<a href="{prefix}book/theorems/index.html">all theorems</a> or from the
<a href="{prefix}book/notation.html">notation</a>.</p>
"""
FRONT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<meta http-equiv="refresh" content="0; url={root}.html">
<link rel="canonical" href="{address}{root}.html">
{tags}</head>
<body><p><a href="{root}.html">{title}</a></p></body>
</html>
"""


def public_address(repository: str) -> str:
    """The address of a repository's pages, with a slash at its end.

    >>> public_address("https://github.com/owner/name")
    'https://owner.github.io/name/'
    """
    parts = urlsplit(repository)
    path = parts.path.strip("/").removesuffix(".git")
    if parts.netloc != "github.com" or path.count("/") != 1:
        raise ValueError(
            f"repository.url is {repository!r}; it must be https://github.com/OWNER/NAME, "
            "or html.baseurl must give the address at which the site is published"
        )
    owner, name = path.split("/")
    return f"https://{owner}.github.io/{name}/"


def plain_mathematics(latex: str) -> str:
    r"""A short formula as plain text: \theta^*+H^{-1} is θ*+H^-1."""
    for name in sorted(SYMBOLS, key=len, reverse=True):
        end = r"(?![A-Za-z])" if name[-1].isalpha() else ""
        latex = re.sub(re.escape(name) + end, SYMBOLS[name], latex)
    latex = re.sub(r"\^(?=[ᵀ*⋆])", "", latex)
    return re.sub(r"[{}]", "", latex).replace("  ", " ")


def plain(paragraph: nodes.Node) -> str:
    """A paragraph's text, its formulas too."""
    copy = paragraph.deepcopy()
    for formula in list(copy.findall(nodes.math)):
        formula.replace_self(nodes.Text(plain_mathematics(formula.astext())))
    return " ".join(copy.astext().split())


def shortened(text: str) -> str:
    """Whole sentences where they fit, else whole words and an ellipsis."""
    if len(text) <= LONGEST:
        return text
    kept = re.match(rf"(.{{80,{LONGEST}}}[.?!])\s", text)
    return kept.group(1) if kept else text[:LONGEST].rsplit(" ", 1)[0].rstrip(",;: ") + " …"


def describe(app: Sphinx, doctree: nodes.document) -> None:
    """A page's description: its own, else its takeaway, else its first paragraph."""
    metadata = app.env.metadata[app.env.docname]
    boxes = [n for n in doctree.findall(nodes.admonition) if n[0].astext() == "Takeaway"]
    for place in [*boxes, doctree]:
        paragraph = next(place.findall(nodes.paragraph), None)
        if paragraph is not None and DESCRIPTION not in metadata:
            metadata[DESCRIPTION] = text = shortened(plain(paragraph))
            if "\\" in text:
                logger.warning("a command is left in the description %r; SYMBOLS lacks it", text)


def configure(app: Sphinx, config: Any) -> None:
    theme = config.html_theme_options
    address = config.html_baseurl or public_address(theme["repository_url"])
    prefix = urlsplit(address).path
    config.html_baseurl = config.site_url = config.ogp_site_url = address
    config.notfound_urls_prefix = prefix
    config.notfound_context = {
        "title": "Page not found",
        "body": NOT_FOUND.format(prefix=prefix, root=config.root_doc),
        "metatags": '<meta name="robots" content="noindex">',
    }


def head(app: Sphinx, name: str, template: str, context: dict[str, Any], _: Any) -> None:
    """The plain description beside the one for cards; pages without a text are not indexed."""
    said = (context.get("meta") or {}).get(DESCRIPTION)
    if said:
        context["metatags"] += f'<meta name="description" content="{html.escape(said)}">\n'
    if name == "404":
        context["pageurl"] = None  # it stands at no address of its own


def draw_card(cover: Path, card: Path) -> None:
    """The cover on a white card of the size that shared links show."""
    with Image.open(cover) as picture:
        picture = picture.convert("RGBA")
        picture.thumbnail((CARD[0], CARD[1]))
        canvas = Image.new("RGB", CARD, "white")
        corner = ((CARD[0] - picture.width) // 2, (CARD[1] - picture.height) // 2)
        canvas.paste(picture, corner, picture)
        canvas.save(card)


def finish(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    out, config = Path(app.outdir), app.config
    address, root = config.html_baseurl, config.root_doc
    draw_card(out / "_static" / "cover.png", out / config.ogp_image)
    (out / "robots.txt").write_text(
        f"User-agent: *\nAllow: /\nSitemap: {address}sitemap.xml\n", encoding="utf-8"
    )
    card = re.findall(
        r'<meta (?:property="og:|name="(?:twitter:|description"))[^>]*>',
        (out / f"{root}.html").read_text(encoding="utf-8"),
    )
    front = FRONT.format(
        title=html.escape(config.html_title),
        root=root,
        address=address,
        tags="\n".join([*card, ""]),
    )
    (out / "index.html").write_text(front, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", configure, priority=400)  # before those who read the addresses
    app.connect("doctree-read", describe)
    app.connect("html-page-context", head, priority=400)  # before the card is written
    app.connect("build-finished", finish, priority=400)  # before a plain index.html is written
    return {"parallel_read_safe": True, "parallel_write_safe": True}
