"""Theorem `single-index-rate`: from the ball around the target, everything converges linearly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from deqlib import activations, index_rates, one_point, rates, single_index
from deqlib.activations import Link
from deqlib.dynamics import gradient_descent, gradient_flow
from deqlib.index_rates import Constants
from deqlib.single_index import SingleIndexDEQ
from deqlib.theorems.base import Hypothesis, Measurement, Theorem
from deqlib.theorems.single_index_problems import (
    STRICT,
    Problem,
    directions,
    log_uniform,
    random_problems,
    uniform,
)

EPS = torch.finfo(torch.float64).eps
STEPS = 60
"""How many steps each descent makes."""
CLOCK = 3.0
"""The flow runs to the time CLOCK/λ_max(Q), with the largest Q of its problem's descent."""
RTOL = 1e-7
SIZES = (3, 10, 1)
ALLOWED = (*STRICT, activations.identity)

Field = Callable[[SingleIndexDEQ], SingleIndexDEQ]


@dataclass(frozen=True)
class Run:
    """A problem with its constants, its descent and its flow.

    theta : iterates (K + 1), each a step η.
    top, bottom : λ_max(Q) and λ_min(Q̃) at three iterates and at θ*, (4).
    t, flow : times (T) and points (T) of the flow, where it was followed.
    """

    problem: Problem
    known: Constants
    eta: Tensor
    theta: SingleIndexDEQ
    top: Tensor
    bottom: Tensor
    finished: bool
    t: Tensor | None = None
    flow: SingleIndexDEQ | None = None
    realisable: bool = True
    exact: bool = True


def constants(many: Problem) -> Constants:
    """`index_rates.constants`; outside the hypotheses, those of a careless reader.

    Who is outside the ball takes nine tenths of it. Who has a flat link counts its slope β alone.
    Who cannot tell θ* from its neighbours takes the smallest positive eigenvalue for λ and m.
    """
    near = many.gap
    rho = torch.where(many.radius < near, many.radius, 0.9 * near)
    known = index_rates.constants(many.link, many.target, many.X, rho)
    blind = known.lam < 1e-12 * known.lam_plus
    if many.link in ALLOWED and not bool(blind.any()):
        return known
    alpha = known.alpha if many.link in ALLOWED else torch.full_like(known.alpha, many.link.beta)
    far = index_rates.far_gaps(many.target, alpha)
    weight = index_rates.weight_floor(near[:, None], far, rho[:, None])
    y = single_index.predict(many.link, many.target, many.X)
    lam, m = (
        smallest_positive(one_point.weighted_moment(w, many.X, y))
        for w in (torch.ones_like(weight), weight)
    )
    return replace(known, alpha=alpha, lam=lam, m=m)


def smallest_positive(symmetric: Tensor) -> Tensor:
    values = torch.linalg.eigvalsh(symmetric)
    return torch.where(values > 1e-12 * values[..., -1:], values, torch.inf).amin(-1)


def train(
    many: Problem, eta: Tensor, known: Constants, direction: Field | None = None
) -> list[Run]:
    """Descent with steps η (*batch) from the starts of a batch of problems."""
    link, X, target = many.link, many.X, many.target
    objective = single_index.Objective(link, X, many.y)
    run = gradient_descent(
        objective.loss, many.start, eta, STEPS, grad=direction or objective.gradient,
        batch_ndim=1, throw=False, progress=False,
    )  # fmt: skip
    points = SingleIndexDEQ(
        *(
            torch.stack([path[0], path[len(path) // 2], path[-1], end])
            for path, end in zip(run.theta, target, strict=True)
        )
    )
    top = rates.extremes(one_point.one_point_matrix(link, points, target, X))[1]
    bottom = rates.extremes(one_point.strict_matrix(link, points, target, X))[0]
    return [
        Run(
            many.one(i),
            Constants(**{name: value[i] for name, value in vars(known).items()}),
            eta[i],
            SingleIndexDEQ(run.theta.a[:, i], run.theta.w[:, i]),
            top[:, i],
            bottom[:, i],
            bool(run.finished[i]),
        )
        for i in range(len(eta))
    ]


def with_flow(many: Problem, runs: list[Run]) -> list[Run]:
    """The same runs with the flow beside the descent, each by its own clock."""
    objective = single_index.Objective(many.link, many.X, many.y)
    clock = torch.stack([run.top.max() for run in runs])

    def slowed(theta: SingleIndexDEQ) -> SingleIndexDEQ:
        g = objective.gradient(theta)
        return SingleIndexDEQ(g.a / clock, g.w / clock[:, None])

    flow = gradient_flow(
        objective.loss, many.start, CLOCK, grad=slowed, batch_ndim=1, dense=False,
        rtol=RTOL, times=torch.linspace(0, CLOCK, 7, dtype=torch.float64), progress=False,
    )  # fmt: skip
    return [
        replace(
            run,
            t=flow.t / clock[i],
            flow=SingleIndexDEQ(flow.theta.a[:, i], flow.theta.w[:, i]),
        )
        for i, run in enumerate(runs)
    ]


class SingleIndexRate(Theorem[Run]):
    label = "single-index-rate"
    title = "Linear convergence inside the ball"
    kind = "rate"
    chapter = "13_single_index_convergence"
    statement = (
        r"Let $\rho_0=\|\theta_0-\theta^*\|<\Delta^*=1/\beta-a^*$, "
        r"$\Lambda=\lambda^+\Delta^*/(\Delta^*-\rho_0)^3$ and "
        r"$m=\lambda_{\min}\,\mathbb E\big[\frac{T(x)}{(T(x)+\rho_0)^3}(y,x)(y,x)^\top\big]"
        r"\ge\lambda T^*/(T^*+\rho_0)^3$. In the ball $\tilde Q\succeq m>0$ and $Q\preceq\Lambda$; "
        r"the flow obeys $\|\delta(t)\|\le e^{-mt}\rho_0$, and descent with $0<\eta<2/\Lambda$ "
        r"$\|\delta_{k+1}\|^2\le(1-\eta(2-\eta\Lambda)m)\|\delta_k\|^2$; neither leaves "
        r"$a\le a^*+\rho_0<1/\beta$."
    )
    hypotheses = {
        "strict-link": Hypothesis(
            r"The slopes of $\varphi$ lie in $[\alpha,\beta]$, and on every bounded interval above "
            r"a positive number."
        ),
        "realisable": Hypothesis(r"$y=h_{a^*}(w^{*\top}x)$ with $a^*<1/\beta$."),
        "identifiable": Hypothesis(r"$\lambda=\lambda_{\min}(A_y)>0$."),
        "inside-the-ball": Hypothesis(r"$\rho_0<\Delta^*$."),
        "exact-gradient": Hypothesis(r"The direction is $-\nabla L$, with nothing added."),
        "small-step": Hypothesis(r"$0<\eta<2/\Lambda$."),
    }
    open_questions = (
        "Is the promised number of steps within a bounded factor of the true one? For links "
        "that saturate it is not ({doc}`/notebooks/13_single_index_convergence`).",
        r"Does descent converge for steps between $2/\Lambda$ and $2/\lambda_{\max}(H)$ "
        "({doc}`/notebooks/13_single_index_convergence`)?",
    )
    least_activity = 1e-6

    def draw(self, generator: Generator, n: int) -> list[Run]:
        """For every link in turn: random problems, starts where Λ is nearly attained, starts where
        m is, and starts near θ*; steps between a fifth and nine tenths of 2/Λ, half of them 1/Λ."""
        return spread(generator, n, STRICT, lambda *batch: with_flow(*safe_descents(*batch)))

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Run]]]:
        return {
            "strict-link": _dead,
            "realisable": _noisy,
            "identifiable": _blind,
            "inside-the-ball": _outside,
            "exact-gradient": _inexact,
            "small-step": _long_steps,
        }

    def slack(self, instance: Run) -> dict[str, float]:
        one, known = instance.problem, instance.known
        A = one_point.moment(one.X, single_index.predict(one.link, one.target, one.X))
        low, high = rates.extremes(A)
        return {
            "strict-link": 1.0 if one.link in ALLOWED else -1.0,
            "realisable": 1.0 if instance.realisable else -1.0,
            "identifiable": float(low / high) - 1e-12,
            "inside-the-ball": float(1 - one.radius / one.gap),
            "exact-gradient": 1.0 if instance.exact else -1.0,
            "small-step": float(2 - instance.eta * known.Lam),
        }

    def measure(self, instance: Run) -> dict[str, Measurement]:
        one, c, eta = instance.problem, instance.known, instance.eta
        rho = one.radius
        star = single_index.flat(one.target)
        delta = single_index.flat(instance.theta) - star
        size = delta.norm(dim=-1)
        # θ is known to rounding, and so is the equilibrium behind each gradient.
        rounding = 100 * EPS * (1 + star.norm() / size.min())
        moved, middle = delta[:-1] - delta[1:], delta[:-1] + delta[1:]
        fallen = (moved * middle).sum(-1)
        along = (moved * delta[:-1]).sum(-1)
        weak = 100 * EPS * instance.top.max()
        gain = index_rates.gain(eta, c.Lam)
        far = one_point.gaps(one.link, one.target)[1]
        k = torch.arange(1, len(size), dtype=size.dtype)
        highest = instance.theta.a.max() - one.target.a
        done = float((rho / size[-1]).log().abs())
        activity = done if math.isfinite(done) else 1.0

        def said(
            measured: Tensor, bound: Tensor, lower: bool = False, sharp: Tensor | None = None
        ) -> Measurement:
            best = None if sharp is None else float(sharp)
            return Measurement(float(measured), float(bound), activity, best, lower)

        H = instance.bottom[-1]
        found = {
            "Q ⪯ Λ": said(instance.top.max(), c.Lam),
            "Q̃ ⪰ m": said(instance.bottom.min(), c.m - weak, True, H),
            "m ≥ λT*/(T* + ρ₀)³": said(c.m + weak, one_point.contraction(c.lam, far, c.rho), True),
            "‖δ‖² − ‖δ₊‖² ≥ η(2 − ηΛ)⟨∇L, δ⟩": said(
                (fallen / along).min(), gain / eta - rounding, True
            ),
            "‖δ₊‖² ≤ (1 − η(2 − ηΛ)m)‖δ‖²": said(
                (fallen / size[:-1].square()).min(), gain * c.m - rounding, True
            ),
            "a − a* ≤ ρ₀": said(highest, rho * (1 + rounding)),
            "a stays below 1/β": said(
                torch.tensor(0.0 if instance.finished else 1.0), rho * 0 + 0.5
            ),
        }
        if eta * c.Lam <= 1 + 1e-9:
            per_step = (2 * (rho / size[1:]).log() / k).min()
            found["‖δ_k‖² ≤ (1 − ηm)^k ρ₀²"] = said(
                per_step, -torch.log1p(-eta * c.m) - rounding, True, -2 * torch.log1p(-eta * H)
            )
        if instance.t is not None and instance.flow is not None:
            away = (single_index.flat(instance.flow) - star).norm(dim=-1)[1:]
            rate = (rho / away).log() / instance.t[1:]
            # The integrator's error, ten tolerances of ‖θ‖, over the shortest time.
            error = 10 * RTOL * (1 + star.norm() / away.min()) / instance.t[1]
            found["‖δ(t)‖ ≤ e^(−mt)ρ₀"] = said(rate.min(), c.m - error, True, H)
        return found


# Draws ------------------------------------------------------------------------------------------


def spread(
    generator: Generator,
    n: int,
    links: tuple[Link, ...],
    make: Callable[[Generator, int, Link, int], list[Run]],
) -> list[Run]:
    """n runs, a batch for each link, the links in turn; sizes change from link to link."""
    batches = {
        i: iter(make(generator, len(range(i, n, len(links))), link, SIZES[i % len(SIZES)]))
        for i, link in enumerate(links[:n])
    }
    return [next(batches[i % len(links)]) for i in range(n)]


def problems(generator: Generator, batch: int, link: Link, d: int) -> Problem:
    """A batch with every fourth problem random; with a start at θ* + (ρ, 0) and large weights;
    with a start at θ* − (ρ, 0) and large weights; and with a start near θ*."""
    kind = single_index.INPUTS[int(torch.randint(3, (), generator=generator))]
    many = random_problems(generator, batch, link, d, inputs=kind, radius=(0.05, 0.8))
    which = torch.arange(batch) % 4
    steep, flat, close = which == 1, which == 2, which == 3
    # On one side of zero, leaky links have their largest slope; far out, most have their least.
    shift = torch.where(steep, 1.0, torch.where(flat, -0.5, 0.0))[:, None, None]
    times = torch.where(steep | flat, log_uniform(generator, 3, 30, batch), 1)[:, None]
    if link.alpha == 0:
        times = torch.ones_like(times)  # far out nothing is left of a slope
    w = times * many.target.w
    X = many.X + shift * (w / w.norm(dim=-1, keepdim=True))[:, None, :]
    X[:, 1] = -X[:, 0]  # indices of both signs: with one sign alone a leaky link is linear
    target = SingleIndexDEQ(many.target.a, w)
    axis = torch.zeros(batch, 1 + d, dtype=torch.float64)
    axis[:, 0] = torch.where(flat, -1.0, 1.0)
    pole = (many.radius[:, None] * axis) + 1e-3 * many.gap[:, None] * directions(
        generator, batch, 1 + d
    )
    around = single_index.flat(many.start) - single_index.flat(many.target)
    away = torch.where((steep | flat)[:, None], pole, around)
    away = torch.where(close[:, None], 0.05 * away, away)
    start = single_index.unflat(single_index.flat(target) + away)
    return Problem(link, X, target, start, single_index.predict(link, target, X))


def nearby(many: Problem, generator: Generator, part: float) -> Problem:
    """The same problems with starts at ``part`` of Δ* from the target."""
    shape = (len(many.gap), 1 + many.X.shape[-1])
    away = part * many.gap[:, None] * directions(generator, *shape)
    return replace(many, start=single_index.unflat(single_index.flat(many.target) + away))


def safe_steps(generator: Generator, known: Constants) -> Tensor:
    """1/Λ for every other problem, else a uniform part in (0.2, 0.9) of 2/Λ."""
    part = 2 * uniform(generator, 0.2, 0.9, len(known.Lam))
    part[::2] = 1
    return part / known.Lam


def safe_descents(
    generator: Generator, batch: int, link: Link, d: int
) -> tuple[Problem, list[Run]]:
    """A batch of `problems` and their descents with `safe_steps`."""
    many = problems(generator, batch, link, d)
    known = constants(many)
    return many, train(many, safe_steps(generator, known), known)


# ------------------------------------------------------------ instances with one hypothesis less


def _dead(generator: Generator, n: int) -> list[Run]:
    """ReLU, inputs with a constant coordinate whose weight is so negative that no sample fires."""

    def make(generator: Generator, batch: int, link: Link, d: int) -> list[Run]:
        X = single_index.random_inputs(generator, 40, d + 1, "bounded", batch=(batch,))
        X[..., 0] = 1
        a = uniform(generator, -1, 0.5, batch)
        gap = (1 - a)[:, None]
        zero = torch.zeros(batch, 1, dtype=torch.float64)
        target = SingleIndexDEQ(
            a, torch.cat([zero, 0.5 * gap * directions(generator, batch, d)], 1)
        )
        start = SingleIndexDEQ(
            a, torch.cat([-gap * uniform(generator, 0.3, 0.7, batch, 1), zero.expand(-1, d)], 1)
        )
        many = Problem(link, X, target, start, single_index.predict(link, target, X))
        known = constants(many)
        return train(many, 1 / known.Lam, known)

    return spread(generator, n, (activations.relu,), make)


def _noisy(generator: Generator, n: int) -> list[Run]:
    """Labels with noise, from starts so near that the noise has carried them away since."""

    def make(generator: Generator, batch: int, link: Link, d: int) -> list[Run]:
        many = nearby(random_problems(generator, batch, link, d), generator, 1e-4)
        noise = torch.randn(many.y.shape, generator=generator, dtype=torch.float64)
        known = constants(many)
        noisy = replace(many, y=many.y + 0.3 * many.y.std(-1, keepdim=True) * noise)
        return [replace(run, realisable=False) for run in train(noisy, 1 / known.Lam, known)]

    return spread(generator, n, STRICT, make)


def _blind(generator: Generator, n: int) -> list[Run]:
    """A linear link, or as many samples as inputs: c₀y + cᵀx = 0 for some (c₀, c), and a start at
    nearly a multiple of it from θ*."""

    def make(generator: Generator, batch: int, link: Link, d: int) -> list[Run]:
        few = 0 if link is activations.identity else d
        many = random_problems(generator, batch, link, d, n=few)
        null = torch.linalg.eigh(one_point.moment(many.X, many.y)).eigenvectors[..., 0]
        away = null + 1e-3 * directions(generator, batch, 1 + d)
        theta = single_index.flat(many.target) + 0.5 * many.gap[:, None] * away
        many = replace(many, start=single_index.unflat(theta))
        known = constants(many)
        return train(many, 1 / known.Lam, known)

    links = (activations.identity, activations.tanh, activations.identity, activations.softplus)
    return spread(generator, n, links, make)


def _outside(generator: Generator, n: int) -> list[Run]:
    """Self-weights just below 1/β and hardly any input weights: the states are too small, and a
    grows to make up for it."""

    def make(generator: Generator, batch: int, link: Link, d: int) -> list[Run]:
        a = uniform(generator, -1, 0.5, batch)
        gap = 1 - a
        target = SingleIndexDEQ(a, (uniform(generator, 0.4, 0.7, batch) * gap)[:, None])
        start = SingleIndexDEQ(1 - 1e-6 * gap, 0.01 * target.w)
        X = single_index.random_inputs(generator, 40, 1, "gaussian", batch=(batch,))
        many = Problem(link, X, target, start, single_index.predict(link, target, X))
        known = constants(many)
        return train(many, 1 / known.Lam, known)

    return spread(generator, n, (activations.tanh, activations.arctan, activations.softsign), make)


def two_terms(many: Problem) -> Field:
    """The direction of the adjoint φ′(1 + aφ′): two terms of the series of D."""

    def direction(theta: SingleIndexDEQ) -> SingleIndexDEQ:
        a = theta.a[:, None]
        u = single_index.preactivation(many.link, a, single_index.index(theta, many.X), throw=False)
        rise = many.link.derivative(u)
        return single_index.pull_back(rise * (1 + a * rise), many.link(u), many.X, many.y)

    return direction


def decayed(many: Problem, decay: Tensor) -> Field:
    """∇L + decay·θ: weight decay."""

    def direction(theta: SingleIndexDEQ) -> SingleIndexDEQ:
        g = single_index.gradient(many.link, theta, many.X, many.y, throw=False)
        return SingleIndexDEQ(g.a + decay * theta.a, g.w + decay[:, None] * theta.w)

    return direction


def _inexact(generator: Generator, n: int) -> list[Run]:
    """In turn: two terms of the series where a*φ′ is below −1, and weight decay."""

    def make(generator: Generator, batch: int, link: Link, d: int) -> list[Run]:
        many = random_problems(generator, batch, link, d)
        if link.name in ("tanh", "softsign"):
            target = SingleIndexDEQ(
                uniform(generator, -4, -2, batch) / link.beta, 0.3 * directions(generator, batch, d)
            )
            many = replace(many, target=target, y=single_index.predict(link, target, many.X))
            many = nearby(many, generator, 0.05)
            direction = two_terms(many)
        else:
            many = nearby(many, generator, 1e-4)
            H = one_point.hessian(link, many.target, many.X)
            direction = decayed(many, 0.1 * rates.extremes(H)[1])
        known = constants(many)
        runs = train(many, 1 / known.Lam, known, direction)
        return [replace(run, exact=False) for run in runs]

    names = ("tanh", "logistic", "softsign", "leaky ReLU 0.2")
    links = tuple(link for name in names for link in STRICT if link.name == name)
    return spread(generator, n, links, make)


def _long_steps(generator: Generator, n: int) -> list[Run]:
    """Near θ*, with steps between 2.5 and 4 over the largest eigenvalue of the Hessian."""

    def make(generator: Generator, batch: int, link: Link, d: int) -> list[Run]:
        many = nearby(random_problems(generator, batch, link, d), generator, 1e-3)
        H = one_point.hessian(link, many.target, many.X)
        known = constants(many)
        return train(many, uniform(generator, 2.5, 4, batch) / rates.extremes(H)[1], known)

    return spread(generator, n, STRICT, make)
