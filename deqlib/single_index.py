r"""The deep equilibrium single-index model z = φ(a z + wᵀx).

Notation of the book, for one model and a sample of n inputs; E is the mean over the sample:

======  ===========================  =======  ====================================================
letter  definition                   shape    meaning
======  ===========================  =======  ====================================================
φ                                             the link, with slopes in [α, β]
a, w                                 (), (d)  self-weight and input weights; θ = (a, w)
s       wᵀx                          (n)      the index
u       u = a φ(u) + s               (n)      the pre-activation at the equilibrium
z       φ(u) = h_a(s)                (n)      the equilibrium; h_a is the learned link
D       φ′(u)/(1 − a φ′(u))          (n)      derivative of z in s: the slope of h_a
======  ===========================  =======  ====================================================

A model has exactly one equilibrium for every input when a β < 1 (theorem `unique-equilibrium`).
The paper writes y = σ(θ₁ᵀx + θ₂ y): θ₁ is w and θ₂ is a. Every function takes any leading batch
dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from deqlib.activations import Link
from deqlib.fixed_point import FixedPoint, NotConvergedError, Status


class SingleIndexDEQ(NamedTuple):
    """Parameters of z = φ(a z + wᵀx): a of shape (*batch) and w of shape (*batch, d)."""

    a: Tensor
    w: Tensor


def admissible(link: Link, a: Tensor) -> Tensor:
    """(*batch) bool: every slope of u ↦ u − a φ(u) is positive, so the equilibrium is unique.

    That is a β < 1 and a α < 1; for a monotone link the first is all.
    """
    return (a * link.beta < 1) & (a * link.alpha < 1)


def preactivation(
    link: Link,
    a: Tensor,
    s: Tensor,
    *,
    start: Tensor | None = None,
    max_iter: int = 200,
    throw: bool = True,
) -> Tensor:
    """The solution u of u = a φ(u) + s, elementwise; a and s broadcast. Carries no gradient.

    g(u) = u − a φ(u) − s has slopes in [m, M] with m > 0 (`admissible`), so |g|/M and |g|/m bound
    the distance to the root, and its sign says on which side it lies. Newton's method inside this
    bracket, which every point tightens; where a Newton step leaves it or gains less than half, the
    bracket is halved. It stops where |g| ≤ 4 eps (|u| + |a φ(u)| + |s|), or where |g| no longer
    falls and is at most twice that with |a| β |u| added in the bracket: rounding. (At the smallest
    numbers there are, M times four of them is allowed too.) The error is at most |g|/m.

    Args:
        link: the link φ.
        a: self-weights, admissible.
        s: indices wᵀx, finite, of the dtype of a.
        start: where to begin, in the shape of the result; s when absent. The solution is the same
            up to rounding.
        max_iter: most evaluations of φ a point.
        throw: whether an inadmissible a raises; otherwise its entries are NaN in the result. A
            solve that does not reach rounding level raises in either case.

    Raises:
        ValueError: for an inadmissible a (with ``throw``), or an s or a that is not finite.
        NotConvergedError: if some point is not solved after max_iter evaluations.

    Source: theorem `unique-equilibrium`.
    """
    _check_link(link)
    with torch.no_grad():
        a, s = torch.broadcast_tensors(torch.as_tensor(a), torch.as_tensor(s))
        if a.dtype != s.dtype or not s.is_floating_point():
            raise TypeError(f"a is {a.dtype} and s {s.dtype}; both must be one floating-point type")
        good = admissible(link, a)
        if throw:
            if not bool(a.isfinite().all() and s.isfinite().all()):
                raise ValueError("a or s holds NaN or infinity; both must be finite")
            if not bool(good.all()):
                raise ValueError(
                    f"a is {float(a[~good].flatten()[0]):.6g} and the slopes of {link.name} reach "
                    f"from {link.alpha:.6g} to {link.beta:.6g}; a times a slope must stay below 1, "
                    "or the equilibrium need not exist or be the only one"
                )
        if start is not None and start.shape != s.shape:
            raise ValueError(
                f"start has shape {tuple(start.shape)}; it must be that of the result, "
                f"{tuple(s.shape)}"
            )
        usable = good & a.isfinite() & s.isfinite()
        a0, s0 = torch.where(usable, a, 0), torch.where(usable, s, 0)
        u = s0 if start is None else torch.where(usable & start.isfinite(), start, s0)
        root = None if start is None else _polish(link, a0, s0, u)
        if root is None:
            flat_root = _newton(link, a0.reshape(-1), s0.reshape(-1), u.reshape(-1), max_iter)
            root = flat_root.reshape(a.shape)
        return torch.where(usable, root, torch.nan)


def _gap(link: Link, a: Tensor, s: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """a φ(u), and g(u) = u − a φ(u) − s."""
    pulled = a * link(u)
    g = u - pulled - s
    return pulled, g


def _polish(link: Link, a: Tensor, s: Tensor, u: Tensor) -> Tensor | None:
    """Plain Newton from a good start; None unless every point reaches `preactivation`'s first test.

    The root is unique, so the test is all that a result needs; where Newton strays, `_newton` does
    the work.
    """
    rounding = 4 * torch.finfo(s.dtype).eps
    for _ in range(3):
        pulled, g = _gap(link, a, s, u)
        if bool((g.abs() <= rounding * (u.abs() + pulled.abs() + s.abs())).all()):
            return u
        u = u - g / (1 - a * link.derivative(u))
    return None


def _newton(link: Link, a: Tensor, s: Tensor, u: Tensor, max_iter: int) -> Tensor:
    """`preactivation` for vectors of admissible points. Points that are done leave the batch."""
    low_slope = 1 - torch.maximum(a * link.alpha, a * link.beta)
    high_slope = 1 - torch.minimum(a * link.alpha, a * link.beta)
    info = torch.finfo(s.dtype)
    rounding, smallest = 4 * info.eps, 4 * info.tiny * info.eps
    result = u.clone()
    index = torch.arange(len(s), device=s.device)
    low, high = torch.full_like(s, -torch.inf), torch.full_like(s, torch.inf)
    last = torch.full_like(s, torch.inf)
    for _ in range(max_iter if len(s) else 0):
        pulled, g = _gap(link, a, s, u)
        size = g.abs()
        scale = u.abs() + pulled.abs() + s.abs()
        stale = (size > 0.5 * last) & (size <= 2 * rounding * (scale + link.beta * (a * u).abs()))
        done = (size <= rounding * scale + smallest * high_slope) | stale
        near, far = u - g / high_slope, u - g / low_slope
        near, far = torch.minimum(near, far), torch.maximum(near, far)
        low, high = torch.maximum(low, near), torch.minimum(high, far)
        # Rounding may close the bracket too early; the bounds from this point stand alone then.
        low, high = torch.where(low < high, low, near), torch.where(low < high, high, far)
        if bool(done.any()):
            result[index[done]] = u[done]
            if bool(done.all()):
                return result
            keep = ~done
            a, s, u, g, size, last = (v[keep] for v in (a, s, u, g, size, last))
            low, high, index = low[keep], high[keep], index[keep]
            low_slope, high_slope = low_slope[keep], high_slope[keep]
        step = u - g / (1 - a * link.derivative(u))
        poor = ~((step >= low) & (step <= high)) | (size > 0.5 * last)
        u = torch.where(poor, low + (high - low) / 2, step)
        last = size
    if len(s) == 0:
        return result
    result[index] = u
    residual = _gap(link, a, s, u)[1].abs()
    status = torch.full_like(index, int(Status.MAX_ITER))
    report = FixedPoint(link(result)[index], residual, torch.full_like(index, max_iter), status)
    raise NotConvergedError(f"equilibrium of z = φ(a z + s) with φ = {link.name}", report)


def equilibrium(link: Link, a: Tensor, s: Tensor) -> Tensor:
    """z = h_a(s), the only solution of z = φ(a z + s), elementwise. Carries no gradient.

    Raises as `preactivation` does. Source: theorem `unique-equilibrium`.
    """
    return link(preactivation(link, a, s))


def slope(link: Link, a: Tensor, u: Tensor) -> Tensor:
    """D = φ′(u)/(1 − a φ′(u)) = h_a′(s) at the equilibrium with pre-activation u.

    Source: theorem `single-index-gradient`.
    """
    rise = link.derivative(u)
    return rise / (1 - a * rise)


def truncated_slope(link: Link, a: Tensor, u: Tensor, terms: int) -> Tensor:
    """D_m = φ′ (1 + aφ′ + … + (aφ′)^(m−1)), the first m terms of the Neumann series of `slope`.

    One term is the Jacobian-free adjoint φ′(u). For a β < 1 it is never negative if m is odd; for
    even m it has the sign of 1 + aφ′.

    Raises:
        ValueError: for terms < 1.

    Source: theorem `positive-adjoint`.
    """
    if terms < 1:
        raise ValueError(f"terms is {terms}; it must be at least 1")
    rise = link.derivative(u)
    total = torch.ones_like(rise)
    for _ in range(terms - 1):
        total = 1 + a * rise * total
    return rise * total


def learned_link(link: Link, a: float) -> Link:
    """h_a as a link of its own: s ↦ the solution z of z = φ(a z + s).

    Its inverse is z ↦ φ⁻¹(z) − a z, and its slopes lie in [α/(1 − aα), β/(1 − aβ)].

    Raises:
        ValueError: for an a outside the admissible range.
    """
    a = float(a)
    _check_link(link)
    if not (a * link.beta < 1 and a * link.alpha < 1):
        raise ValueError(
            f"a is {a:.6g}; with slopes of {link.name} in [{link.alpha:.6g}, {link.beta:.6g}] it "
            "must be finite, and a times a slope below 1"
        )
    phi_inverse = link.inverse

    def solve(s: Tensor) -> Tensor:
        return preactivation(link, torch.full_like(s, a), s)

    return Link(
        f"{link.name}, a = {a:g}",
        lambda s: link(solve(s)),
        lambda s: slope(link, torch.full_like(s, a), solve(s)),
        None if phi_inverse is None else lambda z: phi_inverse(z) - a * z,
        link.alpha / (1 - a * link.alpha),
        link.beta / (1 - a * link.beta),
    )


def index(theta: SingleIndexDEQ, X: Tensor) -> Tensor:
    """s = wᵀx for the rows x of X: (*batch, n, d) → (*batch, n)."""
    _check(theta)
    if X.ndim < 2 or X.shape[-1] != theta.w.shape[-1]:
        raise ValueError(
            f"X has shape {tuple(X.shape)}; with w of shape {tuple(theta.w.shape)} it must be "
            f"(*batch, n, {theta.w.shape[-1]})"
        )
    return (X @ theta.w[..., None])[..., 0]


def predict(link: Link, theta: SingleIndexDEQ, X: Tensor) -> Tensor:
    """Equilibria z of the rows of X: (*batch, n, d) → (*batch, n). Carries no gradient.

    Raises as `preactivation` does.
    """
    s = index(theta, X)
    return equilibrium(link, theta.a[..., None], s)


def loss(link: Link, theta: SingleIndexDEQ, X: Tensor, y: Tensor, *, throw: bool = True) -> Tensor:
    """L = ½ E (z − y)², of shape (*batch); y (*batch, n). Carries no gradient.

    The paper's loss is twice this, and so are its gradients. With throw=False a model without a
    unique equilibrium has the loss NaN instead of raising.
    """
    s = index(theta, X)
    u = preactivation(link, theta.a[..., None], s, throw=throw)
    return 0.5 * (link(u) - y).square().mean(-1)


def pull_back(D: Tensor, z: Tensor, X: Tensor, y: Tensor) -> SingleIndexDEQ:
    """(E[(z − y) D z], E[(z − y) D x]): the direction that an adjoint D (*batch, n) produces.

    With D = `slope` it is the gradient; other D ≥ 0 are theorem `positive-adjoint`.
    """
    weight = (z - y) * D
    return SingleIndexDEQ(
        (weight * z).mean(-1), (X.mT @ weight[..., None])[..., 0] / weight.shape[-1]
    )


def gradient(
    link: Link, theta: SingleIndexDEQ, X: Tensor, y: Tensor, *, throw: bool = True
) -> SingleIndexDEQ:
    """∇L = E[(z − y) D (z, x)] (theorem `single-index-gradient`), as (∂L/∂a, ∂L/∂w)."""
    s = index(theta, X)
    u = preactivation(link, theta.a[..., None], s, throw=throw)
    return pull_back(slope(link, theta.a[..., None], u), link(u), X, y)


class _Solved(NamedTuple):
    """The equilibria of one sample: a and s as they were, u, z and D."""

    a: Tensor
    s: Tensor
    u: Tensor
    z: Tensor
    D: Tensor


class Objective:
    """Loss and gradient of one link on one sample, for `deqlib.dynamics`.

    `loss` and `gradient` are the functions of this module with throw=False: a model that leaves
    a β < 1 has the loss NaN, which ends its run with an outcome. The equilibria of the last point
    are kept: asked for at the same values of a and s = wᵀx again they need no solving, and
    elsewhere the search begins where they move to first order. X (*batch, n, d), y (*batch, n).
    """

    def __init__(self, link: Link, X: Tensor, y: Tensor) -> None:
        _check_link(link)
        if X.shape[:-1] != y.shape:
            raise ValueError(
                f"X has shape {tuple(X.shape)} and y {tuple(y.shape)}; they must be (*batch, n, d) "
                "and (*batch, n)"
            )
        self.link, self.X, self.y = link, X, y
        self._last: _Solved | None = None

    def _at(self, theta: SingleIndexDEQ) -> _Solved:
        """What is known at theta, solved for unless it is there already."""
        with torch.no_grad():
            s, start = index(theta, self.X), None
            if self._last is not None:
                a, last, u, z, D = self._last
                # By value, and against copies: theta and X may have been changed in place.
                if a.dtype == theta.a.dtype and torch.equal(a, theta.a) and torch.equal(last, s):
                    return self._last
                if u.shape == s.shape and u.dtype == s.dtype:
                    # One Newton step on the new equation; its slope is 1/(1 − aφ′) = 1 + aD.
                    start = u - (u - theta.a[..., None] * z - s) * (1 + a[..., None] * D)
            u = preactivation(self.link, theta.a[..., None], s, start=start, throw=False)
            D = slope(self.link, theta.a[..., None], u)
            self._last = _Solved(theta.a.clone(), s, u, self.link(u), D)
            return self._last

    def preactivation(self, theta: SingleIndexDEQ) -> Tensor:
        """u of every sample, (*batch, n)."""
        return self._at(theta).u.clone()

    def slope(self, theta: SingleIndexDEQ) -> Tensor:
        """D of every sample, (*batch, n)."""
        return self._at(theta).D.clone()

    def loss(self, theta: SingleIndexDEQ) -> Tensor:
        """½ E (z − y)², NaN where the equilibrium is not unique."""
        return 0.5 * (self._at(theta).z - self.y).square().mean(-1)

    def gradient(self, theta: SingleIndexDEQ) -> SingleIndexDEQ:
        """E[(z − y) D (z, x)]."""
        at = self._at(theta)
        return pull_back(at.D, at.z, self.X, self.y)


def flat(theta: SingleIndexDEQ) -> Tensor:
    """(a, w) as one vector (*batch, 1 + d)."""
    _check(theta)
    return torch.cat([theta.a[..., None], theta.w], dim=-1)


def unflat(vector: Tensor) -> SingleIndexDEQ:
    """The inverse of `flat`."""
    return SingleIndexDEQ(vector[..., 0], vector[..., 1:])


def distance(theta: SingleIndexDEQ, target: SingleIndexDEQ) -> Tensor:
    """‖θ − θ*‖, of shape (*batch)."""
    return (flat(theta) - flat(target)).norm(dim=-1)


INPUTS = ("bounded", "gaussian", "heavy")
"""Kinds of inputs that `random_inputs` draws."""


def random_inputs(
    generator: Generator, n: int, d: int, kind: str, *, batch: tuple[int, ...] = ()
) -> Tensor:
    """X (*batch, n, d), float64, entries independent with mean 0 and variance 1.

    bounded   uniform on [−√3, √3]
    gaussian  standard normal
    heavy     Student's t with 5 degrees of freedom, scaled: its fourth moment is finite, its sixth
              is not
    """
    shape = (*batch, n, d)
    if kind == "bounded":
        return 3**0.5 * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "gaussian":
        return normal
    if kind == "heavy":
        chi = torch.randn((*shape, 5), generator=generator, dtype=torch.float64)
        return normal / (chi.square().mean(-1)).sqrt() * (3 / 5) ** 0.5
    raise ValueError(f"kind is {kind!r}; it must be one of {INPUTS}")


def _check(theta: SingleIndexDEQ) -> None:
    if not isinstance(theta, SingleIndexDEQ):
        raise TypeError(f"theta is a {type(theta).__name__}; it must be a SingleIndexDEQ(a, w)")
    a, w = theta
    if w.ndim < 1 or w.shape[:-1] != a.shape:
        raise ValueError(
            f"a has shape {tuple(a.shape)} and w {tuple(w.shape)}; they must be (*batch) and "
            "(*batch, d)"
        )
    if a.dtype != w.dtype or not a.is_floating_point():
        raise TypeError(f"a is {a.dtype} and w {w.dtype}; they must be of one floating-point type")


def _check_link(link: Link) -> None:
    if not isinstance(link, Link):
        raise TypeError(f"link is a {type(link).__name__}; it must be a deqlib.activations.Link")
