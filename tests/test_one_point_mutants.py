"""Mutants of the one-point formulas: each plausible mistake is caught by the theorem about it."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from test_mutants import mutated
from torch import Generator, Tensor

from deqlib import activations, one_point, single_index
from deqlib.fixed_point import NotConvergedError
from deqlib.theorems import THEOREMS, secant_identity, verify
from deqlib.theorems.single_index_problems import random_problems

DRAWS = 18  # every link twice

MUTANTS = {
    "identities: a and a* exchanged": (
        "secant-identity", secant_identity,
        '("z − y = φ̄/(1 − a*φ̄) ⟨δ, (z, x)⟩", a_star, to_z)',
        '("z − y = φ̄/(1 − a*φ̄) ⟨δ, (z, x)⟩", a, to_z)',
    ),
    "identities: (y, x) in place of (z, x)": (
        "secant-identity", secant_identity, "to_z, to_y = along(delta, z, X), along(delta, y, X)",
        "to_z, to_y = along(delta, y, X), along(delta, z, X)",
    ),
    "gain: the self-weight's sign": (
        "secant-identity", one_point, "return bar / (1 - a * bar)", "return bar / (1 + a * bar)",
    ),
    "gain: without the self-weight": (
        "secant-identity", one_point, "return bar / (1 - a * bar)", "return bar",
    ),
    "gain: φ̄ replaced by φ′": (
        "secant-identity", one_point,
        "bar = link.secant(u, v)\n    return bar / (1 - a * bar)",
        "bar = link.derivative(u)\n    return bar / (1 - a * bar)",
    ),
    "secant: the derivative at the middle everywhere": (
        "secant-identity", activations,
        "torch.where(close | (h == 0), middle, quotient)", "middle + 0 * quotient",
    ),
    "secant: z + y in place of z − y": (
        "secant-identity", activations, "quotient = (self(s) - self(t)) /",
        "quotient = (self(s) + self(t)) /",
    ),
    "secant: divided by the outputs' sizes": (
        "secant-identity", activations, "/ torch.where(h == 0, torch.ones_like(h), h)",
        "/ (1 + h.abs())",
    ),
    "Q: the model's own a in place of a*": (
        "one-point-monotonicity", one_point,
        "return weighted_moment(D * gain(link, target.a[..., None], u, v), X, link(u))",
        "return weighted_moment(D * gain(link, 1 / link.beta - 1 + 0 * target.a[..., None], u, v),"
        " X, link(u))",
    ),
    "Q: D left out": (
        "one-point-monotonicity", one_point,
        "return weighted_moment(D * gain(link, target.a[..., None], u, v), X, link(u))",
        "return weighted_moment(gain(link, target.a[..., None], u, v), X, link(u))",
    ),
    "Q: D of the wrong sign": (
        "one-point-monotonicity", one_point,
        "return weighted_moment(D * gain(link, target.a[..., None], u, v), X, link(u))",
        "return weighted_moment(-D * gain(link, target.a[..., None], u, v), X, link(u))",
    ),
    "Q: (y, x) in place of (z, x)": (
        "one-point-monotonicity", one_point,
        "return weighted_moment(D * gain(link, target.a[..., None], u, v), X, link(u))",
        "return weighted_moment(D * gain(link, target.a[..., None], u, v), X, link(v))",
    ),
    "Q̃: (z, x) in place of (y, x)": (
        "one-point-monotonicity", one_point,
        "(1 - theta.a[..., None] * bar).square()\n    return weighted_moment(weight, X, link(v))",
        "(1 - theta.a[..., None] * bar).square()\n    return weighted_moment(weight, X, link(u))",
    ),
    "Q̃: the square left out": (
        "one-point-monotonicity", one_point, "(1 - theta.a[..., None] * bar).square()",
        "(1 - theta.a[..., None] * bar)",
    ),
    "Q̃: φ̄ left out": (
        "one-point-monotonicity", one_point, "weight = D * (1 - target.a[..., None] * bar) * bar /",
        "weight = D * (1 - target.a[..., None] * bar) /",
    ),
    "moment: the sum in place of the mean": (
        "one-point-monotonicity", one_point, "(weight[..., None] * rows) / z.shape[-1]",
        "(weight[..., None] * rows)",
    ),
    "slope: 1 + aφ′": (
        "one-point-monotonicity", single_index, "return rise / (1 - a * rise)",
        "return rise / (1 + a * rise)",
    ),
    "gradient: sign": (
        "one-point-monotonicity", single_index, "weight = (z - y) * D", "weight = (y - z) * D",
    ),
    "gradient: y in place of z": (
        "one-point-monotonicity", single_index, "(weight * z).mean(-1), (X.mT",
        "(weight * y).mean(-1), (X.mT",
    ),
    "adjoint matrix: D squared": (
        "positive-adjoint", one_point,
        "return weighted_moment(D * gain(link, target.a[..., None], u, v), X, link(u))",
        "return weighted_moment(D * D * gain(link, target.a[..., None], u, v), X, link(u))",
    ),
    "Neumann: one sign": (
        "positive-adjoint", single_index, "total = 1 + a * rise * total",
        "total = -1 + a * rise * total",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MUTANTS))
def test_mutant_is_caught(name: str) -> None:
    label, module, old, new = MUTANTS[name]
    with mutated(module, old, new):
        # A mutant may break what the draws promise, or the solver: caught as well.
        try:
            caught = not verify(THEOREMS[label], DRAWS, seed=5, progress=False).holds
        except (ValueError, NotConvergedError):
            caught = True
    assert caught, f"{label} does not notice: {name}"


def test_a_positive_slope_that_is_wrong_is_left_to_the_gradient_s_own_theorem() -> None:
    """∇L = Qδ holds for any D, so this chapter cannot tell a wrong slope; differences of L can."""
    one = random_problems(Generator().manual_seed(6), 1, activations.arctan, 3).one(0)
    h = 1e-5 * torch.eye(4, dtype=torch.float64)

    def loss(vector: Tensor) -> Tensor:
        return single_index.loss(one.link, single_index.unflat(vector), one.X, one.y)

    at = single_index.flat(one.start)
    differences = torch.stack([(loss(at + e) - loss(at - e)) / 2e-5 for e in h])
    old, new = "return rise / (1 - a * rise)", "return rise / (1 - 0.5 * a * rise)"
    for mutate in (False, True):
        with mutated(single_index, old, new) if mutate else nullcontext():
            g = single_index.flat(single_index.gradient(one.link, one.start, one.X, one.y))
            assert torch.allclose(g, differences, rtol=1e-6, atol=1e-9) != mutate
            seen = verify(THEOREMS["one-point-monotonicity"], DRAWS, seed=5, progress=False)
            assert all(m["∇L = Qδ"].margin >= 0 for m in seen.measurements)


def test_without_a_mutation_the_same_checks_hold() -> None:
    for label in {label for label, *_ in MUTANTS.values()}:
        assert verify(THEOREMS[label], DRAWS, seed=5, progress=False).holds
