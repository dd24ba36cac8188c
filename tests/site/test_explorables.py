"""The explorables in a real browser, from disk, with every other host blocked.

What a reader does: turn every knob by the keyboard, drag every handle by mouse and by finger,
reset, switch the theme, read on a phone, switch scripts off, print. The drawings are compared by
the data that plotly holds, not by pixels. The mathematics is test_equilibria.py's.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page
from watching import WIDER_THAN_SCREEN, Watched

ROOT = Path(__file__).parents[2]
PAGE = "book/explorables.html"
HANDLES = {
    "cobweb": {"z0": ("z0",), "ab": ("a", "b")},
    "sphere": {"start": ("angle", "r")},
    "landscape": {"start": ("a", "u")},
    "link": {"s": ("s",)},
    "rate": {"start": ("F1", "F2"), "target": ("A1", "A2")},
}
"""Every explorable, its handles, and the knobs that each handle turns."""
NAMES = tuple(HANDLES)
DATA = """root => [...root.querySelectorAll('.explorable-canvas')].map(canvas => JSON.stringify(
    canvas.data.map(t => [t.name, t.x, t.y, t.z]),
    // JSON would hide what is not finite behind null, which is a gap in a curve
    (key, x) => typeof x === 'number' && !Number.isFinite(x) ? String(x) : x))"""
COLOURS = """root => [...root.querySelectorAll('.explorable-canvas')].map(canvas => JSON.stringify(
    [canvas.layout.font.color, canvas.data.map(t => [t.line?.color, t.marker?.color])]))"""
STILL = "root => root.querySelector('.explorable-said').getAttribute('aria-busy') === 'false'"


class Shown:
    """One explorable on a watched page, and what its knobs and drawings say."""

    def __init__(self, page: Page, name: str) -> None:
        self.page, self.name = page, name
        self.root = page.locator(f"#explorable-{name}")

    def wait(self) -> Shown:
        """Until it is drawn and nothing moves any more."""
        self.root.scroll_into_view_if_needed()
        self.page.wait_for_selector(f"#explorable-{self.name}.explorable-on")
        handle = self.root.element_handle()
        self.page.wait_for_timeout(60)  # a change is drawn in the next frame
        self.page.wait_for_function(STILL, arg=handle)
        self.page.wait_for_timeout(60)
        return self

    def data(self) -> list[str]:
        return self.root.evaluate(DATA)

    def knob(self, name: str) -> Locator:
        return self.page.locator(f"#explorable-{self.name}-{name}")

    def knobs(self) -> list[Locator]:
        """All knobs that are shown, in the order of the page."""
        rows = self.root.locator(".explorable-knob:not([hidden])")
        return [self.knob(str(row.get_attribute("data-knob"))) for row in rows.all()]

    def settings(self) -> list[str]:
        return [knob.input_value() for knob in self.knobs()]

    def said(self) -> str:
        return self.root.locator(".explorable-said").inner_text()

    def middle(self, handle: str) -> tuple[float, float]:
        """Where a handle is on the screen, after scrolling it to the middle."""
        dot = self.root.locator(f"[data-handle={handle}]")
        dot.evaluate("dot => dot.scrollIntoView({ block: 'center', behavior: 'instant' })")
        self.page.wait_for_timeout(100)
        box = dot.bounding_box()
        assert box is not None
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def focused(self) -> str:
        return str(
            self.page.evaluate("document.activeElement.id || document.activeElement.className")
        )


@pytest.fixture(scope="module")
def watched(site: Path, browser: Browser) -> Iterator[Watched]:
    """The gallery, once for all that a wide window can do with it."""
    with Watched(browser) as watched:
        watched.open((site / PAGE).as_uri())
        yield watched


@pytest.fixture(params=NAMES)
def shown(watched: Watched, request: pytest.FixtureRequest) -> Iterator[Shown]:
    """Each explorable in turn, as it begins; nothing may go wrong on the way."""
    watched.wrong.clear()
    shown = Shown(watched.page, request.param).wait()
    yield shown
    shown.root.locator(".explorable-reset").click()
    shown.wait()
    assert watched.wrong == []


def test_every_knob_turns_by_the_keyboard(shown: Shown) -> None:
    """Tab goes from knob to knob; an arrow key changes the number beside it, and the drawing."""
    if shown.name == "sphere":
        shown.knob("space").focus()
        shown.page.keyboard.press("ArrowDown")
        shown.wait()
        assert len(shown.knobs()) == 9
    knobs = shown.knobs()
    knobs[0].focus()
    for i, knob in enumerate(knobs):
        if i:
            shown.page.keyboard.press("Tab")
        assert shown.focused() == knob.get_attribute("id")
        if knob.input_value() == "d = 2: a sphere":  # turned already
            continue
        before, number = shown.data(), knob.input_value()
        text = knob.get_attribute("aria-valuetext")
        shown.page.keyboard.press(
            "ArrowDown" if knob.get_attribute("type") is None else "ArrowLeft"
        )
        shown.wait()
        assert knob.input_value() != number
        assert shown.data() != before, f"{knob.get_attribute('id')} changes nothing"
        if knob.get_attribute("type") == "range":
            assert knob.get_attribute("aria-valuetext") != text
            label = shown.root.locator(f"label[for={knob.get_attribute('id')}]")
            assert label.inner_text().strip()
            output = shown.root.locator(f"output[for={knob.get_attribute('id')}]")
            assert output.inner_text() == knob.get_attribute("aria-valuetext")


def test_reset_by_the_keyboard(shown: Shown) -> None:
    settings, data, said = shown.settings(), shown.data(), shown.said()
    for knob in shown.knobs():
        knob.focus()
        shown.page.keyboard.press("ArrowDown" if knob.get_attribute("type") is None else "Home")
        shown.wait()
    assert shown.data() != data
    shown.knobs()[-1].focus()
    shown.page.keyboard.press("Tab")
    assert "explorable-reset" in shown.focused()
    shown.page.keyboard.press("Enter")
    shown.wait()
    assert (shown.settings(), shown.data(), shown.said()) == (settings, data, said)


def test_every_handle_follows_the_mouse(shown: Shown) -> None:
    """The handle goes where the mouse goes (up to a slider's mark), and so do its knobs."""
    for handle, knobs in HANDLES[shown.name].items():
        x, y = shown.middle(handle)
        values, data = [shown.knob(k).input_value() for k in knobs], shown.data()
        mouse = shown.page.mouse
        mouse.move(x, y)
        mouse.down()
        mouse.move(x + 15, y - 15, steps=3)
        mouse.move(x + 30, y - 10, steps=3)
        mouse.up()
        shown.wait()
        for knob, value in zip(knobs, values, strict=True):
            assert shown.knob(knob).input_value() != value, (handle, knob)
        assert shown.data() != data
        after = shown.middle(handle)
        if handle == "ab":  # nothing binds it: it lies under the mouse
            assert abs(after[0] - (x + 30)) < 3
        mouse.move(x, y)  # released: it stays
        shown.wait()
        assert shown.middle(handle) == after


def test_sentences_name_what_is_seen(watched: Watched) -> None:
    """The verdicts of the cobweb, and of the learned link at a fold and beyond it."""
    cobweb = Shown(watched.page, "cobweb").wait()
    for link, a, b, word in [
        ("tanh", 0.5, 0.5, "Converges"),
        ("tanh", -2, 0, "Oscillates"),
        ("identity", 1.5, 0.5, "Diverges"),
        ("identity", -1.05, 0.5, "Diverges"),
        ("ReLU", 1, 0.5, "Diverges"),
        ("softplus", 1.2, 0.5, "no equilibrium"),
        ("tanh", 2, 0, "3 equilibria, 2 of which attract"),
    ]:
        cobweb.knob("link").select_option(link)
        turn(cobweb, a=a, b=b)
        assert word in cobweb.said(), (link, a, b)
    link = Shown(watched.page, "link").wait()
    turn(link, share=1.5, s=0.1)
    assert "3 equilibria" in link.said()
    assert "0.2075" in link.said()
    turn(link, share=0.95)
    assert "exactly one equilibrium for every s" in link.said()
    link.knob("link").select_option("ReLU")
    turn(link, share=2, s=1)
    assert "No equilibrium" in link.said()
    landscape = Shown(watched.page, "landscape").wait()
    turn(landscape, a=1)
    assert "No equilibrium" in landscape.said()
    for shown in (cobweb, link, landscape):
        shown.root.locator(".explorable-reset").click()
        shown.wait()


def turn(shown: Shown, **values: float) -> None:
    for name, value in values.items():
        shown.knob(name).evaluate(
            "(knob, value) => { knob.value = value; knob.dispatchEvent(new Event('input')); }",
            value,
        )
    shown.wait()


def test_nothing_infinite_is_drawn(watched: Watched) -> None:
    """At the ends of every knob, alone and all together: finite numbers and gaps only."""
    watched.wrong.clear()
    for name in NAMES:
        shown = Shown(watched.page, name).wait()
        ranges = [k for k in shown.knobs() if k.get_attribute("type") == "range"]
        names = [str(k.get_attribute("id")).rsplit("-", 1)[1] for k in ranges]
        ends = {
            n: [float(k.get_attribute(e) or 0) for e in ("min", "max")]
            for n, k in zip(names, ranges, strict=True)
        }
        corners = [{n: e[i]} for n, e in ends.items() for i in (0, 1)]
        corners += [{n: e[i] for n, e in ends.items()} for i in (0, 1)]
        for corner in corners:
            turn(shown, **corner)
            text = " ".join(shown.data())
            assert not re.search(r"NaN|Infinity|1e\+?30\d", text), (name, corner)
            assert not re.search(r"NaN|undefined|not a number", shown.said()), (name, corner)
            assert shown.said().strip(), (name, corner)
        shown.root.locator(".explorable-reset").click()
        shown.wait()
    assert watched.wrong == []


def test_theme_recolours_the_drawings(watched: Watched) -> None:
    shown = [Shown(watched.page, name).wait() for name in NAMES]
    light = [s.root.evaluate(COLOURS) for s in shown]
    watched.page.emulate_media(color_scheme="dark")
    watched.look(1280, "dark")
    for one, before in zip(shown, light, strict=True):
        after = one.wait().root.evaluate(COLOURS)
        assert all(a != b for a, b in zip(after, before, strict=True)), one.name
    watched.page.emulate_media(color_scheme="light")
    watched.look(1280, "light")
    assert [s.wait().root.evaluate(COLOURS) for s in shown] == light


def test_drawings_are_described(shown: Shown) -> None:
    """Each drawing is one image with a name, described by sentences that are read out politely."""
    for canvas in shown.root.locator(".explorable-canvas").all():
        assert canvas.get_attribute("role") == "img"
        assert len(canvas.get_attribute("aria-label") or "") > 20
        described = shown.page.locator(f"#{canvas.get_attribute('aria-describedby')}")
        assert described.get_attribute("aria-live") == "polite"
        assert len(described.inner_text()) > 60


def test_play_takes_the_steps_one_by_one(watched: Watched) -> None:
    shown = Shown(watched.page, "cobweb").wait()
    turn(shown, steps=4)
    play = shown.root.locator(".explorable-play")
    seen = shown.page.evaluate_handle(
        """() => {
        const [seen, steps] = [[], document.querySelector('#explorable-cobweb-steps')];
        const timer = setInterval(() => seen.push(steps.value), 20);
        return { seen, stop: () => clearInterval(timer) }; }"""
    )
    play.click()
    shown.page.wait_for_function("e => e.textContent === 'Play'", arg=play.element_handle())
    shown.page.wait_for_timeout(100)
    steps = list(dict.fromkeys(seen.evaluate("({ seen, stop }) => (stop(), seen)")))
    assert [s for s in steps if s != "4"] == ["0", "1", "2", "3"]
    assert shown.knob("steps").input_value() == "4"
    shown.root.locator(".explorable-reset").click()
    shown.wait()


def test_no_motion_where_it_is_not_wanted(site: Path, browser: Browser) -> None:
    with Watched(browser, reduced_motion="reduce") as watched:
        watched.open((site / PAGE).as_uri())
        shown = Shown(watched.page, "cobweb").wait()
        assert shown.root.locator(".explorable-reset").is_visible()
        assert shown.root.locator(".explorable-play").count() == 0


def test_on_a_phone_by_touch(site: Path, browser: Browser) -> None:
    """A finger on a handle drags it and the page stays; a finger elsewhere scrolls the page."""
    with Watched(browser, 390, has_touch=True, is_mobile=True) as watched:
        watched.open((site / PAGE).as_uri())
        page = watched.page
        finger = watched.context.new_cdp_session(page)

        def touch(kind: str, *at: float) -> None:
            points = [{"x": at[0], "y": at[1]}] if at else []
            finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
            page.wait_for_timeout(30)

        for name, handles in HANDLES.items():
            shown = Shown(page, name).wait()
            assert page.evaluate(WIDER_THAN_SCREEN) <= 0, name
            for canvas in shown.root.locator(".explorable-canvas").all():
                box = canvas.bounding_box()
                assert box is not None
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= 390
            for handle, knobs in handles.items():
                x, y = shown.middle(handle)
                down = 1 if y < 450 else -1
                scrolled = page.evaluate("scrollY")
                values = [shown.knob(k).input_value() for k in knobs]
                touch("touchStart", x, y)
                for i in range(1, 5):
                    touch("touchMove", x + 8 * i, y + 8 * i * down)
                touch("touchEnd")
                assert page.evaluate("scrollY") == scrolled, (name, handle)
                shown.wait()
                for knob, value in zip(knobs, values, strict=True):
                    assert shown.knob(knob).input_value() != value, (name, handle, knob)
            data = shown.data()
            frame = shown.root.locator(".explorable-frame").first
            frame.evaluate("f => f.scrollIntoView({ block: 'center', behavior: 'instant' })")
            page.wait_for_timeout(100)
            box = frame.bounding_box()
            assert box is not None
            scrolled = page.evaluate("scrollY")
            touch("touchStart", box["x"] + 20, box["y"] + box["height"] - 15)
            for i in range(1, 8):
                touch("touchMove", box["x"] + 20, box["y"] + box["height"] - 15 - 25 * i)
            touch("touchEnd")
            page.wait_for_timeout(300)
            assert page.evaluate("scrollY") > scrolled + 50, name
            assert shown.wait().data() == data, name
        assert watched.wrong == []


def test_picture_stands_in_where_scripts_are_off(site: Path, browser: Browser) -> None:
    with Watched(browser, 390, java_script_enabled=False) as watched:
        watched.page.goto((site / PAGE).as_uri(), wait_until="load")
        for name in NAMES:
            picture = watched.page.locator(f"#explorable-{name} img")
            picture.scroll_into_view_if_needed()
            assert len(picture.get_attribute("alt") or "") > 60
            assert picture.is_visible()
            watched.page.wait_for_timeout(100)
            box = picture.bounding_box()
            assert box is not None
            assert 100 < box["width"] <= 390, name
            assert box["height"] > 60, name  # a picture that is missing is a line of text
            assert watched.page.locator(f"#explorable-{name} input").count() == 0
        # the theme asks for its scripts early, and does not get them
        assert [w for w in watched.wrong if not re.match(r"failed: file:.*\.js\b", w)] == []


def test_picture_stays_where_plotly_is_missing(site: Path, browser: Browser) -> None:
    with Watched(browser) as watched:
        watched.context.route("**/plotly.min.js", lambda route: route.abort())
        watched.open((site / PAGE).as_uri())
        watched.page.locator("#explorable-cobweb").scroll_into_view_if_needed()
        watched.page.wait_for_function("window.PlotlyConfig")
        watched.page.wait_for_timeout(300)
        assert watched.page.locator("#explorable-cobweb img").is_visible()
        assert watched.page.locator("#explorable-cobweb .explorable-live").count() == 0
        assert any("plotly.min.js could not be loaded" in wrong for wrong in watched.wrong)


def test_paper_gets_the_picture(watched: Watched) -> None:
    shown = Shown(watched.page, "link").wait()
    watched.page.emulate_media(media="print")
    assert shown.root.locator("img").is_visible()
    assert not shown.root.locator(".explorable-live").is_visible()
    watched.page.emulate_media(media="screen")
    assert not shown.root.locator("img").is_visible()
    assert shown.root.locator(".explorable-live").is_visible()


def test_scripts_are_loaded_late_and_only_where_needed(site: Path, browser: Browser) -> None:
    """Explorables' scripts wait for the text; plotly waits until one comes near the screen."""
    with Watched(browser) as watched:
        watched.page.set_viewport_size({"width": 1280, "height": 100})
        watched.page.goto((site / PAGE).as_uri(), wait_until="load")
        script = watched.page.locator("script[src*='explorables.js']")
        assert script.get_attribute("defer") is not None
        assert watched.page.locator(".explorable").count() == len(NAMES)
        far = watched.page.locator("#explorable-rate")
        watched.page.wait_for_timeout(500)
        assert far.locator(".explorable-live").count() == 0
        far.scroll_into_view_if_needed()
        watched.page.wait_for_selector("#explorable-rate.explorable-on")
        assert watched.wrong == []
    for page in site.rglob("*.html"):
        if "_static" in page.parts:
            continue
        text = page.read_text(encoding="utf-8")
        needs = 'class="explorable"' in text
        for file in ("equilibria.js", "explorables.js", "explorables.css"):
            assert (f"_static/{file}" in text) == needs, page
        assert "plotly.min.js" not in text, page


# ----------------------------------------------------------------------------- the extension


def load(path: str) -> ModuleType:
    """A module of the site, which is not a package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def notebook(*tags: str) -> str:
    cell: dict[str, Any] = {
        "cell_type": "code",
        "execution_count": 1,
        "id": "one",
        "metadata": {"tags": ["remove-output", *tags]},
        "outputs": [],
        "source": "from deqlib import explorables\n\nexplorables.cobweb()",
    }
    words = {"cell_type": "markdown", "id": "two", "metadata": {}, "source": "After the cell."}
    title = {"cell_type": "markdown", "id": "zero", "metadata": {}, "source": "# A chapter"}
    return json.dumps(
        {"cells": [title, cell, words], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    )


def build(folder: Path, *tags: str) -> tuple[str, str]:
    """A book of one notebook in a folder, as HTML, and the warnings of its build."""
    from io import StringIO

    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace

    source = folder / "source"
    (source / "notebooks").mkdir(parents=True)
    (source / "notebooks" / "chapter.ipynb").write_text(notebook(*tags))
    warnings = StringIO()
    with docutils_namespace():
        app = Sphinx(
            source, None, folder / "html", folder / "doctrees", "html",
            confoverrides={
                "extensions": ["myst_nb", "explorables"],
                "nb_execution_mode": "off",
                "root_doc": "notebooks/chapter",
                "html_static_path": [str(ROOT / "book/_static")],
            },
            status=None, warning=warnings,
        )  # fmt: skip
        app.build()
    return (folder / "html/notebooks/chapter.html").read_text(encoding="utf-8"), warnings.getvalue()


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The extension, with one picture to draw instead of five."""
    monkeypatch.syspath_prepend(str(ROOT / "book/_ext"))
    module = load("book/_ext/explorables.py")
    monkeypatch.setattr(module, "STILLS", {"cobweb": module.STILLS["cobweb"]})
    return module


@pytest.mark.filterwarnings("ignore")  # of Sphinx and its extensions
def test_a_tagged_cell_is_followed_by_its_explorable(tmp_path: Path, extension: ModuleType) -> None:
    page, warnings = build(tmp_path, "explorable-cobweb")
    cell = page.index("explorables")
    mount = page.index('id="explorable-cobweb" data-explorable="cobweb"')
    assert cell < mount < page.index("After the cell.")
    assert '<img src="../_static/explorables/cobweb.png"' in page
    assert (tmp_path / "html/_static/explorables/cobweb.png").stat().st_size > 10_000
    assert (tmp_path / "html/_static/plotly/plotly.min.js").stat().st_size > 1_000_000
    assert "explorables.js" in page
    assert "explorable" not in warnings


@pytest.mark.filterwarnings("ignore")
def test_a_page_without_the_tag_stays_as_it_is(tmp_path: Path, extension: ModuleType) -> None:
    page, _ = build(tmp_path, "another-tag")
    assert "data-explorable" not in page
    assert "explorables.js" not in page


@pytest.mark.filterwarnings("ignore")
def test_an_unknown_name_is_a_warning(tmp_path: Path, extension: ModuleType) -> None:
    page, warnings = build(tmp_path, "explorable-cobwebs")
    assert "explorable is 'cobwebs'; it must be one of cobweb" in warnings
    assert "data-explorable" not in page


@pytest.mark.filterwarnings("ignore")
def test_pictures_are_the_same_every_time(tmp_path: Path, extension: ModuleType) -> None:
    import matplotlib.pyplot as plt

    drawn = []
    for i in range(2):
        figure = extension.STILLS["cobweb"].draw()
        figure.savefig(tmp_path / f"{i}.png", metadata={"Software": None})
        plt.close(figure)
        drawn.append((tmp_path / f"{i}.png").read_bytes())
    assert drawn[0] == drawn[1]
