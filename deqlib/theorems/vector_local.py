"""Theorem `vector-local`: near the target a nonlinear vector state is one-point monotone too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from deqlib import activations, single_index, vector_state
from deqlib.activations import Link
from deqlib.theorems.base import Hypothesis, Measurement, Theorem
from deqlib.theorems.single_index_problems import directions, log_uniform, uniform
from deqlib.vector_state import Constants, VectorDEQ

EPS = torch.finfo(torch.float64).eps
STEPS = 6
SOLVED = 1e-10
"""A residual of y = φ(W*y + U*x) above this, relative to 1 + ‖y‖, is not realised by the target."""
LINKS = (
    activations.identity, activations.linear_plus_tanh(0.9), activations.linear_plus_tanh(0.97),
    activations.leaky_relu(0.8), activations.smooth_leaky_relu(0.9),
    activations.weakly_nonlinear(0.1),
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """Fit z = φ(W z + U x) to a target on a sample. One problem, or a batch of one shape.

    X (*batch, n, d); theta, target (*batch, …); y (*batch, n, p), the target's equilibria where it
    is realisable; readout c (*batch, p): the loss is ½E(cᵀ(z − y))²; None for ½E‖z − y‖².
    """

    link: Link
    X: Tensor
    theta: VectorDEQ
    target: VectorDEQ
    y: Tensor
    readout: Tensor | None = None


@dataclass(frozen=True)
class Run:
    """A problem, the equilibria z of its start, the gradient there, and a descent of `STEPS` steps:
    the step η and the squared distances ‖δ_k‖² (STEPS + 1,)."""

    problem: Problem
    z: Tensor
    gradient: VectorDEQ
    eta: Tensor
    distances: Tensor
    allowed: Tensor
    """The largest step of the theorem, 1/Λ."""


class VectorLocal(Theorem[Run]):
    label = "vector-local"
    title = "A vector state, near the target"
    kind = "rate"
    chapter = "14_outside_the_ball"
    statement = (
        r"For $z=\varphi(Wz+Ux)\in\mathbb R^p$, slopes in $[\alpha,\beta]$, $\alpha>0$, let "
        r"$\kappa=1/\beta-\|W^*\|_2$, $\sigma=1/\alpha-1/\beta<\kappa/2$ and "
        r"$\rho=\|\delta_0\|<\kappa/4$. Let $\lambda$, $\lambda^+$ be the extreme eigenvalues of "
        r"$\mathbb E[(y,x)(y,x)^\top]$. With $\gamma=1-\frac{\sigma+\rho}{\kappa-\rho}>0$, "
        r"$m=\gamma\lambda/(1/\alpha+\|W^*\|_2+\rho)^2$ and "
        r"$\Lambda=\lambda^+\kappa^2/(\gamma(\kappa-\rho)^4)$, the gradient of "
        r"$\frac12\mathbb E\|z-y\|^2$ satisfies, wherever $\|\delta\|\le\rho$, "
        r"$\langle\nabla L,\delta\rangle\ge\gamma\,\mathbb E\|z-y\|^2\ge m\|\delta\|^2$ and "
        r"$\|\nabla L\|^2\le\Lambda\langle\nabla L,\delta\rangle$; gradient descent with "
        r"$\eta\le1/\Lambda$ satisfies $\|\delta_{k+1}\|^2\le(1-\eta m)\|\delta_k\|^2$."
    )
    hypotheses = {
        "nearly-linear": Hypothesis(r"$\sigma<\kappa/2$."),
        "local": Hypothesis(r"$\|\delta_0\|<\kappa/4$."),
        "full-state": Hypothesis(r"The loss is $\frac12\mathbb E\|z-y\|^2$, of the whole state."),
        "realisable": Hypothesis(r"$y=\varphi(W^*y+U^*x)$, without noise."),
        "small-step": Hypothesis(r"$0<\eta\le1/\Lambda$."),
    }
    open_questions = (
        r"For $z=\varphi(Wz+Ux)$ with a nonlinear $\varphi$ the distance to the target may "
        "grow, and only a local statement is proved. Does descent find a global minimiser "
        "from far away, and does anything hold for a state that is seen through a read-out "
        "({doc}`/notebooks/14_outside_the_ball`)?",
    )
    least_activity = 1e-6

    def draw(self, generator: Generator, n: int) -> list[Run]:
        """Every link in turn, κ from just above 2σ to 1/β, starts up to 0.95 of the radius."""
        return _spread(n, lambda i, share: descend(random_problems(generator, share, i)))

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Run]]]:
        return {
            "nearly-linear": lambda generator, n: _one_by_one(descend(_kinked(generator, n))),
            "local": lambda generator, n: _one_by_one(descend(_rotated(generator, n))),
            "full-state": _partly_seen,
            "realisable": _noisy,
            "small-step": lambda generator, n: _spread(
                n, lambda i, share: descend(random_problems(generator, share, i), long=True)
            ),
        }

    def slack(self, instance: Run) -> dict[str, float]:
        one = instance.problem
        room = 1 / one.link.beta - float(torch.linalg.matrix_norm(one.target.W, 2))
        bend = 1 / one.link.alpha - 1 / one.link.beta
        again = one.link(vector_state.preactivation(one.target, one.X, one.y))
        residual = ((again - one.y).norm(dim=-1) / (1 + one.y.norm(dim=-1))).max()
        return {
            "nearly-linear": room / 2 - bend,
            "local": room / 4 - float(instance.distances[0].sqrt()),
            "full-state": 1.0 if one.readout is None else -1.0,
            "realisable": SOLVED - float(residual),
            "small-step": float(instance.allowed * (1 + 1e-12) - instance.eta),
        }

    def measure(self, instance: Run) -> dict[str, Measurement]:
        one, z, eta = instance.problem, instance.z, float(instance.eta)
        delta = vector_state.difference(one.theta, one.target)
        gap = z - one.y
        c = careless(one)
        inner = float(vector_state.inner(instance.gradient, delta))
        squared = float(vector_state.inner(instance.gradient, instance.gradient))
        apart = float(gap.square().sum(-1).mean())
        far = float(instance.distances[0])
        form = float(vector_state.one_point_form(one.link, one.theta, one.target, one.X, z, one.y))
        # Equilibria are known to 1e-13 (1 + ‖z‖) in the residual, which the form multiplies by the
        # adjoint q and by secants of up to 1/α.
        u = vector_state.preactivation(one.theta, one.X, z)
        q = vector_state.adjoint(one.link, one.theta, u, gap).norm(dim=-1)
        rounding = float((q * (1 + z.norm(dim=-1) + one.y.norm(dim=-1))).mean())
        rounding *= 1e-12 * (1 + 1 / one.link.alpha)
        falls = -torch.log(instance.distances[1:] / instance.distances[:-1])
        promised = -torch.log1p(-eta * c.contraction)
        activity = float(abs(falls).max())

        def said(measured: float, bound: float, lower: bool = True) -> Measurement:
            return Measurement(measured, bound, activity, lower=lower)

        return {
            "⟨∇L, δ⟩ = E[eᵀ(Ψ′ − W)⁻¹(Ψ̄ − W*)e]": said(abs(inner - form), rounding, lower=False),
            "⟨∇L, δ⟩ ≥ γ E‖z − y‖²": said(inner / apart, float(c.gamma) - rounding / apart),
            "⟨∇L, δ⟩ ≥ m‖δ‖²": said(inner / far, float(c.contraction) - rounding / far),
            "‖∇L‖² ≤ Λ⟨∇L, δ⟩": said(inner / squared, 1 / float(c.smoothness)),
            "‖δ₊‖² ≤ (1 − ηm)‖δ‖²": said(float(falls.min()), float(promised) - 64 * EPS),
        }


def careless(problem: Problem) -> Constants:
    """The theorem's constants; outside its hypotheses, those of a reader who forgot to check them:
    σ is taken as at most κ/2, and ρ as at most κ/4."""
    link, target = problem.link, problem.target
    delta = vector_state.difference(problem.theta, target)
    norm = torch.linalg.matrix_norm(target.W, 2)
    room, bend = 1 / link.beta - norm, 1 / link.alpha - 1 / link.beta
    rho = torch.minimum(vector_state.inner(delta, delta).sqrt(), room / 4)
    c = vector_state.constants(link, target, problem.X, problem.y, rho)
    gamma = 1 - ((room / 2).clamp(max=bend) + rho) / (room - rho)
    part = gamma / c.gamma
    return c._replace(gamma=gamma, contraction=c.contraction * part, smoothness=c.smoothness / part)


def descend(problem: Problem, *, long: bool = False) -> Run:
    """`STEPS` steps from the start of every problem of the batch, all of size 1/Λ; with ``long``
    2.5 ⟨∇L, δ⟩/‖∇L‖², which cannot but increase the distance."""
    link, X, theta = problem.link, problem.X, problem.theta
    allowed = 1 / careless(problem).smoothness
    z: Tensor | None = None
    distances, first, eta = [], None, allowed
    for k in range(STEPS + 1):
        delta = vector_state.difference(theta, problem.target)
        distances.append(vector_state.inner(delta, delta))
        if k == STEPS:
            break
        z = vector_state.equilibrium(link, theta, X, start=z)
        g = _field(problem, theta, z)
        if first is None:
            first = (z, g)
            if long:
                eta = 2.5 * vector_state.inner(g, delta) / vector_state.inner(g, g)
        step = eta[:, None, None]
        theta = VectorDEQ(theta.W - step * g.W, theta.U - step * g.U)
        if long:  # one such step is enough, and a second may leave β‖W‖₂ < 1
            delta = vector_state.difference(theta, problem.target)
            distances += [vector_state.inner(delta, delta)] * STEPS
            break
    assert first is not None
    return Run(problem, *first, eta, torch.stack(distances), allowed)


def _field(problem: Problem, theta: VectorDEQ, z: Tensor) -> VectorDEQ:
    """The gradient of the problem's loss at θ with equilibria z."""
    y, c = problem.y, problem.readout
    if c is not None:  # the error that a read-out sees: c cᵀ (z − y)
        y = z - ((z - y) @ c[..., None]) * c[..., None, :]
    return vector_state.gradient(problem.link, theta, problem.X, y, z)


def _one_by_one(batch: Run) -> list[Run]:
    """The runs of a batch."""
    many = batch.problem

    def part(theta: VectorDEQ, i: int) -> VectorDEQ:
        return VectorDEQ(theta.W[i], theta.U[i])

    return [
        Run(
            Problem(
                many.link, many.X[i], part(many.theta, i), part(many.target, i), many.y[i],
                None if many.readout is None else many.readout[i],
            ),
            batch.z[i], part(batch.gradient, i), batch.eta[i], batch.distances[:, i],
            batch.allowed[i],
        )
        for i in range(len(many.X))
    ]  # fmt: skip


def _spread(n: int, make: Callable[[int, int], Run]) -> list[Run]:
    """n runs in turn from one batch for every link."""
    batches = [
        _one_by_one(make(i, len(range(i, n, len(LINKS))))) for i in range(min(n, len(LINKS)))
    ]
    return [batches[k % len(batches)][k // len(batches)] for k in range(n)]


# Draws ------------------------------------------------------------------------------------------


def random_problems(
    generator: Generator,
    count: int,
    i: int,
    *,
    least: int = 1,
    part: tuple[float, float] = (0.05, 0.95),
) -> Problem:
    """A batch of problems for link i: κ log-uniform between 2.1σ (at least 0.05) and 1/β, a start
    in a uniform direction at a uniform part of κ/4."""
    link = LINKS[i % len(LINKS)]
    p = least + i % (4 - least)
    d = 1 + (i + p) % 3
    bend = 1 / link.alpha - 1 / link.beta
    room = log_uniform(generator, max(2.1 * bend, 0.05), 1 / link.beta, count)
    W = torch.randn(count, p, p, generator=generator, dtype=torch.float64)
    W = W / torch.linalg.matrix_norm(W, 2)[:, None, None] * (1 / link.beta - room)[:, None, None]
    U = torch.randn(count, p, d, generator=generator, dtype=torch.float64)
    kind = single_index.INPUTS[i % 3]
    X = single_index.random_inputs(generator, 6 * (p + d), d, kind, batch=(count,))
    away = (uniform(generator, *part, count) * room / 4)[:, None] * directions(
        generator, count, p * (p + d)
    )
    target = VectorDEQ(W, U)
    theta = VectorDEQ(W + away[:, : p * p].reshape(W.shape), U + away[:, p * p :].reshape(U.shape))
    return Problem(link, X, theta, target, vector_state.equilibrium(link, target, X))


# ------------------------------------------------------------ instances with one hypothesis less


def turn(angle: Tensor) -> Tensor:
    """(*batch, 2, 2) rotations of the plane."""
    c, s = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)


def _rotated(generator: Generator, n: int) -> Problem:
    """W = ωR_t and W* = ωR_(−t), cos t = ω: (I − W)⁻¹(I − W*) has symmetric part (1 − 2ω²) I, so
    the form is negative for every error of a linear state, and nearly so here."""
    link = activations.linear_plus_tanh(0.97)
    size = uniform(generator, 0.8, 0.92, n)
    W, V = (size[:, None, None] * turn(sign * torch.acos(size)) for sign in (1, -1))
    eye = torch.eye(2, dtype=torch.float64)
    F, G = torch.randn(2, n, 2, 2, generator=generator, dtype=torch.float64)
    X = single_index.random_inputs(generator, 24, 2, "gaussian", batch=(n,))
    target = VectorDEQ(V, (eye - V) @ G)
    y = vector_state.equilibrium(link, target, X)
    return Problem(link, X, VectorDEQ(W, (eye - W) @ F), target, y)


def _kinked(generator: Generator, n: int) -> Problem:
    """Leaky ReLU with leak 0.2 and one state that crosses the kink between y and z.

    W = W* = ωR_t with cos t = ω; on inputs x > 0, y = (−0.9τ, 1) x and z = (0.1τ, 1 − ντ) x. Then
    Ψ′ = I and Ψ̄ = diag(4.6, 1), and ν is the worst choice for the quadratic form.
    """
    link = activations.leaky_relu(0.2)
    size = uniform(generator, 0.85, 0.93, n)
    W = size[:, None, None] * turn(torch.acos(size))
    eye = torch.eye(2, dtype=torch.float64)
    nu = 1.8 * torch.linalg.inv(eye - W)[:, 1, 0]
    step = torch.stack([torch.ones(n, dtype=torch.float64), -nu], -1)  # (z − y)/(τ x)
    bent = torch.tensor([4.6, 1.0], dtype=torch.float64)
    moved = bent * step - (W @ step[..., None])[..., 0]  # δ_U x/(τ x)
    tau = uniform(generator, 0.2, 0.9, n) * (1 - size) / 4 / moved.norm(dim=-1)
    y = torch.stack([-0.9 * tau, torch.ones_like(tau)], -1)
    pre = torch.stack([-4.5 * tau, torch.ones_like(tau)], -1)
    U = (pre - (W @ y[..., None])[..., 0])[..., None]
    X = uniform(generator, 0.5, 1.5, n, 24, 1)
    theta = VectorDEQ(W, U + (tau[:, None] * moved)[..., None])
    return Problem(link, X, theta, VectorDEQ(W, U), y[:, None, :] * X)


def _partly_seen(generator: Generator, n: int) -> list[Run]:
    """Only cᵀz is compared with the target, c a unit vector in two or three dimensions."""

    def make(i: int, share: int) -> Run:
        many = random_problems(generator, share, i, least=2, part=(0.02, 0.2))
        c = directions(generator, share, many.y.shape[-1])
        return descend(replace(many, readout=c))

    return _spread(n, make)


def _noisy(generator: Generator, n: int) -> list[Run]:
    """Noise ten times as large as what is left to learn."""

    def make(i: int, share: int) -> Run:
        many = random_problems(generator, share, i)
        z = vector_state.equilibrium(many.link, many.theta, many.X)
        apart = (z - many.y).square().mean((-2, -1), keepdim=True).sqrt()
        noise = torch.randn(many.y.shape, generator=generator, dtype=torch.float64)
        return descend(replace(many, y=many.y + 10 * apart * noise))

    return _spread(n, make)
