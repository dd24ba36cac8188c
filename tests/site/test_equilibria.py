"""The mathematics of the explorables, run in a browser, against deqlib's numbers.

Each function of book/_static/equilibria.js is called on a drawn set of instances and compared with
deqlib (or, where deqlib has no such function, with the formula in torch). A disagreement is
|script − deqlib| / max(1, |deqlib|): absolute for numbers that are drawn on an axis of order one,
relative for larger ones, and losses that a logarithmic axis shows are compared in parts of the
first one. It may be `TOLERANCE`; what is less exact by nature says so where it is compared.

Every comparison is also run on a script in which one formula is changed, and must then fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page
from torch import Generator, Tensor

from deqlib import branches, linear, rates, single_index
from deqlib.activations import LINKS
from deqlib.dynamics import gradient_descent, gradient_flow
from deqlib.linear import LinearDEQ

SCRIPT = (Path(__file__).parents[2] / "book/_static/equilibria.js").read_text(encoding="utf-8")
TOLERANCE = 1e-8
DRAWS = 200
NAMES = tuple(LINKS)
MONOTONE = tuple(name for name, link in LINKS.items() if link.monotone)
FEW = 60
"""Draws of flows, which take tens of milliseconds each on both sides."""
CALL = """([name, calls]) => calls.map((call) => {
    try {
        if (name === "members") return Object.keys(Equilibria);
        const found = Equilibria[name](...call);
        if (name !== "link") return found;
        const { value, derivative, alpha, beta } = found;  // functions stay in the browser
        return { value: value(call[1]), derivative: derivative(call[1]), alpha, beta };
    } catch (error) { return { error: error.message }; }
})"""

Call = Callable[[str, Sequence[Sequence[Any]]], list[Any]]
"""(function, argument lists) ↦ its results in the browser."""


def opened(browser: Browser, script: str = SCRIPT) -> Page:
    page = browser.new_page()
    page.add_script_tag(content=script)
    return page


def caller(page: Page) -> Call:
    return lambda name, calls: page.evaluate(CALL, [name, [list(call) for call in calls]])


@pytest.fixture(scope="module")
def call(browser: Browser) -> Iterator[Call]:
    page = opened(browser)
    yield caller(page)
    page.close()


# ------------------------------------------------------------------------------------- helpers


def apart(found: Any, wanted: Any) -> float:
    """The largest disagreement; infinite where one side has a number that the other has not."""
    if isinstance(wanted, (list, tuple)):
        if not isinstance(found, list) or len(found) != len(wanted):
            return math.inf
        return max([0.0, *(apart(f, w) for f, w in zip(found, wanted, strict=True))])
    if isinstance(found, dict) or found is None:
        return math.inf
    off = abs(found - wanted) / max(1.0, abs(wanted))
    return off if math.isfinite(off) else (0.0 if found == wanted else math.inf)


def numbers(tensor: Tensor) -> Any:
    return tensor.double().tolist()


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def generator(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def uniform(draw: Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=draw, dtype=torch.float64)


def one(draw: Generator, low: float, high: float) -> float:
    return float(uniform(draw, low, high, 1))


def whole(draw: Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=draw))


def name_of(draw: Generator, names: Sequence[str] = NAMES) -> str:
    return names[whole(draw, 0, len(names) - 1)]


def moment(draw: Generator, d: int) -> Tensor:
    """S (d, d) with condition number up to 100."""
    Q = torch.linalg.qr(torch.randn(d, d, generator=draw, dtype=torch.float64)).Q
    values = 10 ** uniform(draw, -2, 0, d)
    return (Q * values) @ Q.T


class Problem:
    """A start, S and A, for the script and for deqlib; |1 − a| is at most twice `near`.

    halfway : the start's map is A/2, so that its first step goes towards a = 1.
    """

    def __init__(self, draw: Generator, d: int, near: float = 1.0, halfway: bool = False) -> None:
        P = near * one(draw, 0.2, 2) * (1 if whole(draw, 0, 1) else -1)
        a = scalar(1 - P)
        u = torch.randn(d, generator=draw, dtype=torch.float64)
        self.S = moment(draw, d)
        self.A = torch.randn(1, d, generator=draw, dtype=torch.float64)
        if halfway:
            u = (1 - a) * self.A[0] / 2
        self.theta = LinearDEQ(a[None, None], u[None])
        self.args = [
            {"a": float(a), "u": numbers(u)},
            numbers(self.S),
            numbers(self.A[0]),
        ]


def problems(seed: int, n: int, most: int, near: float = 1e-4) -> list[Problem]:
    """n problems with 1 to `most` inputs; every fourth starts near a = 1, half of them halfway."""
    draw = generator(seed)
    return [
        Problem(draw, whole(draw, 1, most), near if i % 4 == 3 else 1.0, i % 8 == 7)
        for i in range(n)
    ]


def weights(theta: LinearDEQ) -> list[Any]:
    """(a, u) of records (T, 1, 1), (T, 1, d), or of one model."""
    return [numbers(theta.W[..., 0, 0]), numbers(theta.U[..., 0, :])]


# --------------------------------------------------------------------------------- comparisons
# Each yields disagreements, one instance after the other; infinite for a wrong verdict.


def verdict(right: bool) -> float:
    return 0.0 if right else math.inf


def links(call: Call) -> Iterator[float]:
    """Value and derivative of all links at 100 points and at hard ones: saturated, at kinks."""
    draw = generator(0)
    s = torch.cat(
        [
            uniform(draw, -20, 20, 50),
            uniform(draw, -2, 2, 50),
            torch.tensor([-800.0, -37, -9, -1e-9, 0, 1e-9, 2**0.5, 9, 37, 800]),
        ]
    )
    for name, link in LINKS.items():
        got = call("link", [[name, x] for x in numbers(s)])
        yield apart([g["value"] for g in got], numbers(link(s)))
        yield apart([g["derivative"] for g in got], numbers(link.derivative(s)))
        yield apart([got[0]["alpha"], got[0]["beta"]], [link.alpha, link.beta])


def picard(call: Call) -> Iterator[float]:
    """Iterates and residuals of 200 runs of up to 25 steps, and a run that overflows.

    Where |aφ′| > 1 a step magnifies rounding, but then the iterates grow as much, or settle on a
    cycle.
    """
    draw = generator(1)
    calls = [
        [name_of(draw), one(draw, -3, 3), one(draw, -2, 2), one(draw, -3, 3), whole(draw, 0, 25)]
        for _ in range(DRAWS)
    ]
    for (name, a, b, z0, steps), got in zip(calls, call("picard", calls), strict=True):
        z = [scalar(z0)]
        for _ in range(steps + 1):
            z.append(LINKS[name](a * z[-1] + b))
        residual = [abs(float(after - now)) for now, after in pairwise(z)]
        yield apart(got["z"], [float(x) for x in z[:-1]])
        yield apart(got["residual"], residual)
        yield verdict(got["outcome"] == "finished")
    (burst,) = call("picard", [["identity", 3, 1, 1, 1000]])
    yield verdict(burst["outcome"] == "not finite")
    yield verdict(all(map(math.isfinite, burst["z"] + burst["residual"])))


def fate(call: Call) -> Iterator[float]:
    """The end of Picard's iteration on 200 draws: for a ≥ 0 that of `branches.walk`, else that of
    10,000 steps. A limit has the error of the stopping rule, 1e-13 (1 + |z|)/(1 − slope), so slopes
    within 1e-4 of ±1 are left out; at most one draw in ten may be such, or undecided."""
    draw = generator(2)
    calls = [
        [name_of(draw, MONOTONE), one(draw, -3, 3), one(draw, -2, 2), one(draw, -2.5, 2.5)]
        for _ in range(DRAWS)
    ]
    left = 0
    for (name, a, b, z0), got in zip(calls, call("fate", calls), strict=True):
        wanted, ends, slope = end_of_picard(name, a, b, scalar(z0))
        if got["verdict"] == "undecided" or abs(slope - 1) < 1e-4:
            left += 1
        else:
            yield verdict(got["verdict"] == wanted)
            yield apart(sorted(got["z"]), ends)
    yield verdict(left <= DRAWS // 10)


def end_of_picard(name: str, a: float, b: float, z: Tensor) -> tuple[str, list[float], float]:
    """Verdict, limit or cycle, and how much a step there magnifies an error on average."""
    link = LINKS[name]

    def slope(z: Tensor) -> float:
        return abs(float(a * link.derivative(a * z + b)))

    if a >= 0:
        try:
            z = link(branches.walk(link, a, scalar(b), z))
        except ValueError:
            return "diverges", [], 0.0
        return "converges", [float(z)], slope(z)
    for k in range(10_000):
        before, z = z, link(a * z + b)
        if k % 100 == 99 and (link(a * link(a * z + b) + b) - z).abs() < 1e-15:
            break
    if not float(z.abs()) < 1e8:
        return "diverges", [], 0.0
    if float((z - before).abs()) < 1e-9:
        return "converges", [float(z)], slope(z)
    return "oscillates", sorted([float(z), float(before)]), (slope(z) * slope(before)) ** 0.5


def single(call: Call) -> Iterator[float]:
    """Pre-activation, learned link and slope on 200 draws with aβ from −50 to 0.999, |s| ≤ 50.

    Where 1 − aφ′ is 1e-3, its rounding is magnified a million times in D.
    """
    draw = generator(3)
    calls, wanted = [], []
    for i in range(DRAWS):
        name = name_of(draw)
        link = LINKS[name]
        part = 0.999 if i % 10 == 9 else one(draw, *((-50, 0.9), (-1, 0.999))[i % 2])
        a, s = part / link.beta, one(draw, *((-50, 50), (-2, 2))[i % 2])
        if not bool(single_index.admissible(link, scalar(a))):  # GELU falls a little on the left
            a = 0.5 / link.beta
        u = single_index.preactivation(link, scalar(a), scalar(s))
        calls.append([name, a, s])
        wanted.append((float(u), float(link(u)), float(single_index.slope(link, scalar(a), u))))
    u, z, D = (list(column) for column in zip(*wanted, strict=True))
    yield apart(call("preactivation", calls), u)
    yield apart(call("learnedLink", calls), z)
    at = [[name, a, x] for (name, a, _), x in zip(calls, u, strict=True)]
    yield apart(call("slope", at), D)


def folds(call: Call) -> Iterator[float]:
    """Turning points and folds of every link, for 200 draws of aβ in [1, 5] and just above 1."""
    draw = generator(4)
    parts = [
        1 + 10 ** one(draw, -4, -2) if i % 5 == 4 else one(draw, 1.01, 5) for i in range(DRAWS)
    ]
    calls = []
    for i, part in enumerate(parts):
        name = NAMES[i % len(NAMES)]
        calls.append([name, part / LINKS[name].beta * (-1 if i % 11 == 10 else 1)])
    turns = call("turningPoints", calls)
    for (name, a), got, turn in zip(calls, call("folds", calls), turns, strict=True):
        wanted = branches.folds(LINKS[name], a)
        yield apart([f["u"] for f in got], numbers(wanted.u))
        yield apart([f["s"] for f in got], numbers(wanted.s))
        yield apart([f["z"] for f in got], numbers(LINKS[name](wanted.u)))
        yield apart(turn, numbers(wanted.u))
    critical = branches.tanh_fold(torch.tensor(parts, dtype=torch.float64))
    yield apart(call("tanhFold", [[part] for part in parts]), numbers(critical))


def equilibria(call: Call) -> Iterator[float]:
    """All equilibria on 200 draws with |aβ| ≤ 5 and |s| ≤ 4; every fifth 1e-6 beside a fold, where
    an equilibrium moves a thousand times as far as s."""
    draw = generator(5)
    calls = []
    for i in range(DRAWS):
        name = name_of(draw, ("tanh", "arctan", "logistic") if i % 5 == 4 else NAMES)
        link = LINKS[name]
        a, s = one(draw, -5, 5) / link.beta, one(draw, -4, 4)
        if i % 5 == 4:
            a = one(draw, 1.2, 5) / link.beta
            s = float(branches.folds(link, a).s[i % 2]) + (1e-6 if i % 3 else -1e-6)
        calls.append([name, a, s])
    seen = set()
    for (name, a, s), got in zip(calls, call("equilibria", calls), strict=True):
        found = branches.equilibria(LINKS[name], a, torch.tensor([s], dtype=torch.float64))
        here = found.exists[0]
        seen.add(int(here.sum()))
        for key, values in (("u", found.u), ("z", found.z), ("gain", found.gain)):
            yield apart([e[key] for e in got], numbers(values[0][here]))
        yield verdict([e["stable"] for e in got] == found.stable[0][here].tolist())
    yield verdict(seen >= {0, 1, 2, 3})


def walk(call: Call) -> Iterator[float]:
    """Where Picard's iteration ends for a ≥ 0, on 200 draws; null where deqlib refuses."""
    draw = generator(6)
    calls = [
        [name_of(draw, MONOTONE), one(draw, 0, 5), one(draw, -3, 3), one(draw, -4, 4)]
        for _ in range(DRAWS)
    ]
    for (name, a, s, z), got in zip(calls, call("walk", calls), strict=True):
        try:
            u = float(branches.walk(LINKS[name], a, scalar(s), scalar(z)))
        except ValueError:
            yield verdict(got is None)
        else:
            yield apart(got, u)


def model(call: Call) -> Iterator[float]:
    """Map, loss, gradient, invariant and limit on 200 problems with 1 to 5 inputs, every fourth at
    |1 − a| ≤ 2e-4, where the gradient is of order 1e12 and compared relative to its size."""
    drawn = problems(7, DRAWS, 5)
    full = [p.args for p in drawn]
    asked = zip(
        drawn,
        call("gradient", full),
        call("sphereLimit", [[theta, A] for theta, _, A in full]),
        call("equilibriumMap", [[theta] for theta, _, _ in full]),
        call("loss", full),
        call("invariant", [[theta] for theta, _, _ in full]),
        strict=True,
    )
    for p, slope, end, F, L, C in asked:
        g = linear.gradient(p.theta, p.S, p.A)
        size = max(1.0, float(g.W.square().sum() + g.U.square().sum()) ** 0.5)
        scaled = [slope["a"] / size, *(x / size for x in slope["u"])]
        yield apart(scaled, [float(g.W) / size, *numbers(g.U[0] / size)])
        yield apart([end["a"], end["u"]], weights(linear.sphere_limit(p.theta, p.A)))
        yield apart([F], numbers(linear.equilibrium_map(p.theta)))
        yield apart(L, float(linear.loss(p.theta, p.S, p.A)))
        yield apart(C, float(linear.invariant(p.theta)))


def levels(call: Call) -> Iterator[float]:
    """On the lines that `levelSlopes` returns, deqlib's loss is the level: 200 draws."""
    draw = generator(8)
    calls = [[10 ** one(draw, -3, 2), one(draw, 0.1, 4), one(draw, -3, 3)] for _ in range(DRAWS)]
    for (level, s, A), slopes in zip(calls, call("levelSlopes", calls), strict=True):
        yield verdict(slopes[0] < slopes[1])
        for f in slopes:
            a = one(draw, -1, 3)
            theta = LinearDEQ(scalar(a)[None, None], scalar((1 - a) * f)[None, None])
            L = linear.loss(theta, scalar(s)[None, None], scalar(A)[None, None])
            yield apart(float(L), level)


def descent(call: Call) -> Iterator[float]:
    """200 descents of 40 steps with η from 0.01 to 1, every fourth from |1 − a| ≤ 0.02: iterates,
    losses, growth of the squared radius, jumps across a = 1, and a run that overflows.

    A long step from near a = 1 throws the iterate far away; a number on the way, such as 1e6, is
    compared relative to its size.
    """
    draw = generator(9)
    drawn = problems(10, DRAWS, 3, near=1e-2)
    steps = [10 ** one(draw, -2, 0) for _ in drawn]
    jumps = 0
    found = call("descent", [[*p.args, eta, 40] for p, eta in zip(drawn, steps, strict=True)])
    for p, eta, got in zip(drawn, steps, found, strict=True):
        run = gradient_descent(
            lambda at, p=p: linear.loss(at, p.S, p.A),
            p.theta,
            eta,
            40,
            grad=lambda at, p=p: linear.gradient(at, p.S, p.A),
            throw=False,
            progress=False,
        )
        a, u = weights(run.theta)
        C = linear.invariant(run.theta)[:, 0, 0]
        sign = (1 - run.theta.W[:, 0, 0]) > 0
        crossings = ((sign[1:] != sign[:-1]).nonzero()[:, 0] + 1).tolist()
        jumps += len(crossings)
        yield verdict(got["crossings"] == crossings and got["k"] == run.t.long().tolist())
        yield apart([t["a"] for t in got["theta"]], a)
        yield apart([t["u"] for t in got["theta"]], u)
        yield apart(got["loss"], numbers(run.loss))
        # C is known to rounding of its largest value
        yield apart([x / float(C.max()) for x in got["pushed"]], numbers((C - C[0]) / C.max()))
    yield verdict(jumps > 10)
    (burst,) = call("descent", [[{"a": 0, "u": [1e154]}, [[1]], [1], 10, 10]])
    yield verdict(burst["outcome"] == "not finite" and burst["k"] == [0])
    (thin,) = call("descent", [[*drawn[0].args, 0.01, 25, 10]])
    yield verdict(thin["outcome"] == "finished" and thin["k"] == [0, 10, 20, 25])


def flow(call: Call) -> Iterator[float]:
    """60 flows with 1 or 2 inputs to the time in which the loss falls by 1e-8, every fourth from
    |1 − a| ≤ 0.02, at 21 times: parameters, and losses in parts of the first one.

    The script integrates with tolerance 1e-11 a step (order 5), deqlib here with 1e-12 (order 8);
    near a = 1 a step's error is carried along, and over a few hundred steps that is about 1e-9.
    """
    for p in problems(11, FEW, 2, near=1e-2):
        slow = rates.hessian_spectrum(linear.sphere_limit(p.theta, p.A), p.S, p.A)[0]
        times = torch.linspace(0, 1, 21, dtype=torch.float64).square() * float(9.2 / slow)
        run = gradient_flow(
            lambda at, p=p: linear.loss(at, p.S, p.A),
            p.theta,
            float(times[-1]),
            grad=lambda at, p=p: linear.gradient(at, p.S, p.A),
            times=times,
            rtol=1e-12,
            atol=1e-14,
            progress=False,
        )
        (got,) = call("flow", [[*p.args, numbers(times)]])
        a, u = weights(run.theta)
        first = float(run.loss[0])
        yield verdict(got["outcome"] == "finished")
        yield apart([t["a"] for t in got["theta"]], a)
        yield apart([t["u"] for t in got["theta"]], u)
        yield apart([L / first for L in got["loss"]], numbers(run.loss / first))


def constants(call: Call) -> Iterator[float]:
    """Every rate and bound on 200 problems with 1 or 2 inputs, relative to its size."""
    draw = generator(12)
    drawn = problems(13, DRAWS, 2, near=1e-2)
    steps = [10 ** one(draw, -3, 0) for _ in drawn]
    calls: dict[str, list[list[Any]]] = {}
    values: dict[str, list[Tensor]] = {}

    def compare(name: str, args: list[Any], value: Tensor) -> None:
        calls.setdefault(name, []).append(args)
        values.setdefault(name, []).append(value)

    for p, eta in zip(drawn, steps, strict=True):
        (theta, S, A), (th, St, At) = p.args, (p.theta, p.S, p.A)
        low, _ = extremes = rates.extremes(St)
        compare("extremes", [S], torch.stack(extremes))
        compare("root", [S], rates.root(St))
        compare("plConstant", [theta, S], rates.pl_constant(th, St))
        spectrum = rates.hessian_spectrum(th, St, At)
        compare("hessianSpectrum", [theta, S, A], torch.stack(spectrum))
        compare("mapBound", [theta, S, A], rates.map_bound(th, St, At))
        compare("smoothness", [theta, S, A], rates.smoothness(th, St, At))
        slower = linear.invariant(th)[0, 0] + 2 * eta * linear.loss(th, St, At)
        compare("descentRate", [theta, S, A, eta], low / slower)
        compare("edgeRadius", [eta, S, A], rates.edge_radius(eta, St, At))
        kappa, angle = 10 ** one(draw, 0, 2), one(draw, 0, math.pi)
        axis = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        eye = torch.eye(2, dtype=torch.float64)
        compare("moment", [kappa, angle], eye / kappa + (1 - 1 / kappa) * axis[:, None] * axis)
        # a loss that falls as e^(−2μt) has the rate μ
        mu = one(draw, 0.1, 2)
        t = torch.linspace(0, 5, 40, dtype=torch.float64)
        compare("measuredRate", [numbers(t), numbers(3 * (-2 * mu * t).exp())], scalar(mu))
    for name, asked in calls.items():
        for got, value in zip(call(name, asked), values[name], strict=True):
            size = value.abs().max()
            yield apart(numbers(torch.tensor(got, dtype=value.dtype) / size), numbers(value / size))


Comparison = Callable[[Call], Iterator[float]]
CHECKS: dict[str, Comparison] = {
    check.__name__: check
    for check in (
        links, picard, fate, single, folds, equilibria, walk, model, levels, descent, flow,
        constants,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_script_agrees_with_deqlib(
    call: Call, name: str, record_property: Callable[[str, object], None]
) -> None:
    worst = max(CHECKS[name](call))
    record_property("worst disagreement", worst)
    print(f"{name}: {worst:.1e}")
    assert worst <= TOLERANCE


MUTANTS: list[tuple[str, str, str]] = [
    ("links", "1 / (1 + Math.abs(s)) ** 2", "1 / (1 + Math.abs(s))"),
    ("links", "sum * bell(s)", "sum * bell(s) * 1.0000001"),
    ("picard", "next = value(a * next + b)", "next = value(a * next - b)"),
    ("fate", "if (Math.abs(once - z) <= small)", "if (Math.abs(once - z) <= 1e8 * small)"),
    ("fate", "- z) <= small && Math.abs(once", "- z) <= small && 0 * Math.abs(once"),
    ("single", "if (size <= 4 * EPS * scale || stale)", "if (size <= 1e-6 * scale || stale)"),
    ("single", "return rise / (1 - a * rise)", "return rise / (1 + a * rise)"),
    ("folds", "u, s: u - a * phi.value(u)", "u, s: u - phi.value(u)"),
    ("folds", "Math.sqrt(1 - 1 / a)", "Math.sqrt(1 - 1 / (a * a))"),
    ("equilibria", "const far = 1e12", "const far = 1"),
    ("equilibria", "ends[i + 1], 120)[1]", "ends[i + 1], 50)[1]"),
    (
        "walk",
        "up ? u >= here - slip : u <= here + slip",
        "up ? u <= here - slip : u <= here + slip",
    ),
    ("model", "dot(q, theta.u) / (1 - theta.a), u: q", "-dot(q, theta.u) / (1 - theta.a), u: q"),
    ("model", "/ (1 + square(A)));\n    return { a", "/ (2 + square(A)));\n    return { a"),
    ("levels", "(2 * level) / s", "level / s"),
    ("descent", "sum += g.a * g.a + square(g.u)", "sum += square(g.u)"),
    ("flow", "125 / 192, -2187 / 6784", "125 / 192, -2187 / 6785"),
    ("flow", "rtol = 1e-11", "rtol = 1e-6"),
    ("constants", "(eta / 2) * (1 + square(A))", "eta * (1 + square(A))"),
    ("constants", "+ 2 * eta * loss(theta, S, A)", "+ eta * loss(theta, S, A)"),
    ("constants", "value + row[i] * row[j]", "value - row[i] * row[j]"),
]


@pytest.mark.parametrize(("name", "old", "new"), MUTANTS, ids=range(len(MUTANTS)))
def test_a_changed_formula_is_seen(browser: Browser, name: str, old: str, new: str) -> None:
    assert SCRIPT.count(old) == 1
    page = opened(browser, SCRIPT.replace(old, new))
    try:
        assert any(not off <= TOLERANCE for off in CHECKS[name](caller(page)))
    finally:
        page.close()


def test_every_function_is_compared(call: Call) -> None:
    """Each member of the script's object is called by some comparison."""
    asked = set()

    def listening(name: str, calls: Sequence[Sequence[Any]]) -> list[Any]:
        asked.add(name)
        return call(name, calls)

    members = set(call("members", [[]])[0])
    for check in CHECKS.values():
        for _ in islice(check(listening), 4):
            pass
    for name in ("folds", "constants"):  # which ask for more on their way
        for _ in CHECKS[name](listening):
            pass
    assert members - asked == {"LINKS", "admissible"}  # every `link` and `preactivation` uses them


@pytest.mark.parametrize(
    ("name", "args", "sentence"),
    [
        ("picard", ["cosh", 1, 0, 0, 3], "link is cosh; it must be one of identity"),
        ("picard", ["tanh", math.nan, 0, 0, 3], "a is NaN; it must be a finite number"),
        ("picard", ["tanh", 1, 0, 0, 2.5], "steps is 2.5; it must be a whole number"),
        ("preactivation", ["tanh", 1, 0], "a is 1 and the slopes of tanh reach from 0 to 1"),
        ("tanhFold", [0.5], "a is 0.5; z = tanh(a z + s) folds only for a ≥ 1"),
        ("walk", ["tanh", -1, 0, 0], "a is -1 and the slopes of tanh begin at 0"),
        ("loss", [{"a": 1, "u": [0]}, [[1]], [1]], "a is 1; then 1 − a = 0"),
        ("loss", [{"a": 0, "u": [0]}, [[1, 0]], [1]], "S has 1 rows; with 1 weights in u"),
        ("loss", [{"a": 0, "u": [0]}, [[1]], [1, 2]], "A has 2 entries"),
        ("descent", [{"a": 0, "u": [0]}, [[1]], [1], 0, 5], "eta is 0; it must be positive"),
        ("descent", [{"a": 0, "u": [1e200]}, [[1]], [1], 1, 5], "theta0 has the loss Infinity"),
        ("flow", [{"a": 0, "u": [0]}, [[1]], [1], [2, 1]], "at is 2,1; it must hold increasing"),
        ("root", [[[1, 1], [1, 1]]], "S has the eigenvalue 0; S must be positive definite"),
        ("extremes", [[[1, 0, 0], [0, 1, 0], [0, 0, 1]]], "M has 3 rows; it must have one or two"),
        ("moment", [0.5, 0], "condition is 0.5; it must be at least 1"),
        ("edgeRadius", [-1, [[1]], [1]], "eta is -1; it must be positive"),
        ("levelSlopes", [1, 0, 1], "level is 1 and s 0; they must be ≥ 0 and positive"),
    ],
)
def test_wrong_input_gets_a_sentence(call: Call, name: str, args: list[Any], sentence: str) -> None:
    (answer,) = call(name, [args])
    assert answer["error"].startswith(sentence)
