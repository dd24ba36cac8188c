"""What every theorem object owes its reader, and that `verify` can tell truth from falsehood."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch

from deqlib.theorems import FINDINGS, THEOREMS, Hypothesis, Measurement, Theorem, verify
from deqlib.theorems.ledger import ledger

DRAWS = 60  # the theorems' own test files draw hundreds; these are about the machinery


@dataclass(frozen=True)
class Number:
    x: float
    strict: bool = True


class SquareIsLarger(Theorem[Number]):
    """x² ≥ x for x > 1: true, and false between 0 and 1."""

    label = "square-is-larger"
    title = "Squares of large numbers"
    kind = "bound"
    chapter = "none"
    statement = r"$x^2\ge x$ for $x>1$."
    hypotheses = {
        "above-one": Hypothesis("$x>1$."),
        "strict": Hypothesis("Serves the proof alone.", necessary=False),
    }

    def draw(self, generator: torch.Generator, n: int) -> list[Number]:
        return [Number(1.01 + float(u)) for u in torch.rand(n, generator=generator)]

    @property
    def drop(self):  # type: ignore[no-untyped-def]
        return {
            "above-one": lambda g, n: [replace(i, x=i.x / 3) for i in self.draw(g, n)],
            "strict": lambda g, n: [replace(i, strict=False) for i in self.draw(g, n)],
        }

    def slack(self, instance: Number) -> dict[str, float]:
        return {"above-one": instance.x - 1, "strict": 1.0 if instance.strict else -1.0}

    def measure(self, instance: Number) -> dict[str, Measurement]:
        return {"x² ≥ x": Measurement(instance.x**2, instance.x, abs(instance.x), lower=True)}


class Claims(SquareIsLarger):
    """The same with a false claim: 2x where x² stood."""

    def measure(self, instance: Number) -> dict[str, Measurement]:
        return {"x² ≥ 2x": Measurement(instance.x**2, 2 * instance.x, 1.0, lower=True)}


class Nothing(SquareIsLarger):
    """The same, but nothing ever happens."""

    def measure(self, instance: Number) -> dict[str, Measurement]:
        return {"0 ≤ 0": Measurement(0.0, 0.0, activity=0.0)}


class Outside(SquareIsLarger):
    """Draws that do not satisfy the hypothesis."""

    def draw(self, generator: torch.Generator, n: int) -> list[Number]:
        return [Number(0.5)] * n


def test_a_true_statement_holds_and_keeps_its_worst_instance() -> None:
    verdict = verify(SquareIsLarger(), draws=100, seed=3)
    assert verdict.holds
    assert verdict.failures == verdict.vacuous == 0
    # x² ≥ x is tightest at the smallest x drawn.
    xs = [i.x for i in SquareIsLarger().draw(torch.Generator().manual_seed(3), 100)]
    assert verdict.worst.x == min(xs)
    assert verdict.worst_margin == pytest.approx(min(xs) - 1)
    assert verdict.tightness == pytest.approx(1 / min(xs))
    assert verdict.least_slack["above-one"] == pytest.approx(min(xs) - 1)
    assert min(m.margin for m in verdict.replay().values()) == verdict.worst_margin


def test_a_false_statement_fails() -> None:
    verdict = verify(Claims(), draws=50)
    assert not verdict.holds
    assert verdict.failures > 40
    assert verdict.worst_margin < 0
    assert "FAILS" in str(verdict)


def test_a_statement_that_holds_because_nothing_happened_does_not_hold() -> None:
    verdict = verify(Nothing(), draws=5)
    assert verdict.failures == 0
    assert verdict.vacuous == 5
    assert not verdict.holds


def test_dropping_a_necessary_hypothesis_breaks_it_and_an_unnecessary_one_does_not() -> None:
    assert verify(SquareIsLarger(), 20, drop="above-one").failures == 20
    assert verify(SquareIsLarger(), 20, drop="strict").holds


def test_instances_outside_the_hypotheses_are_refused() -> None:
    with pytest.raises(ValueError, match=r"slack -0\.5 in hypothesis 'above-one'"):
        verify(Outside(), 3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"draws": 0}, "draws is 0; it must be at least 1"),
        ({"drop": "courage"}, "drop is 'courage'"),
    ],
)
def test_wrong_input_gets_a_sentence(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        verify(SquareIsLarger(), **arguments)


def test_a_measurement_that_is_not_a_number_never_passes() -> None:
    for measured, bound in ((math.nan, 1.0), (1.0, math.nan), (math.inf, math.inf)):
        assert Measurement(measured, bound, 1.0).margin == -math.inf


def test_margin_and_tightness_of_upper_and_lower_bounds() -> None:
    assert Measurement(1.0, 2.0, 1.0).margin == 0.5
    assert Measurement(1.0, 2.0, 1.0).tightness == 0.5
    assert Measurement(3.0, 2.0, 1.0, lower=True).margin == 0.5
    assert Measurement(3.0, 2.0, 1.0, lower=True).tightness == pytest.approx(2 / 3)
    assert Measurement(2.0, 2.0, 1.0).margin == 0.0


def test_the_ledger_reports_what_is_not_as_stated() -> None:
    class Wrong(SquareIsLarger):
        hypotheses = {
            "above-one": Hypothesis("$x>1$.", necessary=False),
            "strict": Hypothesis("Said to be needed."),
        }

    good, bad = ledger([SquareIsLarger(), Wrong()], draws=20)
    assert good.surprises == []
    assert len(bad.surprises) == 2


def test_registry_keys_are_the_labels_in_the_order_of_the_book() -> None:
    assert [t.label for t in THEOREMS.values()] == list(THEOREMS)
    chapters = [t.chapter for t in THEOREMS.values()]
    assert chapters == sorted(chapters)


def test_what_is_proved_and_what_is_not_are_kept_apart() -> None:
    assert {t.status for t in THEOREMS.values()} == {"proved"}
    assert {f.status for f in FINDINGS.values()} == {"asymptotic", "evidence"}
    assert [f.label for f in FINDINGS.values()] == list(FINDINGS)
    assert set(FINDINGS).isdisjoint(THEOREMS)


@pytest.mark.parametrize("label", list(THEOREMS))
def test_every_theorem_is_as_stated(label: str) -> None:
    """It holds; each hypothesis has a slack; each necessary one breaks it when dropped."""
    theorem = THEOREMS[label]
    (row,) = ledger([theorem], draws=DRAWS, seed=11)
    assert row.surprises == []
    assert row.verdict.least_activity >= theorem.least_activity
    assert set(row.verdict.least_slack) == set(theorem.hypotheses)
    for name, verdict in row.dropped.items():
        if theorem.hypotheses[name].necessary:
            # Not one lucky instance: the hypothesis matters on most of what is drawn.
            assert verdict.failures > verdict.draws / 2, str(verdict)


@pytest.mark.parametrize("label", list(THEOREMS))
def test_a_verdict_is_a_function_of_its_arguments(label: str) -> None:
    first, second = (verify(THEOREMS[label], 5, seed=7) for _ in range(2))
    assert first.worst_margin == second.worst_margin
    assert first.worst_index == second.worst_index
    other = verify(THEOREMS[label], 5, seed=8)
    assert [m for m in other.measurements] != [m for m in first.measurements]
    replayed = min(m.margin for m in first.replay().values())
    assert replayed == first.worst_margin
