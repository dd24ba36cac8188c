"""Theorem `secant-identity`: the outputs of two models differ by a multiple of ⟨δ, (z, x)⟩."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from deqlib import activations, one_point, single_index
from deqlib.activations import Link
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


@dataclass(frozen=True)
class Pair:
    """Two models on one sample: θ with the pre-activations u, θ* with v; y are the labels.

    X (n, d), u, v and y (n). Where all hypotheses hold, u = a φ(u) + wᵀx, v = a*φ(v) + w*ᵀx and
    y = φ(v).
    """

    link: Link
    X: Tensor
    theta: SingleIndexDEQ
    target: SingleIndexDEQ
    u: Tensor
    v: Tensor
    y: Tensor

    @property
    def delta(self) -> Tensor:
        """δ = θ − θ* as a vector (1 + d)."""
        return single_index.flat(self.theta) - single_index.flat(self.target)

    @property
    def activity(self) -> float:
        """‖δ‖/(1 + ‖θ*‖): how far apart the two models are."""
        return float(self.delta.norm() / (1 + single_index.flat(self.target).norm()))


def along(delta: Tensor, z: Tensor, X: Tensor) -> Tensor:
    """⟨δ, (z, x)⟩ for every sample: δ (1 + d), z (n), X (n, d) → (n)."""
    return delta[0] * z + X @ delta[1:]


def rounding(pair: Pair) -> Tensor:
    """(n): what rounding allows in u − v − a*(z − y) = ⟨δ, (z, x)⟩ and its twin.

    Each pre-activation solves its equation to 8 eps of the sizes of its terms, with a β|u| added
    (`single_index.preactivation`), and a product of d terms errs by d eps times the sum of their
    sizes. All terms enter once on each side.
    """
    a, w = pair.theta
    a_star, w_star = pair.target
    u, v, y = pair.u.abs(), pair.v.abs(), pair.y.abs()
    z = pair.link(pair.u).abs()
    pulled = a.abs() * (pair.link.beta * u + z + y) + a_star.abs() * (pair.link.beta * v + z + y)
    size = u + v + pulled + pair.X.abs() @ (w.abs() + w_star.abs())
    return (16 + 2 * pair.X.shape[-1]) * EPS * size


def residuals(pair: Pair) -> tuple[Tensor, Tensor]:
    """(n), (n): by how much u and v miss their equations."""
    u, v, y = pair.u, pair.v, pair.y
    return (
        (u - pair.theta.a * pair.link(u) - pair.X @ pair.theta.w).abs(),
        (v - pair.target.a * y - pair.X @ pair.target.w).abs(),
    )


def same_outputs(pair: Pair) -> float:
    """1 where y = φ(v) to rounding, negative where it is not."""
    return float(1 - ((pair.y - pair.link(pair.v)).abs() / (8 * EPS * (1 + pair.y.abs()))).max())


class SecantIdentity(Theorem[Pair]):
    label = "secant-identity"
    title = "The secant identities"
    kind = "identity"
    chapter = "12_one_point_monotonicity"
    statement = (
        r"Let $u=a\varphi(u)+w^\top x$ and $v=a^*\varphi(v)+w^{*\top}x$, $z=\varphi(u)$, "
        r"$y=\varphi(v)$, and let $\bar\varphi$ be the slope of $\varphi$ between $u$ and $v$. "
        r"Then, with $\delta=\theta-\theta^*$, "
        r"$(1-a^*\bar\varphi)(z-y)=\bar\varphi\,\langle\delta,(z,x)\rangle$ and "
        r"$(1-a\bar\varphi)(z-y)=\bar\varphi\,\langle\delta,(y,x)\rangle$."
    )
    hypotheses = {
        "equilibria": Hypothesis("$u$ and $v$ solve their equations exactly."),
        "same-link": Hypothesis(r"Both models have the link $\varphi$."),
        "admissible": Hypothesis(r"$a<1/\beta$ and $a^*<1/\beta$.", necessary=False),
        "monotone": Hypothesis(r"$\varphi$ is non-decreasing.", necessary=False),
    }

    def draw(self, generator: Generator, n: int) -> list[Pair]:
        """Every link, starts inside and outside the ball around θ*."""
        return solved(problems(generator, n))

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Pair]]]:
        return {
            "equilibria": lambda g, n: [unsolved(one, g) for one in self.draw(g, n)],
            "same-link": _other_link,
            "admissible": lambda g, n: [beyond_the_pole(one, g) for one in self.draw(g, n)],
            "monotone": lambda g, n: solved(problems(g, n, links=(activations.gelu,))),
        }

    def slack(self, instance: Pair) -> dict[str, float]:
        allowed = rounding(instance)
        missed = torch.maximum(*residuals(instance))
        return {
            "equilibria": float(1 - (missed / allowed).max()),
            "same-link": same_outputs(instance),
            "admissible": room(instance),
            "monotone": 1.0 if instance.link.monotone else -1.0,
        }

    def measure(self, instance: Pair) -> dict[str, Measurement]:
        link, X, y, delta = instance.link, instance.X, instance.y, instance.delta
        u, v = instance.u, instance.v
        z, a, a_star = link(u), instance.theta.a, instance.target.a
        bar = link.secant(u, v)
        allowed = rounding(instance)
        activity = instance.activity

        def said(left: Tensor, right: Tensor, budget: Tensor) -> Measurement:
            """The sample at which the two sides differ most for what it may."""
            wrong = (left - right).abs()
            i = int((wrong / budget).argmax())
            return Measurement(float(wrong[i]), float(budget[i]), activity)

        to_z, to_y = along(delta, z, X), along(delta, y, X)
        scale = bar.abs() * allowed + 2 * secant_rounding(instance) * (1 + a_star.abs() + a.abs())
        found = {
            "u − v − a*(z − y) = ⟨δ, (z, x)⟩": said(u - v - a_star * (z - y), to_z, allowed),
            "u − v − a(z − y) = ⟨δ, (y, x)⟩": said(u - v - a * (z - y), to_y, allowed),
        }
        for name, weight, right in (
            ("z − y = φ̄/(1 − a*φ̄) ⟨δ, (z, x)⟩", a_star, to_z),
            ("z − y = φ̄/(1 − aφ̄) ⟨δ, (y, x)⟩", a, to_y),
        ):
            gain = one_point.gain(link, weight, u, v)
            found[name] = said(z - y, gain * right, scale / (1 - weight * bar).abs())
        return found


def secant_rounding(pair: Pair) -> Tensor:
    """(n): what rounding allows in z − y = φ̄·(u − v).

    The two outputs are known to a few eps; where the derivative stands for the quotient
    (`Link.secant`), it errs by less than 1e-9 β over a width of 1e-5 (1 + |u|).
    """
    narrow = (pair.u - pair.v).abs() <= 1.01e-5 * (1 + pair.u.abs())
    stand_in = torch.where(narrow, 1e-9 * pair.link.beta * (pair.u - pair.v).abs(), 0)
    return 8 * EPS * (pair.link(pair.u).abs() + pair.y.abs()) + stand_in


def room(pair: Pair) -> float:
    """The smaller of 1 − aβ and 1 − a*β: positive where both equilibria are the only ones."""
    return 1 - pair.link.beta * float(torch.maximum(pair.theta.a, pair.target.a))


# Draws ------------------------------------------------------------------------------------------


def problems(
    generator: Generator,
    count: int,
    *,
    links: Sequence[Link] = STRICT,
    sizes: Sequence[int] = (1, 2, 4, 8),
    inside: bool = False,
) -> list[Problem]:
    """``count`` problems, a batch for each link; size and kind of inputs are drawn for the batch.

    Every third sample is shrunk to a fifth, where φ is nearly linear. Every second start is drawn
    anywhere in {a < 1/β} (a between 0.05/β and 5/β below it, w up to 3/β from w*), unless
    ``inside``; the others lie inside the ball around θ*.
    """
    batches = []
    for i, link in enumerate(links):
        share = len(range(i, count, len(links)))
        if not share:
            continue
        pick = torch.randint(0, 10**6, (2,), generator=generator)
        d = sizes[int(pick[0]) % len(sizes)]
        kind = single_index.INPUTS[int(pick[1]) % len(single_index.INPUTS)]
        batch = random_problems(generator, share, link, d, inputs=kind)
        number = torch.arange(share)
        X = batch.X * torch.where(number % 3 == 2, 0.2, 1.0)[:, None, None]
        a = (1 - log_uniform(generator, 0.05, 5, share)) / link.beta
        away = log_uniform(generator, 0.1, 3, share, 1) / link.beta
        w = batch.target.w + away * directions(generator, share, d)
        far = (number % 2 == 1) & (not inside)
        start = SingleIndexDEQ(
            torch.where(far, a, batch.start.a), torch.where(far[:, None], w, batch.start.w)
        )
        y = single_index.predict(link, batch.target, X)
        batches.append(Problem(link, X, batch.target, start, y))
    return batches


def solved(batches: Sequence[Problem]) -> list[Pair]:
    """The pairs (θ₀, θ*) of batches of problems, with their pre-activations."""
    pairs = []
    for batch in batches:
        u, v = (
            single_index.preactivation(
                batch.link, one.a[..., None], single_index.index(one, batch.X)
            )
            for one in (batch.start, batch.target)
        )
        for i in range(len(batch.y)):
            one = batch.one(i)
            pairs.append(Pair(one.link, one.X, one.start, one.target, u[i], v[i], one.y))
    return pairs


def unsolved(pair: Pair, generator: Generator) -> Pair:
    """The same with u as a solver leaves it that stops at a tolerance between 1e-4 and 1e-1."""
    noise = torch.randn(len(pair.u), generator=generator, dtype=torch.float64)
    return replace(pair, u=pair.u + log_uniform(generator, 1e-4, 1e-1) * (1 + pair.u.abs()) * noise)


def shifted(X: Tensor, w: Tensor, s: Tensor) -> Tensor:
    """The samples moved along w so that wᵀx = s: X (n, d), w (d), s (n) → (n, d).

    Twice, since the first move errs by rounding in the size of the samples before it.
    """
    for _ in range(2):
        X = X + (s - X @ w)[:, None] * w / w.square().sum()
    return X


def beyond_the_pole(pair: Pair, generator: Generator) -> Pair:
    """The same with a between 1.2/β and 3/β, at an equilibrium that is not the only one.

    The pre-activations stay, and the samples are moved so that u = a φ(u) + wᵀx.
    """
    a = uniform(generator, 1.2, 3) / pair.link.beta
    theta = SingleIndexDEQ(a, pair.theta.w)
    return at_preactivations(pair, theta, pair.u)


def at_preactivations(pair: Pair, theta: SingleIndexDEQ, u: Tensor) -> Pair:
    """θ on samples moved so that u are its pre-activations; the target is solved again there."""
    X = shifted(pair.X, theta.w, u - theta.a * pair.link(u))
    v = single_index.preactivation(pair.link, pair.target.a, X @ pair.target.w)
    return Pair(pair.link, X, theta, pair.target, u, v, pair.link(v))


def scaled(link: Link, c: float) -> Link:
    """The link cφ."""
    return Link(
        f"{c:g} {link.name}",
        lambda s: c * link(s),
        lambda s: c * link.derivative(s),
        None,
        c * link.alpha,
        c * link.beta,
    )


def _other_link(generator: Generator, n: int) -> list[Pair]:
    """The labels come from the link 0.9 φ, with the same a* and w*."""
    pairs = []
    for batch in problems(generator, n):
        other = scaled(batch.link, 0.9)
        s = single_index.index(batch.target, batch.X)
        v = single_index.preactivation(other, batch.target.a[:, None], s)
        for i, one in enumerate(solved([batch])):
            pairs.append(replace(one, v=v[i], y=other(v[i])))
    return pairs
