"""`single_index.Objective` carries its equilibria along; they stay those of a cold solve."""

from __future__ import annotations

import pytest
import torch

from deqlib import single_index
from deqlib.activations import LINKS, Link, tanh
from deqlib.dynamics import gradient_descent
from deqlib.single_index import Objective, SingleIndexDEQ, random_inputs

EPS = torch.finfo(torch.float64).eps


def problem(link: Link, n: int = 200) -> tuple[Objective, SingleIndexDEQ]:
    generator = torch.Generator().manual_seed(3)
    X = random_inputs(generator, n, 3, "gaussian")
    target = SingleIndexDEQ(
        torch.tensor(0.3 / link.beta).double(), torch.tensor([0.5, -0.2, 0.4]).double()
    )
    start = SingleIndexDEQ(target.a - 0.2, target.w + 0.1)
    return Objective(link, X, single_index.predict(link, target, X)), start


@pytest.mark.parametrize("name", LINKS)
def test_equilibria_along_a_run_are_those_of_a_cold_solve(name: str) -> None:
    """Both solve u = aφ(u) + s up to 4 eps of its terms, so they differ by that over 1 − aβ."""
    objective, start = problem(LINKS[name])
    run = gradient_descent(
        objective.loss, start, 0.5, 30, grad=objective.gradient, record_every=30, progress=False
    )
    theta = run.end
    warm = objective.preactivation(theta)
    s = single_index.index(theta, objective.X)
    cold = single_index.preactivation(objective.link, theta.a[..., None], s)
    scale = warm.abs() + s.abs() + (theta.a[..., None] * objective.link(warm)).abs()
    allowed = 16 * EPS * scale / (1 - theta.a.clamp(min=0) * objective.link.beta)
    assert bool(((warm - cold).abs() <= allowed).all())
    D = single_index.slope(objective.link, theta.a[..., None], warm)
    assert torch.equal(objective.slope(theta), D)
    exact = single_index.gradient(objective.link, theta, objective.X, objective.y)
    for ours, theirs in zip(objective.gradient(theta), exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_a_far_jump_is_solved_as_well() -> None:
    """Where the first-order guess is useless, the safeguarded search takes over."""
    objective, start = problem(tanh)
    for a, factor in ((-20.0, 30.0), (0.999, -1.0), (-3.0, 100.0)):
        objective.loss(start)
        far = SingleIndexDEQ(torch.tensor(a).double(), factor * start.w)
        u = objective.preactivation(far)
        s = single_index.index(far, objective.X)
        residual = (u - far.a * torch.tanh(u) - s).abs()
        assert bool((residual <= 8 * EPS * (u.abs() + s.abs() + abs(a))).all())


def test_after_an_inadmissible_point_it_goes_on() -> None:
    objective, start = problem(tanh)
    before = objective.loss(start)
    assert bool(objective.loss(SingleIndexDEQ(start.a + 5, start.w)).isnan())
    again = objective.loss(SingleIndexDEQ(start.a.clone(), start.w.clone()))
    torch.testing.assert_close(again, before, rtol=1e-13, atol=0)
