r"""A deep equilibrium model with a nonlinear vector state, z = φ(W z + U x), supervised in full.

Letters as in Part III, with matrices for numbers: W (p, p), U (p, d), θ = (W, U); the state z and
its pre-activation u = W z + U x have p entries, and φ acts on each. Φ′ = diag φ′(u). The loss is
½ E ‖z − y‖² with the whole state as the output. Every function takes leading batch dimensions.

For ‖W‖₂ β < 1 the layer is a contraction, and there is one equilibrium for every input.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deqlib.activations import Link
from deqlib.fixed_point import solve


class VectorDEQ(NamedTuple):
    """Parameters of z = φ(W z + U x): W (*batch, p, p) and U (*batch, p, d)."""

    W: Tensor
    U: Tensor


class Constants(NamedTuple):
    """The constants of theorem `vector-local` for a start at distance ρ from the target, (*batch).

    room         κ = 1/β − ‖W*‖₂
    bend         σ = 1/α − 1/β
    gamma        γ = 1 − (σ + ρ)/(κ − ρ)
    contraction  m = γ λ/(1/α + ‖W*‖₂ + ρ)²
    smoothness   Λ = λ⁺ κ²/(γ (κ − ρ)⁴)
    """

    room: Tensor
    bend: float
    gamma: Tensor
    contraction: Tensor
    smoothness: Tensor


def equilibrium(link: Link, theta: VectorDEQ, X: Tensor, *, start: Tensor | None = None) -> Tensor:
    """z (*batch, n, p) for the rows of X (*batch, n, d), by Anderson's method from ``start`` or 0.

    It stops at a residual of 1e-13 (1 + ‖z‖); the error is at most that over 1 − β‖W‖₂. Carries no
    gradient.

    Raises:
        ValueError: where β ‖W‖₂ ≥ 1 or the shapes do not fit.
        NotConvergedError: if some state does not settle.
    """
    _check(theta, X)
    norm = link.beta * torch.linalg.matrix_norm(theta.W, 2)
    if not bool((norm < 1).all()):
        raise ValueError(
            f"W has spectral norm {float(norm.max() / link.beta):.6g}; with slopes of {link.name} "
            f"up to {link.beta:.6g} it must stay below {1 / link.beta:.6g}"
        )
    drive = X @ theta.U.mT
    z0 = torch.zeros_like(drive) if start is None else start
    return solve(lambda z: link(z @ theta.W.mT + drive), z0, tol=1e-13, atol=1e-13).z


def preactivation(theta: VectorDEQ, X: Tensor, z: Tensor) -> Tensor:
    """u = W z + U x, (*batch, n, p)."""
    return z @ theta.W.mT + X @ theta.U.mT


def adjoint(link: Link, theta: VectorDEQ, u: Tensor, error: Tensor) -> Tensor:
    """q = Φ′(I − WᵀΦ′)⁻¹ e: the error e (*batch, n, p) pulled back through the equilibrium.

    Where φ′ > 0 it is (Ψ′ − W)^(−T) e with Ψ′ = diag 1/φ′(u).
    """
    rise = link.derivative(u)
    eye = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    system = eye - theta.W.mT[..., None, :, :] * rise[..., None, :]
    return rise * torch.linalg.solve(system, error[..., None])[..., 0]


def gradient(link: Link, theta: VectorDEQ, X: Tensor, y: Tensor, z: Tensor) -> VectorDEQ:
    """∇L = (E[q zᵀ], E[q xᵀ]) with the adjoint q of z − y; z are the equilibria of the rows of X.

    Source: theorem `vector-local`.
    """
    q = adjoint(link, theta, preactivation(theta, X, z), z - y)
    n = X.shape[-2]
    return VectorDEQ(q.mT @ z / n, q.mT @ X / n)


def loss(y: Tensor, z: Tensor) -> Tensor:
    """½ E ‖z − y‖², (*batch)."""
    return 0.5 * (z - y).square().sum(-1).mean(-1)


def inner(one: VectorDEQ, other: VectorDEQ) -> Tensor:
    """⟨one, other⟩, the sum of the products of all entries, (*batch)."""
    return (one.W * other.W).sum((-2, -1)) + (one.U * other.U).sum((-2, -1))


def difference(one: VectorDEQ, other: VectorDEQ) -> VectorDEQ:
    """δ = one − other."""
    return VectorDEQ(one.W - other.W, one.U - other.U)


def one_point_form(
    link: Link, theta: VectorDEQ, target: VectorDEQ, X: Tensor, z: Tensor, y: Tensor
) -> Tensor:
    """E[(z − y)ᵀ (Ψ′ − W)⁻¹ (Ψ̄ − W*) (z − y)], which is ⟨∇L, δ⟩, (*batch).

    Ψ̄ = diag 1/φ̄ with the secant slopes φ̄ between the pre-activations of z and y; φ′ > 0.

    Source: theorem `vector-local`.
    """
    u, v = preactivation(theta, X, z), preactivation(target, X, y)
    e, rise = z - y, link.derivative(u)
    moved = e / link.secant(u, v) - e @ target.W.mT
    eye = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    system = eye - rise[..., None] * theta.W[..., None, :, :]  # (Ψ′ − W)⁻¹ = (I − Φ′W)⁻¹ Φ′
    back = torch.linalg.solve(system, (rise * moved)[..., None])[..., 0]
    return (e * back).sum(-1).mean(-1)


def constants(link: Link, target: VectorDEQ, X: Tensor, y: Tensor, rho: Tensor) -> Constants:
    """κ, σ, γ, m and Λ of theorem `vector-local`; λ and λ⁺ are the extreme eigenvalues of
    E[(y, x)(y, x)ᵀ].

    Raises:
        ValueError: for a link whose slopes have no positive lower bound.
    """
    if not link.alpha > 0:
        raise ValueError(
            f"link is {link.name} with alpha = {link.alpha:.6g}; the slopes need a positive bound"
        )
    norm = torch.linalg.matrix_norm(target.W, 2)
    room, bend = 1 / link.beta - norm, 1 / link.alpha - 1 / link.beta
    rows = torch.cat([y, X], dim=-1)
    values = torch.linalg.eigvalsh(rows.mT @ rows / X.shape[-2])
    gamma = 1 - (bend + rho) / (room - rho)
    low = gamma * values[..., 0] / (1 / link.alpha + norm + rho).square()
    high = values[..., -1] * room.square() / (gamma * (room - rho) ** 4)
    return Constants(room, bend, gamma, low, high)


def _check(theta: VectorDEQ, X: Tensor) -> None:
    p, d = theta.U.shape[-2:]
    if theta.W.shape[-2:] != (p, p) or X.ndim < 2 or X.shape[-1] != d:
        raise ValueError(
            f"W has shape {tuple(theta.W.shape)}, U {tuple(theta.U.shape)} and X "
            f"{tuple(X.shape)}; they must be (*batch, p, p), (*batch, p, d) and (*batch, n, d)"
        )
