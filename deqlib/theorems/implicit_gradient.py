"""Theorem `implicit-gradient`: the derivative of an equilibrium, and the adjoint equation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.linalg import matrix_norm, vector_norm

from deqlib.activations import LINKS, Link, arctan, identity, logistic, relu, softplus, tanh
from deqlib.fixed_point import Map, default_tol, solve
from deqlib.implicit import Equilibrium, equilibrium
from deqlib.theorems.base import Hypothesis, Measurement, Theorem

EPS = torch.finfo(torch.float64).eps
TOL = default_tol(torch.float64)
STEP = 1e-4
"""Step of the central differences; their truncation error is measured, see `measure`."""
UNROLLED = 80
"""Steps of the recorded Picard iteration; what it lacks is bounded, see `unrolled_bound`."""
CRUDE = 3
"""Picard steps and Neumann terms of the deliberately inexact gradient."""

weak = LINKS["s + 0.5 tanh s"]
CURVATURE = {
    identity.name: 0.0,
    tanh.name: 4 / (3 * math.sqrt(3)),
    logistic.name: 1 / (6 * math.sqrt(3)),
    arctan.name: 3 * math.sqrt(3) / 8,
    softplus.name: 1 / 4,
    weak.name: 2 / (3 * math.sqrt(3)),
}
"""sup |φ″| of each smooth link."""


class Layer(NamedTuple):
    """θ = (W (p, p), U (p, d), b (p,)) of f(z) = φ(W z + U x + b)."""

    W: Tensor
    U: Tensor
    b: Tensor

    def norm(self) -> float:
        return math.sqrt(sum(float(t.square().sum()) for t in self))

    def minus(self, other: Layer, scale: float = 1.0) -> Layer:
        return Layer(*(a - scale * b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Instance:
    """A layer, a batch, the loss ℓ(z) = ½ Σ ‖z − y‖², and how the gradient is computed.

    X (B, d), Y and start (B, p); `towards` is the unit direction of the finite differences.
    """

    theta: Layer
    link: Link
    X: Tensor
    Y: Tensor
    start: Tensor
    towards: Layer
    indirect: bool = False
    """f closes over results computed from θ, and not over θ itself."""
    steps: int | None = None
    """Picard steps after which the forward pass stops; None: when it has converged."""
    terms: int | None = None
    """Neumann terms of the adjoint, 1 being JFB; None: the adjoint equation is solved."""

    def f(self, theta: Layer) -> Map:
        return lambda z: self.link(z @ theta.W.mT + self.X @ theta.U.mT + theta.b)

    def slopes(self, theta: Layer, z: Tensor) -> Tensor:
        """φ′ at the pre-activations (B, p)."""
        return self.link.derivative(z @ theta.W.mT + self.X @ theta.U.mT + theta.b)

    def jacobian(self, theta: Layer, z: Tensor) -> Tensor:
        """J = diag(φ′) W of each sample (B, p, p)."""
        return self.slopes(theta, z)[..., None] * theta.W

    @property
    def factor(self) -> float:
        """‖∂f/∂z‖₂ ≤ β ‖W‖₂ everywhere: a contraction if it is below 1."""
        return self.link.beta * float(matrix_norm(self.theta.W, 2))


# ------------------------------------------------------------------------- gradients, four ways


def pullback(one: Instance, theta: Layer, z: Tensor, u: Tensor) -> Layer:
    """(∂f/∂θ)ᵀ u, summed over the batch: with v = φ′ u it is (Σ v zᵀ, Σ v xᵀ, Σ v)."""
    v = one.slopes(theta, z) * u
    return Layer(v.mT @ z, v.mT @ one.X, v.sum(dim=0))


def exact_adjoint(J: Tensor, g: Tensor) -> Tensor:
    """u with (I − Jᵀ) u = g. Not finite where I − J is exactly singular."""
    eye = torch.eye(J.shape[-1], dtype=J.dtype)
    return torch.linalg.solve_ex(eye - J.mT, g[..., None]).result[..., 0]


def neumann_adjoint(J: Tensor, g: Tensor, terms: int) -> Tensor:
    """g + Jᵀg + … + (Jᵀ)^{terms−1} g; one term is JFB."""
    u = g
    for _ in range(terms - 1):
        u = (J.mT @ u[..., None])[..., 0] + g
    return u


def closed_form(one: Instance, z: Tensor) -> Layer:
    """The theorem's formula by a direct solve with the explicit Jacobian."""
    u = exact_adjoint(one.jacobian(one.theta, z), z - one.Y)
    return pullback(one, one.theta, z, u)


def autograd(one: Instance, run: Callable[[Map], Tensor]) -> Layer:
    """The gradient that torch finds when `run` makes z out of f."""
    leaves = Layer(*(t.clone().requires_grad_() for t in one.theta))
    theta = Layer(*(2 * (t / 2) for t in leaves)) if one.indirect else leaves
    z = run(one.f(theta))
    return Layer(*torch.autograd.grad(0.5 * (z - one.Y).square().sum(), leaves))


def claimed(one: Instance) -> Layer:
    """The gradient under test: deqlib's, or the formula with a truncated adjoint."""
    if one.terms is None:
        return autograd(one, lambda f: _forward(one, f).z)
    z = _forward(one, one.f(one.theta)).z
    u = neumann_adjoint(one.jacobian(one.theta, z), z - one.Y, one.terms)
    return pullback(one, one.theta, z, u)


def unrolled(one: Instance, steps: int) -> Layer:
    """Autograd through `steps` Picard steps from zero."""

    def run(f: Map) -> Tensor:
        z = torch.zeros_like(one.Y)
        for _ in range(steps):
            z = f(z)
        return z

    return autograd(one, run)


def tangent(one: Instance, z: Tensor) -> Tensor:
    """dz = (I − J)⁻¹ ∂_θf dθ along `towards` (B, p)."""
    J = one.jacobian(one.theta, z)
    moved = z @ one.towards.W.mT + one.X @ one.towards.U.mT + one.towards.b
    return exact_adjoint(J.mT, one.slopes(one.theta, z) * moved)


def polished(one: Instance, theta: Layer, near: Tensor) -> Tensor:
    """The equilibrium at θ to rounding, by Newton; where Newton stalls, Anderson first."""
    f = one.f(theta)
    found = solve(f, near, method="newton", tol=64 * EPS, max_iter=60, throw=False)
    if float(found.residual.max()) > 1e-11:
        rough = solve(f, near, max_iter=100, throw=False).z
        found = solve(f, rough, method="newton", tol=64 * EPS, max_iter=60, throw=False)
    return found.z


def _forward(one: Instance, f: Map) -> Equilibrium:
    if one.steps is None:
        return equilibrium(f, one.start, throw=False)
    return equilibrium(f, one.start, method="picard", max_iter=one.steps, throw=False)


def _adjoint_residual(J: Tensor, g: Tensor, u: Tensor) -> Tensor:
    return vector_norm(g - u + (J.mT @ u[..., None])[..., 0], dim=-1)


# ---------------------------------------------------------------------------------- error bounds


class Constants(NamedTuple):
    """Per sample, at the computed z: ‖∂_θf‖ ≤ B near it, ∂_θf is K-Lipschitz, ∂_zf H-Lipschitz."""

    B: Tensor
    K: Tensor
    H: float


def constants(one: Instance, z: Tensor, e: Tensor) -> Constants:
    """For f(z) = φ(W z + U x + b), with c₂ = sup |φ″| and m = √(‖z‖² + ‖x‖² + 1):

    B = β (m + e),   K = β + c₂ ‖W‖ m,   H = c₂ ‖W‖²,

    where e bounds how far z is from the equilibrium.
    """
    norm, beta = float(matrix_norm(one.theta.W, 2)), one.link.beta
    c2 = CURVATURE.get(one.link.name, 0.0)
    m = (z.square().sum(dim=1) + one.X.square().sum(dim=1) + 1).sqrt()
    return Constants(beta * (m + e), beta + c2 * norm * m, c2 * norm**2)


def inexact_bound(
    one: Instance, z: Tensor, u: Tensor, r: Tensor, s: Tensor, kappa: Tensor | float
) -> float:
    """Σ over the batch of  κ B s + κ (K ‖u‖ + κ B (1 + H ‖u‖)) r.

    Bounds the error of the gradient formed with z and u, whose residuals are r and s. κ bounds
    ‖(I − J)⁻¹‖ and ‖z − z*‖/r; a contraction of factor ρ has κ = 1/(1 − ρ).
    """
    B, K, H = constants(one, z, kappa * r)
    size = vector_norm(u, dim=1)
    return float((kappa * B * s + kappa * (K * size + kappa * B * (1 + H * size)) * r).sum())


def unrolled_bound(one: Instance, z: Tensor, steps: int) -> float:
    """Σ over the batch of  ρ^k ‖Z′‖ (‖g‖ + 2e₀) + k ρ^{k−1} (H ‖Z′‖ + K) e₀ (‖g‖ + e₀).

    Bounds the error of the gradient unrolled for k steps from zero on a contraction, with
    ‖Z′‖ = ‖dz/dθ‖ ≤ B/(1 − ρ), g = ∇ℓ(z*) and e₀ = ‖z*‖.
    """
    rho, k = one.factor, steps
    e0, g = vector_norm(z, dim=1), vector_norm(z - one.Y, dim=1)
    B, K, H = constants(one, z, torch.zeros_like(e0))
    Z = B / (1 - rho)
    late = k * rho ** (k - 1) * (H * Z + K) * e0 * (g + e0)
    return float((rho**k * Z * (g + 2 * e0) + late).sum())


# ----------------------------------------------------------------------------------- the theorem


class ImplicitGradient(Theorem[Instance]):
    label = "implicit-gradient"
    title = "The derivative of an equilibrium"
    kind = "identity"
    chapter = "03_implicit_differentiation"
    statement = (
        r"Let $z^*=f(z^*,\theta^*)$, let $f$ be continuously differentiable near "
        r"$(z^*,\theta^*)$, and let $I-J$ with $J=\partial_zf(z^*,\theta^*)$ be invertible. Then "
        r"near $z^*$ there is exactly one equilibrium $z(\theta)$ for each $\theta$ near "
        r"$\theta^*$; it is continuously differentiable with "
        r"$dz=(I-J)^{-1}\,\partial_\theta f\,d\theta$; and a loss $\ell(z(\theta))$ has the "
        r"gradient $(\partial_\theta f)^\top u$ where $(I-J^\top)\,u=\nabla\ell(z^*)$."
    )
    hypotheses = {
        "exact-equilibrium": Hypothesis(r"$z^*=f(z^*,\theta^*)$."),
        "differentiable": Hypothesis(r"$f$ is continuously differentiable near $(z^*,\theta^*)$."),
        "invertible": Hypothesis(r"$I-J$ is invertible."),
        "exact-adjoint": Hypothesis(r"$u$ solves the adjoint equation $(I-J^\top)u=\nabla\ell$."),
    }
    least_activity = 1e-3

    # Draws ------------------------------------------------------------------------------------

    def draw(self, generator: Generator, n: int) -> list[Instance]:
        smooth = (tanh, softplus, logistic, arctan, weak, identity)
        return [
            replace(
                self._beyond_contraction(generator)
                if index % 4 == 3
                else self._contraction(generator, smooth[index % len(smooth)]),
                indirect=index % 2 == 1,
            )
            for index in range(n)
        ]

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Instance]]]:
        return {
            "exact-equilibrium": lambda generator, n: [
                replace(self._contraction(generator, tanh), steps=1 + index % 3)
                for index in range(n)
            ],
            "differentiable": lambda generator, n: [self._kink(generator) for _ in range(n)],
            "invertible": lambda generator, n: [
                (self._fold, self._cusp)[index % 2](generator) for index in range(n)
            ],
            "exact-adjoint": lambda generator, n: [
                replace(self._contraction(generator, tanh), terms=1 + index % 3)
                for index in range(n)
            ],
        }

    def _one(self, generator: Generator, link: Link, W: Tensor) -> Instance:
        p = W.shape[0]
        d, batch = (int(torch.randint(1, 5, (), generator=generator)) for _ in range(2))
        theta = Layer(W, _normal(generator, p, d), _normal(generator, p))
        towards = Layer(*(_normal(generator, *t.shape) for t in theta))
        towards = Layer(*(t / towards.norm() for t in towards))
        Y = _normal(generator, batch, p)
        return Instance(theta, link, _normal(generator, batch, d), Y, torch.zeros_like(Y), towards)

    def _contraction(self, generator: Generator, link: Link) -> Instance:
        """β ‖W‖₂ = ρ, drawn between 0.2 and 0.8. One state in eight is large enough for Krylov."""
        p = int(torch.randint(1, 8, (), generator=generator))
        p = 20 if p == 7 else p
        rho = 0.2 + 0.6 * float(torch.rand((), generator=generator, dtype=torch.float64))
        W = _normal(generator, p, p)
        return self._one(generator, link, W * (rho / (link.beta * matrix_norm(W, 2))))

    def _beyond_contraction(self, generator: Generator) -> Instance:
        """W = ½ I − AᵀA + skew, ‖W‖ above 1: one equilibrium, and Picard need not find it."""
        p = int(torch.randint(2, 7, (), generator=generator))
        A, K = _normal(generator, p, p), _normal(generator, p, p)
        return self._one(generator, tanh, 0.5 * torch.eye(p) - A.mT @ A / p + K - K.mT)

    def _with_equilibrium(self, generator: Generator, link: Link, s: Tensor, W: Tensor) -> Instance:
        """One sample whose pre-activation at the equilibrium is s, by the choice of b."""
        one = self._one(generator, link, W)
        z = link(s)
        one = replace(one, X=one.X[:1], Y=one.Y[:1], start=z[None])
        b = s - one.theta.W @ z - one.theta.U @ one.X[0]
        return replace(one, theta=one.theta._replace(b=b))

    def _kink(self, generator: Generator) -> Instance:
        """A ReLU layer, a contraction, with the first unit's pre-activation at the kink."""
        p = int(torch.randint(1, 6, (), generator=generator))
        s, W = _normal(generator, p), _normal(generator, p, p)
        s[0] = 0
        return self._with_equilibrium(generator, relu, s, W * (0.7 / matrix_norm(W, 2)))

    def _fold(self, generator: Generator) -> Instance:
        """diag(φ′) W has the simple eigenvalue 1: two equilibria meet, and beyond is none."""
        p = int(torch.randint(1, 6, (), generator=generator))
        s = _normal(generator, p)
        Q = _normal(generator, p, p)
        values = torch.linspace(1, -0.5, p, dtype=torch.float64)
        J = Q @ torch.diag(values) @ torch.linalg.inv(Q)
        return self._with_equilibrium(generator, tanh, s, J / tanh.derivative(s)[:, None])

    def _cusp(self, generator: Generator) -> Instance:
        """z = tanh(W z + …) at z = 0, W symmetric with top eigenvalue 1: z grows as a cube root."""
        p = int(torch.randint(1, 6, (), generator=generator))
        Q = torch.linalg.qr(_normal(generator, p, p)).Q
        W = Q @ torch.diag(torch.linspace(1, -0.5, p, dtype=torch.float64)) @ Q.mT
        return self._with_equilibrium(generator, tanh, torch.zeros(p, dtype=torch.float64), W)

    # Hypotheses and conclusions ---------------------------------------------------------------

    def slack(self, instance: Instance) -> dict[str, float]:
        theta = instance.theta
        at = _forward(instance, instance.f(theta)).forward
        promised = TOL * vector_norm(at.z, dim=1) + 10 * EPS
        smallest = torch.linalg.svdvals(_eye_minus(instance.jacobian(theta, at.z)))[..., -1]
        # The finite differences move the pre-activations by some 1e-4; a kink must be farther off.
        kink = (at.z @ theta.W.mT + instance.X @ theta.U.mT + theta.b).abs().min()
        return {
            "exact-equilibrium": float((promised - at.residual).min()),
            "differentiable": float(kink) - 1e-2 if instance.link is relu else 1.0,
            "invertible": float(smallest.min()) - 1e-6,
            "exact-adjoint": 1.0 if instance.terms is None else -1.0,
        }

    def measure(self, instance: Instance) -> dict[str, Measurement]:
        one, theta = instance, instance.theta
        z = polished(one, theta, _forward(one, one.f(theta)).z)
        exact = closed_form(one, z)
        size = exact.norm()
        activity = size / (1 + float((z - one.Y).norm()) * theta.norm())
        gradient = claimed(one)

        # Where the residual is small, κ = 2/σ_min(I − J) serves the proposition: the factor 2
        # covers how far J moves between z and z*.
        J = one.jacobian(theta, z)
        kappa = 2 / torch.linalg.svdvals(_eye_minus(J))[..., -1]
        u = exact_adjoint(J, z - one.Y)
        # What the solvers promise, not what they happened to reach: an early stop must show.
        length = vector_norm(u, dim=1)
        r, s = TOL * vector_norm(z, dim=1) + 10 * EPS, TOL * length
        rounding = 100 * len(theta.b) * EPS * float(kappa.max()) * size
        solver = inexact_bound(one, z, u, r, s, kappa)

        tangent_gap, loss_gap, allowed_tangent, allowed_loss = self._differences(one, z, gradient)
        result = {
            "gradient = closed form": Measurement(
                gradient.minus(exact).norm(), solver + rounding, activity
            ),
            "dz = finite difference of z(θ)": Measurement(tangent_gap, allowed_tangent, activity),
            "gradient = finite difference of ℓ(z(θ))": Measurement(
                loss_gap, allowed_loss + solver, activity
            ),
        }
        if one.factor < 0.95 and one.link is not relu:
            result |= self._on_a_contraction(one, z, gradient, solver + rounding, activity)
        return result

    def _on_a_contraction(
        self, one: Instance, z: Tensor, gradient: Layer, solver: float, activity: float
    ) -> dict[str, Measurement]:
        """What is claimed of contractions only: unrolling, and the error of a crude gradient."""
        lacking = unrolled_bound(one, z, UNROLLED)
        gap = gradient.minus(unrolled(one, UNROLLED)).norm()

        at = solve(one.f(one.theta), one.start, method="picard", max_iter=CRUDE, throw=False)
        J, g = one.jacobian(one.theta, at.z), at.z - one.Y
        u = neumann_adjoint(J, g, CRUDE)
        error = pullback(one, one.theta, at.z, u).minus(closed_form(one, z)).norm()
        bound = inexact_bound(
            one, at.z, u, at.residual, _adjoint_residual(J, g, u), 1 / (1 - one.factor)
        )
        return {
            "gradient = unrolled gradient": Measurement(gap, lacking + solver, activity),
            "error of a crude gradient ≤ its bound": Measurement(error, bound + solver, activity),
        }

    @staticmethod
    def _differences(
        one: Instance, z: Tensor, gradient: Layer
    ) -> tuple[float, float, float, float]:
        """Errors of dz and of the slope of ℓ against central differences, and what is allowed."""
        at = {
            h: polished(one, one.theta.minus(one.towards, -h), z)
            for h in (STEP, -STEP, 2 * STEP, -2 * STEP)
        }

        def central(value: Callable[[Tensor], Tensor], h: float) -> Tensor:
            return (value(at[h]) - value(at[-h])) / (2 * h)

        def loss(z: Tensor) -> Tensor:
            return 0.5 * (z - one.Y).square().sum()

        # Each z is off by at most κ times its residual, which polishing leaves at rounding level.
        off = 0.0
        for h, there in at.items():
            moved = one.theta.minus(one.towards, -h)
            sigma = torch.linalg.svdvals(_eye_minus(one.jacobian(moved, there)))[..., -1]
            residual = vector_norm(one.f(moved)(there) - there, dim=1)
            unit = 4 * len(one.theta.b) * EPS * (1 + vector_norm(there, dim=1))
            off = max(off, float((2 / sigma * (residual + unit)).sum()))
        slope = sum(float((a * b).sum()) for a, b in zip(gradient, one.towards, strict=True))
        steep = 1 + float((z - one.Y).norm())
        once, twice = central(loss, STEP), central(loss, 2 * STEP)
        moved_once, moved_twice = central(lambda v: v, STEP), central(lambda v: v, 2 * STEP)
        # D(h) errs by c h² + O(h⁴), so |D(2h) − D(h)| is three times its truncation error.
        return (
            float((tangent(one, z) - moved_once).norm()),
            abs(slope - float(once)),
            float((moved_twice - moved_once).norm()) + off / STEP,
            float((twice - once).abs()) + (steep * off + EPS * float(loss(z))) / STEP,
        )


def _eye_minus(J: Tensor) -> Tensor:
    return torch.eye(J.shape[-1], dtype=J.dtype) - J


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
