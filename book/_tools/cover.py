"""Draw the picture of the README and the front page, `book/_static/cover.png`.

Gradient flow of the linear model with one output and two inputs, from several starts: each path
stays on the sphere on which it begins, and ends on the line of minimisers.
"""

from __future__ import annotations

from pathlib import Path

import torch

from deqlib.dynamics import gradient_flow
from deqlib.figures.spheres import sphere_paths
from deqlib.linear import LinearDEQ, gradient, loss

TARGET = Path(__file__).resolve().parents[1] / "_static" / "cover.png"


def main() -> None:
    directions = torch.linspace(0, 2 * torch.pi, 9, dtype=torch.float64)[:-1]
    radii = torch.tensor([1.0, 2.0] * 4, dtype=torch.float64)
    height = 0.25 * radii * torch.tensor([1.0, 1, 1, -1] * 2, dtype=torch.float64)
    around = (radii**2 - height**2).sqrt()
    U = torch.stack([around * directions.cos(), around * directions.sin()], dim=-1)
    start = LinearDEQ((1 - height)[:, None, None], U[:, None, :])
    S = torch.eye(2, dtype=torch.float64)
    A = torch.tensor([[0.5, 0.3]], dtype=torch.float64)
    flow = gradient_flow(
        lambda theta: loss(theta, S, A),
        start,
        60.0,
        grad=lambda theta: gradient(theta, S, A),
        times=torch.linspace(0, 1, 400, dtype=torch.float64) ** 3 * 60,
        batch_ndim=1,
        progress=False,
    )
    figure = sphere_paths(flow.theta.W, flow.theta.U, A)
    figure.savefig(TARGET, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
