r"""The linear deep equilibrium model z = W z + U x.

Notation of the book, for one problem of state dimension p and input dimension d:

======  ============================  =========  ==========================================
letter  definition                    shape      meaning
======  ============================  =========  ==========================================
P       I − W                         (p, p)     must be invertible
F       P⁻¹ U                         (p, d)     the equilibrium map, z = F x
A       argmin of the loss            (p, d)     the target map (least squares on data)
S       E[x xᵀ]                       (d, d)     second moment of the inputs
G       ∂ℓ/∂F                         (p, d)     for the squared loss (F − A) S
q       P⁻ᵀ G                         (p, d)     the adjoint, which is also ∂L/∂U
C       P Pᵀ + U Uᵀ                   (p, p)     what training conserves
======  ============================  =========  ==========================================

Every function takes any leading batch dimensions, so that a thousand problems are one call.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor


class LinearDEQ(NamedTuple):
    """Parameters of z = W z + U x: W of shape (*batch, p, p) and U of shape (*batch, p, d)."""

    W: Tensor
    U: Tensor


class Regression(NamedTuple):
    """A least-squares problem: S (*batch, d, d), A (*batch, p, d) and the loss's floor (*batch)."""

    S: Tensor
    A: Tensor
    floor: Tensor


def _check(theta: LinearDEQ) -> None:
    if not isinstance(theta, LinearDEQ):
        raise TypeError(f"theta is a {type(theta).__name__}; it must be a LinearDEQ(W, U)")
    W, U = theta
    if W.ndim < 2 or W.shape[-1] != W.shape[-2]:
        raise ValueError(f"W has shape {tuple(W.shape)}; it must be (*batch, p, p)")
    if U.ndim < 2 or U.shape[-2] != W.shape[-1]:
        raise ValueError(
            f"U has shape {tuple(U.shape)}; with W of shape {tuple(W.shape)} it must be "
            f"(*batch, {W.shape[-1]}, d)"
        )
    if W.dtype != U.dtype or not W.is_floating_point():
        raise TypeError(f"W is {W.dtype} and U {U.dtype}; they must be of one floating-point type")


def _check_problem(theta: LinearDEQ, S: Tensor, A: Tensor) -> None:
    _check(theta)
    p, d = theta.U.shape[-2:]
    if S.shape[-2:] != (d, d):
        raise ValueError(
            f"S has shape {tuple(S.shape)}; with U of shape {tuple(theta.U.shape)} it must be "
            f"(*batch, {d}, {d})"
        )
    if A.shape[-2:] != (p, d):
        raise ValueError(
            f"A has shape {tuple(A.shape)}; with U of shape {tuple(theta.U.shape)} it must be "
            f"(*batch, {p}, {d})"
        )


def resolvent_inverse(theta: LinearDEQ) -> Tensor:
    """P = I − W, of shape (*batch, p, p). The model has an equilibrium where P is invertible."""
    _check(theta)
    return torch.eye(theta.W.shape[-1], dtype=theta.W.dtype, device=theta.W.device) - theta.W


def equilibrium_map(theta: LinearDEQ) -> Tensor:
    """F = (I − W)⁻¹ U, of shape (*batch, p, d): the equilibrium of input x is z = F x.

    Raises:
        ValueError: wrong shapes, or I − W exactly singular (a pivot of its LU factors is zero).
            Where it is nearly so, F is large, and not finite if it overflows.
    """
    P = resolvent_inverse(theta)
    try:
        return torch.linalg.solve(P, theta.U)
    except torch.linalg.LinAlgError as error:
        raise _singular(error) from error


def _singular(error: Exception) -> ValueError:
    return ValueError(
        "W has the eigenvalue 1, so I − W is singular and z = W z + U x has no unique "
        f"equilibrium ({error})"
    )


class _Factors(NamedTuple):
    """The LU factors of P = I − W: one factorisation for F and for the adjoint q."""

    LU: Tensor
    pivots: Tensor

    @classmethod
    def of(cls, theta: LinearDEQ) -> _Factors:
        try:
            return cls(*torch.linalg.lu_factor(resolvent_inverse(theta)))
        except torch.linalg.LinAlgError as error:
            raise _singular(error) from error

    def equilibrium(self, U: Tensor) -> Tensor:
        """F = P⁻¹ U."""
        return torch.linalg.lu_solve(self.LU, self.pivots, U)

    def pull_back(self, F: Tensor, G: Tensor) -> LinearDEQ:
        """(q Fᵀ, q) with q = P⁻ᵀ G: from the gradient in F to that in (W, U)."""
        q = torch.linalg.lu_solve(self.LU, self.pivots, G, adjoint=True)
        return LinearDEQ(W=q @ F.mT, U=q)


def predict(theta: LinearDEQ, X: Tensor) -> Tensor:
    """Equilibria z = F x of the rows of X: (*batch, n, d) → (*batch, n, p)."""
    _check(theta)
    if X.ndim < 2 or X.shape[-1] != theta.U.shape[-1]:
        raise ValueError(
            f"X has shape {tuple(X.shape)}; with U of shape {tuple(theta.U.shape)} it must be "
            f"(*batch, n, {theta.U.shape[-1]})"
        )
    return X @ equilibrium_map(theta).mT


def loss(theta: LinearDEQ, S: Tensor, A: Tensor) -> Tensor:
    """L = ½ tr((F − A) S (F − A)ᵀ) = ½ E‖z − A x‖², of shape (*batch).

    On data with targets y this is the excess over the least-squares loss when S and A come from
    `regression`.
    """
    _check_problem(theta, S, A)
    R = equilibrium_map(theta) - A
    return 0.5 * ((R @ S) * R).sum((-2, -1))


def gradient_from(theta: LinearDEQ, G: Tensor) -> LinearDEQ:
    """(∂L/∂W, ∂L/∂U) for any loss L = ℓ(F), from G = ∂ℓ/∂F of shape (*batch, p, d).

    ∂L/∂U = q = P⁻ᵀ G and ∂L/∂W = q Fᵀ (theorem `linear-gradient`).
    """
    factors = _Factors.of(theta)
    F = factors.equilibrium(theta.U)
    if G.shape[-2:] != F.shape[-2:]:
        raise ValueError(
            f"G has shape {tuple(G.shape)}; it must be (*batch, {F.shape[-2]}, {F.shape[-1]}), "
            "the shape of F"
        )
    return factors.pull_back(F, G)


def gradient(theta: LinearDEQ, S: Tensor, A: Tensor) -> LinearDEQ:
    """Gradient of `loss`: q = P⁻ᵀ (F − A) S and (q Fᵀ, q) (theorem `linear-gradient`)."""
    _check_problem(theta, S, A)
    factors = _Factors.of(theta)
    F = factors.equilibrium(theta.U)
    return factors.pull_back(F, (F - A) @ S)


def loss_and_gradient(theta: LinearDEQ, S: Tensor, A: Tensor) -> tuple[Tensor, LinearDEQ]:
    """`loss`, of shape (*batch), and its `gradient`, from one factorisation of I − W."""
    _check_problem(theta, S, A)
    factors = _Factors.of(theta)
    F = factors.equilibrium(theta.U)
    R = F - A
    G = R @ S
    return 0.5 * (G * R).sum((-2, -1)), factors.pull_back(F, G)


def direction(q: Tensor, z: Tensor, X: Tensor) -> LinearDEQ:
    """(E[q zᵀ], E[q xᵀ]) over n samples: the gradient that any backward pass produces.

    q (*batch, n, p) is what the backward pass claims the adjoint to be, z (*batch, n, p) what the
    forward pass returned, X (*batch, n, d) the inputs. With the exact adjoint this is the
    gradient; the conservation law holds for every q (theorem `conservation-law`).
    """
    n = X.shape[-2]
    return LinearDEQ(W=q.mT @ z / n, U=q.mT @ X / n)


def invariant(theta: LinearDEQ) -> Tensor:
    """C = (I − W)(I − W)ᵀ + U Uᵀ, of shape (*batch, p, p) (theorem `conservation-law`).

    Its diagonal holds the squared lengths of the rows of [I − W, U], each of which gradient flow
    keeps on a sphere of ℝ^(p+d).
    """
    P = resolvent_inverse(theta)
    return P @ P.mT + theta.U @ theta.U.mT


def rows(theta: LinearDEQ) -> Tensor:
    """N = [I − W, U], of shape (*batch, p, p + d); C = N Nᵀ is the Gram matrix of its rows."""
    return torch.cat([resolvent_inverse(theta), theta.U], dim=-1)


def second_moment(X: Tensor) -> Tensor:
    """S = Xᵀ X / n of the rows of X: (*batch, n, d) → (*batch, d, d)."""
    return X.mT @ X / X.shape[-2]


def regression(X: Tensor, Y: Tensor) -> Regression:
    """The least-squares problem of data X (*batch, n, d), Y (*batch, n, p).

    A = E[y xᵀ] S⁻¹ and E‖z − y‖²/2 = `loss` + floor, with floor = E‖y − A x‖²/2.

    Raises:
        ValueError: wrong shapes, numbers that are not finite, fewer rows than columns in X, or
            dependent columns (S is singular).
    """
    if X.ndim < 2 or Y.ndim < 2 or X.shape[-2] != Y.shape[-2]:
        raise ValueError(
            f"X has shape {tuple(X.shape)} and Y {tuple(Y.shape)}; they must be (*batch, n, d) "
            "and (*batch, n, p) with the same n"
        )
    for name, data in (("X", X), ("Y", Y)):
        if not bool(data.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity; it must hold finite numbers")
    rank = torch.linalg.matrix_rank(X)
    if bool((rank < X.shape[-1]).any()):
        raise ValueError(
            f"X has rank {int(rank.min())}; it must have full column rank {X.shape[-1]}, "
            "since S = XᵀX/n must be invertible"
        )
    A = torch.linalg.lstsq(X, Y).solution.mT
    floor = 0.5 * (Y - X @ A.mT).square().sum(-1).mean(-1)
    return Regression(second_moment(X), A, floor)


def sphere_limit(theta: LinearDEQ, A: Tensor) -> LinearDEQ:
    """Where gradient flow ends for one output (p = 1): the point of the ray on the sphere.

    P_∞ = sign(P₀) r/√(1 + |A|²), U_∞ = P_∞ A, with r² = P₀² + |U₀|² (theorem `sphere-limit`).

    Raises:
        ValueError: if p ≠ 1, or if W = 1 somewhere, where there is no equilibrium to start from.
    """
    P = resolvent_inverse(theta)
    if P.shape[-1] != 1:
        raise ValueError(f"theta has p = {P.shape[-1]}; the closed form needs p = 1")
    if bool((P == 0).any()):
        raise ValueError("W is 1, so I − W is singular; the flow must start at an equilibrium")
    r2 = invariant(theta)
    P_limit = P.sign() * (r2 / (1 + A.square().sum((-2, -1), keepdim=True))).sqrt()
    return LinearDEQ(W=1 - P_limit, U=P_limit * A)


def random_start(
    generator: Generator, p: int, d: int, *, batch: tuple[int, ...] = (), scale: float = 1.0
) -> LinearDEQ:
    """A random start: W with spectral norm uniform in [0, 0.9], U normal with variance scale²/d.

    Float64. ‖W‖₂ < 1, so that Picard converges and I − W is invertible with
    σ_min(I − W) ≥ 0.1.
    """
    W = torch.randn(*batch, p, p, generator=generator, dtype=torch.float64)
    norm = torch.linalg.matrix_norm(W, 2)[..., None, None]
    size = 0.9 * torch.rand(*batch, 1, 1, generator=generator, dtype=torch.float64)
    U = torch.randn(*batch, p, d, generator=generator, dtype=torch.float64)
    return LinearDEQ(W=W * (size / norm), U=U * (scale / d**0.5))


def range_basis(X: Tensor) -> Tensor:
    """V (d, r): an orthonormal basis of the span of the rows of X (n, d), of rank r.

    With fewer samples than features S = XᵀX/n is singular, and what U does outside the span is
    neither used nor trained. In the coordinates ξ = Vᵀx the problem is an ordinary one with r
    inputs and an invertible S: work with X V and `restrict`.
    """
    if X.ndim != 2:
        raise ValueError(f"X has shape {tuple(X.shape)}; it must be (n, d)")
    rank = int(torch.linalg.matrix_rank(X))
    return torch.linalg.svd(X, full_matrices=False).Vh[:rank].mT


def restrict(theta: LinearDEQ, V: Tensor) -> LinearDEQ:
    """(W, U V): the same model in the coordinates ξ = Vᵀx of `range_basis`."""
    return LinearDEQ(theta.W, theta.U @ V)
