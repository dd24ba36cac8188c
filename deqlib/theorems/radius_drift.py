"""Theorem `radius-drift`: how fast a nonlinear link moves the sphere of the linear model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from deqlib import activations, drift, single_index
from deqlib.activations import Link
from deqlib.dynamics import gradient_flow
from deqlib.single_index import SingleIndexDEQ
from deqlib.theorems.base import Hypothesis, Measurement, Theorem
from deqlib.theorems.single_index_problems import directions, log_uniform, uniform

EPS = torch.finfo(torch.float64).eps
RTOL, ATOL = 1e-6, 1e-8
STEPS = 6
RATE = 1 / STEPS
SAMPLES = 8

Adjoint = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(z, y, φ′(u), D, t) ↦ q (*batch, n): what a backward pass claims the adjoints to be."""
Forward = Callable[[Link, SingleIndexDEQ, Tensor, Tensor], Tensor]
"""(φ, θ, s, guess) ↦ u (*batch, n): the pre-activations that a forward pass returns."""
Optimiser = Callable[[list[Tensor]], torch.optim.Optimizer]
State = tuple[Tensor, Tensor, Tensor, Tensor]
"""(a, w, t, ∫ drift): the parameters, the clock and the integral of the drift."""

ADJOINTS: dict[str, Adjoint] = {
    "gradient": lambda z, y, rise, D, t: (z - y) * D,
    "Jacobian-free": lambda z, y, rise, D, t: (z - y) * rise,
    "Huber gradient": lambda z, y, rise, D, t: (z - y).clamp(-0.5, 0.5) * D,
    "error alone": lambda z, y, rise, D, t: z - y,
    "garbage": lambda z, y, rise, D, t: torch.sin(3 * y + z + 5 * t) + 0.3,
    # The gradient of a loss with slope (z − y) sin²(πz): zero at the kinks of ReLU and hard tanh,
    # where other gradients jump, so that the integrator keeps its order.
    "weighted gradient": lambda z, y, rise, D, t: (z - y) * torch.sin(torch.pi * z).square() * D,
}


def straight(slope: float) -> Link:
    """φ(s) = slope · s."""
    return Link(
        f"{slope:g} s", lambda s: slope * s, lambda s: torch.full_like(s, slope),
        lambda z: z / slope, slope, slope,
    )  # fmt: skip


hard_tanh = Link(
    "hard tanh",
    lambda s: s.clamp(-1, 1),
    lambda s: ((s >= -1) & (s < 1)).to(s.dtype),
    None,
    0.0,
    1.0,
)
"""φ(s) = s in [−1, 1], constant outside."""

CURVED: tuple[tuple[Link, str], ...] = (
    (activations.tanh, "gradient"),
    (activations.linear_plus_tanh(0.3), "garbage"),
    (activations.relu, "error alone"),
    (activations.logistic, "Jacobian-free"),
    (activations.softplus, "Huber gradient"),
    (activations.leaky_relu(0.2), "error alone"),
)
"""Links and adjoints that the law is drawn for; with a kink only where the adjoint has no jump."""
STRAIGHT: tuple[tuple[Link, str, float], ...] = (
    (straight(0.5), "garbage", 2.0),
    (activations.identity, "gradient", 1.0),
    (activations.relu, "weighted gradient", 1.0),
    (hard_tanh, "weighted gradient", 1.0),
)
"""Links, adjoints and c with φ(u) = u/c on every sample with q ≠ 0."""
BENT = tuple((link, adjoint, 1.0) for link, adjoint in CURVED[:3])
"""The same with φ(u) ≠ u/c: two curved links, and a ReLU whose sleeping samples have q ≠ 0."""


def exact(link: Link, theta: SingleIndexDEQ, s: Tensor, guess: Tensor) -> Tensor:
    """The forward pass of the theorem."""
    return single_index.preactivation(link, theta.a[..., None], s, start=guess)


def picard(link: Link, theta: SingleIndexDEQ, s: Tensor, guess: Tensor) -> Tensor:
    """An inexact forward pass: two Picard steps from zero."""
    u = s
    for _ in range(2):
        u = theta.a[..., None] * link(u) + s
    return u


# Optimisers. All stay within the distance that `train` leaves to a = 1/β.


def plain(rate: float) -> Optimiser:
    """Gradient descent as torch has it, for a and w alike."""
    return lambda parameters: torch.optim.SGD(parameters, lr=rate)


def momentum(rate: float) -> Optimiser:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.5)


def decay(rate: float) -> Optimiser:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, weight_decay=0.3)


def adam(rate: float) -> Optimiser:
    return lambda parameters: torch.optim.Adam(parameters, lr=rate / 5)


def two_rates(rate: float) -> Optimiser:
    return lambda parameters: torch.optim.SGD(
        [{"params": parameters[:1], "lr": 1.5 * rate}, {"params": parameters[1:], "lr": rate}]
    )


@dataclass(frozen=True)
class Training:
    """What a run consists of besides its problem; each field is a hypothesis of the theorem."""

    forward: Forward = exact
    optimiser: Callable[[float], Optimiser] = plain
    euler: bool = False


PLAIN = Training()


@dataclass(frozen=True)
class Run:
    """A batch of problems of one link, or one of them, and the record of their training.

    path, q   : K steps of descent, θ (*batch, K + 1) and adjoints (*batch, K, n).
    end, moved: where the flow from path[0] ends, and the integral of its drift.
    """

    link: Link
    c: Tensor
    adjoint: str
    training: Training
    X: Tensor
    path: SingleIndexDEQ
    q: Tensor
    end: SingleIndexDEQ
    moved: Tensor
    steps: int

    def one(self, i: int) -> Run:
        """Problem i of a batch."""
        return Run(
            self.link, self.c[i], self.adjoint, self.training, self.X[i],
            SingleIndexDEQ(self.path.a[i], self.path.w[i]), self.q[i],
            SingleIndexDEQ(self.end.a[i], self.end.w[i]), self.moved[i], self.steps,
        )  # fmt: skip


@dataclass(frozen=True)
class Instance:
    """A run with a curved link, for the law, and one with a straight link, for the constancy."""

    law: Run
    constant: Run


def train(
    generator: Generator,
    batch: int,
    link: Link,
    d: int,
    c: Tensor,
    adjoint: str,
    training: Training = PLAIN,
) -> Run:
    """A batch of random problems, trained by descent and by flow for one unit of time.

    An arbitrary q may lead to a = 1/β, where no integrator can follow. So q is divided by a number
    (which makes it another q) such that the speed stays below half the distance from the start to
    that wall, or half a unit if that is less.
    """
    a = uniform(generator, -1.5, 0.5, batch) / link.beta
    w = log_uniform(generator, 0.5, 3, batch, 1) / link.beta * directions(generator, batch, d)
    theta = SingleIndexDEQ(a, w)
    X = torch.randn(batch, SAMPLES, d, generator=generator, dtype=torch.float64)
    # Both sides of a kink are seen, and one sample lies between 0 and 1 where the slope is 1.
    X[:, -1] = -X[:, 0]
    X[:, -2] = (1 / link.beta - a)[:, None] / 2 * w / w.square().sum(-1, keepdim=True)
    y = torch.randn(batch, SAMPLES, generator=generator, dtype=torch.float64)
    room = torch.minimum(1 / link.beta - a, torch.ones_like(a))[:, None]

    last = torch.zeros_like(y)

    def raw(theta: SingleIndexDEQ, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal last
        last = training.forward(link, theta, single_index.index(theta, X), last)
        z = link(last)
        D = single_index.slope(link, theta.a[..., None], last)
        q = ADJOINTS[adjoint](z, y, link.derivative(last), D, t[..., None])
        g = single_index.flat(single_index.pull_back(q, z, X, z - 1))
        return q, z, g.square().sum(-1, keepdim=True)

    first = raw(theta, torch.zeros_like(a))[2].clamp_min(1e-10)

    def field(theta: SingleIndexDEQ, t: Tensor) -> tuple[SingleIndexDEQ, Tensor, Tensor]:
        """The direction, the adjoints, and the speed that the theorem predicts for r²."""
        q, z, squared = raw(theta, t)
        q = room / 2 * q / (squared + first).sqrt()
        u = last
        if training.forward is not exact:
            u = exact(link, theta, single_index.index(theta, X), last)
        return single_index.pull_back(q, z, X, z - 1), q, drift.drift(link, u, q, c)

    # Descent.
    A, W = theta.a.clone(), theta.w.clone()
    optimiser = training.optimiser(RATE)([A, W])
    path, qs, moved = [theta], [], torch.zeros_like(a)
    for k in range(STEPS):
        g, q, speed = field(path[-1], torch.full_like(a, k * RATE))
        A.grad, W.grad = g.a, g.w
        optimiser.step()
        path.append(SingleIndexDEQ(A.clone(), W.clone()))
        qs.append(q)
        moved += RATE * speed
    points = SingleIndexDEQ(
        torch.stack([p.a for p in path], dim=1), torch.stack([p.w for p in path], dim=1)
    )
    q = torch.stack(qs, dim=1)
    if training.euler:
        return Run(link, c, adjoint, training, X, points, q, path[-1], moved, STEPS)

    # Flow: the clock and the integral of the drift are integrated along.
    def against(state: State) -> State:
        g, _, speed = field(SingleIndexDEQ(state[0], state[1]), state[2])
        return g.a, g.w, -torch.ones_like(speed), -speed

    run = gradient_flow(
        lambda state: state[0],  # a finite number to watch: q need not have a loss
        (theta.a, theta.w, torch.zeros_like(a), torch.zeros_like(a)),
        1.0, grad=against, times=torch.tensor([0.0, 1.0], dtype=torch.float64),
        rtol=RTOL, atol=ATOL, batch_ndim=1, dense=False, progress=False,
    )  # fmt: skip
    end = SingleIndexDEQ(run.end[0], run.end[1])
    return Run(link, c, adjoint, training, X, points, q, end, run.end[3], run.steps)


def _at(theta: SingleIndexDEQ, steps: slice) -> SingleIndexDEQ:
    """Some of the recorded steps, the last dimension of a."""
    return SingleIndexDEQ(theta.a[..., steps], theta.w[..., steps, :])


class RadiusDrift(Theorem[Instance]):
    label = "radius-drift"
    title = "The drift of the sphere"
    kind = "identity"
    chapter = "15_drifting_sphere"
    statement = (
        r"Let $z=\varphi(u)$, $u=az+w^\top x$, let $q(x,t)$ be arbitrary and $c$ any number. If "
        r"$\dot a=-\mathbb E[qz]$ and $\dot w=-\mathbb E[qx]$, then "
        r"$\frac{d}{dt}\big[(c-a)^2+\|w\|^2\big]=2\,\mathbb E[q\,(c\,\varphi(u)-u)]$. So the "
        r"sphere is conserved where $\varphi(u)=u/c$ on every sample with $q\ne0$; for the "
        r"gradient of a ReLU model this is so with $c=1$."
    )
    hypotheses = {
        "exact-equilibrium": Hypothesis(r"The forward pass returns $z=\varphi(az+w^\top x)$."),
        "plain-step": Hypothesis(
            r"The parameters move along $-(\mathbb E[qz],\mathbb E[qx])$ itself, with one rate "
            r"for $a$ and $w$: no momentum, no weight decay, no preconditioner."
        ),
        "continuous-time": Hypothesis(
            r"Time is continuous; a step of size $\eta$ adds $\eta^2\|g\|^2$ to $\eta$ times the "
            r"drift."
        ),
        "straight": Hypothesis(
            r"(for the constancy) $\varphi(u)=u/c$ on every sample with $q\ne0$."
        ),
    }
    least_activity = 1e-5

    # Draws ------------------------------------------------------------------------------------

    def draw(self, generator: Generator, n: int) -> list[Instance]:
        return self._pairs(generator, n)

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Instance]]]:
        def other(generator: Generator, n: int) -> list[Instance]:
            rules = (momentum, decay, adam, two_rates)
            found: list[Instance] = []
            for i, rule in enumerate(rules):
                found += without(Training(optimiser=rule))(generator, len(range(i, n, len(rules))))
            return found

        def without(training: Training) -> Callable[[Generator, int], list[Instance]]:
            # Two batches a draw: one of each kind.
            return lambda g, n: self._pairs(g, n, CURVED[:1], STRAIGHT[1:2], training)

        return {
            "exact-equilibrium": without(Training(forward=picard)),
            "plain-step": other,
            "continuous-time": without(Training(euler=True)),
            "straight": lambda g, n: self._pairs(g, n, CURVED[:1], BENT),
        }

    def _pairs(
        self,
        generator: Generator,
        n: int,
        laws: Sequence[tuple[Link, str]] = CURVED,
        constants: Sequence[tuple[Link, str, float]] = STRAIGHT,
        training: Training = PLAIN,
    ) -> list[Instance]:
        """n runs of each kind, in batches of one link."""
        law: list[Run] = []
        for i, (link, adjoint) in enumerate(laws):
            share = len(range(i, n, len(laws)))
            if share:
                c = uniform(generator, -1, 2, share)
                run = train(generator, share, link, 1 + i % 3, c, adjoint, training)
                law += [run.one(j) for j in range(share)]
        constant: list[Run] = []
        for i, (link, adjoint, centre) in enumerate(constants):
            share = len(range(i, n, len(constants)))
            if share:
                c = torch.full((share,), centre, dtype=torch.float64)
                run = train(generator, share, link, 1 + i % 3, c, adjoint, training)
                constant += [run.one(j) for j in range(share)]
        return [Instance(one, other) for one, other in zip(law, constant, strict=True)]

    # Hypotheses and conclusions ---------------------------------------------------------------

    def slack(self, instance: Instance) -> dict[str, float]:
        training = instance.law.training
        return {
            "exact-equilibrium": 1e-12 - _residual(instance.law, training.forward),
            "plain-step": 1.0 if training.optimiser is plain else -1.0,
            "continuous-time": -1.0 if training.euler else 1.0,
            "straight": 1e-12 - _bend(instance.constant),
        }

    def measure(self, instance: Instance) -> dict[str, Measurement]:
        law, constant = instance.law, instance.constant
        c = law.c
        r2 = drift.squared_radius(law.path, c)
        before = _at(law.path, slice(None, -1))
        u = single_index.preactivation(
            law.link, before.a[..., None], single_index.index(before, law.X)
        )
        z = law.link(u)
        speed = drift.drift(law.link, u, law.q, c)
        g = single_index.flat(single_index.pull_back(law.q, z, law.X, z - 1))
        squared = g.square().sum(-1)
        gap = (r2[1:] - r2[:-1] - RATE * speed - RATE**2 * squared).abs().max()
        # A solve leaves |u − aφ(u) − s| ≤ 8 eps (|u| + |az| + |s|), hence an error in u of that
        # over 1 − aβ at most, once here and once in the step. It enters the drift with |q| and
        # (|c|β + 1), and the step's z with |q||g|β. Forming r² rounds by 4 eps r² at both ends.
        a = before.a.abs()[:, None]
        error = (
            8 * EPS * (2 * u.abs() + 2 * a * z.abs()) / (1 - (before.a * law.link.beta))[:, None]
        )
        reach = (law.c.abs() + a + 1) * law.link.beta + 1
        solved = 2 * 2 * RATE * (law.q.abs() * error * (reach + squared.sqrt()[:, None])).mean(-1)
        rounding = float((solved + 8 * EPS * (r2[:-1] + r2[1:])).max())
        # How large the terms of the drift are, though they may cancel in the mean.
        terms = law.q.abs() * (c * z - u).abs()
        active = float(2 * RATE * terms.mean(-1).sum() / r2[0])

        flowed = drift.squared_radius(law.end, c) - r2[0]
        budget = _budget(law, float(torch.maximum(r2[0], r2[0] + flowed)))
        kept = drift.squared_radius(constant.path, constant.c)[0]
        after = drift.squared_radius(constant.end, constant.c)
        start = _at(constant.path, slice(0, 1))
        travelled = float(
            single_index.distance(constant.end, SingleIndexDEQ(start.a[0], start.w[0]))
        )
        return {
            "r₊² = r² + 2ηE[q(cφ(u) − u)] + η²‖g‖²": Measurement(float(gap), rounding, active),
            "r² moves by the integral of the drift": Measurement(
                float((flowed - law.moved).abs()), budget, active
            ),
            "r² is constant for a straight link": Measurement(
                float((after - kept).abs()), _budget(constant, float(kept)),
                travelled / float(kept) ** 0.5,
            ),
        }  # fmt: skip


def _budget(run: Run, r2: float) -> float:
    """What the integrator's tolerance allows r² − ∫ drift to move by.

    That difference is constant along every solution, so a step's local error e moves it by at most
    (2r + 1)|e| to first order, and no later step amplifies that. The integrator keeps the root
    mean square of e over the m unknowns (a, w, the clock and the integral) below
    rtol·size + atol, so |e| ≤ √m (rtol·size + atol).
    """
    unknowns = run.X.shape[-1] + 3
    size = r2**0.5 + abs(float(run.c)) + 1 + float(run.moved.abs())
    return run.steps * (2 * r2**0.5 + 1) * unknowns**0.5 * (RTOL * size + ATOL)


def _residual(run: Run, forward: Forward) -> float:
    """Largest |u − aφ(u) − s| of the first forward pass, relative to the terms."""
    theta = SingleIndexDEQ(run.path.a[0], run.path.w[0])
    s = single_index.index(theta, run.X)
    u = forward(run.link, theta, s, s)
    pulled = theta.a * run.link(u)
    return float((u - pulled - s).abs().max() / (u.abs() + pulled.abs() + s.abs()).max())


def _bend(run: Run) -> float:
    """Largest |q||cφ(u) − u| along the descent, relative to its terms."""
    before = _at(run.path, slice(None, -1))
    u = single_index.preactivation(run.link, before.a[..., None], single_index.index(before, run.X))
    terms = run.q.abs() * (u.abs() + run.c.abs() * run.link(u).abs())
    return float((run.q * (run.c * run.link(u) - u)).abs().max() / terms.max())
