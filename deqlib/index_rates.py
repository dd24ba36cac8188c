r"""The constants of `single-index-rate`: how fast, with which step, from which start.

Letters as in `deqlib.one_point`: δ = θ − θ*, ρ a bound on ‖δ‖, Δ* = 1/β − a*, and A_y with extreme
eigenvalues λ and λ⁺. In the ball ‖δ‖ ≤ ρ < Δ*

    m‖δ‖² ≤ ⟨∇L, δ⟩,   ‖∇L‖² ≤ Λ⟨∇L, δ⟩,   Λ = λ⁺Δ*/(Δ* − ρ)³.

m is a smallest eigenvalue, too. With T(x) = 1/α(x) − a*, where α(x) is the least slope of the link
over the pre-activations that models of the ball give to the input x,

    m = λ_min E[ T(x)/(T(x) + ρ)³ (y, x)(y, x)ᵀ ]  ≥  λ T*/(T* + ρ)³ = `one_point.contraction`.

As ρ → 0 it tends to the sharp rate λ_min(H). All functions take leading batch dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deqlib import one_point, single_index
from deqlib.activations import Link
from deqlib.rates import extremes
from deqlib.single_index import SingleIndexDEQ

Gradient = Callable[[SingleIndexDEQ], SingleIndexDEQ]


def reach(link: Link, target: SingleIndexDEQ, X: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """The interval of pre-activations u that the models within ρ < Δ* of θ* give to each input.

    A model θ gives u to x exactly when ⟨θ, (φ(u), x)⟩ = u: a hyperplane in θ. It meets the ball
    when |u − a*φ(u) − w*ᵀx| ≤ ρ‖(φ(u), x)‖. Both ends are roots of functions with slope at least
    min(1, β(Δ* − ρ)) in u, found by bisection; the ends returned lie outside, by rounding.

    Args:
        X: inputs (*batch, n, d).
        rho: radii (*batch), non-negative and below Δ*.

    Returns:
        (low, high), each (*batch, n).
    """
    near, _ = one_point.gaps(link, target)
    if not bool(((rho >= 0) & (rho < near)).all()):
        raise ValueError(
            f"rho is {rho} and Δ* = 1/β − a* is {near}; rho must be non-negative and below Δ*"
        )
    a, r = target.a[..., None], rho[..., None]
    s = single_index.index(target, X)
    v = single_index.preactivation(link, a, s)
    size = X.norm(dim=-1)
    widest = r * torch.hypot(link(v), size) / (link.beta * (near - rho)).clamp(max=1)[..., None]
    sign = torch.tensor([-1.0, 1.0], dtype=s.dtype).reshape(2, *[1] * s.ndim)
    inner, outer = v.expand(2, *v.shape), v + sign * widest * (1 + 1e-9)
    for _ in range(52):
        u = inner + (outer - inner) / 2
        z = link(u)
        beyond = sign * (u - a * z - s) >= r * torch.hypot(z, size)
        inner, outer = torch.where(beyond, inner, u), torch.where(beyond, u, outer)
    return outer[0], outer[1]


def least_slope(link: Link, low: Tensor, high: Tensor) -> Tensor:
    """α(x): the least slope of the link on [low, high], elementwise.

    The slopes of every monotone link of this book rise up to one point and fall from there on, so
    the least one is at an end.
    """
    return torch.minimum(link.derivative(low), link.derivative(high))


def slope_floor(link: Link, target: SingleIndexDEQ, X: Tensor, rho: Tensor) -> Tensor:
    """α(x) over the ball of radius ρ < Δ*, of shape (*batch, n): `least_slope` on `reach`."""
    return least_slope(link, *reach(link, target, X, rho))


def weight_floor(near: Tensor, far: Tensor, rho: Tensor) -> Tensor:
    """The least weight in Q̃ where the slopes lie between those of Δ* (near) and T (far), ‖δ‖ ≤ ρ.

    1/(T + ρ) · min{Δ*/(Δ* + ρ)², T/(T + ρ)²}; for ρ ≤ Δ* the second term is the smaller one and
    the weight T/(T + ρ)³. Zero where T is infinite. The three broadcast.
    """
    finite = torch.where(far.isfinite(), far, 1)
    least = torch.minimum(near / (near + rho).square(), finite / (finite + rho).square())
    return torch.where(far.isfinite(), least / (finite + rho), 0)


def far_gaps(target: SingleIndexDEQ, alpha: Tensor) -> Tensor:
    """T(x) = 1/α(x) − a*, (*batch, n); infinite where α(x) = 0."""
    return torch.where(alpha > 0, 1 / alpha, torch.inf) - target.a[..., None]


def contraction(
    link: Link, target: SingleIndexDEQ, X: Tensor, rho: Tensor, alpha: Tensor | None = None
) -> Tensor:
    """m = λ_min E[weight(x) (y, x)(y, x)ᵀ], (*batch): Q̃(θ) ⪰ m wherever ‖δ‖ ≤ ρ.

    Args:
        rho: radii (*batch), below Δ* unless alpha is given.
        alpha: least slopes (*batch, n) to use in the place of `slope_floor`.

    Source: theorem `single-index-rate`; for ρ ≥ Δ* and a clipped run, proposition
    `clipped-descent` with the slopes of `clipped_slope_floor`.
    """
    if alpha is None:
        alpha = slope_floor(link, target, X, rho)
    near, _ = one_point.gaps(link, target)
    weight = weight_floor(near[..., None], far_gaps(target, alpha), rho[..., None])
    y = single_index.predict(link, target, X)
    return extremes(one_point.weighted_moment(weight, X, y))[0]


def truncated_contraction(
    link: Link, target: SingleIndexDEQ, X: Tensor, rho: Tensor, events: int = 60
) -> Tensor:
    """The largest λ_min(E[(y, x)(y, x)ᵀ; α(x) ≥ c]) T_c/(T_c + ρ)³, T_c = 1/c − a*, over c.

    Inputs of slopes below c are given up, the others get one slope c; c runs over ``events``
    quantiles of α(x). Never above `contraction`, which weighs each input by its own slope. The
    first quantile, c = min α(x), gives up nothing.
    """
    alpha = slope_floor(link, target, X, rho)
    y = single_index.predict(link, target, X)
    parts = torch.linspace(0, 0.98, events, dtype=alpha.dtype)
    cut = torch.quantile(alpha, parts, dim=-1, interpolation="lower")
    kept = (alpha >= cut[..., None]).to(alpha.dtype)
    far = torch.where(cut > 0, 1 / cut, torch.inf) - target.a
    lam = extremes(one_point.weighted_moment(kept, X, y))[0].clamp_min(0)
    return one_point.contraction(lam, far, rho.expand_as(far)).amax(0)


def gain(eta: Tensor, Lam: Tensor) -> Tensor:
    """η(2 − ηΛ): a step lowers ‖δ‖² by at least this times ⟨∇L, δ⟩. Positive for 0 < η < 2/Λ."""
    return eta * (2 - eta * Lam)


def local_step(link: Link, theta: SingleIndexDEQ, X: Tensor, gap: Tensor) -> Tensor:
    """η = gap/λ_max(E[D (z, x)(z, x)ᵀ]) with gap ≤ Δ*: safe at θ, by knowing a bound on a* alone.

    Source: proposition `index-local-step`.
    """
    u = single_index.preactivation(link, theta.a[..., None], single_index.index(theta, X))
    D = single_index.slope(link, theta.a[..., None], u)
    return gap / extremes(one_point.weighted_moment(D, X, link(u)))[1]


# Clipped descent --------------------------------------------------------------------------------


def projected(grad: Gradient, eta: Tensor | float, ceiling: Tensor | float) -> Gradient:
    """(θ − Π(θ − η∇L))/η, with Π: a ↦ min(a, ceiling).

    A step η along it is a step of descent followed by the clipping of a, so that
    `deqlib.dynamics.gradient_descent` with this direction and this η is clipped descent.
    """

    def direction(theta: SingleIndexDEQ) -> SingleIndexDEQ:
        g = grad(theta)
        a = torch.minimum(theta.a - eta * g.a, torch.as_tensor(ceiling, dtype=theta.a.dtype))
        return SingleIndexDEQ((theta.a - a) / eta, g.w)

    return direction


def clipped_smoothness(lam: Tensor, near: Tensor, kept: Tensor, rho: Tensor) -> Tensor:
    """Λ̄ = λ⁺(1 + ρ/Δ̄)²/(Δ̄Δ*), with kept = Δ̄ = 1/β − ā: Q ⪯ Λ̄ where ‖δ‖ ≤ ρ and a ≤ ā."""
    return lam * (1 + rho / kept).square() / (kept * near)


def clipped_slope_floor(
    link: Link, target: SingleIndexDEQ, X: Tensor, rho: Tensor, kept: Tensor
) -> Tensor:
    """α(x) over ‖δ‖ ≤ ρ, a ≤ ā, for any ρ: u stays within ρ‖(y, x)‖/min(1, βΔ̄) of u_y."""
    v = single_index.preactivation(link, target.a[..., None], single_index.index(target, X))
    size = torch.hypot(link(v), X.norm(dim=-1)) * rho[..., None]
    width = size / (link.beta * kept).clamp(max=1)[..., None]
    return least_slope(link, v - width, v + width)


# The proof, line by line ------------------------------------------------------------------------


@dataclass(frozen=True)
class Constants:
    """Everything `single-index-rate` needs, for a ball of radius rho; each (*batch)."""

    rho: Tensor
    """The radius ρ of the ball."""
    near: Tensor
    """Δ* = 1/β − a*."""
    lam: Tensor
    """λ = λ_min(A_y)."""
    lam_plus: Tensor
    """λ⁺ = λ_max(A_y)."""
    alpha: Tensor
    """Least slopes α(x) over the ball, (*batch, n)."""
    m: Tensor
    """Q̃ ⪰ m in the ball."""
    Lam: Tensor
    """Q ⪯ Λ in the ball; steps up to 1/Λ are safe."""


def constants(link: Link, target: SingleIndexDEQ, X: Tensor, rho: Tensor) -> Constants:
    """The constants of the ball of radius ρ < Δ* around the target."""
    near, _ = one_point.gaps(link, target)
    lam, lam_plus = extremes(one_point.moment(X, single_index.predict(link, target, X)))
    alpha = slope_floor(link, target, X, rho)
    m = contraction(link, target, X, rho, alpha)
    return Constants(
        rho, near, lam, lam_plus, alpha, m, one_point.smoothness(lam_plus, near, rho)
    )  # fmt: skip


@dataclass(frozen=True)
class StepSlacks:
    """Every inequality in the proof of `single-index-rate`, as (larger − smaller)/larger side.

    Names follow the proof; each is a tensor (*batch), the least over the sample where the line is
    about single inputs, and at least 0 where the inequality holds.
    """

    steep: Tensor
    """D ≤ 1/(Δ* − ρ)."""
    steep_secant: Tensor
    """φ̄/(1 − a*φ̄) ≤ 1/Δ*."""
    states: Tensor
    """λ_max(E[(z, x)(z, x)ᵀ]) ≤ λ⁺Δ*²/(Δ* − ρ)²."""
    smooth: Tensor
    """λ_max(Q) ≤ Λ."""
    flat: Tensor
    """D ≥ 1/(T(x) + ρ)."""
    flat_secant: Tensor
    """(1 − a*φ̄)φ̄/(1 − aφ̄)² ≥ T(x)/(T(x) + ρ)²."""
    monotone: Tensor
    """⟨∇L, δ⟩ ≥ m‖δ‖²."""
    gradient: Tensor
    """‖∇L‖² ≤ Λ⟨∇L, δ⟩."""
    descent: Tensor
    """‖δ‖² − ‖δ₊‖² ≥ η(2 − ηΛ)⟨∇L, δ⟩."""
    contraction: Tensor
    """‖δ‖² − ‖δ₊‖² ≥ η(2 − ηΛ)m‖δ‖²."""
    inside: Tensor
    """a₊ − a* ≤ ρ."""


def step_slacks(
    link: Link,
    theta: SingleIndexDEQ,
    target: SingleIndexDEQ,
    X: Tensor,
    eta: Tensor,
    known: Constants,
) -> StepSlacks:
    """The slacks of one step η from θ, with the constants of a ball that holds θ."""
    c = known
    u, v = (
        single_index.preactivation(link, one.a[..., None], single_index.index(one, X))
        for one in (theta, target)
    )
    a, a_star, rho = theta.a[..., None], target.a[..., None], c.rho[..., None]
    z, y, bar = link(u), link(v), link.secant(u, v)
    D = single_index.slope(link, a, u)
    share = bar / (1 - a_star * bar)
    weight = bar * (1 - a_star * bar) / (1 - a * bar).square()
    far = far_gaps(target, c.alpha)
    delta = single_index.flat(theta) - single_index.flat(target)
    g = single_index.flat(single_index.pull_back(D, z, X, y))
    along, squared = (g * delta).sum(-1), delta.square().sum(-1)
    # ‖δ‖² − ‖δ − ηg‖² without the cancellation of two squares.
    fallen = (eta[..., None] * g * (2 * delta - eta[..., None] * g)).sum(-1)
    states = extremes(one_point.weighted_moment(torch.ones_like(z), X, z))[1]
    top = extremes(one_point.weighted_moment(D * share, X, z))[1]

    def below(small: Tensor, large: Tensor) -> Tensor:
        return (large - small) / large

    return StepSlacks(
        steep=below(D.amax(-1), 1 / (c.near - c.rho)),
        steep_secant=below(share.amax(-1), 1 / c.near),
        states=below(states, c.lam_plus * (c.near / (c.near - c.rho)).square()),
        smooth=below(top, c.Lam),
        flat=below(1 / (far + rho), D).amin(-1),
        flat_secant=below(far / (far + rho).square(), weight).amin(-1),
        monotone=below(c.m * squared, along),
        gradient=below(g.square().sum(-1), c.Lam * along),
        descent=below(gain(eta, c.Lam) * along, fallen),
        contraction=below(gain(eta, c.Lam) * c.m * squared, fallen),
        inside=below(theta.a - eta * g[..., 0] - target.a, c.rho),
    )
