"""Time deqlib beside its peers at equal accuracy, in one process, and print the ratios.

    python -m benchmarks [--only layer training flows levers] [--repeats 5] [--small] [--book]

Prints the tables, and writes them with a plot to benchmarks/results/; with --book to where the
book's appendix shows them. --small runs sizes that end in seconds and mean nothing. Peers that are
not installed are left out.
"""

from __future__ import annotations

import os

# one thread for all; read when torch and jax are imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks import flows, layer, levers, memory, report, training
from benchmarks.report import Group
from benchmarks.timing import Contender, measured, tuned

ROOT = Path(__file__).parents[1]
TABLES = ("layer", "training", "flows", "levers")
PACKAGES = ("torch", "jax", "jaxopt", "optimistix", "diffrax", "torchdeq", "scipy")

WHY = {
    "training": (
        "gradient_descent also computes the loss and looks at every number of every step, to stop "
        "a run that diverges: a fixed price a step, which small matrices feel"
    ),
    "flows": "one step serves all problems, and the stiffest sets it",
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(group: Group, target: Sequence[float], tol: float, repeats: int) -> Group:
    """Tune every contender, drop those that miss the target, time the rest."""
    say(group.problem)
    entered: list[Contender] = []
    for c in group.contenders:
        try:
            met = tuned(c, target, tol)
        except (ArithmeticError, RuntimeError) as error:  # did not converge, or has no compiler
            say(f"  {c.name}: {str(error).splitlines()[0]}")
            met = False
        if met:
            entered.append(c)
        else:
            group.missed.append(c.name)
    group.contenders = entered
    measured(entered, repeats)
    return group


def layer_problems(small: bool) -> list[tuple[int, int, float]]:
    sizes = ((8, 4),) if small else layer.SIZES
    return [(n, batch, rho) for n, batch in sizes for rho in layer.RATES]


def peaks(small: bool) -> dict[tuple[int, int, float], dict[str, float]]:
    """Every contender's peak memory; before jax is imported, and at one tolerance for all."""
    found: dict[tuple[int, int, float], dict[str, float]] = {}
    for n, batch, rho in layer_problems(small):
        if n < 256 or rho < max(layer.RATES):  # smaller than what the allocator hands back
            continue
        p = layer.problem(n, batch, rho)
        say(f"memory at state {n}, batch {batch}, ρ = {rho}")
        found[n, batch, rho] = {
            c.name: memory.peak(lambda c=c: c.run(layer.TARGET[0]))
            for c in layer.contenders(p)
            if c.tol != 0
        }
    return found


def groups(only: Sequence[str], small: bool, repeats: int) -> list[Group]:
    done: list[Group] = []
    if "layer" in only:
        megabytes = peaks(small)
        for n, batch, rho in layer_problems(small):
            p = layer.problem(n, batch, rho)
            everyone = layer.contenders(p)
            name = f"layer, state {n}, batch {batch}, ρ = {rho:g}"
            group = Group("layer", name, everyone, [], megabytes.get((n, batch, rho), {}), "")
            # the largest take seconds a run, which is spread enough over time
            run(group, layer.TARGET, 1e-6, min(repeats, 3) if n >= 1024 else repeats)
            group.why = layer.why(p, group.contenders)
            done.append(group)
    if "training" in only:
        for p, d in ((3, 4),) if small else training.SIZES:
            steps = 10 if small else 50 if p >= 500 else 100
            name = f"training, {steps} steps, p = {p}, d = {d}"
            group = Group(
                "training", name, training.contenders(p, d, steps), [], {}, WHY["training"]
            )
            done.append(run(group, training.TARGET, 0, repeats))
    if "flows" in only:
        count, looped = (4, 2) if small else (1000, 20)
        everyone = flows.contenders(count, looped)
        group = Group("flows", f"{count} gradient flows", everyone, [], {}, WHY["flows"])
        done.append(run(group, flows.TARGET, 1e-6, max(2, repeats // 2)))
    if "levers" in only:
        done += levers_pulled(small, repeats)
    return done


def levers_pulled(small: bool, repeats: int) -> list[Group]:
    done = []
    for n, batch, rho in layer_problems(small):
        if n > 256:  # the matrix product is nearly all, and takes minutes
            continue
        name = f"layer, state {n}, batch {batch}, ρ = {rho:g}"
        group = Group("levers", name, levers.of_the_layer(layer.problem(n, batch, rho)), [], {}, "")
        done.append(run(group, layer.TARGET, 1e-6, min(repeats, 3)))
    for p, d in ((3, 4),) if small else training.SIZES:
        steps = 10 if small or p >= 500 else 100
        name = f"training, {steps} steps, p = {p}, d = {d}"
        group = Group("levers", name, levers.of_training(p, d, steps), [], {}, "")
        done.append(run(group, training.TARGET, 0, repeats))
    count = 4 if small else 1000
    group = Group("levers", f"{count} gradient flows", levers.of_flows(count), [], {}, "")
    done.append(run(group, flows.TARGET, 1e-6, max(2, repeats // 2)))
    return done


def versions() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} missing")
    return ", ".join(found)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--book", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    chosen = parser.parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        found = groups(chosen.only, chosen.small, chosen.repeats)
    folder, pictures = chosen.out, chosen.out
    if chosen.book:
        folder, pictures = ROOT / "book" / "results", ROOT / "book" / "_static"
    tables = {name: report.details(found, name) for name in chosen.only if name != "levers"}
    if "levers" in chosen.only:
        tables["levers"] = report.levers(found, levers.PLAIN)
    tables["summary"] = report.summary(found)
    for name, rows in tables.items():
        print(report.show(rows), end="\n\n")
        report.write(folder / f"benchmarks_{name}.csv", rows)
    print(f"one thread, CPU time, at most {chosen.repeats} interleaved repeats; {versions()}")
    (folder / "benchmarks_versions.txt").write_text(versions() + "\n", encoding="utf-8")
    if "layer" in chosen.only:
        report.plot(found, pictures / "benchmarks.png")


if __name__ == "__main__":
    main()
