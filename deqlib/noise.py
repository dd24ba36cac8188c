r"""Targets with noise: what it does to the gradient, how far it moves the minimiser, and a fit.

Letters as in `deqlib.single_index` and `deqlib.one_point`. The targets are y = y° + ξ with the
outputs y° of a target model θ* on the same inputs; ξ is anything: noise, rounding, or what the
model cannot say. Then the gradient of L = ½ E (z − y)² is

    ∇L(θ) = Q(θ) (θ − θ*) − e(θ),  e(θ) = E[ξ D (z, x)]           (`noise-ball`)

with Q, m, Λ, λ, H formed with y°. All functions take leading batch dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deqlib import single_index
from deqlib.activations import Link
from deqlib.single_index import SingleIndexDEQ


def noise_pull(link: Link, theta: SingleIndexDEQ, X: Tensor, xi: Tensor) -> Tensor:
    """e(θ) = E[ξ D (z, x)], (*batch, 1 + d): the part of −∇L(θ) that is due to ξ (*batch, n)."""
    a = theta.a[..., None]
    u = single_index.preactivation(link, a, single_index.index(theta, X))
    weight = xi * single_index.slope(link, a, u)
    of_w = (X.mT @ weight[..., None])[..., 0] / weight.shape[-1]
    return torch.cat([(weight * link(u)).mean(-1)[..., None], of_w], dim=-1)


def largest_pull(size: Tensor, lam_plus: Tensor, near: Tensor, rho: Tensor) -> Tensor:
    """√λ⁺ Δ*/(Δ* − ρ)² · √E[ξ²]: no ξ of this ``size`` = √E[ξ²] makes ‖e‖ larger in the ball."""
    return size * lam_plus.sqrt() * near / (near - rho).square()


def energy_radius(size: Tensor, m: Tensor, near: Tensor, far: Tensor, rho: Tensor) -> Tensor:
    """R = √E[ξ²] · √(T*/((Δ* − ρ) m)): descent in the ball of radius ρ ends at most R from θ*."""
    return size * (far / ((near - rho) * m)).sqrt()


def predicted_rms(H: Tensor, sigma: float | Tensor, n: int) -> Tensor:
    """σ √(tr H⁻¹ / n): root mean square of H⁻¹ e(θ*) for independent noise of variance σ².

    H (*batch, 1 + d, 1 + d) is `one_point.hessian`. Source: proposition `noise-asymptotics`.
    """
    return sigma * (torch.linalg.inv(H).diagonal(dim1=-2, dim2=-1).sum(-1) / n).sqrt()


NEAR = 1e-2
"""Where Newton's step is this short, relative to 1 + ‖θ‖, J takes the place of G in `fit`."""
FAR = 1e6
"""‖θ‖ over 1 + ‖θ₀‖ beyond which `fit` calls a search that has not converged a runaway."""


class Fit(NamedTuple):
    """A least-squares fit θ̂, and what became of it; the flags are (*batch).

    theta      : where the search ended.
    step       : ‖J⁻¹∇L‖/(1 + ‖θ̂‖) with J = ∇²L: how far the minimiser is, to first order; inf
                 where J has a negative eigenvalue, so that no minimiser is near.
    converged  : J has none and the step is at most tol.
    runaway    : no minimiser was met on the way out to ‖θ̂‖ > 10⁶(1 + ‖θ₀‖), where the search was
                 cut off. Every step of that way lowered the loss (or left it, up to rounding).
    iterations : steps tried, refused ones included.

    A problem that is neither was cut off by max_iter, or its loss falls towards a β = 1, where the
    model ends.
    """

    theta: SingleIndexDEQ
    step: Tensor
    converged: Tensor
    runaway: Tensor
    iterations: int


def curvature(link: Link, a: Tensor, u: Tensor, X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(G, J): E[D²(z, x)(z, x)ᵀ], Gauss and Newton's matrix, and J = ∇²L = G + E[(z − y) ∇²z].

    With p = D (z, x) = ∇z and q = p/φ′ = ∇u, differentiating z = φ(a z + wᵀx) twice gives

        (1 − aφ′) ∇²z = φ″ q qᵀ + φ′ (e pᵀ + p eᵀ),   e the unit vector of a.

    Args:
        link: the link φ; φ″ is taken by automatic differentiation of its ``derivative``.
        a: self-weights (*batch); u: the pre-activations of the equilibria (*batch, n).
        X: inputs (*batch, n, d); y: targets (*batch, n).
    """
    with torch.enable_grad():
        leaf = u.detach().requires_grad_()
        slope = link.derivative(leaf)
        bend = torch.zeros_like(u)  # of a link that consists of lines
        if slope.requires_grad:
            bend = torch.autograd.grad(slope.sum(), leaf)[0]
    slope, z = slope.detach(), link(u)
    room = 1 - a[..., None] * slope
    q = torch.cat([z[..., None], X.expand(*z.shape, X.shape[-1])], dim=-1) / room[..., None]
    p = slope[..., None] * q
    n = z.shape[-1]
    G = p.mT @ p / n
    weight = (z - y) / room
    J = G + q.mT @ ((weight * bend)[..., None] * q) / n
    cross = ((weight * slope)[..., None] * p).mean(-2)
    J[..., 0, :] += cross
    J[..., :, 0] += cross
    return G, J


def fit(
    link: Link,
    X: Tensor,
    y: Tensor,
    start: SingleIndexDEQ,
    *,
    tol: float = 1e-10,
    max_iter: int = 300,
) -> Fit:
    """A minimiser of L = ½ E (z − y)², by damped Gauss–Newton steps: the end of descent, soon.

    Each step solves (G + μ diag) s = −∇L, G = E[D² (z, x)(z, x)ᵀ], where diag holds the diagonal
    of G (Levenberg 1944; Marquardt 1963). A step that raises the loss, or leaves a β < 1, is
    refused and μ grows by 8; one that is taken divides μ by 8.

    At a large misfit the Hessian J = G + E[(z − y) ∇²z] may exceed 2G somewhere. There the
    undamped step overshoots for ever, at a distance at which the loss, in the last of its digits,
    no longer tells better from worse. So where J has no negative eigenvalue and Newton's step
    −J⁻¹∇L is at most 10⁻²(1 + ‖θ‖) long, J takes the place of G. The length of that step ends the
    search: to first order it is the distance to the minimiser.

    A loss may have no minimiser: for some samples that of a tanh falls for ever, towards that of a
    clipped line. Such a search is reported as ``runaway``; that is evidence, not a proof.

    Args:
        link: the link φ.
        X: inputs (*batch, n, d).
        y: targets (*batch, n).
        start: where to begin, (*batch), with a finite loss. The result may depend on it.
        tol: length of the last Newton step, relative to 1 + ‖θ‖.
        max_iter: most steps tried, refused ones included.

    Returns:
        `Fit`; what has not converged is reported there, never raised.

    Raises:
        ValueError: for a start without a unique equilibrium.
    """
    theta = single_index.flat(start)
    u = single_index.preactivation(link, start.a[..., None], single_index.index(start, X))
    value = (link(u) - y).square().mean(-1)
    damping = torch.full_like(value, 1e-5)
    length = torch.full_like(value, torch.inf)
    converged = torch.zeros_like(value, dtype=torch.bool)
    eps = torch.finfo(y.dtype).eps
    horizon = FAR * (1 + theta.norm(dim=-1))
    iterations = 0

    while iterations < max_iter and not bool(converged.all()):
        iterations += 1
        a = theta[..., 0]
        z, D = link(u), single_index.slope(link, a[..., None], u)
        G, J = curvature(link, a, u, X, y)
        of_w = (X.mT @ (D * (z - y))[..., None])[..., 0] / z.shape[-1]
        g = torch.cat([(D * (z - y) * z).mean(-1)[..., None], of_w], dim=-1)
        diagonal = G.diagonal(dim1=-2, dim2=-1)
        floor = 1e-300 + 1e-14 * diagonal.amax(-1, keepdim=True)
        ridge = damping[..., None] * diagonal + floor
        factor, fails = torch.linalg.cholesky_ex(J + torch.diag_embed(floor.expand_as(g)))
        newton = -torch.cholesky_solve(g[..., None], factor)[..., 0]
        relative = newton.norm(dim=-1) / (1 + theta.norm(dim=-1))
        relative = torch.where(fails == 0, relative, torch.inf)
        M = torch.where((relative <= NEAR)[..., None, None], J, G)
        step = -torch.linalg.solve(M + torch.diag_embed(ridge), g)
        trial = single_index.unflat(theta + step)
        s = single_index.index(trial, X)
        moved = single_index.preactivation(link, trial.a[..., None], s, start=u, throw=False)
        tried = (link(moved) - y).square().mean(-1)
        # z is known to about eps (|u| + |z|): losses that differ by less are equal.
        blur = 32 * eps * (value.sqrt() + eps) * (u.abs() + z.abs() + y.abs()).mean(-1)
        better = (tried <= value + blur) & ~converged
        length = torch.where(converged, length, relative)
        converged = converged | (better & (relative <= tol))
        theta = torch.where(better[..., None], theta + step, theta)
        u = torch.where(better[..., None], moved, u)
        value = torch.where(better, tried, value)
        damping = torch.where(better, damping / 8, damping * 8).clamp(1e-14, 1e14)

    runaway = ~converged & (theta.norm(dim=-1) > horizon)
    return Fit(single_index.unflat(theta), length, converged, runaway, iterations)
