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

from deqlib import fixed_point, implicit, linear
from deqlib.dynamics import RunStoppedError
from deqlib.theorems import THEOREMS, verify

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
        "linear-gradient", linear, "torch.linalg.solve(resolvent_inverse(theta).mT, G)",
        "torch.linalg.solve(resolvent_inverse(theta), G)",
    ),
    "gradient: adjoint left out (Jacobian-free)": (
        "linear-gradient", linear, "q = torch.linalg.solve(resolvent_inverse(theta).mT, G)",
        "q = G",
    ),
    "gradient: S left out": (
        "linear-gradient", linear, "return _pull_back(theta, F, (F - A) @ S)",
        "return _pull_back(theta, F, F - A)",
    ),
    "gradient: U in place of F": (
        "linear-gradient", linear, "return LinearDEQ(W=q @ F.mT, U=q)",
        "return LinearDEQ(W=q @ theta.U.mT, U=q)",
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
        "picard-rate", fixed_point, "lambda z, g, r: z + self.damping * g",
        "lambda z, g, r: z - self.damping * g",
    ),
    "Picard: damping ignored": (
        "picard-rate", fixed_point, "lambda z, g, r: z + self.damping * g",
        "lambda z, g, r: z + g",
    ),
    "solve: reports a residual that is not that of the returned point": (
        "picard-rate", fixed_point, "torch.where(keep, r, residual)",
        "torch.where(keep, 0.1 * r, residual)",
    ),
}  # fmt: skip


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


def test_without_a_mutation_the_same_checks_hold() -> None:
    for label in {label for label, *_ in MUTANTS.values()}:
        assert verify(THEOREMS[label], DRAWS, seed=5).holds
