"""Every page in a real browser, from disk, with every other host blocked.

A failed or blocked request, an error on the console, an error inside a formula, a page wider than
the screen, a figure with letters too small to read, or anything that axe-core objects to fails the
test. Setting the formulas costs seconds a page, so each page is loaded once and then shown in
every width and colour scheme; screenshots of all four are left in _build/screenshots for a human
eye. Then come what a keyboard reaches, print, the search, and the site at its public address.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from contents import CHAPTERS, PAGES, ROOT, TOC
from playwright.sync_api import Browser, Page, Route
from watching import PATIENCE, WIDER_THAN_SCREEN, Watched

SCREENSHOTS = ROOT / "_build" / "screenshots"
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
MADE_BY_SPHINX = ["genindex", "search"]
FOLDED_PROOFS = "notebooks/11_single_index_model"  # a chapter that has some
WRONG_FORMULAS = """[...document.querySelectorAll('mjx-merror, [data-mjx-error], mjx-mtext')]
    .filter(e => e.matches('mjx-merror, [data-mjx-error]') || e.style.color === 'red')
    .map(e => e.parentElement.textContent)"""


# A figure's letters on the screen, in pixels: 10.5 points at 110 dots an inch in its own pixels.
# The cover, in the landing page's grid, is no figure to read off.
SMALL_LETTERS = """() => [...document.querySelectorAll('article figure a.full-size img')]
    .filter(image => !image.closest('.sd-row'))
    .map(image => [image.getAttribute('src'),
                   10.5 * 110 / 72 * image.clientWidth / image.naturalWidth])
    .filter(([, letters]) => !(letters >= 9))"""

# axe-core looks at every piece of text. A chapter's code has thousands of coloured words in a
# dozen colours, so one word of each colour is kept in the code and one in the output.
READY_FOR_AXE = """() => {
    for (const fold of document.querySelectorAll('details')) fold.open = true;
    for (const button of document.querySelectorAll('.toggle-button-hidden')) button.click();
    const seen = new Set();
    for (const word of document.querySelectorAll('.highlight span[class]')) {
        const where = word.closest('.cell_output, .admonition, .highlight').className;
        const colour = `${word.className} in ${where}`;
        if (seen.has(colour)) word.replaceWith(...word.childNodes);
        else seen.add(colour);
    }
    for (const code of document.querySelectorAll('.highlight pre')) code.normalize();
}"""
# Formulas have the colour of their surroundings: of each kind of place one formula is kept.
FEWER_FORMULAS = """() => {
    const seen = new Set();
    for (const formula of document.querySelectorAll('mjx-container')) {
        const around = '.admonition, li, td, th, figcaption, .bd-article';
        const place = formula.closest(around) || formula;
        const kind = `${formula.parentElement.tagName} in ${place.tagName} ${place.className}`;
        if (seen.has(kind)) formula.replaceChildren();
        else seen.add(kind);
    }
}"""
# axe does not read MathML and takes a heading that is a formula for an empty one; screen readers
# read it. Only such headings are excused, no rule is switched off.
AXE = """async ({rules}) => {
    await new Promise(done => setTimeout(done, 400));  // the page hears of a new width in 300 ms
    const options = {resultTypes: ['violations'], preload: false};  // no stylesheet is fetched
    if (rules) options.runOnly = {type: 'rule', values: rules};
    const found = await axe.run(document, options);
    const excused = (rule, node) => rule === 'empty-table-header' &&
        document.querySelector(node.target[0]).querySelector('math')?.textContent.trim();
    return found.violations.flatMap(one => one.nodes
        .filter(node => !excused(one.id, node))
        .map(node => `${one.id}: ${node.html.slice(0, 120)} ${node.failureSummary}`));
}"""
OF_COLOUR = ["color-contrast", "link-in-text-block"]  # the rules that can tell dark from light


def axe_core() -> str:
    package = find_spec("axe_playwright_python")
    assert package is not None
    assert package.origin is not None
    return (Path(package.origin).parent / "axe.min.js").read_text(encoding="utf-8")


def show(page: Page, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]


def modes(page: Page) -> Iterator[tuple[int, str]]:
    """The page in every width and colour scheme, one after the other."""
    for width in WIDTHS:
        for scheme in SCHEMES:
            show(page, width, scheme)
            yield width, scheme


@pytest.mark.parametrize("name", PAGES + MADE_BY_SPHINX)
def test_page_opens_from_disk(site: Path, browser: Browser, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with Watched(browser, reduced_motion="reduce") as watched:  # no sidebar caught sliding
        page = watched.page
        watched.open((site / f"{name}.html").as_uri())
        watched.wrong += page.evaluate(WRONG_FORMULAS)
        for width, scheme in modes(page):
            watched.look(width, scheme)
            watched.wrong += [f"small letters: {one}" for one in page.evaluate(SMALL_LETTERS)]
            picture = SCREENSHOTS / f"{name.replace('/', '-')}-{width}-{scheme}.jpg"
            page.screenshot(path=picture, full_page=True, type="jpeg", quality=80)
        page.evaluate(axe_core())
        page.evaluate(READY_FOR_AXE)
        for scheme in SCHEMES:
            for width in WIDTHS:
                show(page, width, scheme)
                watched.look(width, scheme)
                rules = OF_COLOUR if scheme == "dark" else None
                found = page.evaluate(AXE, {"rules": rules})
                watched.wrong += [f"{width} {scheme} {one}" for one in found]
            page.evaluate(FEWER_FORMULAS)  # of the others only colours are looked at
        assert watched.wrong == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_first_load_on_a_phone(site: Path, browser: Browser, scheme: str) -> None:
    """What a page decides when it loads: the colours, and what a narrow window hides."""
    with Watched(browser, 390, scheme) as watched:
        watched.open((site / f"{TOC['root']}.html").as_uri())
        watched.look(390, scheme)
        assert watched.wrong == []


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("one-point monotonicity", "book/theorems/one-point-monotonicity"),
        ("conservation law", "book/theorems/conservation-law"),
        ("flow-rate", "book/theorems/flow-rate"),
        ("Picard", "book/theorems/picard-rate"),
        ("adjoint", "book/theorems/positive-adjoint"),
        ("every step size", "book/theorems/any-step"),
        ("the fold", "notebooks/14_outside_the_ball"),
        ("equilibrium", None),
    ],
)
def test_search_finds_theorems_first(
    site: Path, browser: Browser, query: str, page: str | None
) -> None:
    with Watched(browser) as watched:
        watched.open((site / "search.html").as_uri() + f"?q={query}")
        watched.page.wait_for_selector("#search-results li a")
        watched.page.wait_for_function(
            "document.querySelector('#search-results p').innerText.includes('found')"
        )
        links = watched.page.locator("#search-results ul.search li a")
        first = [links.nth(k).get_attribute("href") for k in range(min(3, links.count()))]
        if page is not None:
            assert page in [unquote(str(link)).partition(".html")[0] for link in first]
        assert watched.wrong == []


def focused(page: Page, script: str) -> object:
    return page.evaluate(f"(() => {{ const e = document.activeElement; return {script} }})()")


def test_keyboard_skips_to_the_text_and_sees_where_it_is(site: Path, browser: Browser) -> None:
    with Watched(browser) as watched:
        page = watched.page
        watched.open((site / f"{CHAPTERS[0]}.html").as_uri())
        page.keyboard.press("Tab")
        assert focused(page, "e.getAttribute('href')") == "#main-content"
        page.wait_for_function(  # it slides in
            "document.activeElement.getBoundingClientRect().top >= 0", timeout=PATIENCE / 10
        )
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert focused(page, "e.closest('main') !== null")
        for _ in range(25):
            page.wait_for_timeout(20)
            assert focused(
                page,
                "getComputedStyle(e).outlineStyle !== 'none' || "
                "getComputedStyle(e).boxShadow !== 'none'",
            ), focused(page, "e.outerHTML.slice(0, 200)")
            page.keyboard.press("Tab")
        assert watched.wrong == []


def test_keyboard_opens_what_is_folded(site: Path, browser: Browser) -> None:
    with Watched(browser) as watched:
        page = watched.page
        watched.open((site / f"{FOLDED_PROOFS}.html").as_uri())
        proof = page.locator("details.sd-dropdown:not(.hint)").first
        proof.locator("summary").focus()
        page.keyboard.press("Enter")
        assert proof.evaluate("e => e.open")
        solution = page.locator(".solution .toggle-button").first
        assert solution.get_attribute("aria-expanded") == "false"
        solution.focus()
        page.keyboard.press("Enter")
        assert solution.get_attribute("aria-expanded") == "true"
        page.locator(".dropdown-download-buttons > button").focus()
        page.keyboard.press("Enter")
        page.locator(".btn-download-source-button").wait_for(state="visible")
        assert watched.wrong == []


def test_keyboard_scrolls_what_is_wide(site: Path, browser: Browser) -> None:
    """A formula that is wider than a phone is a stop of the Tab key; a short one is not."""
    with Watched(browser, 390) as watched:
        page = watched.page
        watched.open((site / "notebooks/08_linear_convergence.html").as_uri())
        page.wait_for_selector("mjx-container[data-wide]")
        formulas = page.evaluate(
            "[...document.querySelectorAll('mjx-container[display=true]')]"
            ".map(e => [e.scrollWidth > e.clientWidth, e.tabIndex === 0])"
        )
        assert all(wide == stop for wide, stop in formulas)
        assert {wide for wide, _ in formulas} == {True, False}
        page.locator("mjx-container[data-wide]").first.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.activeElement.scrollLeft > 0")


def test_nothing_moves_where_stillness_is_asked_for(site: Path, browser: Browser) -> None:
    moving = """[...document.querySelectorAll('*')].map(e => getComputedStyle(e))
        .filter(s => /[1-9]/.test(s.transitionDuration + s.animationDuration)).length"""
    address = (site / f"{CHAPTERS[0]}.html").as_uri()
    with Watched(browser, reduced_motion="reduce") as watched:
        watched.open(address)
        assert watched.page.evaluate(moving) == 0
    with Watched(browser, reduced_motion="no-preference") as watched:
        watched.open(address)
        assert watched.page.evaluate(moving) > 0


NOT_FOR_PAPER = (
    ".bd-sidebar-primary, .bd-sidebar-secondary, .bd-header-article, .prev-next-footer, "
    ".headerlink, .copybtn, .toggle-button, .skip-link, .solution, .hint, #jb-print-docs-body"
)


def test_a_chapter_prints_clean(site: Path, browser: Browser) -> None:
    """In dark mode too: light colours, proofs unfolded, the rest as folded, nothing cut off."""
    shown = "s => [...document.querySelectorAll(s)].filter(e => e.checkVisibility()).length"
    cut_off = """[...document.querySelectorAll('article pre, article table, article mjx-container')]
        .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1)
        .map(e => e.textContent.slice(0, 80))"""
    with Watched(browser, 680, "dark") as watched:  # A4 without its margins
        page = watched.page
        watched.open((site / f"{FOLDED_PROOFS}.html").as_uri())
        folds = page.locator("details.sd-dropdown:not(.hint)")
        assert folds.count() > 0
        before = page.evaluate("document.querySelectorAll('details[open]').length")
        assert page.evaluate(shown, ".bd-header-article") > 0

        page.emulate_media(media="print", color_scheme="dark")
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate(shown, NOT_FOR_PAPER) == 0
        assert page.evaluate(shown, "h1") == 1
        assert folds.evaluate_all("all => all.every(e => e.open)")
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(34, 40, 50)"
        assert page.evaluate(WIDER_THAN_SCREEN) <= 0
        assert page.evaluate(cut_off) == []
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        page.emulate_media(media="screen", color_scheme="dark")
        assert page.evaluate("document.querySelectorAll('details[open]').length") == before
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"

        page.evaluate("window.addEventListener('beforeprint', () => (window.heard = true))")
        paper = page.pdf(path=SCREENSHOTS / "chapter.pdf", format="A4")
        assert page.evaluate("window.heard")
        assert 8 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 40
        assert watched.wrong == []


def test_a_wrong_address_leads_back(site: Path, browser: Browser) -> None:
    """The site as its host shows it: under its public address, 404.html for what is not there."""
    canonical = re.search(r'canonical" href="([^"]+)book/intro', (site / "index.html").read_text())
    assert canonical is not None
    address = canonical.group(1)
    prefix = urlsplit(address).path

    def answer(route: Route) -> None:
        path = unquote(urlsplit(route.request.url).path)
        assert path.startswith(prefix), path
        file = site / path.removeprefix(prefix)
        there = file.is_file()
        file = file if there else site / "404.html"
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        route.fulfill(
            status=200 if there else 404, body=file.read_bytes(), headers={"content-type": kind}
        )

    with Watched(browser) as watched:
        page = watched.page
        watched.context.route(f"{address}**", answer)
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            watched.open(f"{address}notebooks/deeper/no-such-page.html")
            page.screenshot(path=SCREENSHOTS / f"404-1280-{scheme}.png")
            page.evaluate(axe_core())
            watched.wrong += page.evaluate(AXE, {"rules": None})
        assert page.locator("article h1").inner_text() == "Page not found"
        assert page.locator(".bd-sidebar-primary nav a").count() > len(CHAPTERS)
        page.locator("#not-found-query").fill("flow-rate")
        page.keyboard.press("Enter")
        page.wait_for_selector("#search-results li a[href*='flow-rate']")
        expected = "the server responded with a status of 404"
        assert [one for one in watched.wrong if expected not in one] == []
