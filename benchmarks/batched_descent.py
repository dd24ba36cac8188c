"""A thousand descents as one batched run, and the same descents one after the other.

Both in one process, on the same problems, with the same function of deqlib, the same constant steps
1/(4Λ) and the same number of steps. The end points must agree before any time is printed. CPU time
is counted, which a busy machine changes little.

The loop over all problems takes minutes. By default it is timed on 50 of them, drawn at random, and
scaled up; each repeat times the batch and another 50, and the ratios of all repeats are shown.
``--loop 1000 --repeats 1`` runs the whole loop. Measured on one core of a two-core machine, the
whole loop: 0.96 s for the batch, 203 s for the loop, a ratio of 213. By 3 repeats of 20 problems,
on the same machine when it was busy: 233 (230 to 249).

    python benchmarks/batched_descent.py [--problems 1000] [--steps 2000] [--loop 50] [--repeats 5]
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from deqlib import linear, rates
from deqlib.dynamics import gradient_descent
from deqlib.linear import LinearDEQ


def problems(n: int, p: int = 2, d: int = 3) -> tuple[LinearDEQ, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    start = linear.random_start(generator, p, d, batch=(n,))
    A = torch.randn(n, p, d, generator=generator, dtype=torch.float64)
    X = torch.randn(n, 20, d, generator=generator, dtype=torch.float64)
    return start, linear.second_moment(X), A


def descend(start: LinearDEQ, S: Tensor, A: Tensor, steps: int, batch_ndim: int) -> LinearDEQ:
    return gradient_descent(
        lambda theta: linear.loss(theta, S, A),
        start,
        1 / (4 * rates.smoothness(start, S, A)),
        steps,
        grad=lambda theta: linear.gradient(theta, S, A),
        record_every=steps,
        batch_ndim=batch_ndim,
        progress=False,
    ).end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--loop", type=int, default=50, help="how many the loop runs")
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    start, S, A = problems(chosen.problems)
    generator = torch.Generator().manual_seed(1)
    descend(start, S, A, 10, 1)  # warm up
    batched, looped = [], []
    for _ in range(chosen.repeats):
        began = time.process_time()
        together = descend(start, S, A, chosen.steps, 1)
        batched.append(time.process_time() - began)
        some = torch.randperm(chosen.problems, generator=generator)[: chosen.loop].tolist()
        began = time.process_time()
        alone = [
            descend(LinearDEQ(start.W[i], start.U[i]), S[i], A[i], chosen.steps, 0) for i in some
        ]
        looped.append((time.process_time() - began) * chosen.problems / len(some))
        for i, end in zip(some, alone, strict=True):
            assert torch.allclose(end.W, together.W[i], rtol=1e-9, atol=1e-9)
            assert torch.allclose(end.U, together.U[i], rtol=1e-9, atol=1e-9)
    ratios = sorted(a / b for a, b in zip(looped, batched, strict=True))
    print(f"{chosen.problems} problems of size p = 2, d = 3, {chosen.steps} steps each")
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}")
    print(f"one batched run: {sorted(batched)[len(batched) // 2]:8.2f} CPU s")
    print(
        f"a loop:          {sorted(looped)[len(looped) // 2]:8.2f} CPU s, from "
        f"{chosen.loop} problems, {chosen.repeats} repeat(s)"
    )
    middle = ratios[len(ratios) // 2]
    print(f"ratio:           {middle:8.0f} ({ratios[0]:.0f} to {ratios[-1]:.0f})")


if __name__ == "__main__":
    main()
