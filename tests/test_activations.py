"""Links: value, derivative, inverse and slope bounds agree, and a wrong one is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deqlib.activations import LINKS, gelu, leaky_relu, tanh, weakly_nonlinear


@pytest.mark.parametrize("name", list(LINKS))
def test_link_is_consistent(name: str) -> None:
    LINKS[name].check(torch.Generator().manual_seed(0), n=5000)


@pytest.mark.parametrize("name", list(LINKS))
def test_derivative_is_the_automatic_one(name: str) -> None:
    link = LINKS[name]
    s = torch.randn(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 4
    s.requires_grad_()
    (slope,) = torch.autograd.grad(link(s).sum(), s)
    # Both are float64 evaluations of the same function, at most a few roundings apart.
    assert torch.allclose(slope, link.derivative(s.detach()), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", list(LINKS))
def test_slope_bounds_are_attained_and_not_only_true(name: str) -> None:
    link = LINKS[name]
    slopes = link.derivative(torch.linspace(-60, 60, 240_001, dtype=torch.float64))
    # softsign's slope decays as 1/s²: 1/61² at the end of the grid.
    assert float(slopes.min()) == pytest.approx(link.alpha, abs=3e-4)
    assert float(slopes.max()) == pytest.approx(link.beta, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"beta": 0.9}, "has slope"),
        ({"alpha": 0.1}, "has slope"),
        ({"derivative": lambda s: 1 + torch.tanh(s) ** 2}, "derivative says"),
        ({"inverse": lambda z: 2 * torch.atanh(z)}, "inverse"),
    ],
)
def test_an_inconsistent_link_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(tanh, **change).check(torch.Generator().manual_seed(0))


def test_only_gelu_is_not_monotone() -> None:
    assert [link.name for link in LINKS.values() if not link.monotone] == [gelu.name]


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.floats(0.01, 1.0), st.floats(0.01, 3.0))
def test_families_are_consistent_for_every_parameter(leak: float, epsilon: float) -> None:
    generator = torch.Generator().manual_seed(2)
    leaky_relu(leak).check(generator, n=300)
    weakly_nonlinear(epsilon).check(generator, n=300)


@pytest.mark.parametrize("leak", [0.0, -0.1, 1.5])
def test_leak_outside_its_range_is_refused(leak: float) -> None:
    with pytest.raises(ValueError, match="leak is"):
        leaky_relu(leak)


def test_epsilon_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="epsilon is"):
        weakly_nonlinear(0.0)
