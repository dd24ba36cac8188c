"""Theorem `outer-link`: a linear equilibrium with a link behind it trains as the linear one does.

Three kinds of run are measured: the gradient flow of a model with one or two outputs, single
points, and gradient descent of a model with one output. Vectors N = (P, w), P = 1 − a, and the ray
of minimisers P*(1, A) are those of `sphere-limit`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from deqlib import activations, linear, outer_link, rates
from deqlib.activations import Link
from deqlib.dynamics import gradient_descent, gradient_flow
from deqlib.linear import LinearDEQ
from deqlib.theorems.base import Hypothesis, Measurement, Theorem
from deqlib.theorems.single_index_problems import directions, log_uniform, uniform

EPS = torch.finfo(torch.float64).eps
RTOL, ATOL = 1e-7, 1e-10
END = 12.0
"""Length of a flow in its own unit of time, see `flows`."""
CLOSE = 1e-2
"""How near the limit (relative to r) a flow must be at its end. The others are far from it."""
TOLERANCE = 1e-6
"""Relative error of a rate that is read off a flow: what its steps of RTOL may add up to."""
SAMPLES = 12
DESCENT = 100
"""Steps of a descent."""


def bent(alpha: float, beta: float, at: float = 1e-6) -> Link:
    """φ(s) = αs up to s = at and with slope β from there. It attains the constant of (b)."""
    return Link(
        f"slopes {alpha:g} and {beta:g}",
        lambda s: alpha * s + (beta - alpha) * (s - at).clamp_min(0),
        lambda s: torch.where(s >= at, beta, alpha).to(s.dtype),
        None,
        alpha,
        beta,
    )


SMOOTH: tuple[tuple[Link, int], ...] = (
    (activations.identity, 1),
    (activations.smooth_leaky_relu(0.4), 1),
    (activations.linear_plus_tanh(0.3), 1),
    (activations.weakly_nonlinear(0.5), 2),
)
"""Links and numbers of outputs of the flows."""
KINKED = (
    bent(0.2, 1.0), activations.leaky_relu(0.2), activations.smooth_leaky_relu(0.2),
    activations.weakly_nonlinear(0.5),
)  # fmt: skip
"""Links of the points and descents, which need no smooth gradient."""


@dataclass(frozen=True)
class Problem:
    """A link, inputs X (*batch, n, d), the target map A (*batch, p, d) and labels Y."""

    link: Link
    X: Tensor
    A: Tensor
    Y: Tensor

    def one(self, i: int) -> Problem:
        """Problem i of a batch."""
        return Problem(self.link, self.X[i], self.A[i], self.Y[i])


@dataclass(frozen=True)
class Flow:
    """A recorded flow: times t (T,) and path (T, p, ·). ``rate`` is how much faster W learns."""

    problem: Problem
    t: Tensor
    path: LinearDEQ
    steps: int
    rate: float


@dataclass(frozen=True)
class Descent:
    """A recorded descent (K + 1, 1, ·) with one step size, and the ray point it is measured from.

    ``allowed`` is the largest step of the theorem.
    """

    problem: Problem
    path: LinearDEQ
    P_star: Tensor
    eta: float
    allowed: float


@dataclass(frozen=True)
class Instance:
    """A flow, a point and a descent, each of a problem of its own."""

    flow: Flow
    point: tuple[Problem, LinearDEQ]
    descent: Descent


def problems(
    generator: Generator, batch: int, link: Link, p: int, d: int
) -> tuple[Problem, LinearDEQ]:
    """Random problems and starts, on either side of the singular matrices."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    X = normal(batch, SAMPLES, d)
    A = normal(batch, p, d)
    A = A / A.norm(dim=(1, 2), keepdim=True) * log_uniform(generator, 0.3, 1.2, batch, 1, 1)
    Q = torch.linalg.qr(normal(batch, p, p)).Q * normal(batch, 1, 1).sign()
    P = log_uniform(generator, 0.3, 1.5, batch, p, 1) * Q
    U = normal(batch, p, d) * log_uniform(generator, 0.2, 1, batch, 1, 1)
    theta = LinearDEQ(torch.eye(p, dtype=P.dtype) - P, U)
    return Problem(link, X, A, link(X @ A.mT)), theta


def attained(batch: int, link: Link) -> tuple[Problem, LinearDEQ]:
    """The problems that attain the constant of (b): a bent link, w = 0, and inputs ±1.

    On the side where the secant slope is β lies a share α/(α + β) of them.
    """
    ratio = round(link.beta / link.alpha)
    X = torch.ones(batch, 1 + ratio, 1, dtype=torch.float64)
    X[:, 1:] = -1
    A = torch.ones(batch, 1, 1, dtype=torch.float64)
    theta = LinearDEQ(torch.zeros_like(A), torch.zeros_like(A))
    return Problem(link, X, A, link(X @ A.mT)), theta


def local_rates(problem: Problem, theta: LinearDEQ) -> tuple[Tensor, Tensor]:
    """Extreme rates at the limit: eigenvalues of E[φ′(Ax)²xxᵀ] against those of (PᵀP)⁻¹, K.

    Exact for one output; for more, bounds on either side.
    """
    rise = problem.link.derivative(problem.X @ problem.A.mT).square()
    H = (problem.X[..., None, :, :].mT * rise.mT[..., None, :]) @ problem.X[..., None, :, :]
    half = rates.root(rates.gram(problem.A))[..., None, :, :]
    low, high = rates.extremes(half @ H @ half / problem.X.shape[-2])
    smallest, largest = rates.extremes(linear.invariant(theta))
    bound = 1 + torch.linalg.matrix_norm(problem.A, 2).square()
    if problem.A.shape[-2] == 1:
        return low[..., 0] * bound / largest, high[..., 0] * bound / largest
    return low.amin(-1) / largest, high.amax(-1) * bound / smallest


def flows(problem: Problem, theta: LinearDEQ, *, rate: float = 1.0, end: float = END) -> list[Flow]:
    """Gradient flow of a batch of problems, each in its own unit of time.

    Near the limit N of one output the slowest rate is λ(1 + |A|²), with λ that at w = 0, where a
    path may come by. The unit is 1/λ.
    """
    batch = theta.W.shape[0]
    pace = (1 + problem.A.square().sum((-2, -1))) / local_rates(problem, theta)[0]

    def field(at: LinearDEQ) -> LinearDEQ:
        g = outer_link.gradient(problem.link, at, problem.X, problem.Y)
        scaled = pace[:, None, None]
        return LinearDEQ(rate * scaled * g.W, scaled * g.U)

    times = end * torch.cat([torch.zeros(1), torch.logspace(-3, 0, 30)]).double()
    run = gradient_flow(
        lambda at: outer_link.loss(problem.link, at, problem.X, problem.Y), theta, end, grad=field,
        times=times, rtol=RTOL, atol=ATOL, batch_ndim=1, dense=False, progress=False,
    )  # fmt: skip
    return [
        Flow(
            problem.one(i), run.t * pace[i],
            LinearDEQ(run.theta.W[:, i], run.theta.U[:, i]), run.steps, rate,
        )
        for i in range(batch)
    ]  # fmt: skip


def descents(
    generator: Generator,
    batch: int,
    link: Link,
    d: int,
    *,
    across: bool = False,
    long: bool = False,
) -> list[Descent]:
    """Descent from starts in the ball around a ray point, with a part of the largest safe step.

    ``across``: from the mirrored start, on the other side of a = 1, with the steps of that side.
    ``long``: with three times the largest step for which the minimiser does not repel.
    """
    problem, _ = problems(generator, batch, link, 1, d)
    P_star = log_uniform(generator, 0.3, 1.5, batch)
    P_star = P_star * torch.randn(batch, generator=generator, dtype=torch.float64).sign()
    part = uniform(generator, 0.1, 0.6, batch)
    away = (part * P_star.abs())[:, None] * directions(generator, batch, 1 + d)
    target = outer_link.ray_point(problem.A, P_star)
    start = LinearDEQ(target.W - away[:, None, :1], target.U + away[:, None, 1:])
    allowed = outer_link.safe_step(link, start, problem.X, problem.A, P_star)
    eta = allowed * uniform(generator, 0.3, 0.999, batch)
    if across:
        P_star = -P_star
    if long:
        eta = 6 / local_rates(problem, target)[1]
    run = gradient_descent(
        lambda at: outer_link.loss(link, at, problem.X, problem.Y), start, eta, DESCENT,
        grad=lambda at: outer_link.gradient(link, at, problem.X, problem.Y), batch_ndim=1,
        progress=False,
    )  # fmt: skip
    return [
        Descent(
            problem.one(i), LinearDEQ(run.theta.W[:, i], run.theta.U[:, i]), P_star[i],
            float(eta[i]), float(allowed[i]),
        )
        for i in range(batch)
    ]  # fmt: skip


class OuterLink(Theorem[Instance]):
    label = "outer-link"
    title = "The link outside the equilibrium"
    kind = "rate"
    chapter = "15_drifting_sphere"
    statement = (
        r"Let $\hat y=\varphi(z)$ with $z=Wz+Ux$, $I-W_0$ invertible, $\varphi$ with slopes in "
        r"$[\alpha,\beta]$, $y=\varphi(Ax)$ and $L=\frac12\mathbb E\|\hat y-y\|^2$. Gradient flow "
        r"conserves $C=(I-W)(I-W)^\top+UU^\top$, and $L(t)\le e^{-2\mu t}L_0$ with "
        r"$\mu=\frac{4\alpha^3\beta}{(\alpha+\beta)^2}\lambda_{\min}(S)/\lambda_{\max}(C)$. For "
        r"$p=1$ it ends at the point of the ray $P^*(1,A)$ on the sphere, with "
        r"$\tan\frac\omega2\le e^{-ct}\tan\frac{\omega_0}2$, "
        r"$c=\alpha^2\lambda_{\min}(S)\sqrt{1+|A|^2}/r^2$, and gradient descent with "
        r"$\eta\le(|P^*|-\rho)^4/((\|N^*\|+\rho)^2\beta^2\lambda_{\max}(S))$ from a distance "
        r"$\rho<|P^*|$ to $N^*=P^*(1,A)$ contracts its distance to the ray."
    )
    hypotheses = {
        "sloped": Hypothesis(r"$\varphi$ has slopes in $[\alpha,\beta]$ with $\alpha>0$."),
        "full-rank": Hypothesis(r"$S=\mathbb E[xx^\top]$ is invertible."),
        "realisable": Hypothesis(r"The labels are $y=\varphi(Ax)$."),
        "plain-flow": Hypothesis(
            r"(for the flow) $W$ and $U$ follow $-\nabla L$, with one rate for both."
        ),
        "near": Hypothesis(r"(for descent) The start is nearer to $N^*$ than $|P^*|$."),
        "short-step": Hypothesis(r"(for descent) The step is at most the one stated."),
    }
    open_questions = (
        "For links that saturate, can the cap {eq}`eq-drift-cap` of "
        "{prf:ref}`drift-saturating` be left out? No start that fails was found.",
    )
    least_activity = 1e-4

    # Draws ------------------------------------------------------------------------------------

    def draw(self, generator: Generator, n: int) -> list[Instance]:
        return self._draw(generator, n)

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Instance]]]:
        def singular(generator: Generator, n: int) -> list[Flow]:
            problem, theta = problems(generator, n, SMOOTH[1][0], 1, 3)
            X = problem.X.clone()
            X[..., 2] = X[..., 0] - X[..., 1]
            pace = 20.0  # the slowest rate is 0, so the unit of time is taken from the others
            blind = Problem(problem.link, X, problem.A, problem.link(X @ problem.A.mT))
            return _unscaled(blind, theta, pace)

        def noisy(generator: Generator, n: int) -> list[Flow]:
            problem, theta = problems(generator, n, SMOOTH[1][0], 1, 2)
            noise = torch.randn(problem.Y.shape, generator=generator, dtype=torch.float64)
            return flows(Problem(problem.link, problem.X, problem.A, problem.Y + noise), theta)

        def asleep(generator: Generator, n: int) -> list[Flow]:
            found: list[Flow] = []
            for i, link in enumerate((activations.relu, activations.gelu)):
                problem, theta = problems(generator, len(range(i, n, 2)), link, 1, 2)
                X = problem.X.abs() + 0.5
                A = problem.A.abs()
                P = linear.resolvent_inverse(theta)
                U = -P.sign() * (theta.U.abs() + 2 * P.abs())  # b < −2 in every coordinate
                dead = LinearDEQ(theta.W, U)
                found += _unscaled(Problem(link, X, A, link(X @ A.mT)), dead, 5.0)
            return found

        def faster(generator: Generator, n: int) -> list[Flow]:
            return flows(*problems(generator, n, SMOOTH[1][0], 1, 2), rate=3.0)

        def swapped(make: Callable[[Generator, int], list[Flow]]) -> Callable[..., list[Instance]]:
            return lambda g, n: self._draw(g, n, make_flows=make)

        def walked(**options: bool) -> Callable[[Generator, int], list[Instance]]:
            return lambda g, n: self._draw(
                g, n, lambda h, k: flows(*problems(h, k, SMOOTH[1][0], 1, 1)), options
            )

        return {
            "sloped": swapped(asleep),
            "full-rank": swapped(singular),
            "realisable": swapped(noisy),
            "plain-flow": swapped(faster),
            "near": walked(across=True),
            "short-step": walked(long=True),
        }

    def _draw(
        self,
        generator: Generator,
        n: int,
        make_flows: Callable[[Generator, int], list[Flow]] | None = None,
        options: dict[str, bool] | None = None,
    ) -> list[Instance]:
        """n runs of each kind, in batches of one link. The first batch of points attains (b)."""
        run = (make_flows or self._flows)(generator, n)
        points: list[tuple[Problem, LinearDEQ]] = []
        walks: list[Descent] = []
        for i, link in enumerate(KINKED):
            share = len(range(i, n, len(KINKED)))
            if share:
                d = 1 + i % 3
                batch, theta = problems(generator, share, link, 1 + i % 2, d)
                if i == 0:
                    batch, theta = attained(share, link)
                points += [(batch.one(j), LinearDEQ(theta.W[j], theta.U[j])) for j in range(share)]
                walks += descents(generator, share, link, d, **(options or {}))
        return [Instance(*three) for three in zip(run, points, walks, strict=True)]

    @staticmethod
    def _flows(generator: Generator, n: int) -> list[Flow]:
        """Of the linear link, every third starts at w = 0 with S = I, where (c) is attained."""
        found: list[Flow] = []
        for i, (link, p) in enumerate(SMOOTH):
            share = len(range(i, n, len(SMOOTH)))
            if share:
                problem, theta = problems(generator, share, link, p, 1 + (i + 1) % 3)
                if i == 0:
                    special = (torch.arange(share) % 3 == 0)[:, None, None]
                    white = torch.linalg.qr(problem.X).Q * SAMPLES**0.5
                    X = torch.where(special, white, problem.X)
                    theta = LinearDEQ(theta.W, torch.where(special, 0.0, theta.U))
                    problem = Problem(link, X, problem.A, link(X @ problem.A.mT))
                found += flows(problem, theta)
        return found

    # Hypotheses and conclusions ---------------------------------------------------------------

    def slack(self, instance: Instance) -> dict[str, float]:
        flow, descent = instance.flow, instance.descent
        problem = flow.problem
        low, high = rates.extremes(linear.second_moment(problem.X))
        labels = problem.link(problem.X @ problem.A.mT)
        target = linear.rows(outer_link.ray_point(descent.problem.A, descent.P_star))
        first = torch.cat([1 - descent.path.W[0], descent.path.U[0]], dim=-1)
        return {
            "sloped": problem.link.alpha,
            "full-rank": float(low / high) - 1e-10,
            "realisable": 1e-12 - float((labels - problem.Y).abs().max()),
            "plain-flow": 1.0 if flow.rate == 1 else -1.0,
            "near": float(descent.P_star.abs() - (first - target).norm()),
            "short-step": descent.allowed - descent.eta,
        }

    def measure(self, instance: Instance) -> dict[str, Measurement]:
        return {
            **_measure_flow(instance.flow),
            **_measure_point(*instance.point),
            **_measure_descent(instance.descent),
        }


def _unscaled(problem: Problem, theta: LinearDEQ, end: float) -> list[Flow]:
    """Flow of problems without a slowest rate, in plain time."""
    run = gradient_flow(
        lambda at: outer_link.loss(problem.link, at, problem.X, problem.Y), theta, end,
        grad=lambda at: outer_link.gradient(problem.link, at, problem.X, problem.Y),
        times=end * torch.linspace(0, 1, 31, dtype=torch.float64),
        rtol=RTOL, atol=ATOL, batch_ndim=1, dense=False, progress=False,
    )  # fmt: skip
    return [
        Flow(problem.one(i), run.t, LinearDEQ(run.theta.W[:, i], run.theta.U[:, i]), run.steps, 1.0)
        for i in range(theta.W.shape[0])
    ]


def _measure_flow(flow: Flow) -> dict[str, Measurement]:
    problem, path = flow.problem, flow.path
    start = LinearDEQ(path.W[0], path.U[0])
    N, C = linear.rows(path), linear.invariant(path)
    moved = float((N - N[0]).flatten(1).norm(dim=1).max() / N[0].norm())
    # As in `conservation-law`: a step's local error e changes C by at most 2|N||e|, and
    # |e| ≤ √m (rtol|θ| + atol) for m unknowns.
    p = C.shape[-1]
    unknowns = N[0].numel() ** 0.5
    local = unknowns * (RTOL * (float(N[0].norm()) + p**0.5) + ATOL)
    allowed = flow.steps * 2 * float(N[0].norm()) * local / float(C[0].norm())
    drifted = float((C - C[0]).flatten(1).norm(dim=1).max() / C[0].norm())
    found = {"C is constant": Measurement(drifted, allowed, moved)}

    L = outer_link.loss(problem.link, path, problem.X, problem.Y)
    # A loss below 1e-10 L₀ counts as 1e-10 L₀, and as seen at the first record alone.
    fallen = (L / L[0]).clamp_min(1e-10)[1:]
    seen = (fallen > 1e-10) | (torch.arange(len(fallen)) == 0)
    exponent = float((-fallen.log() / (2 * flow.t[1:]))[seen].min())
    mu = float(outer_link.pl_constant(problem.link, start, problem.X))
    found["L(t) ≤ e^(−2μt) L₀"] = Measurement(exponent, mu * (1 - TOLERANCE), moved, lower=True)
    if p > 1:
        return found

    limit = linear.rows(linear.sphere_limit(start, problem.A))[0]
    r = float(limit.norm())
    v, n_star = N[:, 0] / N[:, 0].norm(dim=1, keepdim=True), limit / r
    found["N(t) → N_∞"] = Measurement(float((N[-1, 0] - limit).norm()) / r, CLOSE, moved)
    # tan(ω/2) = |v − n*|/|v + n*| for unit vectors: exact for small angles too.
    tangent = (v - n_star).norm(dim=1) / (v + n_star).norm(dim=1)
    shrunk = tangent[1:] / tangent[0]
    seen = (tangent[1:] > 1e-4) | (torch.arange(len(shrunk)) == 0)
    exponent = float((-shrunk.log() / flow.t[1:])[seen].min())
    c = float(outer_link.angle_rate(problem.link, start, problem.X, problem.A))
    # The first record is at t = 1e-3 END, where an error of some RTOL in the angle is a part
    # RTOL/(c t tan ω₀) of the exponent.
    early = 100 * RTOL / float(flow.t[1] * tangent[0].clamp_max(1)) if c else 0.0
    found["tan(ω/2) ≤ e^(−ct) tan(ω₀/2)"] = Measurement(
        exponent, c * (1 - TOLERANCE) - early, moved, lower=True
    )
    return found


def _measure_point(problem: Problem, theta: LinearDEQ) -> dict[str, Measurement]:
    link, X, A, Y = problem.link, problem.X, problem.A, problem.Y
    g = outer_link.gradient(link, theta, X, Y)
    L = float(outer_link.loss(link, theta, X, Y))
    squared = float(g.W.square().sum() + g.U.square().sum())
    mu = float(outer_link.pl_constant(link, theta, X))
    found = {
        "‖∇L‖² ≥ 2μL": Measurement(squared / (2 * L), mu * (1 - 1e-12), L, lower=True),
    }
    # ⟨∇L, N − TN*⟩ = E⟨φ′ φ̄ δx, P⁻¹T δx⟩ with N* = [I, A] and δ = F − A, here for T = I.
    F, P = linear.equilibrium_map(theta), linear.resolvent_inverse(theta)
    difference = X @ (F - A).mT
    weight = link.derivative(X @ F.mT) * link.secant(X @ F.mT, X @ A.mT)
    left = float((-g.W * (P - torch.eye(P.shape[-1], dtype=P.dtype))).sum())
    left += float((g.U * (theta.U - A)).sum())
    pulled = torch.linalg.solve(P, difference.mT).mT
    terms = weight * difference * pulled
    scale = float(terms.abs().sum(-1).mean()) + squared**0.5 * float(
        linear.rows(theta).norm() + A.norm() + 1
    )
    found["⟨∇L, N − N*⟩ = E[φ′φ̄ δx · P⁻¹δx]"] = Measurement(
        abs(left - float(terms.sum(-1).mean())),
        # The secant slope is the derivative where its points are 1e-5 apart, see `Link.secant`.
        1e-9 * scale,
        L,
    )
    return found


def _measure_descent(descent: Descent) -> dict[str, Measurement]:
    problem = descent.problem
    N = torch.cat([1 - descent.path.W, descent.path.U], dim=-1)[:, 0]
    direction = torch.cat([torch.ones(1, dtype=N.dtype), problem.A[0]])
    target = descent.P_star * direction
    distance = (N - target).norm(dim=1)
    moved = float((N - N[0]).norm(dim=1).max() / N[0].norm())
    r = float(N[0].norm())
    rise = float((distance[1:] - distance[:-1]).max())

    unit = direction / direction.norm()
    along = N @ unit
    from_ray = (N - along[:, None] * unit).norm(dim=1).square()
    P, P_ray = N[:, 0], along / direction.norm()
    low = rates.extremes(linear.second_moment(problem.X))[0]
    promised = problem.link.alpha**2 * low * (P_ray / P**3)[:-1]
    gained = (1 - from_ray[1:] / from_ray[:-1]) / descent.eta
    seen = from_ray[:-1] > 1e-6 * r**2
    # Forming N and its projection rounds by some eps r², which is divided by η and by d².
    rounding = 50 * EPS * r**2 / (descent.eta * from_ray[:-1])
    slackest = int(torch.where(seen, (gained - promised + rounding) / promised.abs(), 9e9).argmin())
    return {
        "‖N_k − N*‖ never increases": Measurement(
            rise, 8 * EPS * (r + float(target.norm())), moved
        ),
        "d₊² ≤ (1 − ηα²λP′/P³) d²": Measurement(
            float(gained[slackest]),
            float((promised - rounding)[slackest]),
            moved,
            lower=True,
        ),
    }
