"""Theorem `single-index-gradient`: ∇L = E[(z − y) D (z, x)] with D = φ′(u)/(1 − a φ′(u))."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from deqlib import activations, implicit, single_index
from deqlib.activations import Link
from deqlib.fixed_point import Newton
from deqlib.single_index import SingleIndexDEQ
from deqlib.theorems.base import Hypothesis, Measurement, Theorem
from deqlib.theorems.single_index_problems import STRICT, directions, uniform
from deqlib.theorems.unique_equilibrium import KINKED, SMOOTH, layer_factor, slopes

EPS = torch.finfo(torch.float64).eps
STEP = 2e-5
"""Step of the central differences; their truncation error is measured, see `measure`."""
LEFT = 1e-9
"""The unrolled network is so deep that its state's error is this part of the first one."""
AWAY = 0.02
"""How far a pre-activation stays from the kink of a link that has one: many STEPs."""

LINKS = (*SMOOTH, *KINKED)
FOLDING = (activations.tanh, activations.arctan, activations.softsign)
"""Odd links of slope 1 at 0: for a > 1 their layers from 0 jump where s changes its sign."""


@dataclass(frozen=True)
class Problem:
    """A batch of models, samples and labels; y need not come from any model.

    theta (*batch), X (*batch, n, d), y (*batch, n), towards: a unit direction of (a, w).
    depth 0 means that the forward pass is at the equilibrium; else it is this many layers from 0.
    """

    link: Link
    theta: SingleIndexDEQ
    X: Tensor
    y: Tensor
    towards: Tensor
    depth: int = 0


@dataclass(frozen=True)
class Instance:
    """One problem and what four ways of differentiating its loss have given; all (1 + d) vectors.

    closed        the theorem's formula at the forward pass
    by_implicit   `implicit.equilibrium`: an adjoint solve
    by_unrolling  automatic differentiation through the damped layers
    once, twice   central differences along ``towards`` with the steps STEP and 2 STEP
    allowed       rounding error of the closed form and of the adjoint; of the unrolled network
                  with its truncation; of the loss, for the differences
    nearest       the smallest |u| of the sample
    """

    problem: Problem
    closed: Tensor
    by_implicit: Tensor
    by_unrolling: Tensor
    once: float
    twice: float
    allowed: tuple[float, float, float]
    loss: float
    residual: float
    nearest: float


def forward(link: Link, theta: SingleIndexDEQ, X: Tensor, depth: int) -> Tensor:
    """Pre-activations: at the equilibrium for depth 0, else where so many layers from 0 lead."""
    a, s = theta.a[..., None], single_index.index(theta, X)
    if depth == 0:
        return single_index.preactivation(link, a, s)
    u = s
    for _ in range(depth - 1):
        u = a * link(u) + s
    return u


def differentiate(many: Problem) -> list[Instance]:
    """All four derivatives of a batch of problems, and what each may err by."""
    link, theta, X, y, depth = many.link, many.theta, many.X, many.y, many.depth
    a = theta.a[..., None]
    u = forward(link, theta, X, depth)
    z = link(u)
    D = single_index.slope(link, a, u)
    closed = single_index.flat(single_index.pull_back(D, z, X, y))
    s = single_index.index(theta, X)

    def objective(vector: Tensor) -> Tensor:
        at = single_index.unflat(vector)
        return 0.5 * (link(forward(link, at, X, depth)) - y).square().mean(-1)

    leaf = single_index.flat(theta).clone().requires_grad_()
    at = single_index.unflat(leaf)

    def layer(state: Tensor) -> Tensor:
        return link(at.a[..., None] * state + single_index.index(at, X))

    with torch.enable_grad():
        solved = implicit.equilibrium(
            layer, z, method=Newton(), tol=1e-12, state_ndim=0, throw=False
        ).z
        (by_implicit,) = torch.autograd.grad(0.5 * (solved - y).square().mean(-1).sum(), leaf)
        state, layers, tau = unrolled(link, layer, z, a)
        (by_unrolling,) = torch.autograd.grad(0.5 * (state - y).square().mean(-1).sum(), leaf)

    point, step = single_index.flat(theta), STEP * many.towards
    once = (objective(point + step) - objective(point - step)) / (2 * STEP)
    twice = (objective(point + 2 * step) - objective(point - 2 * step)) / (4 * STEP)
    allowed = _allowed(link, a, s, u, X, y, D, layers, tau)
    batch = [
        Problem(link, SingleIndexDEQ(theta.a[i], theta.w[i]), X[i], y[i], many.towards[i], depth)
        for i in range(len(y))
    ]
    residual = (z - link(a * z + s)).abs().amax(-1)
    loss = 0.5 * (z - y).square().mean(-1)
    return [
        Instance(
            one, closed[i], by_implicit[i], by_unrolling[i], float(once[i]), float(twice[i]),
            (float(allowed[0][i]), float(allowed[1][i]), float(allowed[2][i])),
            float(loss[i]), float(residual[i]), float(u[i].abs().min()),
        )
        for i, one in enumerate(batch)
    ]  # fmt: skip


def unrolled(
    link: Link, layer: Callable[[Tensor], Tensor], z: Tensor, a: Tensor
) -> tuple[Tensor, int, Tensor]:
    """The damped layers from 0, with the best damping: their last state, depth and damping.

    They are so many that q^K ≤ LEFT. Outside a β < 1, where q is no bound, 300.
    """
    m, M = slopes(link, a)
    tau = torch.where(m > 0, 2 / (m + M), 0.5)
    q = float(layer_factor(link, a, tau).max())
    layers = math.ceil(math.log(LEFT) / math.log(max(q, 1e-3))) if q < 1 else 300
    state = torch.zeros_like(z)
    for _ in range(layers):
        state = state + tau * (layer(state) - state)
    return state, layers, tau


def _allowed(
    link: Link, a: Tensor, s: Tensor, u: Tensor, X: Tensor, y: Tensor, D: Tensor,
    layers: int, tau: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Bounds of the errors of (closed form or adjoint, unrolled network, loss), each (*batch).

    u is known up to δu = 8 eps (|u| + |az| + |s|)/m. With |φ″| ≤ 2β, which holds for every smooth
    link here, D = φ′/(1 − aφ′) is then known up to 2β δu/m² and its own rounding. Outside a β < 1
    the slope 1 − aφ′ at u stands for m and M.

    The error e_k of the state after k layers is at most q^k e₀, and the error ε_k of its
    derivative in θ obeys ε_{k+1} ≤ q ε_k + τ e_k B with B = b|a|(|a|‖∇z‖ + ‖(z, x)‖) + β, so
    ε_K ≤ q^K ‖∇z‖ + K q^(K−1) τ e₀ B, since both start from 0. Here b bounds the slope of φ′
    between u and any other point: 2β, and β/|u| where the only kink is at 0.
    """
    z = link(u)
    m, M = slopes(link, a)
    here = (1 - a * link.derivative(u)).abs()
    m, M = torch.where(m > 0, m, here), torch.where(m > 0, M, here)
    bend = link.beta / u.abs().clamp(min=AWAY / 2) if link in KINKED else 2 * link.beta
    size = (z.square() + X.square().sum(-1)).sqrt()
    gap = (z - y).abs()
    du = 8 * EPS * (u.abs() + (a * z).abs() + s.abs()) / m
    dz = link.beta * du
    dD = 2 * link.beta / m.square() * du + 8 * EPS * D.abs() * M / m
    closed = 4 * (size * (dz * D.abs() + gap * dD) + gap * D.abs() * (dz + EPS * size)).mean(-1)

    q = torch.maximum((1 - tau * m).abs(), (1 - tau * M).abs())
    B = bend * a.abs() * (a.abs() * D.abs() * size + size) + link.beta
    last = q**layers * z.abs()
    off = q**layers * D.abs() * size + layers * q ** (layers - 1) * tau * z.abs() * B
    unrolling = (last * (D.abs() * size + off) + gap * off).mean(-1) + 10 * closed
    loss = (gap * dz + dz.square()).mean(-1) + 8 * EPS * gap.square().mean(-1)
    return closed, unrolling, loss


class SingleIndexGradient(Theorem[Instance]):
    label = "single-index-gradient"
    title = "The gradient of a single-index DEQ"
    kind = "identity"
    chapter = "11_single_index_model"
    statement = (
        r"Let $z$ be the equilibrium of $z=\varphi(az+w^\top x)$, $u=az+w^\top x$ and "
        r"$D=\varphi'(u)/(1-a\varphi'(u))$. Then $\nabla_\theta z=D\,(z,x)$ for $\theta=(a,w)$, "
        r"and $L=\frac12\mathbb E(z-y)^2$ has the gradient $\nabla L=\mathbb E[(z-y)\,D\,(z,x)]$, "
        r"for any labels $y$."
    )
    hypotheses = {
        "self-weight": Hypothesis(
            r"$a\beta<1$ and $a\alpha<1$, where the slopes of $\varphi$ lie in $[\alpha,\beta]$."
        ),
        "differentiable": Hypothesis(r"$\varphi$ is differentiable at $u$ for every input."),
        "exact-equilibrium": Hypothesis(r"$z$ is the equilibrium, not a layer on the way to it."),
    }

    def draw(self, generator: Generator, n: int) -> list[Instance]:
        return _spread(generator, n, LINKS, _clear_of_kinks, (1, 3, 6))

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Instance]]]:
        return {
            "self-weight": lambda g, n: _spread(g, n, FOLDING, _at_the_jump, (2, 3, 6)),
            "differentiable": lambda g, n: _spread(g, n, KINKED, _on_the_kink, (2, 3, 6)),
            "exact-equilibrium": lambda g, n: _spread(g, n, STRICT, _shallow, (1, 3, 6)),
        }

    def slack(self, instance: Instance) -> dict[str, float]:
        link, a = instance.problem.link, float(instance.problem.theta.a)
        kink = instance.nearest - AWAY / 2 if link in KINKED else 1.0
        return {
            "self-weight": 1 - max(a * link.alpha, a * link.beta),
            "differentiable": kink,
            "exact-equilibrium": 1.0 if instance.residual < 1e-10 else -instance.residual,
        }

    def measure(self, instance: Instance) -> dict[str, Measurement]:
        closed = instance.closed
        rounding, unrolling, loss = instance.allowed
        activity = float(closed.norm()) / (1 + instance.loss)
        slope = float(closed @ instance.problem.towards)
        # D(h) errs by c h² + O(h⁴), so |D(2h) − D(h)| is three times its truncation error.
        truncation = abs(instance.twice - instance.once)
        return {
            "closed form = adjoint solve": Measurement(
                float((closed - instance.by_implicit).norm()), rounding, activity
            ),
            "closed form = unrolled layers": Measurement(
                float((closed - instance.by_unrolling).norm()), unrolling, activity
            ),
            "closed form = finite differences": Measurement(
                abs(slope - instance.once), truncation + 4 * loss / STEP, activity
            ),
        }


# Draws ------------------------------------------------------------------------------------------

Draw = Callable[[Generator, Link, int, int], Problem]


def _spread(
    generator: Generator, n: int, links: tuple[Link, ...], draw: Draw, sizes: tuple[int, ...]
) -> list[Instance]:
    """n instances, each link in turn; those of one link are one batch, of one size d."""
    shares = [len(range(i, n, len(links))) for i in range(len(links))]
    batches = [
        differentiate(draw(generator, link, sizes[i % len(sizes)], share)) if share else []
        for i, (link, share) in enumerate(zip(links, shares, strict=True))
    ]
    return [batches[i % len(links)][i // len(links)] for i in range(n)]


def random_problem(generator: Generator, link: Link, d: int, batch: int, n: int = 12) -> Problem:
    """a in [−6, 0.9]/β, or from 0.9/α on where the link falls; labels of no model's making."""
    least = -6 / link.beta if link.alpha >= 0 else max(-6 / link.beta, 0.9 / link.alpha)
    a = uniform(generator, least, 0.9 / link.beta, batch)
    w = uniform(generator, 0.3, 2, batch, 1) * directions(generator, batch, d)
    X = torch.randn(batch, n, d, generator=generator, dtype=torch.float64)
    y = torch.randn(batch, n, generator=generator, dtype=torch.float64)
    return Problem(link, SingleIndexDEQ(a, w), X, y, directions(generator, batch, 1 + d))


def _shifted(one: Problem, s: Tensor) -> Problem:
    """The same with the indices s (batch, n): each input moves along w."""
    w = one.theta.w[:, None]
    off = s - single_index.index(one.theta, one.X)
    X = one.X + off[..., None] * w / w.square().sum(-1, keepdim=True)
    return Problem(one.link, one.theta, X, one.y, one.towards, one.depth)


def _clear_of_kinks(generator: Generator, link: Link, d: int, batch: int) -> Problem:
    one = random_problem(generator, link, d, batch)
    if link not in KINKED:
        return one
    # Kinks are at u = 0, which is s = 0; |u| ≥ |s|/M.
    s = single_index.index(one.theta, one.X)
    least = AWAY * slopes(link, one.theta.a[:, None])[1]
    side = torch.where(s >= 0, 1.0, -1.0)
    return _shifted(one, torch.where(s.abs() < least, side * least, s))


# Draws with one hypothesis less -----------------------------------------------------------------


def _on_the_kink(generator: Generator, link: Link, d: int, batch: int) -> Problem:
    """Two inputs orthogonal to w, so that u = 0, where ReLU and leaky ReLU have two slopes."""
    one = _clear_of_kinks(generator, link, d, batch)
    s = single_index.index(one.theta, one.X).clone()
    s[:, :2] = 0
    return _shifted(one, s)


def _shallow(generator: Generator, link: Link, d: int, batch: int) -> Problem:
    """Three layers from 0 in the place of the equilibrium, with |a|β ≥ ½ so that it matters."""
    one = random_problem(generator, link, d, batch)
    a = uniform(generator, 0.5, 0.9, batch) / link.beta
    return Problem(link, SingleIndexDEQ(a, one.theta.w), one.X, one.y, one.towards, depth=3)


def _at_the_jump(generator: Generator, link: Link, d: int, batch: int) -> Problem:
    """a in [1.3, 2.5], the equilibrium that 500 layers from 0 find, one input with wᵀx = 0."""
    one = random_problem(generator, link, d, batch)
    s = single_index.index(one.theta, one.X).clone()
    s[:, 0] = 0
    one = _shifted(one, s)
    a = uniform(generator, 1.3, 2.5, batch)
    return Problem(link, SingleIndexDEQ(a, one.theta.w), one.X, one.y, one.towards, depth=500)
