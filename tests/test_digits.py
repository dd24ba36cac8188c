"""The digits' classifiers: starts, gradients, and the books that the radius keeps."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from deqlib import digits
from deqlib.digits import Classifier

DATA = digits.load()
SMALL = digits.Data(DATA.X[:60], DATA.y[:60], DATA.X_test[:20], DATA.y_test[:20], DATA.mean)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_data() -> None:
    assert DATA.X.shape == (1347, 64)
    assert DATA.X_test.shape == (450, 64)
    assert float(DATA.X.mean(0).abs().max()) < 1e-12
    assert float(DATA.X.square().mean()) == pytest.approx(1)
    pictures = torch.cat([DATA.X, DATA.X_test]) + DATA.mean
    assert float(pictures.min()) == pytest.approx(0, abs=1e-12)
    steps = pictures / pictures.max() * 16  # sixteen shades of grey
    assert float((steps - steps.round()).abs().max()) < 1e-9
    assert set(DATA.y.tolist()) == set(range(10))
    torch.testing.assert_close(digits.load().X_test, DATA.X_test)
    part = digits.held_out(DATA, 269)
    assert len(part.X) == 1078
    torch.testing.assert_close(torch.cat([part.X, part.X_test]), DATA.X)
    with pytest.raises(ValueError, match="n is 1347; it must lie between 1 and 1346"):
        digits.held_out(DATA, 1347)


def test_starts_are_what_they_say() -> None:
    common = digits.common_start(generator(), 32, 64)
    assert float(torch.linalg.matrix_norm(common.W, 2)) == pytest.approx(0.9)
    good = digits.conditioned_start(generator(), 32, 64)
    P = torch.eye(32, dtype=torch.float64) - good.W
    torch.testing.assert_close(P @ P.mT + good.U @ good.U.mT, 2 * torch.eye(32).double())
    torch.testing.assert_close(good.V, common.V)  # one seed, one read-out
    with pytest.raises(ValueError, match="p is 65 and d is 64"):
        digits.conditioned_start(generator(), 65, 64)


def perturbed(seed: int = 0) -> Classifier:
    theta = digits.common_start(generator(seed), 8, 64)
    return theta._replace(b=theta.b + 0.2, c=theta.c - 0.1)


def test_gradient_against_differences() -> None:
    theta, h = perturbed(), 1e-5
    _, g = digits.gradient(digits.deq(), theta, SMALL.X, SMALL.y)
    along = Classifier(
        *(torch.randn(t.shape, generator=generator(5), dtype=torch.float64) for t in theta)
    )

    def loss(t: float) -> float:
        there = Classifier(*(a + t * s for a, s in zip(theta, along, strict=True)))
        z = digits.state(there, SMALL.X, tol=1e-13).z
        return float(cross_entropy(z @ there.V.mT + there.c, SMALL.y))

    slope = sum(float((a * s).sum()) for a, s in zip(g, along, strict=True))
    assert (loss(h) - loss(-h)) / (2 * h) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("scheme", ["exact", "neumann-1", "phantom-5"])
def test_radius_keeps_its_books(scheme: str) -> None:
    """One step changes r_i² by η 2E[q_i(z_i − u_i)] + η²‖g_i‖². `radius_slopes` is for "exact"."""
    theta, eta = perturbed(1), 0.3
    _, g = digits.gradient(digits.deq(scheme), theta, SMALL.X, SMALL.y)
    after = Classifier(*(t - eta * s for t, s in zip(theta, g, strict=True)))
    change = digits.radii(after) - digits.radii(theta)
    second = g.W.square().sum(1) + g.U.square().sum(1) + g.b.square()
    predicted = eta * digits.radius_slopes(theta, SMALL.X, SMALL.y) + eta**2 * second
    close = torch.allclose(change, predicted, rtol=1e-6, atol=1e-8)
    assert close == (scheme == "exact")
    assert float(change.abs().max()) > 1e-3


def test_training_learns_and_repeats() -> None:
    theta = digits.conditioned_start(generator(), 8, 64)
    runs = [
        digits.epochs(digits.deq(), theta, SMALL, 0.3, generator(1), batch=20) for _ in range(2)
    ]
    for _ in range(4):
        one, two = (next(run) for run in runs)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    before, _ = digits.gradient(digits.deq(), theta, SMALL.X, SMALL.y)
    after, _ = digits.gradient(digits.deq(), one, SMALL.X, SMALL.y)
    assert float(after) < float(before)
    for eta, batch, said in ((0.0, 20, "eta is 0.0"), (0.1, 61, "batch is 61")):
        with pytest.raises(ValueError, match=said):
            next(digits.epochs(digits.deq(), theta, SMALL, eta, generator(), batch=batch))


def test_condition_without_a_loop() -> None:
    theta = digits.conditioned_start(generator(), 8, 64)
    seen = digits.condition(theta, SMALL.X)
    assert seen.sigma == seen.sigma_mean == 1
    assert seen.norm == 0
    assert seen.picard == 2  # f(0) is the equilibrium already; once more to see it


def test_explicit_networks() -> None:
    theta = digits.explicit_start(generator(), 8, 64)
    still = theta._replace(W=theta.W * 0)
    torch.testing.assert_close(
        digits.one_layer(theta, SMALL.X), digits.deq()(still, SMALL.X), rtol=1e-7, atol=1e-7
    )
    z = torch.tanh(SMALL.X @ theta.U.mT + theta.b)
    torch.testing.assert_close(
        digits.two_layers(theta, SMALL.X), torch.tanh(z @ theta.W.mT) @ theta.V.mT + theta.c
    )
