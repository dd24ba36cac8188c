"""The built site: complete, whole in itself, every link and every reference resolved."""

from __future__ import annotations

import json
import re
import zipfile
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup, Tag
from contents import CHAPTERS, PAGES, ROOT, THEOREM_PAGES, TOC

from deqlib.theorems import FINDINGS, THEOREMS

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
OWNER, NAME = urlsplit(CONFIG["repository"]["url"]).path.strip("/").split("/")
ADDRESS = f"https://{OWNER}.github.io/{NAME}/"
HEAVIEST = 2 * 2**20  # bytes
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


def test_front_page_leads_to_the_book_and_shows_its_card(site: Path) -> None:
    front = soup(site / "index.html")
    refresh = front.find("meta", attrs={"http-equiv": "refresh"})
    assert isinstance(refresh, Tag)
    assert refresh["content"] == f"0; url={TOC['root']}.html"
    assert meta(front, "og:image") == f"{ADDRESS}_static/card.png"


def meta(page: BeautifulSoup, name: str) -> str:
    """The content of the one meta tag of this name."""
    found = page.find_all("meta", attrs={"name": name}) + page.find_all(
        "meta", attrs={"property": name}
    )
    assert len(found) == 1, (name, found)
    return str(found[0]["content"])


@pytest.mark.parametrize("page", PAGES)
def test_page_says_what_it_is(site: Path, page: str) -> None:
    text = soup(site / f"{page}.html")
    html, title = text.find("html"), text.find("title")
    assert isinstance(html, Tag)
    assert isinstance(title, Tag)
    assert html["lang"] == "en"
    assert title.get_text().endswith(CONFIG["title"])
    canonical = text.find_all("link", rel="canonical")
    assert [link["href"] for link in canonical] == [f"{ADDRESS}{page}.html"]
    icons = text.find_all("link", rel="icon")
    assert [(site / page).parent.joinpath(icon["href"]).resolve().is_file() for icon in icons] == [
        True
    ]
    assert len(meta(text, "description")) >= 20
    assert "\\" not in meta(text, "description")
    assert meta(text, "og:description") == meta(text, "description")
    assert meta(text, "og:url") == f"{ADDRESS}{page}.html"
    assert meta(text, "og:title") in title.get_text()
    assert len(meta(text, "og:image:alt")) >= 20
    assert meta(text, "twitter:card") == "summary_large_image"
    image = meta(text, "og:image")
    assert image.startswith(ADDRESS)
    assert (site / image.removeprefix(ADDRESS)).stat().st_size > 10_000


def test_pages_have_titles_and_descriptions_of_their_own(site: Path) -> None:
    pages = [soup(site / f"{page}.html") for page in PAGES]
    for said in ([p.find("title") for p in pages], [meta(p, "description") for p in pages]):
        assert len({str(one) for one in said}) == len(PAGES)


def test_chapter_is_described_by_its_takeaway(site: Path) -> None:
    said = meta(soup(site / "notebooks/06_conservation_law.html"), "description")
    assert said.startswith("While a linear DEQ trains, the matrix (I-W)(I-W)ᵀ+UUᵀ does not change")


def test_map_lists_every_page_once(site: Path) -> None:
    places = re.findall(r"<loc>([^<]+)</loc>", (site / "sitemap.xml").read_text(encoding="utf-8"))
    assert sorted(places) == sorted(f"{ADDRESS}{page}.html" for page in PAGES)
    assert f"Sitemap: {ADDRESS}sitemap.xml" in (site / "robots.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_previous_and_next_follow_the_contents(site: Path, page: str) -> None:
    here = PAGES.index(page)
    for name, other in (("left-prev", here - 1), ("right-next", here + 1)):
        link = soup(site / f"{page}.html").find("a", class_=name)
        if not 0 <= other < len(PAGES):
            assert link is None
            continue
        assert isinstance(link, Tag)
        target = (site / page).parent.joinpath(link["href"]).resolve()
        assert target == (site / f"{PAGES[other]}.html").resolve()


def test_no_page_is_heavier_than_two_megabytes(site: Path) -> None:
    """Its HTML and what only it loads: pictures. Scripts, styles and fonts are shared."""
    for path in all_pages(site):
        sources = {str(image["src"]) for image in soup(path).find_all("img", src=True)}
        files = {path.parent.joinpath(unquote(s)).resolve() for s in sources if s[0] != "/"}
        weight = path.stat().st_size + sum(file.stat().st_size for file in files if file.is_file())
        assert weight <= HEAVIEST, (path.relative_to(site), weight)


def test_landing_page_shows_the_minutes_of_every_chapter(site: Path) -> None:
    rows = soup(site / f"{TOC['root']}.html").select("table.minutes tbody tr")
    assert len(rows) == len(CHAPTERS)
    for number, (row, chapter) in enumerate(zip(rows, CHAPTERS, strict=True), start=1):
        cells = json.loads((ROOT / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
        stated = re.findall(r"(\d+) min", "".join(cells[0]["source"]))
        shown = [cell.get_text(strip=True) for cell in row.find_all("td")]
        assert shown[1:] == [f"{minutes} min" for minutes in stated], chapter
        link = row.find("a")
        assert isinstance(link, Tag)
        assert link["href"].endswith(f"{Path(chapter).name}.html")
        first = row.find("ol")
        assert isinstance(first, Tag)
        assert int(first.get("start", 1)) == number


@pytest.mark.parametrize("page", THEOREM_PAGES)
def test_theorem_page_says_all_about_its_theorem(site: Path, page: str) -> None:
    label = Path(page).name
    theorem = THEOREMS[label]
    article = soup(site / f"{page}.html").find("article")
    assert isinstance(article, Tag)
    text = article.get_text()
    assert all(name in text for name in theorem.hypotheses)
    assert f"python -m deqlib {label}" in text
    assert f"{ADDRESS}{page}.html" in text
    links = {str(link["href"]) for link in article.find_all("a", href=True)}
    assert f"../../notebooks/{theorem.chapter}.html#{label}" in links
    assert f"../ledger.html#ledger-{label}" in links
    assert any(link.endswith(f"deqlib/theorems/{label.replace('-', '_')}.py") for link in links)


@pytest.mark.parametrize("label", THEOREMS)
def test_theorem_in_its_chapter_leads_to_its_page(site: Path, label: str) -> None:
    box = soup(site / f"notebooks/{THEOREMS[label].chapter}.html").find(id=label)
    assert isinstance(box, Tag)
    link = box.find("a", class_="theorem-label")
    assert isinstance(link, Tag)
    assert link["href"] == f"../book/theorems/{label}.html"


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
            if path.name == "404.html" and parts.path:  # it stands at every depth
                target = site / unquote(parts.path).removeprefix(f"/{NAME}/")
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
def test_figures_lead_to_their_full_size(site: Path, page: str) -> None:
    for image in soup(site / f"{page}.html").select("article .cell_output figure img"):
        link = image.find_parent("a")
        assert isinstance(link, Tag), image
        assert link["href"] == image["src"]


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


def test_search_knows_every_page_and_every_statement(site: Path) -> None:
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    for page in PAGES:
        assert f'"{page}"' in index, page
    entries = json.loads(index.removeprefix("Search.setIndex(").removesuffix(")"))
    named = {letters(found[4]) for kind in entries["objects"].values() for found in kind}
    for page in CHAPTERS:
        boxes = soup(site / f"{page}.html").select(".proof.proposition, .proof.lemma")
        for box in boxes:
            title = box.find(class_="admonition-title")
            assert isinstance(title, Tag)
            said = re.search(r"\((.+)\)", title.get_text(" ", strip=True))
            if said and not title.find(class_="math"):
                words = said.group(1).partition(" (")[0] if title.find("a") else said.group(1)
                assert letters(words) in named, (page, words)


def letters(text: str) -> str:
    return re.sub(r"\W", "", text)
