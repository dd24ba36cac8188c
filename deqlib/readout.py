r"""The linear deep equilibrium model with a read-out: z = W z + U x, f = V z.

Letters as in `deqlib.linear`, and

======  ============================  =========  ==========================================
letter  definition                    shape      meaning
======  ============================  =========  ==========================================
V       read-out                      (m, p)     f = V z
F       V P⁻¹ U                       (m, d)     the response, f = F x
Y       V P⁻¹                         (m, p)     from a push on the state to the output
Z       P⁻¹ U                         (p, d)     from the input to the state
C       P Pᵀ + U Uᵀ                   (p, p)     conserved
D       Pᵀ P + Vᵀ V                   (p, p)     conserved too
======  ============================  =========  ==========================================
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deqlib import linear
from deqlib.linear import LinearDEQ
from deqlib.rates import extremes, gram, root


class ReadoutDEQ(NamedTuple):
    """Parameters W (*batch, p, p), U (*batch, p, d) and V (*batch, m, p)."""

    W: Tensor
    U: Tensor
    V: Tensor


def resolvent_inverse(theta: ReadoutDEQ) -> Tensor:
    """P = I − W, of shape (*batch, p, p)."""
    if not isinstance(theta, ReadoutDEQ):
        raise TypeError(f"theta is a {type(theta).__name__}; it must be a ReadoutDEQ(W, U, V)")
    P = linear.resolvent_inverse(LinearDEQ(theta.W, theta.U))
    if theta.V.ndim < 2 or theta.V.shape[-1] != P.shape[-1]:
        raise ValueError(
            f"V has shape {tuple(theta.V.shape)}; with W of shape {tuple(theta.W.shape)} it must "
            f"be (*batch, m, {P.shape[-1]})"
        )
    return P


def factors(theta: ReadoutDEQ) -> tuple[Tensor, Tensor]:
    """(Y, Z) = (V P⁻¹, P⁻¹ U), of shapes (*batch, m, p) and (*batch, p, d)."""
    P = resolvent_inverse(theta)
    return torch.linalg.solve(P, theta.V, left=False), torch.linalg.solve(P, theta.U)


def response(theta: ReadoutDEQ) -> Tensor:
    """F = V (I − W)⁻¹ U, of shape (*batch, m, d): the output for input x is F x."""
    Z = factors(theta)[1]
    return theta.V @ Z


def loss(theta: ReadoutDEQ, S: Tensor, A: Tensor) -> Tensor:
    """L = ½ tr((F − A) S (F − A)ᵀ), of shape (*batch)."""
    R = response(theta) - A
    return 0.5 * ((R @ S) * R).sum((-2, -1))


def gradient(theta: ReadoutDEQ, S: Tensor, A: Tensor) -> ReadoutDEQ:
    """(Yᵀ G Zᵀ, Yᵀ G, G Zᵀ) with G = (F − A) S: the gradient of `loss` in W, U and V."""
    Y, Z = factors(theta)
    G = (theta.V @ Z - A) @ S
    return ReadoutDEQ(W=Y.mT @ G @ Z.mT, U=Y.mT @ G, V=G @ Z.mT)


def invariants(theta: ReadoutDEQ) -> tuple[Tensor, Tensor]:
    """(C, D) = (PPᵀ + UUᵀ, PᵀP + VᵀV), which gradient flow conserves (theorem `readout`)."""
    P = resolvent_inverse(theta)
    return P @ P.mT + theta.U @ theta.U.mT, P.mT @ P + theta.V.mT @ theta.V


def resolvent_bound(theta: ReadoutDEQ, S: Tensor, A: Tensor) -> Tensor:
    """What σ_min(I − W) never falls below on the way from here (theorem `readout`), (*batch).

    min(√(λ/2), (λ/2)/(Φ + √(2 λ_max(C) λ_max(D)/λ))), λ = min(λ_min(C), λ_min(D)),
    Φ = ‖A‖ + √(2L/λ_min(S)).
    """
    C, D = invariants(theta)
    (C_low, C_high), (D_low, D_high) = extremes(C), extremes(D)
    half = torch.minimum(C_low, D_low) / 2
    phi = torch.linalg.matrix_norm(A, 2) + (2 * loss(theta, S, A) / extremes(S)[0]).sqrt()
    return torch.minimum(half.sqrt(), half / (phi + (C_high * D_high / half).sqrt()))


def pl_constant(theta: ReadoutDEQ, S: Tensor) -> Tensor:
    """μ = λ_min(S)(λ_min(D)/λ_max(C) − 1): with m = p, ‖∇L‖² ≥ 2μL (theorem `readout`).

    Positive only where the gap λ_min(D) > λ_max(C) is open.
    """
    C, D = invariants(theta)
    return extremes(S)[0] * (extremes(D)[0] / extremes(C)[1] - 1)


def sharp_rate(theta: ReadoutDEQ, S: Tensor) -> Tensor:
    """μ_sharp at a minimiser: L falls like e^(−2 μ_sharp t) in the end.

    The smallest eigenvalue of R ↦ (I + YYᵀ) RS (I + ZᵀZ) − RS, the linearised motion of F − A.
    """
    Y, Z = factors(theta)
    half = root(S)
    right = half @ gram(Z) @ half
    operator = torch.einsum("...ab,...cd->...acbd", gram(Y.mT), right) - torch.einsum(
        "ab,...cd->...acbd", torch.eye(Y.shape[-2], dtype=Y.dtype), S
    )
    n = Y.shape[-2] * S.shape[-1]
    return extremes(operator.reshape(*operator.shape[:-4], n, n))[0]


def saddle_curvature(theta: ReadoutDEQ, S: Tensor, A: Tensor) -> Tensor:
    """An upper bound, negative, of the Hessian's smallest eigenvalue at a critical point, L > 0.

    For one problem whose V or U is rank-deficient, which it is at such a point if p ≥ min(m, d):
    ½(ζ² − √(ζ⁴ + 4‖G‖²/|Px|²)), ζ = |S^½ Zᵀ x|, for a unit x with V x = 0; or its transpose, for a
    unit x with xᵀU = 0: ζ = ‖S^½ w‖ |Y x| and Pᵀ in place of P, w the right singular vector of G.

    Raises:
        ValueError: neither V nor Uᵀ has a kernel (to a relative 1e-8).
    """
    P = resolvent_inverse(theta)
    Y, Z = factors(theta)
    G = (theta.V @ Z - A) @ S
    w = torch.linalg.svd(G).Vh[0]
    bounds = []
    for blind, resolvent, zeta in (
        (theta.V, P, lambda x: (root(S) @ Z.mT @ x).norm()),
        (theta.U.mT, P.mT, lambda x: (root(S) @ w).norm() * (Y @ x).norm()),
    ):
        _, values, Vh = torch.linalg.svd(blind)
        kernel = Vh[int((values > 1e-8 * values[0]).sum()) :]
        for x in kernel:
            squared = zeta(x).square()
            g = torch.linalg.matrix_norm(G, 2) / (resolvent @ x).norm()
            bounds.append(0.5 * (squared - (squared.square() + 4 * g.square()).sqrt()))
    if not bounds:
        raise ValueError(
            "theta has V of full column rank and U of full row rank; the bound needs a state "
            "direction that the read-out does not see or the input does not reach"
        )
    return torch.stack(bounds).min()
