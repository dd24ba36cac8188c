"""The built site: complete, whole in itself, every link and every reference resolved."""

from __future__ import annotations

import re
import zipfile
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup, Tag

from deqlib.theorems import THEOREMS

ROOT = Path(__file__).parents[2]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [TOC["root"]] + [c["file"] for part in TOC["parts"] for c in part["chapters"]]
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
LOADED = [
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("video", "src"),
    ("audio", "src"),
    ("embed", "src"),
    ("object", "data"),
]
LOADING_LINKS = {"stylesheet", "preload", "modulepreload", "prefetch", "preconnect", "icon"}


@cache
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(path: Path) -> frozenset[str]:
    page = soup(path)
    ids = {tag["id"] for tag in page.find_all(id=True)}
    return frozenset(ids | {tag["name"] for tag in page.find_all("a", attrs={"name": True})})


def all_pages(site: Path) -> list[Path]:
    return sorted(p for p in site.rglob("*.html") if "_static" not in p.parts)


def foreign(address: str) -> bool:
    return address.startswith("//") or urlsplit(address).scheme in {"http", "https"}


@pytest.mark.parametrize("page", PAGES)
def test_page_is_built_and_not_empty(site: Path, page: str) -> None:
    article = soup(site / f"{page}.html").find("article")
    assert isinstance(article, Tag)
    assert article.find("h1") is not None
    assert len(article.get_text(" ", strip=True)) > 300


def test_front_page_leads_to_the_book(site: Path) -> None:
    assert f"{TOC['root']}.html" in (site / "index.html").read_text(encoding="utf-8")


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for path in all_pages(site):
        page = soup(path)
        loads = [tag.get(name, "") for kind, name in LOADED for tag in page.find_all(kind)]
        loads += [
            tag.get("href", "")
            for tag in page.find_all("link")
            if LOADING_LINKS & set(tag.get("rel", []))
        ]
        loads += re.findall(r"url\(['\"]?([^)'\"]+)", " ".join(map(str, page.find_all("style"))))
        loads += [tag["srcset"] for tag in page.find_all(srcset=True)]
        assert [address for address in loads if foreign(address)] == [], path
        scripts = " ".join(tag.get_text() for tag in page.find_all("script", src=False))
        assert not re.search(r"unpkg|jsdelivr|cdnjs|googleapis|gstatic", scripts), path


def test_styles_load_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.css"):
        style = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.S)
        found = re.findall(r"(?:url\(|@import\s)\s*['\"]?((?:https?:)?//[^)'\"\s]+)", style)
        assert found == [], path


def test_local_links_and_anchors_resolve(site: Path) -> None:
    broken = []
    for path in all_pages(site):
        for tag in soup(path).find_all(["a", "link", "script", "img"]):
            address = tag.get("href") or tag.get("src") or ""
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or not (parts.path or parts.fragment):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                broken.append(f"{path.relative_to(site)}: {address}")
                continue
            has_anchors = parts.fragment and target.suffix == ".html"
            if has_anchors and unquote(parts.fragment) not in anchors(target):
                broken.append(f"{path.relative_to(site)}: no anchor {address}")
    assert broken == []


def test_references_show_the_number_of_what_they_point_at(site: Path) -> None:
    """ "Theorem 6.1" must lead to something that calls itself Theorem 6.1."""
    numbered = re.compile(r"^(Theorem|Lemma|Proposition|Corollary|Definition|Remark) [\d.]+$")
    seen, wrong = 0, []
    for path in all_pages(site):
        for link in soup(path).find_all("a", class_="internal"):
            text = link.get_text(" ", strip=True)
            if not numbered.match(text):
                continue
            parts = urlsplit(link["href"])
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            element = soup(target).find(id=unquote(parts.fragment))
            title = element.find(class_="admonition-title") if isinstance(element, Tag) else None
            seen += 1
            if title is None or not title.get_text(" ", strip=True).startswith(text):
                wrong.append(f"{path.relative_to(site)}: {text} -> {link['href']}")
    assert wrong == []
    assert seen >= len(THEOREMS)


def test_nothing_is_left_unresolved(site: Path) -> None:
    for path in all_pages(site):
        page = soup(path)
        assert page.select(".problematic, .system-message") == [], path
        leftover = [tag for tag in page.select(".xref") if tag.find_parent("a") is None]
        assert leftover == [], path


def test_ledger_has_every_theorem(site: Path) -> None:
    ledger = soup(site / "book" / "ledger.html")
    for label, theorem in THEOREMS.items():
        section = ledger.find(id=f"ledger-{label}")
        assert isinstance(section, Tag), label
        assert section.find("h2") is not None, label
        for name in theorem.hypotheses:
            assert name in section.get_text(), (label, name)
    table = ledger.find("table", class_="ledger")
    assert isinstance(table, Tag)
    assert len(table.select("tbody tr")) == len(THEOREMS)


@pytest.mark.parametrize("page", CHAPTERS)
def test_figures_carry_captions_and_alternative_text(site: Path, page: str) -> None:
    for image in soup(site / f"{page}.html").select("article .cell_output img"):
        assert len(image.get("alt", "")) >= 20, image
        figure = image.find_parent("figure")
        assert figure is not None, image
        assert figure.find("figcaption") is not None, image


@pytest.mark.parametrize("page", CHAPTERS)
def test_chapter_can_be_downloaded(site: Path, page: str) -> None:
    source = (ROOT / f"{page}.ipynb").read_text(encoding="utf-8")
    assert (site / "_sources" / f"{page}.ipynb").read_text(encoding="utf-8") == source
    text = str(soup(site / f"{page}.html"))
    assert f"_sources/{page}.ipynb" in text
    assert "mybinder.org" in text
    assert "colab.research.google.com" in text


@pytest.mark.parametrize("page", CHAPTERS)
def test_hints_and_solutions_are_folded(site: Path, page: str) -> None:
    article = soup(site / f"{page}.html").select_one("article")
    assert isinstance(article, Tag)
    exercises = article.select("div.exercise")
    solutions = article.select("div.solution")
    assert len(exercises) == len(solutions) >= 3
    assert all("dropdown" in solution["class"] for solution in solutions)
    for fold in article.select("details.sd-dropdown"):
        assert not fold.has_attr("open"), fold.get_text()[:80]
    hints = [
        fold for fold in article.select("details.sd-dropdown > summary")
        if fold.get_text(" ", strip=True) == "Hint"
    ]  # fmt: skip
    if article.select(".tag_check"):
        assert len(hints) == len(exercises)


def test_student_edition_can_be_downloaded(site: Path) -> None:
    link = soup(site / "book" / "how_to_use.html").find("a", attrs={"download": True})
    assert isinstance(link, Tag)
    with zipfile.ZipFile(site / "book" / link["href"]) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
        texts = {name: archive.read(name).decode() for name in names}
    chapters = [f"student-edition/{page}.ipynb" for page in CHAPTERS]
    assert [name for name in names if name.endswith(".ipynb")] == chapters
    for name in chapters:
        assert "Student edition" in texts[name]
        assert "{exercise}" in texts[name]
        assert "{solution" not in texts[name]
        assert "BEGIN SOLUTION" not in texts[name]


def test_mathematics_is_drawn_by_the_site_itself(site: Path) -> None:
    script = "_static/mathjax/tex-chtml-full.js"
    assert (site / script).stat().st_size > 1_000_000
    assert list(site.glob("_static/mathjax/output/chtml/fonts/woff-v2/*.woff"))
    for page in CHAPTERS:
        assert script in str(soup(site / f"{page}.html")), page


def test_search_knows_every_page(site: Path) -> None:
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    for page in PAGES:
        assert f'"{page}"' in index, page
