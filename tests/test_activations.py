"""Links: value, derivative, inverse and slope bounds agree, and a wrong one is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deqlib.activations import (
    LINKS,
    Link,
    gelu,
    leaky_relu,
    linear_plus_tanh,
    register,
    relu,
    smooth_leaky_relu,
    tanh,
    weakly_nonlinear,
)


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
        ({"beta": math.inf}, "must be finite"),
        ({"alpha": 2.0}, "alpha at most beta"),
        ({"value": lambda s: torch.where(s > 19, torch.nan, torch.tanh(s))}, "has slope nan"),
        ({"derivative": lambda s: torch.full_like(s, torch.nan)}, "derivative says nan"),
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
    smooth_leaky_relu(leak).check(generator, n=300)
    linear_plus_tanh(leak).check(generator, n=300)


@pytest.mark.parametrize("leak", [0.0, -0.1, 1.5])
def test_leak_outside_its_range_is_refused(leak: float) -> None:
    with pytest.raises(ValueError, match="leak is"):
        leaky_relu(leak)
    with pytest.raises(ValueError, match="leak is"):
        smooth_leaky_relu(leak)
    with pytest.raises(ValueError, match="share is"):
        linear_plus_tanh(leak)


def test_epsilon_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="epsilon is"):
        weakly_nonlinear(0.0)


@pytest.mark.parametrize("leak", [0.1, 0.5, 1.0])
def test_the_two_smooth_families_are_what_they_say(leak: float) -> None:
    s = torch.linspace(-30, 30, 121, dtype=torch.float64)
    far = s[s.abs() > 25]
    # log(1 + e^s) − max(s, 0) is below e^(−25).
    assert torch.allclose(smooth_leaky_relu(leak)(far), leaky_relu(leak)(far), atol=1e-10)
    mixed = leak * s + (1 - leak) * torch.tanh(s)
    assert torch.allclose(linear_plus_tanh(leak)(s), mixed, rtol=1e-14)
    assert float(linear_plus_tanh(leak).derivative(torch.zeros(1))) == pytest.approx(1.0)


# Secants -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(LINKS))
def test_secant_is_the_quotient_lies_between_the_slopes_and_is_symmetric(name: str) -> None:
    link = LINKS[name]
    g = torch.Generator().manual_seed(3)
    s, t = 4 * torch.randn(2, 3000, generator=g, dtype=torch.float64)
    slope = link.secant(s, t)
    assert bool(((slope >= link.alpha) & (slope <= link.beta)).all())
    apart = (s - t).abs() > 1e-3
    quotient = (link(s) - link(t)) / (s - t)
    assert torch.allclose(slope[apart], quotient[apart], rtol=1e-10, atol=1e-12)
    assert torch.allclose(slope, link.secant(t, s), rtol=1e-10, atol=1e-12)
    assert torch.allclose(link.secant(s, s), link.derivative(s), rtol=1e-13, atol=1e-15)
    assert link.secant(s[:5, None], t[:7]).shape == (5, 7)


@pytest.mark.parametrize("s", [0.0, 0.7, -3.0])
@pytest.mark.parametrize("power", range(1, 17))
def test_secant_of_close_points_in_fifty_digits(s: float, power: int) -> None:
    """The quotient's rounding is eps/h, at most 2e-11 at the h where the derivative takes over."""
    t = s + 10.0**-power
    with mpmath.workdps(50):
        exact = mpmath.mpf(1) - mpmath.tanh(s) ** 2
        if t != s:
            exact = (mpmath.tanh(t) - mpmath.tanh(s)) / (mpmath.mpf(t) - mpmath.mpf(s))
    points = (torch.tensor(v, dtype=torch.float64) for v in (s, t))
    assert float(tanh.secant(*points)) == pytest.approx(float(exact), rel=0, abs=1e-10)


@pytest.mark.parametrize("h", [1.0, 1e-3, 1e-7, 1e-12])
def test_secant_across_a_kink(h: float) -> None:
    """From −h to 2h, leaky ReLU with leak 0.2 rises by 2h + 0.2h, and ReLU by 2h."""
    s, t = torch.tensor(-h, dtype=torch.float64), torch.tensor(2 * h, dtype=torch.float64)
    for link, expected in ((leaky_relu(0.2), 2.2 / 3), (relu, 2 / 3)):
        assert float(link.secant(s, t)) == pytest.approx(expected, rel=1e-12)
        assert float(link.secant(t, s)) == pytest.approx(expected, rel=1e-12)


# A link of one's own -----------------------------------------------------------------------------

ASINH = Link("asinh", torch.asinh, lambda s: 1 / (1 + s.square()).sqrt(), torch.sinh, 0.0, 1.0)


@pytest.fixture
def restored() -> Iterator[None]:
    before = dict(LINKS)
    yield
    LINKS.clear()
    LINKS.update(before)


@pytest.mark.usefixtures("restored")
def test_a_consistent_link_is_registered() -> None:
    assert register(ASINH) is ASINH
    assert LINKS["asinh"] is ASINH
    register(ASINH)  # once more is no harm
    with pytest.raises(ValueError, match="another link of LINKS has this name"):
        register(replace(ASINH, inverse=None))
    assert LINKS["asinh"] is ASINH


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    ("link", "sentence"),
    [
        (replace(ASINH, derivative=lambda s: 1 / (1 + s.square())), "derivative says"),
        (replace(ASINH, alpha=0.2), "has slope"),
        (replace(ASINH, name="tanh"), "another link of LINKS has this name"),
    ],
)
def test_an_inconsistent_link_or_a_taken_name_is_not(link: Link, sentence: str) -> None:
    before = dict(LINKS)
    with pytest.raises(ValueError, match=sentence):
        register(link)
    assert before == LINKS


def test_the_registry_is_as_the_book_has_it() -> None:
    """The tests above leave no trace."""
    assert len(LINKS) == 12
    assert "asinh" not in LINKS
