r"""Handwritten digits and three small classifiers: what the last experiments train.

A deep equilibrium classifier reads its answer off a vector equilibrium,

    z = tanh(W z + U x + b),      logits = V z + c,

with the mean cross-entropy as loss. Two explicit networks stand beside it: `two_layers` has the
same five tensors, z = tanh(W tanh(U x + b)), and `one_layer` leaves W out, z = tanh(U x + b), and
is given a wider state instead.

With x̃ = (x, 1) and Ũ = [U, b], the radius of row i is r_i² = ‖(I − W)_i‖² + ‖Ũ_i‖².
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from deqlib.backward import Scheme, equilibrium_with
from deqlib.fixed_point import solve
from deqlib.implicit import Equilibrium

TOL = 1e-8
"""Relative tolerance of the equilibria in training."""


class Classifier(NamedTuple):
    """W (p, p), U (p, d), b (p,), V (k, p), c (k,)."""

    W: Tensor
    U: Tensor
    b: Tensor
    V: Tensor
    c: Tensor


class Data(NamedTuple):
    """Inputs (n, d) in float64 and labels (n,) in 0, …, 9, for training and for the test.

    mean (d,) is what was taken away from the inputs: x + mean is a picture again, 0 for white.
    """

    X: Tensor
    y: Tensor
    X_test: Tensor
    y_test: Tensor
    mean: Tensor


Logits = Callable[[Classifier, Tensor], Tensor]


def load(test: float = 0.25, seed: int = 0) -> Data:
    """scikit-learn's 1,797 digits of 8 × 8 pixels, split with equal shares of each class.

    The training mean is taken away from every pixel, and one common factor makes the mean square
    of the training pixels 1. The same seed gives the same split. Raises ImportError where
    scikit-learn is not installed.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=test, random_state=seed, stratify=y)
    mean = X.mean(0)
    scale = ((X - mean) ** 2).mean() ** 0.5
    inputs = (torch.from_numpy((part - mean) / scale) for part in (X, X_test))
    labels = (torch.from_numpy(part).long() for part in (y, y_test))
    (X, X_test), (y, y_test) = inputs, labels
    return Data(X, y, X_test, y_test, torch.from_numpy(mean / scale))


def held_out(data: Data, n: int) -> Data:
    """The training data alone, its last n images for validation: for choosing a step size."""
    if not 0 < n < len(data.X):
        raise ValueError(f"n is {n}; it must lie between 1 and {len(data.X) - 1}")
    return Data(data.X[:-n], data.y[:-n], data.X[-n:], data.y[-n:], data.mean)


# -------------------------------------------------------------------------------------- the starts


def common_start(generator: Generator, p: int, d: int, k: int = 10) -> Classifier:
    """W Gaussian, scaled to spectral norm 0.9; U of entries N(0, 1/d), V N(0, 1/p); b = c = 0."""
    W, U, V = (_normal(generator, *shape) for shape in ((p, p), (p, d), (k, p)))
    W = 0.9 * W / torch.linalg.matrix_norm(W, 2)
    return Classifier(W, U / d**0.5, U.new_zeros(p), V / p**0.5, U.new_zeros(k))


def conditioned_start(generator: Generator, p: int, d: int, k: int = 10) -> Classifier:
    """W = 0 and U with orthonormal rows, so that C = (I − W)(I − W)ᵀ + UUᵀ = 2 I; V, b, c as usual.

    It has the form P = (cI)^{1/2} (I + AAᵀ)^{-1/2}, U = P A, with AAᵀ = I and c = 2. Needs p ≤ d.
    """
    if p > d:
        raise ValueError(f"p is {p} and d is {d}; orthonormal rows need p <= d")
    _, U, V = (_normal(generator, *shape) for shape in ((p, p), (p, d), (k, p)))
    Q, R = torch.linalg.qr(U.mT)
    U = (Q * R.diagonal().sign()).mT  # the sign makes the frame uniformly distributed
    return Classifier(U.new_zeros(p, p), U, U.new_zeros(p), V / p**0.5, U.new_zeros(k))


STARTS: dict[str, Callable[..., Classifier]] = {
    "common": common_start,
    "conditioned": conditioned_start,
}


def explicit_start(generator: Generator, p: int, d: int, k: int = 10) -> Classifier:
    """For the explicit networks: W of entries N(0, 1/p), the rest as in `common_start`."""
    theta = common_start(generator, p, d, k)
    return theta._replace(W=_normal(generator, p, p) / p**0.5)


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# -------------------------------------------------------------------------------------- the models


def layer(theta: Classifier, X: Tensor) -> Callable[[Tensor], Tensor]:
    """z ↦ tanh(W z + U x + b) for the rows of X."""
    drive = X @ theta.U.mT + theta.b
    return lambda z: torch.tanh(z @ theta.W.mT + drive)


def state(
    theta: Classifier, X: Tensor, scheme: str | Scheme = "exact", **options: Any
) -> Equilibrium:
    """The equilibria (n, p) of the rows of X, searched from 0; see `backward.equilibrium_with`."""
    z0 = torch.zeros(len(X), len(theta.b), dtype=X.dtype)
    return equilibrium_with(layer(theta, X), z0, scheme=scheme, **{"tol": TOL, **options})


def deq(scheme: str | Scheme = "exact") -> Logits:
    """The equilibrium classifier with this backward pass."""
    return lambda theta, X: state(theta, X, scheme).z @ theta.V.mT + theta.c


def two_layers(theta: Classifier, X: Tensor) -> Tensor:
    """Logits of V tanh(W tanh(U x + b)) + c: the tensors of the equilibrium classifier, no loop."""
    return torch.tanh(torch.tanh(X @ theta.U.mT + theta.b) @ theta.W.mT) @ theta.V.mT + theta.c


def one_layer(theta: Classifier, X: Tensor) -> Tensor:
    """Logits of V tanh(U x + b) + c; W is not used."""
    return torch.tanh(X @ theta.U.mT + theta.b) @ theta.V.mT + theta.c


def accuracy(logits: Logits, theta: Classifier, X: Tensor, y: Tensor) -> float:
    """Share of the rows of X whose largest logit is the label's."""
    with torch.no_grad():
        return float((logits(theta, X).argmax(1) == y).double().mean())


# ------------------------------------------------------------------------------------ the training


def gradient(logits: Logits, theta: Classifier, X: Tensor, y: Tensor) -> tuple[Tensor, Classifier]:
    """The mean cross-entropy and its gradient (the scheme's, if the logits use a scheme)."""
    theta = Classifier(*(t.detach().requires_grad_() for t in theta))
    loss = cross_entropy(logits(theta, X), y)
    return loss.detach(), Classifier(
        *torch.autograd.grad(loss, theta, allow_unused=True, materialize_grads=True)
    )


def epochs(
    logits: Logits,
    theta: Classifier,
    data: Data,
    eta: float,
    generator: Generator,
    batch: int = 100,
) -> Iterator[Classifier]:
    """Parameters after 0, 1, 2, … epochs of plain stochastic gradient descent with step eta.

    Each epoch draws a new order; a last batch that is not full is left out. It never ends by
    itself, and raises FloatingPointError where a gradient is not finite.
    """
    if not eta > 0:
        raise ValueError(f"eta is {eta}; it must be positive")
    if not 1 <= batch <= len(data.X):
        raise ValueError(f"batch is {batch}; it must lie between 1 and {len(data.X)}")
    yield theta
    while True:
        order = torch.randperm(len(data.X), generator=generator)
        for start in range(0, len(order) - batch + 1, batch):
            rows = order[start : start + batch]
            _, g = gradient(logits, theta, data.X[rows], data.y[rows])
            if not all(bool(t.isfinite().all()) for t in g):
                raise FloatingPointError(f"the gradient is not finite at eta={eta}")
            theta = Classifier(*(t - eta * s for t, s in zip(theta, g, strict=True)))
        yield theta


# -------------------------------------------------------------------------------- what is measured


def radii(theta: Classifier) -> Tensor:
    """r_i² = ‖(I − W)_i‖² + ‖U_i‖² + b_i², (p,)."""
    P = torch.eye(len(theta.b), dtype=theta.W.dtype) - theta.W
    return P.square().sum(1) + theta.U.square().sum(1) + theta.b.square()


def radius_slopes(theta: Classifier, X: Tensor, y: Tensor) -> Tensor:
    """2 E[q_i (z_i − u_i)], (p,): the speed of r_i² under gradient flow.

    q is the gradient of the loss with respect to the pre-activation u = W z + U x + b.
    """
    z = state(theta, X, tol=1e-12).z.detach()
    u = z @ theta.W.mT + X @ theta.U.mT + theta.b
    push = torch.zeros_like(u).requires_grad_()  # u + push: its gradient is q/n

    def shifted(v: Tensor) -> Tensor:
        return torch.tanh(v @ theta.W.mT + X @ theta.U.mT + theta.b + push)

    out = equilibrium_with(shifted, z, tol=1e-12).z @ theta.V.mT + theta.c
    (q,) = torch.autograd.grad(cross_entropy(out, y), push)
    return 2 * (q * (z - u)).sum(0)


class Condition(NamedTuple):
    """At the equilibria of a sample: what `condition` measures.

    sigma       least singular value of I − ΦW over the sample (Φ = diag tanh′)
    sigma_mean  its mean over the sample
    norm        ‖W‖₂
    depth       mean number of evaluations of f that Anderson's method needed from 0, at `TOL`
    picard      the same for Picard's iteration; NaN if some sample needs more than 1,000
    """

    sigma: float
    sigma_mean: float
    norm: float
    depth: float
    picard: float


def condition(theta: Classifier, X: Tensor) -> Condition:
    """Conditioning and effective depth at the equilibria of the rows of X."""
    with torch.no_grad():
        found = state(theta, X)
        z0 = torch.zeros_like(found.z)
        plain = solve(layer(theta, X), z0, method="picard", tol=TOL, throw=False)
        slopes = 1 - found.z.square()
        A = torch.eye(len(theta.b), dtype=X.dtype) - slopes[..., None] * theta.W
        sigma = torch.linalg.svdvals(A)[:, -1]
        steps = plain.iterations.double()
        return Condition(
            sigma=float(sigma.min()),
            sigma_mean=float(sigma.mean()),
            norm=float(torch.linalg.matrix_norm(theta.W, 2)),
            depth=float(found.forward.iterations.double().mean()),
            picard=float(steps.mean()) if bool(plain.converged.all()) else float("nan"),
        )
