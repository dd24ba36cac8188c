"""All equilibria, their folds and the branches that solvers pick, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from deqlib import activations, branches, one_point, single_index
from deqlib.fixed_point import NotConvergedError
from deqlib.single_index import SingleIndexDEQ
from deqlib.theorems.single_index_problems import STRICT, random_problems

ODD = (
    activations.tanh,
    activations.arctan,
    activations.softsign,
    activations.linear_plus_tanh(0.3),
)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("a", [1.0001, 1.5, 2.0, 5.0, 40.0])
def test_folds_of_tanh_are_the_closed_form(a: float) -> None:
    fold = branches.folds(activations.tanh, a)
    u, s = math.acosh(math.sqrt(a)), float(branches.tanh_fold(tensor(a)))
    # u = arcosh √a solves a cosh⁻² = 1, whose rounding is amplified by 1/(slope of φ′) ~ 1/u.
    assert torch.allclose(fold.u, tensor(-u, u), rtol=0, atol=1e-14 * a / u)
    assert torch.allclose(fold.s, tensor(s, -s), rtol=1e-10, atol=0)


def test_the_fold_of_a_two() -> None:
    z = math.sqrt(0.5)
    assert float(branches.tanh_fold(tensor(2.0))) == pytest.approx(2 * z - math.atanh(z))
    assert float(branches.tanh_fold(tensor(1.0))) == 0


@pytest.mark.parametrize(
    ("link", "a", "u", "s"),
    [
        (activations.arctan, 3.0, math.sqrt(2), math.sqrt(2) - 3 * math.atan(math.sqrt(2))),
        (activations.softsign, 4.0, 1.0, 1 - 4 * 0.5),
        (activations.softplus, 1.5, math.log(2), math.log(2) - 1.5 * math.log(3)),
    ],
)
def test_folds_of_other_links(link: activations.Link, a: float, u: float, s: float) -> None:
    fold = branches.folds(link, a)
    assert float(fold.u[-1]) == pytest.approx(u, rel=1e-12)
    assert float(fold.s[-1]) == pytest.approx(s, rel=1e-12)


def test_below_one_over_beta_nothing_folds_and_there_is_one() -> None:
    s = torch.linspace(-3, 3, 41, dtype=torch.float64)
    for link in STRICT:
        for a in (-5 / link.beta, 0.0, 0.9 / link.beta):
            assert len(branches.turning_points(link, a)) == 0
            found = branches.equilibria(link, a, s)
            assert bool((found.count == 1).all())
            assert bool(found.stable.all())
            known = single_index.preactivation(link, torch.full_like(s, a), s)
            assert torch.allclose(found.u[:, 0], known, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("a", [1.2, 2.0, 4.0])
def test_tanh_has_three_inside_the_fold_and_one_outside(a: float) -> None:
    edge = float(branches.tanh_fold(tensor(a)))
    s = torch.linspace(-2 * edge, 2 * edge, 80, dtype=torch.float64)  # misses the folds themselves
    found = branches.equilibria(activations.tanh, a, s)
    assert torch.equal(found.count, torch.where(s.abs() < edge, 3, 1))
    assert torch.equal(found.stable.sum(-1), torch.where(s.abs() < edge, 2, 1))
    z = found.z[found.exists]
    index = s[:, None].expand_as(found.z)[found.exists]
    assert float((z - torch.tanh(a * z + index)).abs().max()) < 1e-14
    assert bool((found.u[:, 1][found.exists[:, 1]].abs() <= math.acosh(math.sqrt(a))).all())


@pytest.mark.parametrize(
    ("link", "a", "below", "at_or_above"),
    [
        (activations.relu, 1.5, 2, 0),
        (activations.relu, 1.0, 1, 0),
        (activations.leaky_relu(0.2), 2.0, 2, 0),
        (activations.leaky_relu(0.2), 4.9, 2, 0),
        (activations.leaky_relu(0.2), 6.0, 1, 1),
    ],
)
def test_counts_of_links_with_a_kink(
    link: activations.Link, a: float, below: int, at_or_above: int
) -> None:
    s = tensor(-3, -1, -0.01, 0.01, 1, 3)
    found = branches.equilibria(link, a, s)
    assert found.count.tolist() == [below] * 3 + [at_or_above] * 3
    if link is activations.relu and a > 1:  # z = 0, and z = s/(1 − a)
        assert torch.allclose(found.z[:3, 0], torch.zeros(3, dtype=torch.float64))
        assert torch.allclose(found.z[:3, 1], s[:3] / (1 - a))
        assert found.stable[:3].tolist() == [[True, False]] * 3
    if a == 2.0:  # z = αs/(1 − αa) and z = s/(1 − a)
        assert torch.allclose(found.z[:3, 0], 0.2 * s[:3] / (1 - 0.2 * a))
        assert torch.allclose(found.z[:3, 1], s[:3] / (1 - a))
    if a == 6.0:  # beyond 1/α everything is unstable
        assert not bool(found.stable.any())


def test_the_slope_at_a_fold_grows_like_one_over_the_root() -> None:
    a = 2.0
    edge, z = float(branches.tanh_fold(tensor(a))), math.sqrt(1 - 1 / a)
    gap = torch.logspace(-9, -5, 9, dtype=torch.float64)
    found = branches.equilibria(activations.tanh, a, -edge + gap)  # the upper branch ends at −s_c
    D = single_index.slope(activations.tanh, tensor(a), found.u[:, 2])
    predicted = 1 / (2 * a * (z * gap).sqrt())
    assert float((D / predicted - 1).abs().max()) < 5e-3


def test_cold_starts_find_the_outer_branch() -> None:
    s = torch.cat([tensor(-3, -0.6, -0.1, -1e-3), tensor(1e-3, 0.1, 0.6, 3)])
    for link in ODD:
        for a in (0.0, 0.5, 1.0, 1.3, 2.0):
            cold = branches.cold_start(link, a, s)
            outer = branches.outer_branch(link, torch.full_like(s, a), s)
            gain = a * link.derivative(outer)
            assert bool((cold.sign() == s.sign()).all())
            # A residual of 1e-13 (1 + |z|) becomes an error through 1/(1 − gain).
            assert bool(((cold - outer).abs() <= 1e-12 * (1 + a) / (1 - gain)).all())


def test_the_outer_branch_is_the_outermost_equilibrium() -> None:
    s = torch.linspace(-2, 2, 40, dtype=torch.float64)
    for link in ODD:
        for a in (-30.0, -2.0, 0.7, 1.0, 1.8, 3.2):
            u = branches.outer_branch(link, torch.full_like(s, a), s)
            found = branches.equilibria(link, a, s)
            far = torch.where(s > 0, found.u.nan_to_num(-torch.inf).amax(-1),
                              found.u.nan_to_num(torch.inf).amin(-1))  # fmt: skip
            assert float((u - far).abs().max()) < 1e-12


def test_walking_ends_where_picard_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    s, z = torch.randn(2, 200, generator=generator, dtype=torch.float64)
    for link in (*ODD, activations.logistic, activations.softplus):
        for a in (0.0, 0.6, 0.95, 1.7):
            if link is activations.softplus and a > 1:
                continue
            walked = branches.walk(link, a, s, z)
            gain = a * link.derivative(walked)
            settled = branches.settle(link, a, s, z)
            assert bool((gain < 1).all())
            # settle errs by its residual 1e-13 (1 + |z|) over 1 − gain, and walk by rounding.
            size = (1 + link(walked).abs()) * (1 + a)
            assert bool(((walked - settled).abs() <= 3e-13 * size / (1 - gain)).all())


def test_warm_starts_lag_behind_until_the_fold() -> None:
    """Going up and down, tanh jumps at +s_c and −s_c: a loop of hysteresis."""
    a, edge = 2.0, float(branches.tanh_fold(tensor(2.0)))
    up = torch.linspace(-1, 1, 81, dtype=torch.float64)[:, None]
    rising = branches.warm_start(activations.tanh, a, up)[:, 0]
    falling = branches.warm_start(activations.tanh, a, up.flip(0))[:, 0].flip(0)
    s = up[:, 0]
    assert torch.equal(rising > 0, s > edge)
    assert torch.equal(falling > 0, s > -edge)
    alone = s.abs() > edge
    assert torch.allclose(rising[alone], falling[alone], rtol=0, atol=1e-11)


def test_one_point_matrix_agrees_with_the_unique_case() -> None:
    generator = torch.Generator().manual_seed(0)
    for link in STRICT:
        many = random_problems(generator, 5, link, 3)
        u, v = (
            single_index.preactivation(link, m.a[:, None], single_index.index(m, many.X))
            for m in (many.start, many.target)
        )
        ours = branches.one_point_matrix(link, many.start, many.target, many.X, u, v)
        theirs = one_point.one_point_matrix(link, many.start, many.target, many.X)
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)  # the same, but for rounding


def test_leaky_ceiling_solves_its_equation() -> None:
    target = SingleIndexDEQ(tensor(0.3, 0.8), torch.tensor([[1.0, 2.0], [3.0, 0.0]]).double())
    rho, reach, kappa = tensor(1.5, 2.5), tensor(4.0, 30.0), tensor(0.5, 0.3)
    top = branches.leaky_ceiling(target, rho, reach, kappa)
    room = (rho**2 - (top - target.a) ** 2).sqrt()
    right = kappa.sqrt() * (target.w.norm(dim=1) - room) / reach
    assert bool((top < 1).all())
    assert torch.allclose(1 - top, right, rtol=0, atol=1e-12)
    # Inside the ball it is a* + ρ where that is smaller.
    near = branches.leaky_ceiling(target, 0.1 * rho, 100 * reach, kappa)
    assert torch.allclose(near[:1], (target.a + 0.1 * rho)[:1])


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (lambda: branches.turning_points(activations.tanh, math.inf), ValueError, "a is inf"),
        (lambda: branches.tanh_fold(tensor(0.5)), ValueError, "folds only for a ≥ 1"),
        (
            lambda: branches.equilibria(activations.tanh, 2.0, tensor(math.nan)),
            ValueError,
            "s holds NaN",
        ),
        (
            lambda: branches.equilibria(activations.tanh, 2.0, torch.zeros(2)),
            TypeError,
            "must be float64",
        ),
        (
            lambda: branches.walk(activations.tanh, -1.0, tensor(0.0), tensor(0.0)),
            ValueError,
            "neither may be negative",
        ),
        (
            lambda: branches.walk(activations.relu, 1.5, tensor(1.0), tensor(0.0)),
            ValueError,
            "meets no equilibrium",
        ),
        (
            lambda: branches.leaky_ceiling(
                SingleIndexDEQ(tensor(0.0), tensor(1.0)[None]),
                tensor(1.5),
                tensor(1.0),
                tensor(1.0),
            ),
            ValueError,
            "singular point",
        ),
    ],
)
def test_wrong_input_gets_a_sentence(call, kind: type[Exception], sentence: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(kind, match=sentence):
        call()


def test_where_there_is_no_equilibrium_a_cold_start_says_so() -> None:
    with pytest.raises(NotConvergedError, match="1 of 2 samples"):
        branches.cold_start(activations.relu, 1.5, tensor(-1.0, 1.0), max_iter=500)
    with pytest.raises(NotConvergedError, match="outer branch"):
        branches.outer_branch(activations.linear_plus_tanh(0.3), tensor(4.0), tensor(1.0))
