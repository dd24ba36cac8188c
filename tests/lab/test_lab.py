"""JupyterLab in a browser: the explorables follow their knobs, and a whole chapter runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from browsing import PATIENCE, chromium
from lab_server import CHAPTER, EXPLORABLES, ROOT, Lab, make_lab
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Route, expect

from deqlib.explorables import KNOBS, View, view

expect.set_options(timeout=250 * PATIENCE)
SCREENSHOTS = ROOT / "_build" / "screenshots"
MOVES = {
    "cobweb": ("a", "ArrowRight", -1.95),
    "sphere": ("angle", "ArrowRight", 151),
    "landscape": ("u", "ArrowLeft", -1.25),
    "link": ("s", "ArrowRight", 0.15),
    "rate": ("A1", "ArrowRight", 1.05),
}
"""For each explorable a knob, a key, and the value that one press of the key gives it."""
OTHER_CHAPTERS = "Cross reference target was not found"
"""What jupyterlab-myst says of references into other notebooks: it knows one at a time."""
DIGEST = """async image => {
    const bytes = await (await fetch(image.src)).arrayBuffer();
    const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
    return [...digest].map(byte => byte.toString(16).padStart(2, '0')).join('');
}"""
# All code cells have run, or one output is an error or stands on stderr.
FINISHED = """() => {
    const notebook = document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook');
    const wrong = notebook.querySelectorAll('[data-mime-type="application/vnd.jupyter.error"],'
        + '[data-mime-type="application/vnd.jupyter.stderr"]');
    const prompts = [...notebook.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
    return wrong.length > 0 || (prompts.length > 0
        && prompts.every(prompt => /\\[\\d+\\]/.test(prompt.textContent)));
}"""
WRONG_OUTPUTS = """() => [...document.querySelectorAll(
    '[data-mime-type="application/vnd.jupyter.error"],'
    + '[data-mime-type="application/vnd.jupyter.stderr"]')].map(e => e.textContent)"""


@dataclass
class Opened:
    """A notebook open in JupyterLab, and everything that went wrong with the page."""

    page: Page
    wrong: list[str] = field(default_factory=list)

    def own_server_only(self, route: Route) -> None:
        if route.request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            route.continue_()
        else:
            self.wrong.append(f"blocked: {route.request.url}")
            route.abort()

    def listen(self, said: ConsoleMessage) -> None:
        if said.type == "error" and not said.text.startswith(OTHER_CHAPTERS):
            self.wrong.append(said.text)

    @property
    def notebook(self) -> Locator:
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook")

    @contextmanager
    def pictured(self, name: str) -> Iterator[None]:
        """A failure in this block leaves a screenshot of this name."""
        try:
            yield
        except BaseException:
            SCREENSHOTS.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=SCREENSHOTS / f"lab-{name}.png")
            raise

    def run_all(self) -> None:
        bar = self.page.locator("#jp-MainMenu")
        bar.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name=re.compile("^Run All Cells")).click()
        self.page.wait_for_function(FINISHED, timeout=3000 * PATIENCE)
        assert self.page.evaluate(WRONG_OUTPUTS) == []


@contextmanager
def opened(lab: Lab, browser: Browser, notebook: str) -> Iterator[Opened]:
    """Open a notebook and wait for its kernel; a failure leaves a screenshot. Ends the kernel."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(1000 * PATIENCE)
    shown = Opened(context.new_page())
    shown.page.route("**/*", shown.own_server_only)
    shown.page.on("pageerror", lambda error: shown.wrong.append(str(error)))
    shown.page.on("console", shown.listen)
    try:
        with shown.pictured(Path(notebook).stem):
            shown.page.goto(lab.url(notebook))
            # a cell run before the kernel is there would open a dialogue that asks for one
            bar = shown.page.locator("#jp-main-statusbar")
            expect(bar).to_contain_text(notebook, timeout=1000 * PATIENCE)
            ready = re.compile(r"\(ipykernel\) \| Idle")
            expect(bar).to_contain_text(ready, timeout=1000 * PATIENCE)
            yield shown
    finally:
        context.close()
        for session in lab.ask("GET", "/api/sessions"):
            if session["path"] == notebook:
                lab.ask("DELETE", f"/api/sessions/{session['id']}")


@dataclass
class Widget:
    """An explorable in the page."""

    name: str
    box: Locator

    @property
    def picture(self) -> str:
        """A digest of the bytes of the picture."""
        image = self.box.locator("img.widget-image")
        expect(image).to_have_js_property("complete", True)
        assert image.evaluate("image => image.naturalWidth") > 500
        return str(image.evaluate(DIGEST))

    def row(self, knob: str) -> Locator:
        label = self.box.page.get_by_text(KNOBS[self.name][knob].label, exact=True)
        return self.box.locator(".jupyter-widgets.widget-inline-hbox").filter(has=label)

    def expect(self, seen: View) -> None:
        text = self.box.locator(".widget-html-content p")
        expect(text).to_have_text(f"{seen.verdict} {seen.details}".strip())


# For the module, so that this browser is closed before other tests open theirs.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with make_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="module")
def explorables(lab: Lab, browser: Browser) -> Iterator[Opened]:
    with opened(lab, browser, "explorables.ipynb") as shown:
        shown.run_all()
        yield shown
        assert shown.wrong == []


def widget(shown: Opened, name: str) -> Widget:
    cell = shown.notebook.locator(".jp-CodeCell").nth(EXPLORABLES.index(name))
    return Widget(name, cell.locator(".jp-OutputArea-output .widget-vbox"))


@pytest.mark.parametrize("name", EXPLORABLES)
def test_the_picture_follows_the_knob(explorables: Opened, name: str) -> None:
    knob, key, value = MOVES[name]
    one = widget(explorables, name)
    with explorables.pictured(name):
        one.expect(view(name))
        first = one.picture
        handle = one.row(knob).locator(".noUi-handle")
        handle.focus()
        handle.press(key)
        one.expect(view(name, **{knob: value}))
        assert one.picture != first
        one.box.get_by_role("button", name="Reset").click()
        one.expect(view(name))
        assert one.picture == first


def test_a_number_can_be_typed_and_an_extreme_one_is_answered(explorables: Opened) -> None:
    one = widget(explorables, "landscape")
    seen = view("landscape", a=1.0)
    assert seen.verdict.startswith("No equilibrium")
    with explorables.pictured("typed"):
        readout = one.row("a").locator(".widget-readout")
        readout.click()
        readout.press("Control+a")
        readout.press_sequentially("1")
        readout.press("Enter")
        one.expect(seen)


def test_a_whole_chapter_runs(lab: Lab, browser: Browser) -> None:
    with opened(lab, browser, CHAPTER) as shown:
        shown.run_all()
        box = shown.notebook.locator(".jp-OutputArea-output .widget-vbox")
        expect(box).to_have_count(1)
        Widget("sphere", box).expect(view("sphere"))
        assert shown.wrong == []
