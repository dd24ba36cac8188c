"""Mutants: each plausible mistake in a formula of deqlib must be caught by a theorem's check.

A mutant replaces one piece of a module's source by another and runs the changed module in the
place of the original. If the theorem still held, the check would be worth nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import test_rates
import torch

from deqlib import fixed_point, grassmann, implicit, linear, rates, readout
from deqlib.dynamics import RunStoppedError
from deqlib.theorems import (
    THEOREMS,
    any_step,
    approximate_backward,
    descent_rate,
    flow_rate,
    picard_safe,
    sphere_limit,
    verify,
    well_conditioned,
)

DRAWS = 14  # two rounds of the conservation law's seven adjoints


@contextmanager
def mutated(module: ModuleType, old: str, new: str) -> Iterator[None]:
    """Run the module with ``old`` replaced by ``new`` in its source, then restore it.

    Functions are changed in place (their code, not their identity), so that every module that
    imported one by name sees the mutant too.
    """
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {module.__name__}"
    changed = ModuleType(module.__name__)
    changed.__file__ = module.__file__
    exec(compile(source.replace(old, new), str(module.__file__), "exec"), vars(changed))
    saved = []
    for name, original in list(_functions(module)):
        mutant = dict(_functions(changed))[name]
        if original.__code__ != mutant.__code__:
            saved.append((original, original.__code__))
            original.__code__ = mutant.__code__
    assert saved, f"{new!r} changes no function"
    try:
        yield
    finally:
        for original, code in saved:
            original.__code__ = code


def _functions(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Every function of a module and of its classes, by qualified name."""
    for name, value in vars(module).items():
        if inspect.isfunction(value) and value.__module__ == module.__name__:
            yield name, value
        elif inspect.isclass(value) and value.__module__ == module.__name__:
            for inner, member in vars(value).items():
                function = getattr(member, "__func__", member)
                if inspect.isfunction(function):
                    yield f"{name}.{inner}", function


MUTANTS = {
    # linear.py -------------------------------------------------------------------------------
    "gradient: sign of ∂L/∂W": (
        "linear-gradient", linear, "return LinearDEQ(W=q @ F.mT, U=q)",
        "return LinearDEQ(W=-q @ F.mT, U=q)",
    ),
    "gradient: factor 2": (
        "linear-gradient", linear, "return LinearDEQ(W=q @ F.mT, U=q)",
        "return LinearDEQ(W=2 * q @ F.mT, U=2 * q)",
    ),
    "gradient: adjoint without its transpose": (
        "linear-gradient", linear, "lu_solve(self.LU, self.pivots, G, adjoint=True)",
        "lu_solve(self.LU, self.pivots, G)",
    ),
    "gradient: equilibrium of the transposed layer": (
        "linear-gradient", linear, "lu_solve(self.LU, self.pivots, U)",
        "lu_solve(self.LU, self.pivots, U, adjoint=True)",
    ),
    "gradient: adjoint left out (Jacobian-free)": (
        "linear-gradient", linear,
        "q = torch.linalg.lu_solve(self.LU, self.pivots, G, adjoint=True)",
        "q = G",
    ),
    "gradient: S left out": (
        "linear-gradient", linear, "return factors.pull_back(F, (F - A) @ S)",
        "return factors.pull_back(F, F - A)",
    ),
    "gradient: G in place of F": (
        "linear-gradient", linear, "return LinearDEQ(W=q @ F.mT, U=q)",
        "return LinearDEQ(W=q @ G.mT, U=q)",
    ),
    "model: I + W in place of I − W": (
        "conservation-law", linear, "device=theta.W.device) - theta.W",
        "device=theta.W.device) + theta.W",
    ),
    "direction: z and x exchanged in sign": (
        "conservation-law", linear, "return LinearDEQ(W=q.mT @ z / n, U=q.mT @ X / n)",
        "return LinearDEQ(W=-q.mT @ z / n, U=q.mT @ X / n)",
    ),
    "direction: mean in one place only": (
        "conservation-law", linear, "return LinearDEQ(W=q.mT @ z / n, U=q.mT @ X / n)",
        "return LinearDEQ(W=q.mT @ z / n, U=q.mT @ X)",
    ),
    "invariant: minus sign": (
        "conservation-law", linear, "return P @ P.mT + theta.U @ theta.U.mT",
        "return P @ P.mT - theta.U @ theta.U.mT",
    ),
    "invariant: columns in place of rows": (
        "conservation-law", linear, "return P @ P.mT + theta.U @ theta.U.mT",
        "return P.mT @ P + theta.U @ theta.U.mT",
    ),
    "invariant: W in place of I − W": (
        "conservation-law", linear, "return P @ P.mT + theta.U @ theta.U.mT",
        "return theta.W @ theta.W.mT + theta.U @ theta.U.mT",
    ),
    "equilibrium: transposed": (
        "conservation-law", linear, "torch.linalg.solve(P, theta.U)",
        "torch.linalg.solve(P.mT, theta.U)",
    ),
    # implicit.py -----------------------------------------------------------------------------
    "implicit: adjoint left out": (
        "implicit-gradient", implicit, "grads = _vjp(fz, c_, u)", "grads = _vjp(fz, c_, g)",
    ),
    "implicit: (I − J)u = g in place of (I − Jᵀ)u = g": (
        "implicit-gradient", implicit, "J.mT if transposed else J", "J if transposed else J.mT",
    ),
    "implicit: I + J in place of I − J": (
        "implicit-gradient", implicit, "device=z.device) - (J.mT", "device=z.device) + (J.mT",
    ),
    # fixed_point.py --------------------------------------------------------------------------
    "Picard: steps away from f(z)": (
        "picard-rate", fixed_point, "g.mul_(self.damping).add_(z)",
        "g.mul_(-self.damping).add_(z)",
    ),
    "Picard: damping ignored": (
        "picard-rate", fixed_point, "g.mul_(self.damping).add_(z)",
        "g.add_(z)",
    ),
    "solve: reports a residual that is not that of the returned point": (
        "picard-rate", fixed_point, "torch.where(keep, r, residual)",
        "torch.where(keep, 0.1 * r, residual)",
    ),
    # rates.py --------------------------------------------------------------------------------
    "μ: without λ_max(C)": (
        "flow-rate", rates, "return extremes(S)[0] / extremes(linear.invariant(theta))[1]",
        "return extremes(S)[0]",
    ),
    "μ: a factor 2 too many": (
        "flow-rate", rates, "return extremes(S)[0] / extremes(linear.invariant(theta))[1]",
        "return 2 * extremes(S)[0] / extremes(linear.invariant(theta))[1]",
    ),
    "μ: λ_min(C) in place of λ_max(C)": (
        "flow-rate", rates, "return extremes(S)[0] / extremes(linear.invariant(theta))[1]",
        "return extremes(S)[0] / extremes(linear.invariant(theta))[0]",
    ),
    "μ: λ_max(S) in place of λ_min(S)": (
        "flow-rate", rates, "return extremes(S)[0] / extremes(linear.invariant(theta))[1]",
        "return extremes(S)[1] / extremes(linear.invariant(theta))[1]",
    ),
    "μ(F): the largest eigenvalue of I + FFᵀ": (
        "flow-rate", rates, "extremes(gram(F.mT))[0]\n", "extremes(gram(F.mT))[1]\n",
    ),
    "μ(F): K and S each for itself, S with its largest": (
        "flow-rate", rates, "* extremes(half @ gram(F) @ half)[0]",
        "* extremes(gram(F))[0] * extremes(S)[1]",
    ),
    "Λ: Φ in place of Φ²": (
        "descent-rate", rates, "extremes(S)[1] * (1 + phi.square()).square()",
        "extremes(S)[1] * (1 + phi).square()",
    ),
    "Λ: 1 + Φ² without its square": (
        "descent-rate", rates, "extremes(S)[1] * (1 + phi.square()).square()",
        "extremes(S)[1] * (1 + phi.square())",
    ),
    "Φ: without ‖A‖": (
        "descent-rate", rates,
        "return torch.linalg.matrix_norm(A, 2) + (2 * start / extremes(S)[0]).sqrt()",
        "return (2 * start / extremes(S)[0]).sqrt()",
    ),
    "exact step: resolvent dropped": (
        "descent-rate", rates,
        "resolvent_q = torch.linalg.solve(eye + eta[..., None, None] * Gamma, q)",
        "resolvent_q = q",
    ),
    "exact step: ½ of the second-order part lost": (
        "descent-rate", rates, "second = 0.5 * ((Delta @ S) * Delta).sum((-2, -1))\n    return",
        "second = ((Delta @ S) * Delta).sum((-2, -1))\n    return",
    ),
    "ω: K left out": (
        "adaptive-descent", rates, "extremes(half @ gram(F) @ half)[1] / torch",
        "extremes(S)[1] / torch",
    ),
    "ω: ‖M‖ in place of ‖M‖²": (
        "adaptive-descent", rates, "/ torch.linalg.svdvals(P)[..., -1].square()\n    q =",
        "/ torch.linalg.svdvals(P)[..., -1]\n    q =",
    ),
    "adaptive step: γ left out": (
        "adaptive-descent", rates, "return omega, torch.linalg.matrix_norm(Gamma, 2)",
        "return omega, 0 * torch.linalg.matrix_norm(Gamma, 2)",
    ),
    "adaptive ceiling: no growth": (
        "adaptive-descent", rates,
        "torch.expm1(25 * linear.loss(theta, S, A) / (36 * extremes(S)[1]))",
        "0 * linear.loss(theta, S, A)",
    ),
    # theorems about flow and descent ---------------------------------------------------------
    "flow: half the length": (
        "flow-rate", flow_rate, "still = (2 / mu).sqrt()", "still = (1 / mu).sqrt()",
    ),
    "flow: AAᵀ left out of the limit": (
        "flow-rate", flow_rate, "P @ rates.gram(A.mT) @ P.mT - C", "P @ P.mT - C",
    ),
    "descent: μ′ with a factor 2 too many": (
        "descent-rate", descent_rate, "mu = flow_rate.smallest_positive(S) / ceiling",
        "mu = 2 * flow_rate.smallest_positive(S) / ceiling",
    ),
    "descent: C grows by ηL₀ only": (
        "descent-rate", descent_rate, "said(growth, 2 * eta[0] * L[0]",
        "said(growth, eta[0] * L[0]",
    ),
    # well_conditioned.py ---------------------------------------------------------------------
    "floor: ‖F‖ in place of ‖F‖²": (
        "well-conditioned", well_conditioned, "[0] / (1 + norm.square())", "[0] / (1 + norm)",
    ),
    "promise: Φ in place of Φ²": (
        "well-conditioned", well_conditioned, "low / (1 + phi**2) * looser",
        "low / (1 + phi) * looser",
    ),
    "condition number: Φ in place of Φ²": (
        "well-conditioned", well_conditioned, "high / low * (1 + phi**2) / looser",
        "high / low * (1 + phi) / looser",
    ),
    "descent's ceiling: no growth": (
        "well-conditioned", well_conditioned, "(high + 2 * steps * float(loss)) * (1 + 1e-9)",
        "high * (1 + 1e-9)",
    ),
    # the sphere's limit and Picard -----------------------------------------------------------
    "sphere's limit: side of a = 1 lost": (
        "sphere-limit", linear, "P_limit = P.sign() * (", "P_limit = (",
    ),
    "sphere's limit: |A|² in place of 1 + |A|²": (
        "sphere-limit", linear, "r2 / (1 + A.square().sum((-2, -1), keepdim=True))",
        "r2 / A.square().sum((-2, -1), keepdim=True)",
    ),
    "angle's rate: 1 + |A|² without its root": (
        "sphere-limit", sphere_limit, "(1 + A.square().sum((-2, -1))).sqrt() / r2",
        "(1 + A.square().sum((-2, -1))) / r2",
    ),
    "angle's rate: r in place of r²": (
        "sphere-limit", sphere_limit, "(1 + A.square().sum((-2, -1))).sqrt() / r2",
        "(1 + A.square().sum((-2, -1))).sqrt() / r2.sqrt()",
    ),
    "reach: positive part lost": (
        "picard-safe", picard_safe, "- omega).clamp_min(0)", "- omega)",
    ),
    "reach: half the angle": (
        "picard-safe", picard_safe, ".atan() - omega)", ".atan() - omega / 2)",
    ),
    "reach: |A| in place of its angle": (
        "picard-safe", picard_safe, "(A.norm(dim=(-2, -1)).atan() - omega)",
        "(A.norm(dim=(-2, -1)) - omega)",
    ),
    # any_step.py -----------------------------------------------------------------------------
    "sum of losses: a factor 2 too small": (
        "any-step", any_step, "(4 * eta**2 * rates", "(8 * eta**2 * rates",
    ),
    "sum of losses: η in place of η²": (
        "any-step", any_step, "(4 * eta**2 * rates", "(4 * eta * rates",
    ),
    "sum of losses: r² in place of r⁴": (
        "any-step", any_step, "return (last.square() - first.square()) /",
        "return (last - first) /",
    ),
    "F̄: without √(3κ)": (
        "any-step", any_step,
        "torch.maximum(2 * kappa * A.square().sum((-2, -1)).sqrt(), (3 * kappa).sqrt())",
        "2 * kappa * A.square().sum((-2, -1)).sqrt()",
    ),
    "F̄: without 2κ|A|": (
        "any-step", any_step,
        "torch.maximum(2 * kappa * A.square().sum((-2, -1)).sqrt(), (3 * kappa).sqrt())",
        "(3 * kappa).sqrt()",
    ),
    "radius: the one long step left out": (
        "any-step", any_step, "far = 4 * eta * steep + 2 * eta**2 * steep * worst / first",
        "far = 4 * eta * steep",
    ),
    "radius: Φ in place of Φ²": (
        "any-step", any_step, "steep = high * (1 + phi.square()).square()",
        "steep = high * (1 + phi).square()",
    ),
    # approximate_backward.py -----------------------------------------------------------------
    "adjoint: W in place of Wᵀ": (
        "approximate-backward", approximate_backward, "(G + theta.W.mT @ v)", "(G + theta.W @ v)",
    ),
    "adjoint: damping forgotten on one side": (
        "approximate-backward", approximate_backward, "onward = (1 - lam) * v +", "onward = v +",
    ),
    "adjoint: one term too many": (
        "approximate-backward", approximate_backward, "v = torch.where((j < m)",
        "v = torch.where((j <= m)",
    ),
    "χ: λ left out": (
        "approximate-backward", approximate_backward, "left = eye - lam[..., None, None] * P",
        "left = eye - P",
    ),
    "χ: sign of the power": (
        "approximate-backward", approximate_backward, "chi = eye - power", "chi = eye + power",
    ),
    "c: the largest eigenvalue of sym χ": (
        "approximate-backward", approximate_backward, "extremes((chi + chi.mT) / 2)[0]",
        "extremes((chi + chi.mT) / 2)[1]",
    ),
    # grassmann.py ----------------------------------------------------------------------------
    "Riemannian gradient: left factor lost": (
        "grassmannian-flow", grassmann, "return gram(F.mT) @ G @ gram(F)", "return G @ gram(F)",
    ),
    "Riemannian gradient: right factor lost": (
        "grassmannian-flow", grassmann, "return gram(F.mT) @ G @ gram(F)",
        "return gram(F.mT) @ G",
    ),
    "metric: right factor lost": (
        "grassmannian-flow", grassmann, "right = torch.linalg.solve(gram(F), Y.mT).mT",
        "right = Y",
    ),
    "lift: C in place of its root": (
        "grassmannian-flow", grassmann, "left = root(C) if O is None else root(C) @ O",
        "left = C if O is None else C @ O",
    ),
    # readout.py ------------------------------------------------------------------------------
    "read-out: sign of ∂L/∂V": ("readout", readout, "V=G @ Z.mT)", "V=-G @ Z.mT)"),
    "read-out: U in place of Z": (
        "readout", readout, "W=Y.mT @ G @ Z.mT, U", "W=Y.mT @ G @ theta.U.mT, U",
    ),
    "read-out: PPᵀ in the second law": (
        "readout", readout, "P.mT @ P + theta.V.mT @ theta.V", "P @ P.mT + theta.V.mT @ theta.V",
    ),
    "read-out: μ without − 1": (
        "readout", readout, "(extremes(D)[0] / extremes(C)[1] - 1)",
        "(extremes(D)[0] / extremes(C)[1])",
    ),
    "read-out: μ with a factor 2 too many": (
        "readout", readout, "return extremes(S)[0] * (extremes(D)[0]",
        "return 2 * extremes(S)[0] * (extremes(D)[0]",
    ),
    "read-out: λ_max(D) in place of λ_min(D)": (
        "readout", readout, "(extremes(D)[0] / extremes(C)[1] - 1)",
        "(extremes(D)[1] / extremes(C)[1] - 1)",
    ),
    "read-out: the root of λ_max(C)λ_max(D) left out": (
        "readout", readout, "half / (phi + (C_high * D_high / half).sqrt())", "half",
    ),
}  # fmt: skip

SURVIVORS = {
    # λ_min(S)/(r²√(1 + |A|²)) is a smaller number: the bound it gives is true, and weaker.
    "angle's rate: divided by the root": (
        "sphere-limit", sphere_limit, "(1 + A.square().sum((-2, -1))).sqrt() / r2",
        "(1 + A.square().sum((-2, -1))).rsqrt() / r2",
    ),
    # The proof gives √8; runs come as near as √2. What lies between is not known.
    "descent: length ≤ √(4L/μ′)": (
        "descent-rate", descent_rate, "path(instance, (8 / mu).sqrt())",
        "path(instance, (4 / mu).sqrt())",
    ),
    # The bound on σ_min(I − W) is sufficient for existence and far from attained.
    "read-out: largest in place of smallest eigenvalues": (
        "readout", readout, "half = torch.minimum(C_low, D_low) / 2",
        "half = torch.minimum(C_high, D_high) / 2",
    ),
}  # fmt: skip
"""Changed statements that the checks cannot refute, each with the reason."""

FIRST_BROKEN = {
    "η‖Γ‖ ≤ 1/4": 2,
    "L − L₊ ≥ (η/2)‖∇L‖²": 4,
    "C ⪯ C₀ + 2ηL₀": 4,
    "L ≤ (1 − ημ′)^k L₀": 8,
    "length ≤ √(8L/μ′)": 8,
    "the loss falls": 16,
}
"""The multiple of 1/(4Λ), doubled from 1, at which each conclusion of `descent-rate` fails."""

EDGE = {
    "½ of the step lost": ("eta / 2 * (1", "eta * (1"),
    "1 + |A|² lost": ("(eta / 2 * (1 + A.square().sum((-2, -1))) * top)", "(eta / 2 * top)"),
    "K left out": ("top = extremes(half @ gram(A) @ half)[1]", "top = extremes(S)[1]"),
    "the smallest eigenvalue": (
        "top = extremes(half @ gram(A) @ half)[1]", "top = extremes(half @ gram(A) @ half)[0]",
    ),
}  # fmt: skip
"""Mutants of `rates.edge_radius`, which no theorem contains: a remark and a test of its own do."""


@pytest.mark.parametrize("name", list(MUTANTS))
def test_mutant_is_caught(name: str) -> None:
    label, module, old, new = MUTANTS[name]
    with mutated(module, old, new):
        # A mutant may break what the draws promise, or the run itself: caught as well.
        try:
            caught = not verify(THEOREMS[label], DRAWS, seed=5).holds
        except (ValueError, RunStoppedError, fixed_point.NotConvergedError):
            caught = True
    assert caught, f"{label} does not notice: {name}"


@pytest.mark.parametrize("name", list(SURVIVORS))
def test_survivor_holds_on_what_is_drawn(name: str) -> None:
    label, module, old, new = SURVIVORS[name]
    with mutated(module, old, new):
        assert verify(THEOREMS[label], DRAWS, seed=5).holds


def test_step_of_descent_doubled_until_it_breaks() -> None:
    theorem = THEOREMS["descent-rate"]
    many = descent_rate.mixed(torch.Generator().manual_seed(1), 120)
    first: dict[str, int] = {}
    for multiple in (1, 2, 4, 8, 16):
        for run in descent_rate.descend(many, lambda p, m=multiple: m * descent_rate.safe_step(p)):
            broken = {name for name, m in theorem.measure(run).items() if not m.margin >= 0}
            # Below 1e-20 of the first loss only rounding is left.
            if bool((run.loss.diff() >= 0)[run.loss[:-1] > 1e-20 * run.loss[0]].any()):
                broken.add("the loss falls")
            for name in broken - set(first):
                first[name] = multiple
    assert first == FIRST_BROKEN


@pytest.mark.parametrize("name", list(EDGE))
def test_mutant_of_the_edge_radius_is_caught(name: str) -> None:
    check = test_rates.test_edge_radius_is_where_the_hessian_meets_two_over_the_step
    check()
    with mutated(rates, *EDGE[name]), pytest.raises(AssertionError):
        check()


def test_without_a_mutation_the_same_checks_hold() -> None:
    for label in {label for label, *_ in MUTANTS.values()}:
        assert verify(THEOREMS[label], DRAWS, seed=5).holds
