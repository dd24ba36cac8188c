"""Theorem `unique-equilibrium`: it holds, its bounds are attained, and it breaks where it must."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from test_mutants import mutated

from deqlib import single_index
from deqlib.activations import relu, tanh
from deqlib.fixed_point import NotConvergedError
from deqlib.theorems import THEOREMS, unique_equilibrium, verify
from deqlib.theorems.unique_equilibrium import UniqueEquilibrium, bisect, layer_factor

THEOREM = UniqueEquilibrium()


def failing(name: str, draws: int = 24) -> Counter[str]:
    """How many instances without a hypothesis break each conclusion."""
    verdict = verify(THEOREM, draws, seed=2, drop=name, progress=False)
    return Counter(what for ms in verdict.measurements for what in ms if not ms[what].margin >= 0)


def test_holds_and_is_attained() -> None:
    assert isinstance(THEOREMS["unique-equilibrium"], UniqueEquilibrium)
    verdict = verify(THEOREM, 200, seed=1, progress=False)
    assert verdict.holds, str(verdict)
    for attained in (
        "slope of h_a ≤ β/(1 − aβ)", "slope of h_a ≥ α/(1 − aα)", "m|v − u| ≤ |g(v)|",
        "|g(v)| ≤ M|v − u|", "error of a layer ≤ q",
    ):  # fmt: skip
        assert max(m[attained].tightness for m in verdict.measurements) > 0.999
    drawn = THEOREM.draw(torch.Generator().manual_seed(1), 24)
    assert {one.link.alpha < 0 for one in drawn} == {True, False}
    assert min(float((one.a * one.link.beta).min()) for one in drawn) < -15


@pytest.mark.parametrize("name", list(THEOREM.hypotheses))
def test_every_instance_fails_without(name: str) -> None:
    assert verify(THEOREM, 24, seed=2, drop=name, progress=False).failures == 24


def test_stands_where_the_link_has_no_derivative() -> None:
    drawn = THEOREM.draw(torch.Generator().manual_seed(3), 30)
    kinked = [one for one in drawn if one.link in unique_equilibrium.KINKED]
    assert len(kinked) == 6
    for one in kinked:
        u = single_index.preactivation(one.link, one.a, one.s)
        assert int((u == 0).sum()) == 12  # half of the equilibria do lie at the kink
        assert THEOREM.margin(one) >= 0


def test_failures_are_the_predicted_ones() -> None:
    slopes, weights, step = (failing(name) for name in ("slopes", "self-weight", "step"))
    assert slopes["one zero of g"] == weights["one zero of g"] == 24
    # With too long a step the layers leave an equilibrium that is still the only one.
    assert step == {"the layers converge": 24}


def zeros(link, a: float, s: float) -> int:  # type: ignore[no-untyped-def]
    u = torch.linspace(-60, 60, 400_000, dtype=torch.float64)
    positive = u - a * link(u) > s
    return int((positive[1:] != positive[:-1]).sum())


def test_how_many_equilibria_there_are_beyond() -> None:
    a = 2.0
    z_c = math.sqrt(1 - 1 / a)
    fold = a * z_c - math.atanh(z_c)
    assert [zeros(tanh, a, c * fold) for c in (-1.01, -0.99, 0.99, 1.01)] == [1, 3, 3, 1]
    assert [zeros(relu, a, s) for s in (-0.5, 0.5)] == [2, 0]
    for one in THEOREM.drop["self-weight"](torch.Generator().manual_seed(4), 4):
        counts = {zeros(one.link, float(a), float(s)) for a, s in zip(one.a, one.s, strict=True)}
        assert counts <= ({3} if one.link.name in ("tanh", "GELU") else {0, 2})


@pytest.mark.parametrize("a", [-30.0, -0.5, 0.7])
def test_layers_meet_their_factor_where_the_link_is_steepest(a: float) -> None:
    """Near u = 0 tanh has slope 1: with τ beyond its best the factor is τM − 1 for a < 0."""
    M = max(1.0, 1 - a)
    for part, converges in ((0.45, True), (0.99, True), (1.01, False)):
        tau = torch.tensor(part * 2 / M, dtype=torch.float64)
        q = float(layer_factor(tanh, torch.tensor(a, dtype=torch.float64), tau))
        assert (q < 1) == converges
        z = 1e-4
        after = (1 - tau) * z + tau * torch.tanh(torch.tensor(a * z, dtype=torch.float64))
        assert float(abs(after / z)) == pytest.approx(float(abs(1 - tau * (1 - a))), abs=1e-5)
        assert float(abs(after / z)) <= q


def test_bisection_brackets_every_zero() -> None:
    a = torch.tensor([-40.0, 0.0, 0.9], dtype=torch.float64)
    s = torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64)
    u = bisect(tanh, a, s)
    assert float((u - a * torch.tanh(u) - s).abs().max()) < 1e-13


MUTANTS = {
    "solver: a β/2 in the place of a β": (
        "low_slope = 1 - torch.maximum(a * link.alpha, a * link.beta)",
        "low_slope = 1 - torch.maximum(a * link.alpha, a * link.beta / 2)",
    ),
    "solver: stops at 1e-7": ("rounding, smallest = 4 * info.eps,", "rounding, smallest = 1e-7,"),
    "solver: index with the wrong sign": ("g = u - pulled - s\n", "g = u - pulled + s\n"),
    "solver: self-weight with the wrong sign": (
        "pulled = a * link(u)\n", "pulled = -a * link(u)\n"
    ),
    "solver: returns the start": ("result[index[done]] = u[done]", "result[index[done]] = s[done]"),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_solver_is_caught(mutant: str) -> None:
    with mutated(single_index, *MUTANTS[mutant]):
        try:
            holds = verify(THEOREM, 24, seed=5, progress=False).holds
        except NotConvergedError:
            holds = False
    assert not holds
    assert verify(THEOREM, 24, seed=5, progress=False).holds


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return torch.maximum((1 - tau * m).abs(), (1 - tau * M).abs())",
         "return (1 - tau * m).abs()"),
        ("return torch.maximum((1 - tau * m).abs(), (1 - tau * M).abs())",
         "return 0.99 * torch.maximum((1 - tau * m).abs(), (1 - tau * M).abs())"),
        ("high, low = link.beta / (1 - a * link.beta), link.alpha",
         "high, low = link.beta / (1 + a.abs() * link.beta), link.alpha"),
        ("link.alpha / (1 - a * link.alpha)\n", "link.alpha + link.beta / (2 - a * link.beta)\n"),
        ("ends = 1 - a * link.alpha, 1 - a * link.beta", "ends = 1 + 0 * a, 1 - a * link.beta"),
    ],
)  # fmt: skip
def test_a_wrong_bound_is_caught(old: str, new: str) -> None:
    with mutated(unique_equilibrium, old, new):
        verdict = verify(THEOREM, 48, seed=6, progress=False)
    assert not verdict.holds
