r"""The constants of Part II as functions of the problem: how well, how fast, with which step.

Letters as in `deqlib.linear`, for one problem or any batch of them: P = I − W, F = P⁻¹U, M = P⁻¹,
K = I + FᵀF, C = PPᵀ + UUᵀ. ‖·‖ is the spectral norm here. A problem is (S, A): inputs with second
moment S, invertible, and target map A; the loss is ½ tr((F − A) S (F − A)ᵀ).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deqlib import linear
from deqlib.dynamics import StepState
from deqlib.linear import LinearDEQ


def extremes(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """(λ_min, λ_max) of symmetric matrices (*batch, n, n)."""
    values = torch.linalg.eigvalsh(symmetric)
    return values[..., 0], values[..., -1]


def root(S: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite S (*batch, d, d)."""
    values, vectors = torch.linalg.eigh(S)
    return (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT


def gram(F: Tensor) -> Tensor:
    """K = I + FᵀF, of shape (*batch, d, d)."""
    return torch.eye(F.shape[-1], dtype=F.dtype, device=F.device) + F.mT @ F


def map_bound(theta: LinearDEQ, S: Tensor, A: Tensor) -> Tensor:
    """Φ = ‖A‖ + √(2 L₀/λ_min(S)): the equilibrium map never grows beyond it while L ≤ L₀.

    Source: theorem `well-conditioned`.
    """
    start = linear.loss(theta, S, A)
    return torch.linalg.matrix_norm(A, 2) + (2 * start / extremes(S)[0]).sqrt()


def pl_constant(theta: LinearDEQ, S: Tensor) -> Tensor:
    """μ = λ_min(S)/λ_max(C): ‖∇L‖² ≥ 2μL wherever C is this one (theorem `flow-rate`)."""
    return extremes(S)[0] / extremes(linear.invariant(theta))[1]


def pl_constant_at(theta: LinearDEQ, S: Tensor) -> Tensor:
    """μ(F) = λ_min(I + FFᵀ) λ_min(S^½ K S^½)/λ_max(C) ≥ μ, the refined constant at this point."""
    F = linear.equilibrium_map(theta)
    half = root(S)
    return (
        extremes(gram(F.mT))[0]
        * extremes(half @ gram(F) @ half)[0]
        / extremes(linear.invariant(theta))[1]
    )


def hessian_spectrum(theta: LinearDEQ, S: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest of the pd eigenvalues of the Hessian that the gauge leaves positive.

    At a minimiser (F = A) they are the products of the eigenvalues of (PᵀP)⁻¹ and of
    S^½ (I + AᵀA) S^½; the remaining p² are zero. ``theta`` gives P.
    """
    values = torch.linalg.svdvals(linear.resolvent_inverse(theta)).square()
    half = root(S)
    low, high = extremes(half @ gram(A) @ half)
    return low / values[..., 0], high / values[..., -1]


def smoothness(theta: LinearDEQ, S: Tensor, A: Tensor) -> Tensor:
    """Λ = λ_max(S)(1 + Φ²)²/λ_min(C₀): steps up to 1/(4Λ) are proved safe (`descent-rate`)."""
    phi = map_bound(theta, S, A)
    return extremes(S)[1] * (1 + phi.square()).square() / extremes(linear.invariant(theta))[0]


def local_smoothness(theta: LinearDEQ, S: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """(ω, γ) at this point: ω = ‖M‖² λ_max(K^½ S K^½) and γ = ‖Γ‖, Γ = MᵀGFᵀM.

    A step η ≤ 1/(2ω + 4γ) lowers the loss by at least (η/2)‖∇L‖² (`adaptive-descent`).
    """
    P = linear.resolvent_inverse(theta)
    F = linear.equilibrium_map(theta)
    half = root(S)
    omega = extremes(half @ gram(F) @ half)[1] / torch.linalg.svdvals(P)[..., -1].square()
    q = linear.gradient(theta, S, A).U
    Gamma = torch.linalg.solve(P.mT, (q @ F.mT).mT).mT
    return omega, torch.linalg.matrix_norm(Gamma, 2)


def adaptive_step(S: Tensor, A: Tensor) -> Callable[[StepState[Any]], Tensor]:
    """The step rule η = 1/(2ω + 4γ) for `deqlib.dynamics.gradient_descent`."""

    def rule(state: StepState[Any], /) -> Tensor:
        omega, gamma = local_smoothness(state.theta, S, A)
        return 1 / (2 * omega + 4 * gamma)

    return rule


def adaptive_ceiling(theta: LinearDEQ, S: Tensor, A: Tensor) -> Tensor:
    """Θ = λ_max(C₀) + λ_min(C₀)(exp(25 L₀/(36 λ_max(S))) − 1), above λ_max(C_k) for all k.

    Source: theorem `adaptive-descent`.
    """
    low, high = extremes(linear.invariant(theta))
    return high + low * torch.expm1(25 * linear.loss(theta, S, A) / (36 * extremes(S)[1]))


def edge_radius(eta: Tensor | float, S: Tensor, A: Tensor) -> Tensor:
    """r_EoS for one output: r² = (η/2)(1 + |A|²) λ_max(S^½ (I + AᵀA) S^½) (`any-step`).

    The radius below which a minimiser on the sphere repels gradient descent with step η.
    """
    half = root(S)
    top = extremes(half @ gram(A) @ half)[1]
    return (eta / 2 * (1 + A.square().sum((-2, -1))) * top).sqrt()


def exact_step(
    theta: LinearDEQ, eta: Tensor, S: Tensor, A: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What one step of size η (*batch) does, without making it: (F₊ − F, L₊ − L, first-order part).

    F₊ − F = −η M (I + ηΓ)⁻¹ q K  and  L₊ − L = −η⟨(I + ηΓ)⁻¹ Y, Y⟩ + ½ tr(Δ S Δᵀ), where Y = q K^½
    and Δ = F₊ − F; the last item returned is ⟨(I + ηΓ)⁻¹ Y, Y⟩. Exact for every η for which
    I + ηΓ is invertible. Source: lemma `exact-step`.
    """
    P, F = linear.resolvent_inverse(theta), linear.equilibrium_map(theta)
    q = linear.gradient(theta, S, A).U
    Gamma = torch.linalg.solve(P.mT, (q @ F.mT).mT).mT
    eye = torch.eye(P.shape[-1], dtype=P.dtype, device=P.device)
    resolvent_q = torch.linalg.solve(eye + eta[..., None, None] * Gamma, q)
    first = (resolvent_q * (q @ gram(F))).sum((-2, -1))
    Delta = -torch.linalg.solve(P, eta[..., None, None] * (resolvent_q @ gram(F)))
    second = 0.5 * ((Delta @ S) * Delta).sum((-2, -1))
    return Delta, second - eta * first, first


@dataclass(frozen=True)
class DescentSlacks:
    """Every inequality in the proof of `descent-rate`, as (right side − left side)/right side.

    Names follow the proof; each is a tensor (*batch), at least 0 where the inequality holds.
    """

    map_bounded: Tensor
    """‖F‖ ≤ Φ."""
    inverse_bounded: Tensor
    """‖M‖² ≤ (1 + Φ²)/λ_min(C₀)."""
    gamma_bounded: Tensor
    """‖Γ‖ ≤ Λ."""
    first_order: Tensor
    """⟨(I + ηΓ)⁻¹Y, Y⟩ ≥ ‖∇L‖²/(1 + η‖Γ‖)."""
    second_order: Tensor
    """½ tr(ΔSΔᵀ) ≤ η²Λ/(2(1 − η‖Γ‖)²) ‖∇L‖²."""
    descent: Tensor
    """L − L₊ ≥ (η/2)‖∇L‖²."""
    growth: Tensor
    """λ_max(C₊ − C₀) ≤ 2ηL₀."""
    contraction: Tensor
    """L₊ ≤ (1 − ημ′) L."""


def descent_slacks(
    theta: LinearDEQ, start: LinearDEQ, eta: Tensor, S: Tensor, A: Tensor
) -> DescentSlacks:
    """The slacks of one step from ``theta`` along a run that began at ``start``."""
    L0, L = linear.loss(start, S, A), linear.loss(theta, S, A)
    C0 = linear.invariant(start)
    phi, Lam = map_bound(start, S, A), smoothness(start, S, A)
    P, F = linear.resolvent_inverse(theta), linear.equilibrium_map(theta)
    g = linear.gradient(theta, S, A)
    squared = g.W.square().sum((-2, -1)) + g.U.square().sum((-2, -1))
    step = eta[..., None, None]
    after = LinearDEQ(theta.W - step * g.W, theta.U - step * g.U)
    Gamma = torch.linalg.solve(P.mT, (g.U @ F.mT).mT).mT
    gamma = torch.linalg.matrix_norm(Gamma, 2)
    e = eta * gamma
    Delta, _, first = exact_step(theta, eta, S, A)
    second = 0.5 * ((Delta @ S) * Delta).sum((-2, -1))
    growth = extremes(linear.invariant(after) - C0)[1]
    mu = extremes(S)[0] / (extremes(C0)[1] + 2 * eta * L0)
    L_after = linear.loss(after, S, A)

    def below(left: Tensor, right: Tensor) -> Tensor:
        return (right - left) / right

    allowed = eta.square() * Lam / (2 * (1 - e).square()) * squared
    return DescentSlacks(
        map_bounded=below(torch.linalg.matrix_norm(F, 2), phi),
        inverse_bounded=below(
            1 / torch.linalg.svdvals(P)[..., -1].square(), (1 + phi.square()) / extremes(C0)[0]
        ),
        gamma_bounded=below(gamma, Lam),
        first_order=below(squared / (1 + e), first),
        second_order=below(second, allowed),
        descent=below(eta / 2 * squared, L - L_after),
        growth=below(growth, 2 * eta * L0),
        contraction=below(L_after, (1 - eta * mu) * L),
    )
