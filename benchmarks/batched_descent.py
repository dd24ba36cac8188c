"""A thousand descents as one batched run, and the same descents one after the other.

Both in one process, on the same problems, with the same function of deqlib, the same constant steps
1/(4Λ) and the same number of steps. The end points must agree before any time is
printed; CPU time is counted, which a busy machine changes little.

    python benchmarks/batched_descent.py [--problems 1000] [--steps 2000]
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
    arguments = parser.parse_args()
    start, S, A = problems(arguments.problems)
    descend(start, S, A, 10, 1)  # warm up
    began = time.process_time()
    together = descend(start, S, A, arguments.steps, 1)
    batched = time.process_time() - began
    began = time.process_time()
    for i in range(arguments.problems):
        alone = descend(LinearDEQ(start.W[i], start.U[i]), S[i], A[i], arguments.steps, 0)
        assert torch.allclose(alone.W, together.W[i], rtol=1e-9, atol=1e-9)
        assert torch.allclose(alone.U, together.U[i], rtol=1e-9, atol=1e-9)
    looped = time.process_time() - began
    print(f"{arguments.problems} problems of size p = 2, d = 3, {arguments.steps} steps each")
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}")
    print(f"one batched run: {batched:8.2f} CPU s")
    print(f"a loop:          {looped:8.2f} CPU s")
    print(f"ratio:           {looped / batched:8.1f}")


if __name__ == "__main__":
    main()
