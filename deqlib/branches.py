r"""Equilibria of z = φ(a z + s) beyond a β = 1: how many, which are stable, and where they end.

In the pre-activation u = a z + s the equation is r(u) = s with

    r(u) = u − a φ(u),    r′(u) = 1 − a φ′(u).

Where r rises the equilibrium is (linearly) stable: its gain a φ′(u) is below 1, and for a ≥ 0
Picard's iteration converges to it from nearby. Where r falls it is unstable. r turns at most where
a φ′(u) = 1; there two equilibria meet and vanish, at the index s = r(u): a fold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deqlib import one_point, single_index
from deqlib.activations import Link
from deqlib.fixed_point import FixedPoint, NotConvergedError, Status, solve
from deqlib.single_index import SingleIndexDEQ

GRID = torch.sinh(torch.linspace(-8, 8, 4001, dtype=torch.float64))
"""Where `turning_points` looks: |u| ≤ 1490, in cells of width 0.004 √(1 + u²)."""
FAR = 1e12
"""How far beyond the last turning point, in units of 1 + |s|, an equilibrium is looked for."""
EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Equilibria:
    """All solutions of z = φ(a z + s); the last dimension runs over the monotone pieces of r.

    u, z, gain  (*batch, K) pre-activation, equilibrium and a φ′(u); increasing in u, and NaN where
                the piece holds no equilibrium
    exists      (*batch, K) bool: where it holds one
    """

    u: Tensor
    z: Tensor
    gain: Tensor
    exists: Tensor

    @property
    def stable(self) -> Tensor:
        """(*batch, K) bool: there is one, and its gain is below 1."""
        return self.exists & (self.gain < 1)

    @property
    def count(self) -> Tensor:
        """(*batch) how many there are."""
        return self.exists.sum(-1)


class Folds(NamedTuple):
    """Where two equilibria meet: pre-activations u with a φ′(u) = 1, and the indices s = r(u)."""

    u: Tensor
    s: Tensor


def turning_points(link: Link, a: float) -> Tensor:
    """(K,) the u at which r(u) = u − a φ(u) turns between rising and falling, increasing, float64.

    Sign changes of 1 − a φ′ on `GRID`, each bisected to rounding. Found are all of them with
    |u| ≤ 1490, except that two in one cell (0.004 √(1 + u²) wide) go unseen. The links of the book
    have at most two, for tanh ±arcosh √a, which lie in one cell only for a − 1 < 4e-6.

    Raises:
        ValueError: for an a that is not finite.
    """
    a = _finite_number(a)

    def rises(u: Tensor) -> Tensor:
        return 1 - a * link.derivative(u) >= -4 * EPS

    up = rises(GRID)
    turns = up[1:] != up[:-1]
    low, high, left = GRID[:-1][turns], GRID[1:][turns], up[:-1][turns]
    for _ in range(80):
        middle = (low + high) / 2
        same = rises(middle) == left
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    return (low + high) / 2


def folds(link: Link, a: float) -> Folds:
    """The folds of a link at self-weight a: the turning points of r and their indices, (K,) each.

    For tanh and a > 1 they are u = ∓arcosh √a at s = ±s_c(a), see `tanh_fold`.
    """
    u = turning_points(link, a)
    return Folds(u, u - a * link(u))


def tanh_fold(a: Tensor) -> Tensor:
    """s_c(a) = a z_c − artanh z_c with z_c = √(1 − 1/a): z = tanh(a z + s) has three solutions for
    |s| < s_c(a) and one for |s| > s_c(a).

    Raises:
        ValueError: for an a below 1, where there is no fold.
    """
    if not bool((a >= 1).all()):
        raise ValueError(f"a is {float(a.min()):.6g}; z = tanh(a z + s) folds only for a ≥ 1")
    z = (1 - 1 / a).sqrt()
    return a * z - torch.atanh(z)


def equilibria(link: Link, a: float, s: Tensor) -> Equilibria:
    """All equilibria of z = φ(a z + s) for every index s (*batch), by bisection.

    Between two turning points r is monotone, so each piece holds at most one solution of r(u) = s,
    and the signs of r − s at the ends of the piece say whether it does. Bisection then finds it to
    rounding. Beyond the outermost turning points it looks up to 1e12 (1 + |s|). So nothing is
    missed but what `turning_points` misses, and tails of r flatter than 1e-12. On a fold itself
    (r(u) = s at a turning point, up to rounding) the two that meet there are found both or not at
    all; where r is constant, the smallest u is found.

    Args:
        link: the link φ.
        a: the self-weight, any finite number.
        s: indices wᵀx, float64, finite.

    Raises:
        ValueError: for an a or s that is not finite.
        TypeError: for an s that is not float64.
    """
    a = _finite_number(a)
    _finite_indices(s)
    turns = turning_points(link, a)
    wide = FAR * (1 + s.abs())
    first = turns[0] if len(turns) else s
    last = turns[-1] if len(turns) else s
    inner = [turn.expand(s.shape) for turn in turns]
    ends = torch.stack([first - wide, *inner, last + wide], dim=-1)
    low, high, index = ends[..., :-1], ends[..., 1:], s[..., None]

    def above(u: Tensor) -> Tensor:
        return u - a * link(u) >= index

    left = above(low)
    exists = left != above(high)
    for _ in range(120):
        middle = low + (high - low) / 2
        same = above(middle) == left
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    u = torch.where(exists, high, torch.nan)
    return Equilibria(u, link(u), a * link.derivative(u), exists)


def settle(
    link: Link, a: float | Tensor, s: Tensor, z: Tensor, *, max_iter: int = 20_000
) -> Tensor:
    """The pre-activation u = a z + s at which Picard's iteration z ← φ(a z + s) ends, from z.

    a, s and z broadcast. It stops at a residual of 1e-13 (1 + |z|): the error is that over
    1 − a φ′(u), so it is slow and less accurate near a fold.

    Raises:
        NotConvergedError: if some point does not settle in max_iter iterations, for instance
            because it has no equilibrium.
    """
    a, s, z = torch.broadcast_tensors(torch.as_tensor(a, dtype=s.dtype), s, z)
    _finite_indices(s)
    found = solve(
        lambda z: link(a * z + s), z, method="picard", tol=1e-13, atol=1e-13,
        max_iter=max_iter, state_ndim=0,
    )  # fmt: skip
    return a * found.z + s


def cold_start(link: Link, a: float | Tensor, s: Tensor, *, max_iter: int = 20_000) -> Tensor:
    """`settle` from z = 0, as a layer that keeps no memory does.

    For a ≥ 0, φ non-decreasing and φ(0) = 0 it walks monotonically to the first equilibrium on the
    side of s, whose gain is at most 1; for tanh that is the outer branch, sign z = sign s.
    """
    return settle(link, a, s, torch.zeros_like(s), max_iter=max_iter)


def walk(link: Link, a: float, s: Tensor, z: Tensor) -> Tensor:
    """Where `settle` ends, without its iterations: for a ≥ 0 and a non-decreasing φ.

    z ↦ φ(a z + s) is then non-decreasing, so Picard's iterates from z are monotone and end at the
    next equilibrium above z if the first step goes up, below z if it goes down (proposition
    `picard-walks`). s and z broadcast; the equilibria are those of `equilibria`.

    Raises:
        ValueError: for a negative a, a link that falls, or a point with no equilibrium ahead.
    """
    if not (a >= 0 and link.alpha >= 0):
        raise ValueError(
            f"a is {a:.6g} and the slopes of {link.name} begin at {link.alpha:.6g}; neither may be "
            "negative, or Picard's iterates need not be monotone"
        )
    s, z = torch.broadcast_tensors(s, z)
    found, here = equilibria(link, a, s), (a * z + s)[..., None]
    up = here - a * link(here) <= s[..., None]
    # A start at an equilibrium stays there; rounding must not send it to the next one.
    slip = 1e-12 * (1 + here.abs())
    above = torch.where(found.exists & (found.u >= here - slip), found.u, torch.inf).amin(-1)
    below = torch.where(found.exists & (found.u <= here + slip), found.u, -torch.inf).amax(-1)
    u = torch.where(up[..., 0], above, below)
    if not bool(u.isfinite().all()):
        raise ValueError(
            f"s is {float(s[~u.isfinite()][0]):.6g} and a {a:.6g}; Picard's iteration meets no "
            "equilibrium from there"
        )
    return u


def warm_start(link: Link, a: float, s: Tensor) -> Tensor:
    """`walk` along a path of indices s (T, *batch): the first from z = 0, each next one from the
    equilibrium before it, as a layer that keeps its last state does. Returns u (T, *batch)."""
    path = [walk(link, a, s[0], torch.zeros_like(s[0]))]
    for now in s[1:]:
        path.append(walk(link, a, now, link(path[-1])))
    return torch.stack(path)


def outer_branch(link: Link, a: Tensor, s: Tensor, *, max_iter: int = 100) -> Tensor:
    """u of the equilibrium that is farthest from 0 on the side of s, for an odd link that is
    concave on [0, ∞), such as tanh, arctan and softsign; any a, elementwise, s = 0 counts as > 0.

    With |s| for s, r is convex on [0, ∞) for a ≥ 0 and concave for a < 0, and r(0) = 0 ≤ |s|. In
    the first case Newton's method falls monotonically from any point with r ≥ |s| to the largest
    root, in the second it rises to the only one from wherever its first step lands, cut off at 0.
    It stops at |r − |s|| ≤ 8 eps (|u| + |a φ(u)| + |s|) or where u no longer moves.

    Raises:
        NotConvergedError: if it does not stop within max_iter steps, or if no point has r ≥ |s|,
            because the link's tail has a slope of at least 1/a.
    """
    a, s = torch.broadcast_tensors(a, s)
    _finite_indices(s)
    t = s.abs()
    u = 1 + t
    for _ in range(60):
        short = u - a * link(u) < t
        if not bool(short.any()):
            break
        u = torch.where(short, 2 * u, u)
    active = torch.ones_like(short)
    for _ in range(0 if bool(short.any()) else max_iter):
        pulled = a * link(u)
        g = u - pulled - t
        new = (u - g / (1 - a * link.derivative(u))).clamp(min=0)
        size = u + pulled.abs() + t
        active = ~((g.abs() <= 8 * EPS * size) | (new == u))
        if not bool(active.any()):
            return torch.where(s < 0, -u, u)
        u = torch.where(active & new.isfinite(), new, u)
    status = torch.where(active, int(Status.MAX_ITER), int(Status.CONVERGED))
    residual = (u - a * link(u) - t).abs()
    report = FixedPoint(link(u), residual, torch.full_like(status, max_iter), status)
    raise NotConvergedError(f"outer branch of z = φ(a z + s) with φ = {link.name}", report)


def one_point_matrix(
    link: Link, theta: SingleIndexDEQ, target: SingleIndexDEQ, X: Tensor, u: Tensor, v: Tensor
) -> Tensor:
    """Q = E[D φ̄/(1 − a*φ̄) (z, x)(z, x)ᵀ] on chosen equilibria: g = E[(z − y) D (z, x)] is Q δ.

    `deqlib.one_point.one_point_matrix` for any a: u (*batch, n) are pre-activations of equilibria
    of θ at the rows of X, v those of the target. Q ⪰ 0 where they are stable and a* β < 1.

    Source: theorem `stable-branches`.
    """
    bar = link.secant(u, v)
    D = single_index.slope(link, theta.a[..., None], u)
    return one_point.weighted_moment(D * bar / (1 - target.a[..., None] * bar), X, link(u))


def leaky_ceiling(target: SingleIndexDEQ, rho: Tensor, reach: Tensor, kappa: Tensor) -> Tensor:
    """ā < 1: how large a may become for a leaky ReLU (proposition `leaky-basin`).

    The largest a ≤ a* + ρ with 1 − a ≥ √κ (‖w*‖ − √(ρ² − (a − a*)²))/Z, by bisection: the left
    side falls and the right side rises in a ≥ a*.

    Args:
        target: θ* (*batch), a* < 1.
        rho: ρ₀ = ‖θ₀ − θ*‖ (*batch), with ρ₀² < (1 − a*)² + ‖w*‖².
        reach: Z = √E y² + √(2 L₀) (*batch).
        kappa: κ₊ = min over unit v of E (vᵀx)₊²; λ_min(E x xᵀ)/2 for a sample that holds −x with x.

    Raises:
        ValueError: where ρ₀ reaches to the singular point (a, w) = (1, 0).
    """
    gap, size = 1 - target.a, target.w.norm(dim=-1)
    if not bool((rho.square() < gap.square() + size.square()).all()):
        raise ValueError(
            "rho must stay below the distance of the target from the singular point (1, 0); "
            f"largest quotient {float((rho / (gap.square() + size.square()).sqrt()).max()):.6g}"
        )

    def allowed(a: Tensor) -> Tensor:
        room = (rho.square() - (a - target.a).square()).clamp(min=0).sqrt()
        return (1 - a) * reach >= kappa.sqrt() * (size - room)

    low, high = target.a, torch.minimum(target.a + rho, torch.ones_like(rho))
    for _ in range(100):
        middle = (low + high) / 2
        good = allowed(middle)
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return low


def _finite_number(a: float) -> float:
    number = float(a)
    if not abs(number) < float("inf"):
        raise ValueError(f"a is {number}; it must be a finite number")
    return number


def _finite_indices(s: Tensor) -> None:
    if s.dtype != torch.float64:
        raise TypeError(f"s is {s.dtype}; it must be float64")
    if not bool(s.isfinite().all()):
        raise ValueError("s holds NaN or infinity; every index must be finite")
