"""The explorables: numbers against closed forms, every knob, and the widgets without a browser."""

from __future__ import annotations

import itertools
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.optimize import brentq

from deqlib import explorables
from deqlib.explorables import KNOBS, Knob, png, view
from deqlib.views import CIRCLE, SPHERE, say

ROOT = Path(__file__).parents[1]
ALL = [(name, knob) for name, knobs in KNOBS.items() for knob in knobs]


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small, so that they are drawn fast, and no figure is left to the next test."""
    monkeypatch.setattr(explorables, "DPI", 50)
    yield
    plt.close("all")


# ----------------------------------------------------------------------------------------- cobweb


def test_cobweb_of_a_straight_line_is_in_closed_form() -> None:
    a, b, start, tau, steps = -0.8, 0.5, -1.2, 0.75, 7
    seen = view("cobweb", link="identity", a=a, b=b, start=start, damping=tau, steps=steps).numbers
    limit, factor = b / (1 - a), 1 - tau + tau * a
    # rounding of a few steps; the limit is found to a residual of 1e-13 (1 + |z|)
    assert seen["z"] == pytest.approx(limit + factor**steps * (start - limit), rel=1e-13)
    assert seen["residual"] == pytest.approx(abs(factor**steps * (start - limit)) * 1.8, rel=1e-12)
    assert seen["limit"] == pytest.approx(limit, rel=1e-12)
    assert seen["slope"] == pytest.approx(a, rel=1e-13)
    assert seen["factor"] == pytest.approx(abs(factor), rel=1e-13)


def test_cobweb_of_tanh_finds_what_brent_finds() -> None:
    seen = view("cobweb", a=-0.9, b=0.5).numbers
    limit = brentq(lambda z: math.tanh(-0.9 * z + 0.5) - z, -1, 1, xtol=1e-15)
    assert seen["limit"] == pytest.approx(limit, rel=1e-11)
    assert seen["slope"] == pytest.approx(-0.9 * (1 - limit**2), rel=1e-11)


def test_cobweb_that_circles_visits_two_points() -> None:
    seen = view("cobweb", a=-2.5, b=0.3).numbers
    low, high = seen["low"], seen["high"]
    assert high - low > 1
    assert math.tanh(-2.5 * low + 0.3) == pytest.approx(high, rel=1e-12)
    assert math.tanh(-2.5 * high + 0.3) == pytest.approx(low, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [
        ({"a": 0.5}, "Converges"),
        ({"a": -2.5, "damping": 0.5}, "Converges"),
        ({"a": -1.0, "link": "identity"}, "Oscillates"),  # every start, for ever
        ({"a": 1.0, "b": 0.0}, "Undecided"),  # it converges, but like 1/√k
        ({"a": 1.0, "link": "identity"}, "Diverges"),  # by b a step
        ({"a": 3.0, "link": "ReLU"}, "Diverges"),
        ({"a": -1.05, "link": "identity"}, "Diverges"),
    ],
)
def test_cobweb_says_how_it_ends(settings: dict[str, Any], verdict: str) -> None:
    assert view("cobweb", **settings).verdict.startswith(verdict)


def test_cobweb_counts_equilibria() -> None:
    for b, count in ((0.1, 3), (0.5, 1)):
        assert view("cobweb", a=1.5, b=b).numbers["equilibria"] == count
    assert "no equilibrium" in view("cobweb", a=3.0, link="ReLU").details


# -------------------------------------------------------------------------------- linear training


def by_hand(a: float, u: float, A: float, eta: float, steps: int) -> list[tuple[float, float]]:
    """Descent on ½ (u/(1 − a) − A)², in plain numbers."""
    path = [(a, u)]
    for _ in range(steps):
        P = 1 - a
        gap = u / P - A
        a, u = a - eta * gap * u / P**2, u - eta * gap / P
        path.append((a, u))
    return path


def test_landscape_is_descent_by_hand() -> None:
    path = by_hand(-0.6, -1.2, 0.7, 0.1, 25)
    seen = view("landscape", A=0.7, a=-0.6, u=-1.2, step=0.1, steps=25).numbers
    a, u = path[-1]
    # 25 steps of a map that contracts: rounding does not grow
    assert (seen["a"], seen["u"]) == pytest.approx((a, u), rel=1e-12)
    assert seen["loss"] == pytest.approx((u / (1 - a) - 0.7) ** 2 / 2, rel=1e-9)
    r = math.hypot(1.6, 1.2)
    P = r / math.hypot(1, 0.7)  # the minimiser on the start's circle and side
    # the flow runs for 20 of its last time constants, and e⁻²⁰ = 2e-9; it begins more slowly
    assert (seen["end a"], seen["end u"]) == pytest.approx((1 - P, 0.7 * P), abs=1e-6)
    assert seen["r0"] == pytest.approx(r, rel=1e-14)


@pytest.mark.parametrize(("a", "u", "step"), [(-0.5, -2.0, 10.0), (1.1, 0.3, 10**0.5)])
def test_landscape_sees_the_line_crossed_from_either_side(a: float, u: float, step: float) -> None:
    path = by_hand(a, u, -3.0, step, 12)
    at = [k for k in range(1, 13) if (1 - path[k - 1][0]) * (1 - path[k][0]) < 0]
    assert len(at) == 1
    seen = view("landscape", A=-3.0, a=a, u=u, step=step, steps=12)
    assert seen.numbers["crossings"] == 1
    assert seen.verdict == f"Descent jumps across the singular line at step {at[0]}."
    assert view("landscape").numbers["crossings"] == 0


def test_circle_grows_by_the_squared_steps() -> None:
    angle, r0, A, eta, steps = 150.0, 0.9, -1.3, 0.02, 40
    turned = math.radians(angle)
    path = by_hand(1 - r0 * math.sin(turned), r0 * math.cos(turned), A, eta, steps)
    squares = [(p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2 for p, q in itertools.pairwise(path)]
    seen = view("sphere", angle=angle, radius=r0, A1=A, step=eta, steps=steps).numbers
    a, u = path[-1]
    assert seen["radius"] == pytest.approx(math.hypot(1 - a, u), rel=1e-12)
    assert seen["predicted"] ** 2 == pytest.approx(r0**2 + sum(squares), rel=1e-12)
    assert seen["off"] < 1e-13  # rounding of 40 steps
    assert seen["drift"] < 1e-7  # the integrator's tolerance is 1e-9 a step


def test_sphere_of_two_inputs_keeps_the_law() -> None:
    seen = view("sphere", inputs=SPHERE, step=0.05)
    assert seen.numbers["off"] < 1e-13
    assert seen.numbers["drift"] < 1e-7
    assert seen.numbers["radius"] > 1
    P = math.sin(math.radians(15))
    assert math.copysign(1, 1 - seen.numbers["end a"]) == math.copysign(1, P)
    assert 1 - seen.numbers["end a"] == pytest.approx(1 / math.sqrt(1 + 1 + 0.25), abs=1e-6)


def test_long_steps_leave_the_sphere() -> None:
    said = [view("sphere", radius=1.6, step=step).verdict for step in (0.01, 0.1, 1.0)]
    assert [s.split(":")[0] for s in said] == [
        "Descent stays close to the circle",
        "Descent spirals outward from the circle",
        "Descent leaves the circle",
    ]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sphere", {"angle": 0.0}),
        ("sphere", {"inputs": SPHERE, "latitude": 0.0}),
        ("landscape", {"a": 1.0}),
        ("landscape", {"a": 1.0, "u": 0.0}),
    ],
)
def test_a_start_at_one_is_answered(name: str, settings: dict[str, Any]) -> None:
    seen = view(name, **settings)
    assert seen.verdict == "No equilibrium at the start."
    assert seen.numbers == {}
    assert png(seen.figure)


# ------------------------------------------------------------------------------------------- link


def test_learned_link_of_a_straight_line() -> None:
    seen = view("link", link="identity", share=-3.0, s=1.5).numbers
    assert seen["z"] == pytest.approx(1.5 / 4, rel=1e-14)
    assert seen["slope"] == pytest.approx(1 / 4, rel=1e-14)
    assert seen["least slope"] == seen["greatest slope"] == pytest.approx(1 / 4, rel=1e-14)


def test_learned_link_of_tanh_finds_what_brent_finds() -> None:
    seen = view("link", share=-5.0, s=2.0).numbers
    z = brentq(lambda z: math.tanh(-5 * z + 2) - z, -1, 1, xtol=1e-15)
    assert seen["z"] == pytest.approx(z, rel=1e-12)
    assert seen["slope"] == pytest.approx((1 - z**2) / (1 + 5 * (1 - z**2)), rel=1e-12)


def test_the_fold_is_where_the_formula_says() -> None:
    zc = math.sqrt(1 - 1 / 2.5)
    fold = 2.5 * zc - math.atanh(zc)
    assert view("link", share=2.5).numbers["fold"] == pytest.approx(fold, rel=1e-12)
    for s, count, stable in ((0.9 * fold, 3, 2), (1.1 * fold, 1, 1)):
        seen = view("link", share=2.5, s=s)
        assert (seen.numbers["equilibria"], seen.numbers["stable"]) == (count, stable)
        assert ("3 equilibria" in seen.verdict) == (count == 3)


def test_self_weight_is_in_units_of_the_steepest_slope() -> None:
    assert view("link", link="logistic", share=2.0).numbers["a"] == 8
    assert view("link", link="logistic", share=0.5, s=1.0).numbers["equilibria"] == 1


def test_at_the_edge_and_beyond_it_says_so() -> None:
    assert "nothing promises" in view("link", share=1.0).details
    assert "nowhere positive" in view("link", link="identity", share=1.0).details
    none = view("link", link="ReLU", share=3.0, s=1.0)
    assert none.verdict == "No equilibrium at this index."
    assert "folds at s = 0," in none.details


# ------------------------------------------------------------------------------------------- rate


def test_rates_are_those_of_the_theorems() -> None:
    kappa, angle, A, F, a = 5.0, 40.0, np.array([0.8, -0.3]), np.array([0.2, 0.4]), -0.5
    seen = view("rate", kappa=kappa, angle=angle, A1=0.8, A2=-0.3, F1=0.2, F2=0.4, a=a, times=1.0)
    n = seen.numbers
    axis = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
    S = np.eye(2) / kappa + (1 - 1 / kappa) * np.outer(axis, axis)
    P = 1 - a
    r2 = P**2 * (1 + F @ F)
    L0 = (F - A) @ S @ (F - A) / 2
    # for one output the eigenvalues of S^½ (I + AᵀA) S^½ are those of S (I + AᵀA)
    curvature = np.linalg.eigvals(S @ (np.eye(2) + np.outer(A, A))).real.min()
    phi = math.sqrt(A @ A) + math.sqrt(2 * L0 * kappa)
    smooth = (1 + phi**2) ** 2 / r2
    assert n["L0"] == pytest.approx(L0, rel=1e-12)
    assert n["bound"] == pytest.approx(1 / kappa / r2, rel=1e-12)
    assert n["sharp"] == pytest.approx(curvature * (1 + A @ A) / r2, rel=1e-12)
    assert n["safe"] == n["eta"] == pytest.approx(1 / (4 * smooth), rel=1e-12)
    assert n["descent bound"] == pytest.approx(1 / kappa / (r2 + 2 * n["eta"] * L0), rel=1e-12)
    assert n["measured"] == pytest.approx(n["sharp"], rel=0.05)  # not yet at the end
    assert n["bounded"] == 1
    assert "as it must" in seen.details


def test_long_steps_do_not_keep_the_bound() -> None:
    wild = view("rate", times=4096.0)
    assert wild.numbers["bounded"] == 0
    assert "does not fall" in wild.details
    assert "nothing is promised" in view("rate", times=4.0).details


def test_a_start_at_the_target_is_answered() -> None:
    seen = view("rate", F1=1.0, F2=0.5)
    assert seen.verdict == "Already there."
    assert png(seen.figure)


# ------------------------------------------------------------------------------------- every knob


def shown_with(name: str, knob: str) -> dict[str, Any]:
    """Settings with which this knob is shown."""
    when = KNOBS[name][knob].when
    for inputs in (CIRCLE, SPHERE):
        if when is None:
            return {}
        if when({"inputs": inputs}):
            return {"inputs": inputs}
    raise AssertionError(f"{knob} of {name} is never shown")


@cache
def first_picture(name: str, inputs: str | None) -> bytes:
    return png(view(name, **({"inputs": inputs} if inputs else {})).figure)


def ends(knob: Knob) -> list[Any]:
    if knob.options is not None:
        return knob.options()
    both = [knob.low, knob.high]
    return [knob.mark(end if knob.base is None else knob.base**end) for end in both]


@pytest.mark.parametrize(("name", "knob"), ALL)
def test_every_knob_changes_the_picture(name: str, knob: str) -> None:
    settings = shown_with(name, knob)
    one = KNOBS[name][knob]
    if one.options is not None:
        other = next(option for option in one.options() if option != one.start)
    else:
        step = one.step if one.base is None else (one.base**one.step - 1) * one.start
        other = one.mark(one.start + step)
        assert other != one.start
    assert png(view(name, **{**settings, knob: other}).figure) != first_picture(
        name, settings.get("inputs")
    )


@pytest.mark.parametrize(("name", "knob"), ALL)
def test_every_end_of_every_knob_is_answered(name: str, knob: str) -> None:
    for end in ends(KNOBS[name][knob]):
        seen = view(name, **{**shown_with(name, knob), knob: end})
        assert seen.verdict.endswith(".")
        assert all(math.isfinite(number) for number in seen.numbers.values()), seen.numbers
        assert "nan" not in (seen.verdict + seen.details).lower().replace("finan", "")


@pytest.mark.parametrize("name", KNOBS)
def test_corners_are_answered(name: str) -> None:
    chance = random.Random(name)
    for _ in range(4):
        settings = {knob: chance.choice(ends(one)) for knob, one in KNOBS[name].items()}
        seen = view(name, **settings)
        assert all(math.isfinite(x) for x in seen.numbers.values()), (settings, seen.numbers)
        assert png(seen.figure)


def test_settings_are_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="name is 'cobwebs'; it must be one of"):
        view("cobwebs")
    with pytest.raises(ValueError, match="'tau' is no knob of cobweb; it has link, a, b"):
        view("cobweb", tau=1.0)
    with pytest.raises(ValueError, match="a is 7; it must be a number from -3 to 3"):
        view("cobweb", a=7)
    with pytest.raises(ValueError, match=r"step is 9.0; it must be a number from 0.01 to 5.01"):
        view("sphere", step=9.0)
    with pytest.raises(ValueError, match="a is nan"):
        view("landscape", a=math.nan)
    with pytest.raises(ValueError, match="link is 'sine'; it must be one of"):
        view("link", link="sine")


def test_numbers_in_sentences() -> None:
    said = [say(x) for x in (0.01234, -4.5, 1.2e-7, 4096.0, 1.0, -2.5e8)]
    assert said == ["0.0123", "−4.5", "1.2·10⁻⁷", "4096", "1", "−2.5·10⁸"]


# ---------------------------------------------------------------------------------------- widgets


def parts(panel: Any) -> tuple[dict[str, Any], Any, Any, Any]:
    """Controls by label, the button, the picture, the text."""
    box, picture, text = panel.children
    *controls, reset = box.children
    return {control.description: control for control in controls}, reset, picture, text


def made(name: str, **settings: Any) -> tuple[dict[str, Any], Any, Any, Any]:
    return parts(getattr(explorables, name)(**settings))


@pytest.mark.parametrize("name", KNOBS)
def test_widget_follows_and_resets(name: str) -> None:
    controls, reset, picture, text = made(name)
    assert list(controls) == [knob.label for knob in KNOBS[name].values()]
    first = bytes(picture.value), text.value, picture.tooltip
    assert first[0].startswith(b"\x89PNG")
    knob, one = next((k, v) for k, v in KNOBS[name].items() if v.options is None)
    controls[one.label].value = one.mark(one.high if one.base is None else one.base**one.high)
    seen = view(name, **{knob: controls[one.label].value})
    assert bytes(picture.value) != first[0]
    assert seen.verdict in text.value.replace("&lt;", "<")
    assert seen.verdict in picture.tooltip
    reset.click()
    assert controls[one.label].value == one.start
    assert (bytes(picture.value), text.value, picture.tooltip) == first


def test_widget_begins_where_it_is_told() -> None:
    controls, reset, _, text = made("cobweb", a=-0.5, link="logistic")
    assert (controls["self-weight a"].value, controls["link φ"].value) == (-0.5, "logistic")
    first = text.value
    controls["self-weight a"].value = 1.0
    assert text.value != first
    reset.click()
    assert controls["self-weight a"].value == -0.5
    assert text.value == first


def test_widget_redraws_once_for_each_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, Any]] = []
    original = explorables.VIEWS["landscape"]
    monkeypatch.setitem(
        explorables.VIEWS, "landscape", lambda **s: (drawn.append(s), original(**s))[1]
    )
    controls, reset, _, _ = made("landscape")
    assert len(drawn) == 1
    slider = controls["step η"]
    slider.value = slider.value * (1 + 1e-15)  # what a browser makes of 10^(−1/2)
    assert len(drawn) == 1
    controls["start u₀"].value = 1.0
    controls["target A"].value = -1.0
    assert len(drawn) == 3
    reset.click()
    assert len(drawn) == 4


def test_widget_hides_what_has_no_effect() -> None:
    controls, _, _, _ = made("sphere")
    hidden = {label for label, control in controls.items() if control.layout.display == "none"}
    assert hidden == {"latitude", "longitude", "target A₂", "turn the view"}
    controls["inputs"].value = SPHERE
    hidden = {label for label, control in controls.items() if control.layout.display == "none"}
    assert hidden == {"angle of start"}


def test_widget_leaves_no_figure_open() -> None:
    controls, _, _, _ = made("link")
    controls["index s"].value = 1.0
    assert plt.get_fignums() == []


def test_widget_shows_a_refusal_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    controls, _, picture, text = made("link")
    before = bytes(picture.value)

    def refuse(**_: Any) -> Any:
        raise ValueError("s is 1 < 2; it must be <another> number")

    monkeypatch.setitem(explorables.VIEWS, "link", refuse)
    controls["index s"].value = 1.0
    assert "1 &lt; 2; it must be &lt;another&gt; number" in text.value
    assert bytes(picture.value) == before


def test_views_need_no_ipywidgets_and_widgets_say_so() -> None:
    script = (
        "import sys; sys.modules['ipywidgets'] = None\n"
        "from deqlib import explorables\n"
        "print(explorables.view('link').verdict)\n"
        "try: explorables.link()\n"
        "except ImportError as refusal: print(refusal)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "3 equilibria" in ran.stdout
    assert "the explorables need the package ipywidgets" in ran.stdout


@pytest.mark.parametrize("name", KNOBS)
def test_one_chapter_shows_it(name: str) -> None:
    cells = [
        cell
        for path in sorted(ROOT.glob("notebooks/*.ipynb"))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if f"explorable-{name}" in cell["metadata"].get("tags", [])
    ]
    assert len(cells) == 1
    assert "".join(cells[0]["source"]) == f"from deqlib import explorables\n\nexplorables.{name}()"
    assert {"remove-output", "nbval-ignore-output"} < set(cells[0]["metadata"]["tags"])
