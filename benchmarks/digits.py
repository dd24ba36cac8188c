"""The long runs behind the chapter on digits: two starts, six backward passes, explicit networks.

    python benchmarks/digits.py [--seeds 5] [--epochs 40] [--output book/results/digits.csv]

What is compared was fixed before any of it was run:

- Data: scikit-learn's digits, 1,347 for training and 450 for the test, one split.
- Models: the equilibrium classifier with p = 32; an explicit network of two layers with the same
  tensors; one of one layer, p = 46, with about as many parameters; scikit-learn's logistic
  regression.
- Starts of the equilibrium classifier: "common", W Gaussian of spectral norm 0.9, and
  "conditioned", W = 0 and U with orthonormal rows, so that C = 2 I.
- Training: plain stochastic gradient descent on the cross-entropy, batches of 100, constant step.
- The step is that of 0.03, 0.1, 0.3, 1 which leaves the least cross-entropy on the last 269
  training images after all epochs, for one seed that is not used again; a tie goes to the smaller.
  It is chosen for each model and start, with the exact gradient; the approximate backward passes
  take it over. The logistic regression's C is chosen the same way from 0.001, 0.01, 0.1, 1, 10.
- Reported: the last epoch, mean and standard deviation over the seeds. No early stopping.

One row for each model, start, scheme, seed and recorded epoch. A run whose equilibria cease to
converge ends with a row that says so in `failed`. Takes about five minutes on one core.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from deqlib import digits
from deqlib.backward import SCHEMES
from deqlib.digits import Classifier, Data, Logits
from deqlib.fixed_point import NotConvergedError

STEPS = (0.03, 0.1, 0.3, 1.0)
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
PROBE = 200  # training images at which the conditioning is measured
RECORDED = (0, 1, 2, 5, 10, 20, 40, 80, 160)
COLUMNS = (
    "model", "start", "scheme", "seed", "epoch", "eta", "parameters", "failed", "loss", "train",
    "test", "sigma", "sigma_mean", "norm", "depth", "picard", "radius", "drift",
)  # fmt: skip


def begin(model: str, start: str, seed: int, d: int) -> Classifier:
    generator = torch.Generator().manual_seed(seed)
    if model == "deq":
        return digits.STARTS[start](generator, 32, d)
    return digits.explicit_start(generator, 46 if model == "one layer" else 32, d)


def parameters(model: str, theta: Classifier) -> int:
    return sum(t.numel() for t in theta) - (theta.W.numel() if model == "one layer" else 0)


def logits_of(model: str, scheme: str) -> Logits:
    if model == "deq":
        return digits.deq(scheme)
    return digits.one_layer if model == "one layer" else digits.two_layers


def loss(logits: Logits, theta: Classifier, X: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return float(cross_entropy(logits(theta, X), y))


def choose_step(model: str, start: str, data: Data, epochs: int) -> float:
    part, found = digits.held_out(data, 269), {}
    for eta in STEPS:
        logits = logits_of(model, "exact")
        theta = begin(model, start, 100, data.X.shape[1])
        try:
            steps = digits.epochs(logits, theta, part, eta, torch.Generator().manual_seed(1100))
            for _ in range(epochs + 1):
                theta = next(steps)
            found[eta] = loss(logits, theta, part.X_test, part.y_test)
        except (NotConvergedError, FloatingPointError):
            found[eta] = float("inf")
    return min(found, key=lambda eta: (found[eta], eta))


def run(
    model: str, start: str, scheme: str, seed: int, eta: float, data: Data, epochs: int
) -> Iterator[dict]:
    logits, theta = logits_of(model, scheme), begin(model, start, seed, data.X.shape[1])
    first = digits.radii(theta)
    row = dict(
        model=model, start=start, scheme=scheme, seed=seed, eta=eta,
        parameters=parameters(model, theta),
    )  # fmt: skip
    steps = digits.epochs(logits, theta, data, eta, torch.Generator().manual_seed(1000 + seed))
    for epoch in range(epochs + 1):
        try:
            theta = next(steps)
            if epoch not in RECORDED and epoch != epochs:
                continue
            seen: dict = dict(
                epoch=epoch,
                loss=loss(logits, theta, data.X, data.y),
                train=digits.accuracy(logits, theta, data.X, data.y),
                test=digits.accuracy(logits, theta, data.X_test, data.y_test),
            )
            if model == "deq":
                change = digits.radii(theta) / first
                seen |= digits.condition(theta, data.X[:PROBE])._asdict()
                seen |= dict(radius=float(change.mean()), drift=float((change - 1).abs().max()))
        except (NotConvergedError, FloatingPointError) as error:
            yield row | dict(epoch=epoch, failed=type(error).__name__)
            return
        yield row | seen


def logistic(data: Data) -> dict:
    part = digits.held_out(data, 269)

    def fit(C: float, data: Data) -> LogisticRegression:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            return LogisticRegression(C=C, max_iter=10_000).fit(data.X, data.y)

    score = {C: log_loss(part.y_test, fit(C, part).predict_proba(part.X_test)) for C in PENALTIES}
    best = min(score, key=lambda C: (score[C], C))
    model = fit(best, data)
    return dict(
        model="logistic", start=f"C={best:g}", parameters=650,
        loss=log_loss(data.y, model.predict_proba(data.X)),
        train=model.score(data.X, data.y), test=model.score(data.X_test, data.y_test),
    )  # fmt: skip


def shown(value: object) -> object:
    return f"{value:.5g}" if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description="The long runs behind the chapter on digits.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--output", type=Path, default=Path("book/results/digits.csv"))
    chosen = parser.parse_args()
    data = digits.load()
    plan = [("deq", start, s) for start in digits.STARTS for s in ("exact", *SCHEMES)]
    plan += [("one layer", "gaussian", "backprop"), ("two layers", "gaussian", "backprop")]
    kinds = {(model, start) for model, start, _ in plan}
    eta = {
        kind: choose_step(*kind, data, chosen.epochs) for kind in tqdm(sorted(kinds), desc="steps")
    }
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    with chosen.output.open("w", newline="", encoding="utf-8") as file:
        file.write(
            f"# python benchmarks/digits.py --seeds {chosen.seeds} --epochs {chosen.epochs} "
            "--output book/results/digits.csv\n"
        )
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerow({k: shown(v) for k, v in logistic(data).items()})
        for (model, start, scheme), seed in tqdm(
            [(one, seed) for one in plan for seed in range(chosen.seeds)], desc="runs"
        ):
            for row in run(model, start, scheme, seed, eta[model, start], data, chosen.epochs):
                writer.writerow({k: shown(v) for k, v in row.items()})
            file.flush()


if __name__ == "__main__":
    main()
