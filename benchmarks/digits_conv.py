"""A small convolutional equilibrium, trained with six backward passes, compared step by step.

    python benchmarks/digits_conv.py [--data digits|cifar10] [--epochs 5] [--output FILE]

The layer is z = tanh(K * z + M * x + b) with 3 × 3 kernels; the means of z over a 4 × 4 grid are
read out linearly. K starts Gaussian, scaled to norm 0.9 as an operator on the state. Training is
plain stochastic gradient descent. Batches of 128, step 0.1 and equilibria to a relative residual of
1e-3 are those of the paper's public image experiment, whose model is larger and multiscale. It runs
22 evaluations; here the solver goes on until the tolerance is met, and where it is not met in 200,
the run ends and says so.

First, for each scheme: test accuracy and training loss after every epoch. Then single updates at
parameters that the exact gradient reached, at shared equilibria to 1e-10: angle and length beside
the exact gradient with respect to (K, M, b), with forward and adjoint residuals. Everything is
drawn from --seed. CIFAR-10 comes through torchvision,
which must be installed, and is downloaded into --folder; take a GPU (--device cuda, --float32).
With --output all numbers go to a table too; that of the defaults is book/results/digits_conv.csv,
which chapter 17 shows.

Measured with the defaults, one seed, 2 minutes on one core of a shared machine. After 5 epochs:
exact, test 89.3 %, loss 0.52; neumann-1 88.4 %, 0.56; neumann-3 88.4 %, 0.53; damped-2 88.2 %,
0.57. neumann-2 ended in epoch 5 and phantom-5 in epoch 3, each over one image that did not come to
rest. At step 0.2 the exact gradient itself ended in epoch 3, neumann-2, neumann-3 and phantom-5 in
epochs 3 to 4, and neumann-1 and damped-2 reached 91.1 and 90.0 % in 4; for the image that ended the
exact run, the Jacobian had an eigenvalue of 1.0000 where the iteration lingered: a fold. Single
updates, angle to the exact gradient at the start and after 5 epochs at step 0.1: neumann-1 16° and
53°, neumann-2 5° and 43°, neumann-3 2° and 36°, damped-2 11° and 49°, phantom-5 3° and 38°.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d, conv_transpose2d, cross_entropy

from deqlib import digits
from deqlib.backward import SCHEMES, adjoint_residual, approximate_adjoint, equilibrium_with
from deqlib.fixed_point import NotConvergedError

COLUMNS = (
    "scheme", "epoch", "loss", "test", "ended", "angle", "length", "forward", "adjoint",
)  # fmt: skip
"""Of the table: loss to ended are of training, angle (degrees) to adjoint of single updates."""
Row = dict[str, object]


class Weights(NamedTuple):
    """K (p, p, 3, 3), M (p, channels, 3, 3), b (p, 1, 1), V (10, 16 p), c (10,)."""

    K: Tensor
    M: Tensor
    b: Tensor
    V: Tensor
    c: Tensor


def images(data: str, folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X (n, channels, h, w) and y (n,) for training, the same for the test."""
    if data == "digits":
        loaded = digits.load()
        X, X_test = (t.reshape(-1, 1, 8, 8) for t in (loaded.X, loaded.X_test))
        return X, loaded.y, X_test, loaded.y_test
    try:
        from torchvision.datasets import CIFAR10
    except ImportError:
        raise SystemExit(
            "--data cifar10 needs torchvision for its loader, which is not installed; "
            "--data digits needs nothing more than scikit-learn"
        ) from None
    parts = [CIFAR10(folder, train=train, download=True) for train in (True, False)]
    X, X_test = (torch.from_numpy(p.data).permute(0, 3, 1, 2).double() / 255 for p in parts)
    y, y_test = (torch.tensor(p.targets) for p in parts)
    mean = X.mean((0, 2, 3), keepdim=True)
    scale = (X - mean).square().mean().sqrt()
    return (X - mean) / scale, y, (X_test - mean) / scale, y_test


def operator_norm(K: Tensor, h: int, w: int, generator: Generator) -> float:
    """The norm of z ↦ K * z on (p, h, w), by 200 steps of the power method."""
    v = torch.randn(1, K.shape[0], h, w, generator=generator, dtype=torch.float64)
    for _ in range(200):
        v = conv_transpose2d(conv2d(v, K, padding=1), K, padding=1)
        v = v / v.norm()
    return float(conv2d(v, K, padding=1).norm())


def begin(generator: Generator, p: int, channels: int, h: int, w: int) -> Weights:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    K, M, V = normal(p, p, 3, 3), normal(p, channels, 3, 3), normal(10, 16 * p)
    K = 0.9 * K / operator_norm(K, h, w, generator)
    M, V = M / math.sqrt(9 * channels), V / math.sqrt(16 * p)
    return Weights(K, M, M.new_zeros(p, 1, 1), V, V.new_zeros(10))


def layer(theta: Weights, X: Tensor) -> Callable[[Tensor], Tensor]:
    drive = conv2d(X, theta.M, padding=1) + theta.b
    return lambda z: torch.tanh(conv2d(z, theta.K, padding=1) + drive)


def read(theta: Weights, z: Tensor) -> Tensor:
    return adaptive_avg_pool2d(z, 4).flatten(1) @ theta.V.mT + theta.c


def solved(theta: Weights, X: Tensor, scheme: str, tol: float):
    z0 = X.new_zeros(len(X), theta.K.shape[0], *X.shape[2:])
    return equilibrium_with(layer(theta, X), z0, scheme=scheme, tol=tol, max_iter=200, state_ndim=3)


def gradient(theta: Weights, X: Tensor, y: Tensor, scheme: str, tol: float):
    theta = Weights(*(t.detach().requires_grad_() for t in theta))
    loss = cross_entropy(read(theta, solved(theta, X, scheme, tol).z), y)
    return float(loss.detach()), Weights(*torch.autograd.grad(loss, theta))


def accuracy(theta: Weights, X: Tensor, y: Tensor, tol: float) -> float:
    with torch.no_grad():
        right = [
            int((read(theta, solved(theta, a, "exact", tol).z).argmax(1) == b).sum())
            for a, b in zip(X.split(500), y.split(500), strict=True)
        ]
    return sum(right) / len(X)


def updates(theta: Weights, X: Tensor, y: Tensor, tol: float, epoch: int) -> list[Row]:
    """The comparison of single updates at one shared set of equilibria, printed and returned."""
    found = solved(theta, X, "exact", tol)
    z = found.z.detach()
    size = z.flatten(1).norm(dim=1)
    forward = float((found.forward.residual / size).max())
    print(f"  largest relative forward residual {forward:.1e}")
    rest = z.clone().requires_grad_()
    (g,) = torch.autograd.grad(cross_entropy(read(theta, rest), y), rest)
    weights = Weights(*(t.detach().requires_grad_() for t in theta))

    def pulled(scheme: str) -> tuple[Tensor, float]:
        held = layer(weights, X)
        if scheme == "exact":
            solution = equilibrium_with(held, z, tol=tol, state_ndim=3)
            parts = torch.autograd.grad(solution.z, weights[:3], g)
            left = solution.adjoint[0].residual
        else:
            v = approximate_adjoint(held, z, g, scheme)
            parts = torch.autograd.grad(held(z), weights[:3], v)
            left = adjoint_residual(held, z, g, v, state_ndim=3)
        return torch.cat([t.flatten() for t in parts]), float(left.norm() / g.norm())

    exact, left = pulled("exact")
    print(f"  {'exact':12s}{'':26s}adjoint residual {left:.1e}")
    shared: Row = {"epoch": epoch, "forward": forward}
    rows = [{"scheme": "exact", **shared, "angle": 0.0, "length": 1.0, "adjoint": left}]
    for scheme in SCHEMES:
        mine, left = pulled(scheme)
        cosine = float(mine @ exact / (mine.norm() * exact.norm()))
        angle = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
        length = float(mine.norm() / exact.norm())
        print(
            f"  {scheme:12s}angle {angle:6.2f}  length {length:6.3f}  adjoint residual {left:.3f}"
        )
        rows.append({"scheme": scheme, **shared, "angle": angle, "length": length, "adjoint": left})
    return rows


def train(
    theta: Weights, parts: tuple, scheme: str, chosen: argparse.Namespace, rows: list[Row]
) -> list[Weights]:
    """Print loss and accuracy after every epoch, add them to the rows; return the parameters.

    Ends, and says so, where equilibria cease to converge.
    """
    X, y, X_test, y_test = parts
    generator = torch.Generator().manual_seed(chosen.seed + 1)
    path = [theta]
    for epoch in range(1, chosen.epochs + 1):
        order = torch.randperm(len(X), generator=generator).to(X.device)
        losses = []
        try:
            for picked in order[: len(X) - len(X) % chosen.batch].split(chosen.batch):
                loss, g = gradient(theta, X[picked], y[picked], scheme, chosen.tol)
                losses.append(loss)
                theta = Weights(*(t - chosen.eta * s for t, s in zip(theta, g, strict=True)))
            right = accuracy(theta, X_test, y_test, chosen.tol)
        except NotConvergedError as error:
            print(f"{scheme:12s}epoch {epoch:3d}  ends here: {error}", flush=True)
            rows.append(
                {"scheme": scheme, "epoch": epoch, "ended": "an image did not come to rest"}
            )
            return path
        path.append(theta)
        mean = sum(losses) / len(losses)
        rows.append({"scheme": scheme, "epoch": epoch, "loss": mean, "test": right})
        print(
            f"{scheme:12s}epoch {epoch:3d}  loss {mean:.4f}  test {100 * right:.1f} %", flush=True
        )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A small convolutional equilibrium, trained with six backward passes."
    )
    parser.add_argument("--data", choices=("digits", "cifar10"), default="digits")
    parser.add_argument("--folder", type=Path, default=Path("_build/cifar10"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--channels", type=int, default=8, help="of the state")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--eta", type=float, default=0.1)
    parser.add_argument("--tol", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--output", type=Path, help="write the numbers to this table, too")
    chosen = parser.parse_args()
    kind = torch.float32 if chosen.float32 else torch.float64
    parts = images(chosen.data, chosen.folder)
    _, channels, h, w = parts[0].shape
    start = begin(torch.Generator().manual_seed(chosen.seed), chosen.channels, channels, h, w)
    start = Weights(*(t.to(chosen.device, kind) for t in start))
    parts = tuple(
        t.to(chosen.device, kind) if t.is_floating_point() else t.to(chosen.device) for t in parts
    )
    rows: list[Row] = []
    path = train(start, parts, "exact", chosen, rows)
    for scheme in SCHEMES:
        train(start, parts, scheme, chosen, rows)
    sharp = 1e-5 if chosen.float32 else 1e-10
    for epoch in sorted({0, min(1, len(path) - 1), len(path) - 1}):
        print(f"single updates after {epoch} epochs of the exact gradient")
        one = parts[0][: chosen.batch], parts[1][: chosen.batch]
        rows += updates(path[epoch], *one, sharp, epoch)
    if chosen.output:
        write(chosen.output, rows)


def write(path: Path, rows: list[Row]) -> None:
    """The rows as a table whose first line is the command, numbers to five digits."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# python benchmarks/digits_conv.py {' '.join(sys.argv[1:])}\n")
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    main()
