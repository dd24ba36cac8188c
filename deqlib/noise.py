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


class Fit(NamedTuple):
    """A least-squares fit: θ̂, the last step's length relative to 1 + ‖θ̂‖, and whether it ended."""

    theta: SingleIndexDEQ
    step: Tensor
    converged: Tensor
    iterations: int


def fit(
    link: Link,
    X: Tensor,
    y: Tensor,
    start: SingleIndexDEQ,
    *,
    tol: float = 1e-10,
    max_iter: int = 300,
) -> Fit:
    """A critical point of L = ½ E (z − y)², by damped Gauss–Newton steps: the end of descent, soon.

    Each step solves (E[D² (z, x)(z, x)ᵀ] + μ diag) s = −∇L, where diag holds the matrix's own
    diagonal. A step that raises the loss, or leaves a β < 1, is refused and μ grows by 8; one that
    is taken divides μ by 8. A problem has converged when a step taken with μ ≤ 1e-6 is at most
    tol (1 + ‖θ‖) long. (Levenberg 1944; Marquardt 1963.)

    Args:
        link: the link φ.
        X: inputs (*batch, n, d).
        y: targets (*batch, n).
        start: where to begin, (*batch), with a finite loss. The result may depend on it.
        tol: relative length of the last step.
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
    iterations = 0
    while iterations < max_iter and not bool(converged.all()):
        iterations += 1
        now = single_index.unflat(theta)
        z, D = link(u), single_index.slope(link, now.a[..., None], u)
        rows = D[..., None] * torch.cat([z[..., None], X.expand(*z.shape, X.shape[-1])], dim=-1)
        G = rows.mT @ rows / z.shape[-1]
        g = (rows.mT @ (z - y)[..., None])[..., 0] / z.shape[-1]
        diagonal = G.diagonal(dim1=-2, dim2=-1)
        floor = 1e-300 + 1e-14 * diagonal.amax(-1, keepdim=True)
        ridge = damping[..., None] * diagonal + floor
        step = -torch.linalg.solve(G + torch.diag_embed(ridge), g)
        trial = single_index.unflat(theta + step)
        s = single_index.index(trial, X)
        moved = single_index.preactivation(link, trial.a[..., None], s, start=u, throw=False)
        tried = (link(moved) - y).square().mean(-1)
        # z is known to about eps (|u| + |z|): losses that differ by less are equal.
        blur = 32 * eps * (value.sqrt() + eps) * (u.abs() + z.abs() + y.abs()).mean(-1)
        better = (tried <= value + blur) & ~converged
        relative = step.norm(dim=-1) / (1 + theta.norm(dim=-1))
        length = torch.where(better, relative, length)
        converged = converged | (better & (damping <= 1e-6) & (relative <= tol))
        theta = torch.where(better[..., None], theta + step, theta)
        u = torch.where(better[..., None], moved, u)
        value = torch.where(better, tried, value)
        damping = torch.where(better, damping / 8, damping * 8).clamp(1e-14, 1e14)
    return Fit(single_index.unflat(theta), length, converged, iterations)
