"""Laws to leading order and evidence: they hold on what is drawn, break, and can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Generator

from deqlib import drift, noise
from deqlib.theorems import FINDINGS, findings, verify
from deqlib.theorems.ledger import ledger


@pytest.mark.parametrize("label", FINDINGS)
def test_holds_and_breaks_as_stated(label: str) -> None:
    (row,) = ledger([FINDINGS[label]], draws=60, seed=5)
    assert row.surprises == []
    assert row.verdict.least_activity > 1e-2
    assert set(row.dropped) == set(FINDINGS[label].hypotheses)
    for verdict in row.dropped.values():
        assert verdict.failures > verdict.draws / 2, str(verdict)


@pytest.mark.parametrize("label", FINDINGS)
def test_a_verdict_is_a_function_of_its_arguments(label: str) -> None:
    first, second = (verify(FINDINGS[label], 4, seed=7, progress=False) for _ in range(2))
    # Least squares may round differently where a tensor lies differently in memory.
    assert first.worst_margin == pytest.approx(second.worst_margin, rel=1e-6)
    other = verify(FINDINGS[label], 4, seed=8, progress=False)
    assert other.worst_margin != pytest.approx(first.worst_margin, rel=1e-6)


def test_the_slow_law_with_another_constant_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    true = drift.slow_constant
    monkeypatch.setattr(drift, "slow_constant", lambda *given: 1.05 * true(*given))
    verdict = verify(findings.SlowLaw(), 20, seed=1, progress=False)
    assert verdict.failures > 10
    for name in verdict.measurements[0]:
        assert any(m[name].margin < 0 for m in verdict.measurements), name


def test_the_slow_law_with_other_inputs_is_caught() -> None:
    for one in findings.SlowLaw().draw(Generator().manual_seed(2), 5):
        assert findings.SlowLaw().margin(replace(one, seen=1.2 * one.X)) < 0


def test_a_fit_that_does_not_converge_never_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    true = noise.fit
    monkeypatch.setattr(noise, "fit", lambda *a, **k: true(*a, **{**k, "max_iter": 1}))
    assert verify(findings.NoiseLevel(), 3, seed=1, progress=False).failures == 3


def test_the_noise_level_without_its_inverse_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.linalg, "inv", lambda H: H)
    assert verify(findings.NoiseLevel(), 20, seed=1, progress=False).failures > 10


def test_a_descent_that_reaches_too_few_steps_has_not_arrived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(findings.ArrivalBeyond, "steps", 3)
    assert verify(findings.ArrivalBeyond(), 5, seed=1, progress=False).failures == 5
