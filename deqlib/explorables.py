"""Five pictures with knobs, for JupyterLab, Notebook and Colab; on the book's site they are pages.

`cobweb`, `sphere`, `landscape`, `link` and `rate` each return a widget. What it shows is a pure
function of the knobs, `view(name, **settings)`: a figure, a sentence, and the numbers in it, all of
them computed by deqlib. The widgets need ipywidgets, the views do not.

    explorables.cobweb(a=-2.5)                          # a widget that starts at a = −2.5
    explorables.view("cobweb", a=-2.5).numbers["slope"]
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from deqlib import views
from deqlib.activations import LINKS
from deqlib.figures import style
from deqlib.views import CIRCLE, SPHERE, View

Setting = float | str


@dataclass(frozen=True)
class Knob:
    """One control.

    label   what stands beside it
    start   the value it begins with
    low, high, step
            of a slider; where ``base`` is given they are exponents of it, and ``start`` is not
    options the choices of a menu, asked for when the widget is made; None for a slider
    digits  format of the number beside a slider
    when    the settings for which the knob has an effect; it is hidden for others
    """

    label: str
    start: Setting
    low: float = 0.0
    high: float = 0.0
    step: float = 1.0
    base: float | None = None
    options: Callable[[], list[str]] | None = None
    digits: str = ".2f"
    when: Callable[[Mapping[str, Any]], bool] | None = None

    def refuse(self, name: str, value: Any) -> None:
        """Raise ValueError, with a sentence, if the knob cannot be turned to this value."""
        if self.options is not None:
            if value not in self.options():
                raise ValueError(f"{name} is {value!r}; it must be one of {self.options()}")
            return
        low, high = self.low, self.high
        if self.base is not None:
            low, high = self.base**low, self.base**high
        good = isinstance(value, (int, float)) and low * (1 - 1e-9) <= value <= high * (1 + 1e-9)
        if self.base is None:
            good = isinstance(value, (int, float)) and low <= value <= high
        if not good:
            raise ValueError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}")

    def mark(self, value: Any) -> Any:
        """The value at the slider's nearest mark, as a slider in the browser takes it."""
        if self.options is not None:
            return value
        at = value if self.base is None else math.log(value, self.base)
        at = round(self.low + self.step * round((at - self.low) / self.step), 9)
        if self.base is not None:
            return self.base**at
        return int(at) if self.digits == "d" else at


def view(name: str, **settings: Setting) -> View:
    """The view of an explorable at these settings of its knobs; the others stand at their start.

    Raises:
        ValueError: for an explorable or a knob that is not there, or a value out of its range.
    """
    if name not in KNOBS:
        raise ValueError(f"name is {name!r}; it must be one of {sorted(KNOBS)}")
    return VIEWS[name](**_complete(name, settings))


def _complete(name: str, settings: Mapping[str, Setting]) -> dict[str, Any]:
    knobs = KNOBS[name]
    for given, value in settings.items():
        if given not in knobs:
            raise ValueError(f"{given!r} is no knob of {name}; it has {', '.join(knobs)}")
        knobs[given].refuse(given, value)
    return {knob: settings.get(knob, knobs[knob].start) for knob in knobs}


# ------------------------------------------------------------------------------------------ knobs


def _links() -> list[str]:
    return list(LINKS)  # a reader's own link, too


def _flat(settings: Mapping[str, Any]) -> bool:
    return settings["inputs"] == CIRCLE


def _round(settings: Mapping[str, Any]) -> bool:
    return settings["inputs"] == SPHERE


_step = partial(Knob, "step η", base=10.0, step=0.05, digits=".3g")
_steps = partial(Knob, "steps", digits="d")

KNOBS: dict[str, dict[str, Knob]] = {
    "cobweb": {
        "link": Knob("link φ", "tanh", options=_links),
        "a": Knob("self-weight a", -2.0, -3, 3, 0.05),
        "b": Knob("shift b", 0.5, -2, 2, 0.05),
        "start": Knob("start z₀", -1.2, -2.5, 2.5, 0.05),
        "damping": Knob("damping τ", 1.0, 0.05, 1.5, 0.05),
        "steps": _steps(20, 0, 60),
    },
    "sphere": {
        "inputs": Knob("inputs", CIRCLE, options=lambda: [CIRCLE, SPHERE]),
        "angle": Knob("angle of start", 150.0, -175, 175, 1, digits=".0f", when=_flat),
        "latitude": Knob("latitude", 15.0, -85, 85, 1, digits=".0f", when=_round),
        "longitude": Knob("longitude", -100.0, -180, 180, 1, digits=".0f", when=_round),
        "radius": Knob("radius r₀", 1.0, 0.2, 2, 0.05),
        "step": _step(10**-1.3, low=-2, high=0.7),
        "steps": _steps(60, 1, 120),
        "A1": Knob("target A₁", 1.0, -2, 2, 0.1, digits=".1f"),
        "A2": Knob("target A₂", -0.5, -2, 2, 0.1, digits=".1f", when=_round),
        "turn": Knob("turn the view", -60.0, -180, 180, 5, digits=".0f", when=_round),
    },
    "landscape": {
        "A": Knob("target A", 1.0, -3, 3, 0.1, digits=".1f"),
        "a": Knob("start a₀", -0.6, -1.3, 3.3, 0.05),
        "u": Knob("start u₀", -1.2, -2.3, 2.3, 0.05),
        "step": _step(10**-0.5, low=-2, high=1),
        "steps": _steps(40, 1, 200),
    },
    "link": {
        "link": Knob("link φ", "tanh", options=_links),
        "share": Knob("self-weight aβ", 1.5, -8, 3, 0.05),
        "s": Knob("index s", 0.1, -4, 4, 0.05),
    },
    "rate": {
        "kappa": Knob("condition κ(S)", 10**0.6, 0, 1.5, 0.05, base=10.0, digits=".3g"),
        "angle": Knob("strong input at", 30.0, 0, 180, 5, digits=".0f"),
        "A1": Knob("target A₁", 1.0, -2, 2, 0.05),
        "A2": Knob("target A₂", 0.5, -2, 2, 0.05),
        "F1": Knob("start F₁", 0.0, -2, 2, 0.05),
        "F2": Knob("start F₂", 0.0, -2, 2, 0.05),
        "a": Knob("start a₀", 0.0, -2, 0.95, 0.05),
        "times": Knob("step × 4Λ", 16.0, 0, 12, 0.25, base=2.0, digits=".3g"),
    },
}
"""The controls of each explorable, in order. Angles are in degrees."""


VIEWS: dict[str, Callable[..., View]] = {
    "cobweb": views.cobweb,
    "sphere": views.sphere,
    "landscape": views.landscape,
    "link": views.link,
    "rate": views.rate,
}


# ---------------------------------------------------------------------------------------- widgets

WIDTH = 840
"""Width of the picture in a wide window, in the browser's pixels."""
DPI = 150


def cobweb(**settings: Setting) -> Any:
    """Picard's iteration on z = φ(a z + b), as a widget; settings as in ``KNOBS["cobweb"]``.

    Raises:
        ImportError: where ipywidgets is not installed.
        ValueError: for a setting that is no knob, or out of its range.
    """
    return _widget("cobweb", settings)


def sphere(**settings: Setting) -> Any:
    """Training on a circle or a sphere, as a widget; settings as in ``KNOBS["sphere"]``.

    Raises as `cobweb` does.
    """
    return _widget("sphere", settings)


def landscape(**settings: Setting) -> Any:
    """The loss landscape and its singular line, as a widget; ``KNOBS["landscape"]``.

    Raises as `cobweb` does.
    """
    return _widget("landscape", settings)


def link(**settings: Setting) -> Any:
    """The learned link and its fold, as a widget; settings as in ``KNOBS["link"]``.

    Raises as `cobweb` does.
    """
    return _widget("link", settings)


def rate(**settings: Setting) -> Any:
    """The measured, the promised and the sharp rate, as a widget; ``KNOBS["rate"]``.

    Raises as `cobweb` does.
    """
    return _widget("rate", settings)


def png(figure: Figure) -> bytes:
    """The figure as a picture; it is closed."""
    out = io.BytesIO()
    with style():
        figure.savefig(out, format="png", dpi=DPI)
    plt.close(figure)
    return out.getvalue()


def _widget(name: str, settings: Mapping[str, Setting]) -> Any:
    """A box of knobs, the picture, and a line of text. One figure at a time, none left open.

    The picture is replaced in place, so it does not flicker, and the front end holds back the
    moves of a slider until the last one is drawn.
    """
    try:
        import ipywidgets
        from traitlets import Unicode
    except ImportError as error:
        raise ImportError(
            "the explorables need the package ipywidgets, which is not installed (pip install "
            "ipywidgets); deqlib.explorables.view gives their figures and numbers without it"
        ) from error

    class Picture(ipywidgets.Image):
        """An image that may have a tooltip, its name for a screen reader: the front end of
        ipywidgets 8 shows one only on widgets with a description, and breaks on others."""

        description = Unicode("").tag(sync=True)

    starts = {knob: KNOBS[name][knob].mark(at) for knob, at in _complete(name, settings).items()}
    knobs = {knob: _control(ipywidgets, KNOBS[name][knob], starts[knob]) for knob in starts}
    picture = Picture(
        format="png", width=str(WIDTH), layout={"max_width": "100%", "height": "auto"}
    )
    text = ipywidgets.HTML(layout={"max_width": f"{WIDTH}px", "width": "100%"})
    reset = ipywidgets.Button(description="Reset", tooltip="all knobs as in the beginning")
    drawn: dict[str, Any] | None = None
    redrawing = True

    def redraw(_: Any = None) -> None:
        nonlocal drawn
        now = {knob: KNOBS[name][knob].mark(control.value) for knob, control in knobs.items()}
        if not redrawing or now == drawn:
            return
        drawn = now
        for knob, control in knobs.items():
            when = KNOBS[name][knob].when
            control.layout.display = None if when is None or when(now) else "none"
        try:
            seen = VIEWS[name](**now)
        except (ValueError, RuntimeError) as refusal:  # deqlib's own sentences
            text.value = f"<p>{html.escape(str(refusal))}</p>"
            return
        picture.value = png(seen.figure)
        picture.tooltip = f"{TITLES[name]}. {seen.verdict}"
        text.value = (
            f"<p role='status' style='line-height: 1.5; margin: 0.3em 0'>"
            f"<b>{html.escape(seen.verdict)}</b> {html.escape(seen.details)}</p>"
        )

    def restore(_: Any) -> None:
        nonlocal redrawing
        redrawing = False
        try:
            for knob, control in knobs.items():
                control.value = starts[knob]
        finally:
            redrawing = True
        redraw()

    for control in knobs.values():
        control.observe(redraw, names="value")
    reset.on_click(restore)
    redraw()
    controls = ipywidgets.Box(
        [*knobs.values(), reset],
        layout={"flex_flow": "row wrap", "align_items": "center", "max_width": f"{WIDTH}px"},
    )
    return ipywidgets.VBox([controls, picture, text])


TITLES = {
    "cobweb": "Picard’s iteration as a cobweb",
    "sphere": "Training on a sphere",
    "landscape": "The loss landscape and its singular line",
    "link": "The learned link and its fold",
    "rate": "Measured, promised and sharp rate",
}


def _control(ipywidgets: Any, knob: Knob, start: Setting) -> Any:
    common: dict[str, Any] = {
        "description": knob.label,
        "style": {"description_width": "7.5em"},
        "layout": {"width": "400px", "max_width": "100%"},
    }
    if knob.options is not None:
        return ipywidgets.Dropdown(options=knob.options(), value=start, **common)
    common |= {"min": knob.low, "max": knob.high, "step": knob.step, "readout_format": knob.digits}
    if knob.base is not None:
        return ipywidgets.FloatLogSlider(value=start, base=knob.base, **common)
    if knob.digits == "d":
        common |= {"min": int(knob.low), "max": int(knob.high), "step": 1}
        return ipywidgets.IntSlider(value=start, **common)
    return ipywidgets.FloatSlider(value=start, **common)
