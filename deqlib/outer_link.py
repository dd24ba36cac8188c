r"""The other place for the link: ŷ = φ(z) with a linear equilibrium z = W z + U x.

A model is a `LinearDEQ`; so is everything that concerns the equilibrium alone (F = (I − W)⁻¹U, the
invariant C = (I − W)(I − W)ᵀ + UUᵀ, the limit on the sphere). Only the loss sees the link: it is
ℓ(F) = ½ E‖φ(Fx) − y‖² with φ applied to each output. With one output (p = 1) W is the number a
and U the row wᵀ, and b = w/(1 − a) stands for F. All functions take leading batch dimensions.
"""

from __future__ import annotations

from torch import Tensor

from deqlib import linear, rates
from deqlib.activations import Link
from deqlib.linear import LinearDEQ


def predict(link: Link, theta: LinearDEQ, X: Tensor) -> Tensor:
    """ŷ = φ(F x) for the rows x of X: (*batch, n, d) → (*batch, n, p).

    Raises ValueError for a singular I − W, as `linear.equilibrium_map` does.
    """
    return link(linear.predict(theta, X))


def loss(link: Link, theta: LinearDEQ, X: Tensor, Y: Tensor) -> Tensor:
    """L = ½ E‖φ(F x) − y‖², of shape (*batch); Y (*batch, n, p)."""
    return 0.5 * (_predict_for(link, theta, X, Y) - Y).square().sum(-1).mean(-1)


def map_gradient(link: Link, F: Tensor, X: Tensor, Y: Tensor) -> Tensor:
    """G = ∂ℓ/∂F = E[(φ(F x) − y) ∘ φ′(F x) xᵀ], of shape (*batch, p, d)."""
    z = X @ F.mT
    return ((link(z) - Y) * link.derivative(z)).mT @ X / X.shape[-2]


def gradient(link: Link, theta: LinearDEQ, X: Tensor, Y: Tensor) -> LinearDEQ:
    """∇L = (q Fᵀ, q) with q = (I − W)⁻ᵀ G (theorem `linear-gradient`)."""
    _predict_for(link, theta, X, Y)
    return linear.gradient_from(theta, map_gradient(link, linear.equilibrium_map(theta), X, Y))


def angle_rate(link: Link, theta: LinearDEQ, X: Tensor, A: Tensor) -> Tensor:
    """c = α² λ_min(S) √(1 + |A|²)/r² for one output: tan(ω/2) falls at least like e^(−ct).

    S = E[xxᵀ], the target is φ(Ax), and r² = (1 − a)² + |w|². Source: theorem `outer-link`.
    """
    low = rates.extremes(linear.second_moment(X))[0]
    r2 = linear.invariant(theta)[..., 0, 0]
    return link.alpha**2 * low * (1 + A.square().sum((-2, -1))).sqrt() / r2


def map_pl_constant(link: Link, X: Tensor) -> Tensor:
    """μ_ℓ = 4α³β λ_min(S)/(α + β)²: ‖∂ℓ/∂F‖² ≥ 2 μ_ℓ ℓ for realisable targets.

    Source: theorem `outer-link`.
    """
    low = rates.extremes(linear.second_moment(X))[0]
    return 4 * link.alpha**3 * link.beta / (link.alpha + link.beta) ** 2 * low


def pl_constant(link: Link, theta: LinearDEQ, X: Tensor) -> Tensor:
    """μ = μ_ℓ/λ_max(C): ‖∇L‖² ≥ 2μL wherever C is this one. Source: theorem `outer-link`."""
    return map_pl_constant(link, X) / rates.extremes(linear.invariant(theta))[1]


def ray_point(A: Tensor, P_star: Tensor) -> LinearDEQ:
    """The minimiser (1 − P*, P* A) for one output; A (*batch, 1, d), P* (*batch)."""
    P = P_star[..., None, None]
    return LinearDEQ(1 - P, P * A)


def safe_step(link: Link, theta: LinearDEQ, X: Tensor, A: Tensor, P_star: Tensor) -> Tensor:
    """η = (|P*| − ρ)⁴/((‖N*‖ + ρ)² β² λ_max(S)) for one output, of shape (*batch).

    N* = P*(1, A) is a point of the ray of minimisers and ρ < |P*| the distance to it from the
    start. Gradient descent with steps up to this one comes closer to N* and contracts its distance
    to the ray. Source: theorem `outer-link`.

    Raises:
        ValueError: where ρ ≥ |P*|.
    """
    target = ray_point(A, P_star)
    rho = (linear.rows(theta) - linear.rows(target)).norm(dim=(-2, -1))
    room = P_star.abs() - rho
    if bool((room <= 0).any()):
        raise ValueError(
            f"the start is {float(rho[room <= 0].flatten()[0]):.6g} away from the ray point with "
            f"P* = {float(P_star.expand_as(rho)[room <= 0].flatten()[0]):.6g}; it must be nearer "
            "than |P*|"
        )
    top = rates.extremes(linear.second_moment(X))[1]
    length = linear.rows(target).norm(dim=(-2, -1)) + rho
    return room**4 / (length.square() * link.beta**2 * top)


def _predict_for(link: Link, theta: LinearDEQ, X: Tensor, Y: Tensor) -> Tensor:
    """Predictions, with the shape of the labels held against theirs."""
    if not isinstance(link, Link):
        raise TypeError(f"link is a {type(link).__name__}; it must be a deqlib.activations.Link")
    predicted = predict(link, theta, X)
    if Y.shape[-2:] != predicted.shape[-2:]:
        raise ValueError(
            f"Y has shape {tuple(Y.shape)}; with these inputs and this model it must be "
            f"(*batch, {predicted.shape[-2]}, {predicted.shape[-1]})"
        )
    return predicted
