"""What the explorables show: each view is a pure function of its knobs.

`cobweb`, `sphere`, `landscape`, `link` and `rate` compute with deqlib's own functions and return a
`View`: a figure, a sentence, and the numbers in it. `deqlib.explorables` puts knobs to them. A
setting with nothing to compute, such as a start at a = 1, is answered by a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from matplotlib.figure import Figure
from torch import Tensor

from deqlib import branches, linear, rates, single_index
from deqlib.activations import LINKS
from deqlib.dynamics import Trajectory, gradient_descent, gradient_flow
from deqlib.figures import explorables as figures
from deqlib.figures.models import Layer
from deqlib.fixed_point import Picard, Status, solve
from deqlib.linear import LinearDEQ

CIRCLE, SPHERE = "one: a circle", "two: a sphere"
"""How many inputs `sphere` has."""


@dataclass(frozen=True)
class View:
    """What an explorable shows at one setting.

    figure   a matplotlib figure
    verdict  the outcome, in a sentence of a few words
    details  more, in one or two sentences
    numbers  what was computed, by name; empty where nothing could be
    """

    figure: Figure
    verdict: str
    details: str
    numbers: dict[str, float] = field(default_factory=dict)


# ---------------------------------------------------------------------------------- small helpers

EARLY = torch.cat([torch.zeros(1), torch.logspace(-6, 0, 161)]).double().clamp_max(1.0)
"""Times of a flow, dense in the beginning, as shares of the whole."""
EDGE = 1e-9
"""An a this near to 1 counts as 1."""
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def say(x: float, digits: int = 3) -> str:
    """A number as it stands in a sentence: 0.0123, −4.5, 1.2·10⁻⁷."""
    text = f"{x:.{digits}g}"
    if "e+0" in text and abs(x) < 1e6:
        text = f"{x:.0f}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}·10{str(int(exponent)).translate(_RAISED)}"
    return text.replace("-", "−")


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@dataclass(frozen=True)
class _Training:
    """Flow and descent from one start of z = a z + u·x, on ½ (F − A) S (F − A)ᵀ."""

    theta: LinearDEQ
    S: Tensor
    A: Tensor

    @classmethod
    def start(cls, P: float, u: Tensor, S: Tensor, A: Tensor) -> _Training:
        return cls(LinearDEQ(_tensor(1 - P)[:, None], u[None, :]), S, A[None, :])

    def loss(self, theta: LinearDEQ) -> Tensor:
        return linear.loss(theta, self.S, self.A)

    def gradient(self, theta: LinearDEQ) -> LinearDEQ:
        return linear.gradient(theta, self.S, self.A)

    @property
    def sharp(self) -> float:
        """The smallest curvature where the flow ends: L falls like exp(−2 sharp t) there."""
        end = linear.sphere_limit(self.theta, self.A)
        return float(rates.hessian_spectrum(end, self.S, self.A)[0])

    def flow(self, times: Tensor) -> Trajectory[LinearDEQ]:
        return gradient_flow(
            self.loss, self.theta, float(times[-1]), grad=self.gradient, times=times,
            dense=False, throw=False, progress=False,
        )  # fmt: skip

    def descent(self, eta: float, steps: int, every: int = 1) -> Trajectory[LinearDEQ]:
        return gradient_descent(
            self.loss, self.theta, eta, steps, grad=self.gradient, record_every=every,
            throw=False, progress=False,
        )  # fmt: skip


def _squared(theta: LinearDEQ) -> Tensor:
    """r² = (1 − a)² + |u|², (T)."""
    return linear.invariant(theta)[..., 0, 0]


def _crossings(theta: LinearDEQ) -> Tensor:
    """The steps at which 1 − a changes its sign."""
    positive = theta.W[:, 0, 0] < 1
    return (positive[1:] != positive[:-1]).nonzero()[:, 0] + 1


def _broken(run: Trajectory[LinearDEQ]) -> str:
    if bool(run.finished):
        return ""
    return f" After {int(run.stopped)} steps the next loss is no finite number."


# -------------------------------------------------------------------------------------- the views


def cobweb(*, link: str, a: float, b: float, start: float, damping: float, steps: int) -> View:
    """Picard's iteration z ← (1 − τ) z + τ φ(a z + b): `fixed_point.solve`, `branches.equilibria`.

    For a link that rises and τ = 1 the map applied twice never falls, so its iterates converge or
    leave every bound: the iteration ends at an equilibrium, between two points, or nowhere.
    """
    phi = LINKS[link]

    def f(z: Tensor) -> Tensor:
        return phi(a * z + b)

    def step(z: Tensor) -> Tensor:
        return (1 - damping) * z + damping * f(z)

    z = _scalar(start)
    states = [z]
    for _ in range(steps):
        z = step(z)
        if not bool(z.abs() < 1e6):
            break
        states.append(z)
    orbit = torch.stack(states)
    residual = (f(orbit) - orbit).abs()

    twice = solve(
        lambda z: step(step(z)), _scalar(start), method=Picard(), tol=1e-13, atol=1e-13,
        max_iter=500, state_ndim=0, throw=False,
    )  # fmt: skip
    found = branches.equilibria(phi, a, _scalar(b))
    points, gain = found.z[found.exists], found.gain[found.exists]
    attract = (1 - damping + damping * gain).abs() < 1
    p = twice.z
    q = step(p)
    numbers: dict[str, float] = {
        "steps": len(orbit) - 1,
        "z": float(orbit[-1]),
        "residual": float(residual[-1]),
        "equilibria": len(points),
    }

    if bool(twice.converged) and bool((q - p).abs() <= 1e-6 * (1 + p.abs())):
        slope = float(a * phi.derivative(a * p + b))
        factor = 1 - damping + damping * slope
        numbers |= {"limit": float(p), "slope": slope, "factor": abs(factor)}
        verdict = f"Converges to z = {say(float(p), 4)}."
        details = (
            f"The slope there is aφ′ = {say(slope)}: "
            + ("each step overshoots, and" if factor < 0 else "the steps come from one side, and")
            + f" near the end the error is multiplied by {say(abs(factor))} a step."
        )
    elif bool(twice.converged):
        low, high = sorted((float(p), float(q)))
        numbers |= {"low": low, "high": high}
        verdict = f"Oscillates in the end between z = {say(low, 4)} and {say(high, 4)}."
        details = ""
    elif int(twice.status) != Status.MAX_ITER or not len(points):
        verdict, details = "Diverges: the iterates leave every bound.", ""
    else:
        verdict = "Undecided after 1000 steps."
        details = "The iteration is too slow to tell, or it settles on nothing."
    if not len(points):
        details += " There is no equilibrium."
    elif len(points) == 1 and "limit" not in numbers:
        numbers["slope"] = float(gain)
        details += (
            f" The equilibrium z = {say(float(points), 4)} is there, with slope "
            f"aφ′ = {say(float(gain))}."
        )
    elif len(points) > 1:
        count = int(attract.sum())
        details += (
            f" There are {len(points)} equilibria, {count} of which "
            f"attract{'s' if count == 1 else ''}."
        )
    details += (
        f" After {len(orbit) - 1} steps z = {say(float(orbit[-1]), 4)}, and the residual "
        f"|φ(az + b) − z| is {say(float(residual[-1]))}."
    )

    seen = torch.cat([points, orbit[:1], p[None]]).abs().max()
    reach = next((r for r in (3.0, 6.0, 12.0) if seen < 0.97 * r), 3.0)
    layer = Layer(
        "$z\\mapsto\\varphi(az+b)$" if damping == 1 else "$(1-\\tau)z+\\tau\\varphi(az+b)$",
        step, -reach, reach, orbit, points[attract],
    )  # fmt: skip
    return View(
        figures.cobweb(layer, points[~attract], residual), verdict, details.strip(), numbers
    )


NO_EQUILIBRIUM = "No equilibrium at the start."


def sphere(
    *,
    inputs: str,
    angle: float,
    latitude: float,
    longitude: float,
    radius: float,
    step: float,
    steps: int,
    A1: float,
    A2: float,
    turn: float,
) -> View:
    """Flow and descent of one output from a point of the sphere (1 − a)² + |u|² = r₀².

    The flow keeps r² (theorem `conservation-law`) and ends at `linear.sphere_limit`; a descent of
    step η has r² = r₀² + η² Σ|∇L|² after k steps (its update is orthogonal to (1 − a, u)).
    """
    flat = inputs == CIRCLE
    if flat:
        turned = math.radians(angle)
        u, P = _tensor(radius * math.cos(turned)), radius * math.sin(turned)
        A, S = _tensor(A1), torch.eye(1, dtype=torch.float64)
    else:
        north, east = math.radians(latitude), math.radians(longitude)
        around = _tensor(math.cos(east), math.sin(east))
        u, P = radius * math.cos(north) * around, radius * math.sin(north)
        A, S = _tensor(A1, A2), _tensor(1.0, 0.25).diag()
    draw: Callable[[Tensor, Tensor, tuple[Tensor, Tensor]], Figure] = (
        partial(figures.circle, radius, A1)
        if flat
        else partial(figures.sphere, radius, A, turn=turn)
    )
    if abs(P) < EDGE:
        nothing = torch.empty(0, len(A) + 1)
        return View(
            draw(nothing, nothing, (torch.empty(0), torch.empty(0))),
            NO_EQUILIBRIUM,
            "It lies on a = 1, where z = az + u·x has no unique solution, and nothing can be "
            "trained. Move it a little.",
        )

    both = _Training.start(P, u, S, A)
    flow = both.flow(20 / both.sharp * EARLY)
    run = both.descent(step, steps)
    r2 = _squared(run.theta)
    g = both.gradient(LinearDEQ(run.theta.W[:-1], run.theta.U[:-1]))
    pushed = (g.W.square().sum((-2, -1)) + g.U.square().sum((-2, -1))).cumsum(0)
    predicted = r2[0] + step**2 * torch.cat([torch.zeros(1), pushed])
    drift = float((_squared(flow.theta) / r2[0] - 1).abs().max())
    off = float((r2 / predicted - 1).abs().max())
    grown = float(r2[-1] / r2[0] - 1)
    crossed = len(_crossings(run.theta))
    edge = float(rates.edge_radius(step, S, both.A))

    def points(theta: LinearDEQ) -> Tensor:
        return torch.cat([theta.U[:, 0], 1 - theta.W[:, :, 0]], dim=1)

    shape = "circle" if flat else "sphere"
    how = (
        f"Descent stays close to the {shape}"
        if grown < 0.02
        else f"Descent spirals outward from the {shape}"
        if grown < 0.5
        else f"Descent leaves the {shape}"
    )
    verdict = f"{how}: its radius grows from {say(radius)} to {say(float(r2[-1].sqrt()))}."
    details = (
        f"Its r² = {say(float(r2[-1]), 4)} is r₀² + η²Σ|∇L|² "
        + ("to rounding" if off < 1e-12 else f"up to {say(off, 1)}")
        + f". The flow keeps r² to {say(drift, 1)}."
        + (f" Descent jumps across a = 1 {_times(crossed)}." if crossed else "")
        + _broken(run)
        + f" Loss after {int(run.t[-1])} steps: {say(float(run.loss[-1]))}. With this step the "
        f"minimisers within {say(edge)} of the centre repel descent."
    )
    return View(
        draw(points(flow.theta), points(run.theta), (r2, predicted)),
        verdict,
        details,
        {
            "r0": radius, "radius": float(r2[-1].sqrt()), "predicted": float(predicted[-1].sqrt()),
            "off": off, "drift": drift, "crossings": crossed, "loss": float(run.loss[-1]),
            "edge": edge, "end a": float(flow.end.W[0, 0]), "end u": float(flow.end.U[0, 0]),
        },
    )  # fmt: skip


def landscape(*, A: float, a: float, u: float, step: float, steps: int) -> View:
    """Flow and descent on L = ½ (u/(1 − a) − A)² from (a, u)."""
    nothing = torch.empty(0, 2)
    if abs(1 - a) < EDGE:
        return View(
            figures.landscape(A, nothing, nothing, torch.empty(0), (torch.empty(0),) * 2),
            NO_EQUILIBRIUM,
            "At a = 1 the equation z = z + ux has no solution (or, for u = 0, all of them). Move "
            "the start to one side.",
        )
    both = _Training.start(1 - a, _tensor(u), torch.eye(1, dtype=torch.float64), _tensor(A))
    T = 20 / both.sharp  # then L is e⁻⁴⁰ of what it was
    at_steps = step * torch.arange(1, steps + 1, dtype=torch.float64)
    flow = both.flow(torch.cat([T * EARLY, at_steps[at_steps < T]]).unique())
    beside = flow.t <= step * (steps + 0.5)
    run = both.descent(step, steps)

    def points(theta: LinearDEQ) -> Tensor:
        return torch.cat([theta.W[:, 0], theta.U[:, 0]], dim=1)

    path = points(run.theta)
    crossed = _crossings(run.theta)
    rises = bool(((run.loss.diff() > 1e-9 * run.loss[:-1]) & (run.loss[1:] > 1e-14)).any())
    r = _squared(run.theta).sqrt()
    (goal_a, goal_u), (limit_a, limit_u) = path[-1].tolist(), points(flow.theta)[-1].tolist()
    if len(crossed):
        often = "" if len(crossed) == 1 else f"{_times(len(crossed))}, first "
        verdict = f"Descent jumps across the singular line {often}at step {int(crossed[0])}."
    elif rises:
        verdict = "The loss rises on the way: the step is too long for this place."
    else:
        verdict = "The loss falls at every step."
    outside = bool(((path - _tensor(1, 0)).abs() > 2.3).any())
    details = (
        f"After {int(run.t[-1])} steps a = {say(goal_a)}, u = {say(goal_u)}, "
        f"L = {say(float(run.loss[-1]))}."
        + _broken(run)
        + (" The path has left the picture." if outside else "")
        + f" The flow walks on the circle of radius {say(float(r[0]))} around (1, 0) and ends at "
        f"a = {say(limit_a)}, u = {say(limit_u)}. Descent ends {say(float(r[-1]))} from (1, 0)."
    )
    return View(
        figures.landscape(
            A, points(flow.theta), path, run.loss, (flow.t[beside] / step, flow.loss[beside])
        ),
        verdict,
        details,
        {
            "a": goal_a, "u": goal_u, "loss": float(run.loss[-1]), "crossings": len(crossed),
            "end a": limit_a, "end u": limit_u, "r0": float(r[0]), "radius": float(r[-1]),
        },
    )  # fmt: skip


def link(*, link: str, share: float, s: float) -> View:
    """The learned link h_a of z = φ(a z + s) at a = share/β, and beyond a β = 1 its fold.

    Every equilibrium is a point (u − a φ(u), φ(u)) of one curve; `branches.folds` are its turns,
    `branches.equilibria` its points over s, and D = φ′/(1 − aφ′) its slope (`single_index.slope`).
    """
    phi = LINKS[link]
    a, reach = share / phi.beta, 4.0
    fold, here = branches.folds(phi, a), branches.equilibria(phi, a, _scalar(s))
    ends = branches.equilibria(phi, a, _tensor(-1.05 * reach, 1.05 * reach))
    landmarks = torch.cat([ends.u[ends.exists], fold.u, here.u[here.exists]])
    low, high = (landmarks.min(), landmarks.max()) if len(landmarks) else (_scalar(0),) * 2
    if int(ends.exists.sum()) < 2:  # one end of the curve is not over the window
        low, high = low - 6, high + 6
    u = torch.cat(
        [torch.linspace(float(low), float(high), 1201, dtype=torch.float64), fold.u, _tensor(0)]
    )
    u = u.sort().values
    index, D = u - a * phi(u), single_index.slope(phi, _scalar(a), u)
    D = D.masked_fill(a * phi.derivative(u) >= 1, torch.nan)
    stable = here.stable[here.exists]
    z = here.z[here.exists]

    unique = bool(single_index.admissible(phi, _scalar(a)))
    numbers = {"a": a, "equilibria": len(z), "stable": int(stable.sum()), "folds": len(fold.s)}
    kinds = [
        f"{say(float(x), 4)}{'' if good else ' (unstable)'}"
        for x, good in zip(z, stable, strict=True)
    ]
    if unique and len(z) == 1:
        slope = float(single_index.slope(phi, _scalar(a), here.u[here.exists]))
        numbers |= {"z": float(z), "slope": slope}
        verdict = f"One equilibrium, z = hₐ(s) = {say(float(z), 4)}."
        details = f"The slope of the learned link there is D = {say(slope)}."
    elif len(z) == 0:
        verdict, details = "No equilibrium at this index.", ""
    else:
        count = "One equilibrium" if len(z) == 1 else f"{len(z)} equilibria"
        verdict, details = f"{count} at this index: z = {_listed(kinds)}.", ""
    if unique:
        least, most = (slope / (1 - a * slope) for slope in (phi.alpha, phi.beta))
        numbers |= {"least slope": least, "greatest slope": most}
        details += (
            f" a = {say(a)}, so aβ < 1: exactly one equilibrium for every s. All slopes of hₐ lie "
            f"between {say(least)} and {say(most)}."
        )
    elif len(fold.s):
        numbers |= {"fold": float(fold.s.abs().max())}
        where = _listed([say(round(float(x), 12) + 0.0, 4) for x in fold.s])
        details += (
            f" a = {say(a)}: the curve folds at s = {where}, where a stable and an unstable "
            "equilibrium meet and vanish."
        )
    elif bool(D.isnan().all()):
        details += f" a = {say(a)}: 1 − aφ′ is nowhere positive, so there is no stable branch."
    else:
        details += (
            f" a = {say(a)}: nothing promises one equilibrium for every s any more, and D is "
            "infinite where aφ′ = 1."
        )
    figure = figures.learned_link(
        index, phi(u), phi(index), D, (fold.s, phi(fold.u)), (s, z, stable), reach
    )
    return View(figure, verdict, details.strip(), numbers)


def _listed(items: list[str]) -> str:
    return (" and " if len(items) == 2 else ", ").join(items)


MOST_STEPS = 800
"""More steps of the descent of `rate` would take too long for a slider."""


def rate(
    *,
    kappa: float,
    angle: float,
    A1: float,
    A2: float,
    F1: float,
    F2: float,
    a: float,
    times: float,
) -> View:
    """The promised, the sharp and the measured rate for one output and two inputs.

    S has the eigenvalues 1 and 1/κ, the first along ``angle``; the start is (a, u = (1 − a) F).
    Promised are L ≤ L₀ exp(−2μt) for the flow and L_k ≤ (1 − ημ′)ᵏ L₀ for descent with
    η ≤ 1/(4Λ) (theorems `flow-rate`, `descent-rate`); η = times/(4Λ).
    """
    turned = math.radians(angle)
    Q = _tensor(math.cos(turned), math.sin(turned), -math.sin(turned), math.cos(turned))
    Q = Q.reshape(2, 2).mT
    S, A, F = (Q * _tensor(1, 1 / kappa)) @ Q.mT, _tensor(A1, A2), _tensor(F1, F2)
    both = _Training.start(1 - a, (1 - a) * F, S, A)
    # {L = level} is an ellipse: F = A + √(2 level) S^(−½) (a point of the unit circle)
    levels = torch.tensor([0.003, 0.03, 0.1, 0.3, 1.0, 3.0], dtype=torch.float64)
    around = torch.linspace(0, 2 * math.pi, 73, dtype=torch.float64)
    unit = torch.stack([around.cos(), around.sin()], dim=1)
    ellipses = (
        A + (2 * levels).sqrt()[:, None, None] * torch.linalg.solve(rates.root(S), unit.mT).mT
    )
    L0 = float(both.loss(both.theta))
    if L0 < 1e-20:
        empty = torch.empty(0)
        return View(
            figures.rate(empty, {}, (empty, empty), (ellipses, levels), torch.empty(0, 2), A),
            "Already there.",
            "The start is a minimiser: the loss is 0 and nothing moves. Move the target or the "
            "start.",
            {"loss": L0},
        )

    mu, sharp = float(rates.pl_constant(both.theta, S)), both.sharp
    T = math.log(1e6) / (2 * sharp)
    flow = both.flow(torch.linspace(0, T, 121, dtype=torch.float64))
    safe = 1 / (4 * float(rates.smoothness(both.theta, S, both.A)))
    eta = times * safe
    wanted = math.ceil(T / eta)
    steps = min(wanted, MOST_STEPS)
    run = both.descent(eta, steps, max(1, steps // 60))
    measured = _last_rate(flow.t, flow.loss, 1e-9)
    mu_descent = float(
        rates.extremes(S)[0] / (rates.extremes(linear.invariant(both.theta))[1] + 2 * eta * L0)
    )
    bounded = run.loss.log() <= math.log(L0) + run.t * math.log1p(-eta * mu_descent) + 1e-9
    rises = bool(((run.loss.diff() > 1e-9 * run.loss[:-1]) & (run.loss[1:] > 1e-15 * L0)).any())
    quotient = sharp / mu
    curves = {
        "flow": flow.loss / L0,
        "bound": (-2 * mu * flow.t).exp(),
        "sharp": flow.loss[-1] / L0 * (-2 * sharp * (flow.t - T)).exp(),
    }
    figure = figures.rate(
        flow.t, curves, (eta * run.t, (run.loss / L0).clamp_min(1e-17)), (ellipses, levels),
        linear.equilibrium_map(flow.theta)[:, 0], A,
    )  # fmt: skip
    verdict = (
        f"Promised rate {say(mu)}, sharp rate {say(sharp)}, measured at the end of the flow "
        f"{say(measured)}."
    )
    details = (
        f"The promise is {say(quotient, 2)} times too cautious."
        if quotient > 10
        else "The promise is nearly attained."
        if quotient < 1.25
        else f"The flow is {say(quotient, 2)} times as fast as promised."
    )
    much = (
        "the largest step that is proved safe"
        if times == 1
        else f"{say(times)} times the largest step that is proved safe"
    )
    details += f" Descent with η = {say(eta)}, {much}: "
    if not bool(run.finished):
        details += f"after {int(run.stopped)} steps the loss is no finite number."
    elif rises:
        details += "the loss does not fall at every step shown."
    elif not bool(bounded.all()):
        details += "the loss falls, but not as fast as the bound for small steps would say."
    elif times <= 1:
        details += f"for {steps} steps the loss stays below its bound (1 − ημ′)ᵏL₀, as it must."
    else:
        details += "nothing is promised, and yet the loss falls."
    if steps < wanted:
        details += f" Shown are the first {steps} of {wanted} steps."
    return View(
        figure, verdict, details,
        {
            "bound": mu, "sharp": sharp, "measured": measured, "eta": eta, "safe": safe,
            "descent bound": mu_descent, "loss": float(run.loss[-1]), "L0": L0,
            "bounded": float(bounded.all()),
        },
    )  # fmt: skip


def _last_rate(t: Tensor, loss: Tensor, floor: float) -> float:
    """−½ d log L/dt over the last third of the records with L above floor·L₀."""
    seen = (loss > floor * loss[0]).nonzero()[:, 0]
    end = int(seen[-1])
    begin = int((t >= 2 / 3 * t[end]).nonzero()[0, 0])
    return float((loss[begin] / loss[end]).log() / (2 * (t[end] - t[begin])))
