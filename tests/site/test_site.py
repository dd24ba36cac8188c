"""The built site: complete, whole in itself, every link and every reference resolved."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup, Tag

from deqlib.theorems import FINDINGS, THEOREMS

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


@pytest.mark.parametrize("label", [*THEOREMS, *FINDINGS])
def test_ledger_shows_all_that_is_known_of_a_theorem(site: Path, label: str) -> None:
    """Status, draws, margin and tightness; each hypothesis; links to proof, code and test."""
    theorem = {**THEOREMS, **FINDINGS}[label]
    section = soup(site / "book" / "ledger.html").find(id=f"ledger-{label}")
    assert isinstance(section, Tag)
    assert section.find("h2" if label in THEOREMS else "h3") is not None
    text = " ".join(section.get_text(" ").split())
    assert f"Status: {theorem.status}." in text
    assert re.search(r"holds on (\d+) of \1 instances", text)
    assert re.search(r"worst margin of [-\d.e]+ and a tightness of [\d.e-]+", text)
    for name, hypothesis in theorem.hypotheses.items():
        row = next(tr for tr in section.select("tbody tr") if tr.find("td").get_text() == name)
        said = row.get_text(" ", strip=True)
        assert ("necessary" if hypothesis.necessary else "serves the proof") in said
        assert ("fails on" in said) == (name in theorem.drop)
    links = [tag["href"] for tag in section.find_all("a", href=True)]
    assert any(f"notebooks/{theorem.chapter}.html#" in link for link in links), "no proof"
    files = [link.split("/blob/", 1)[1].split("/", 1)[1] for link in links if "/blob/" in link]
    assert [f for f in files if f.startswith("deqlib/")], "no code"
    assert [f for f in files if f.startswith("tests/")], "no test"
    assert [f for f in files if not (ROOT / f).is_file()] == []


def test_ledger_tables_have_a_row_for_everything(site: Path) -> None:
    ledger = soup(site / "book" / "ledger.html")
    for known in (THEOREMS, FINDINGS):
        first = ledger.find(id=f"ledger-{next(iter(known))}")
        assert isinstance(first, Tag)
        table = first.find_previous("table", class_="ledger")
        assert isinstance(table, Tag)
        rows = table.select("tbody tr")
        assert len(rows) == len(known)
        said = [row.find_all("td")[1].get_text(strip=True) for row in rows]
        assert said == [theorem.status for theorem in known.values()]


def test_ledger_lists_every_open_question(site: Path) -> None:
    section = soup(site / "book" / "ledger.html").find(id="open-questions")
    assert isinstance(section, Tag)
    asked = [
        label for label, theorem in {**THEOREMS, **FINDINGS}.items() for _ in theorem.open_questions
    ]
    items = section.select("li")
    linked = [
        tag["href"].split("#ledger-")[1]
        for item in items
        for tag in item.find_all("a", href=True)
        if "#ledger-" in tag["href"]
    ]
    assert sorted(linked) == sorted(asked)
    assert len(items) == len(asked) + 3


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
