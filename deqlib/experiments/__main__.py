"""``python -m deqlib experiments``: run the paper's experiments again.

python -m deqlib experiments                          all of them, with the paper's seeds
python -m deqlib experiments linear tanh              two of them
python -m deqlib experiments linear --seeds 100       one of them, with a hundred seeds
python -m deqlib experiments --jobs 2                 on two cores
python -m deqlib experiments --backend dask --scheduler tcp://host:8786      on a Dask cluster

Finished runs are kept in the folder of --out; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from deqlib.experiments import PROTOCOLS, runner
from deqlib.experiments.table import Row, write


def listing() -> str:
    """Every protocol: name, runs with the paper's seeds, rough cost of a run, what it is."""
    lines = []
    for name, one in PROTOCOLS.items():
        runs = len(one.variants) * one.recorded
        lines.append(f"{name:24s} {runs:3d} runs of about {one.seconds:4g} s   {one.says}")
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    """The last records, a line a variant: mean and standard deviation over the seeds."""
    lines = [f"{'':44s} runs   steps        risk (mean, sd)       error (mean, sd)"]
    last = {(row.protocol, row.variant, row.seed): row.record for row in rows}
    for name, variant in dict.fromkeys((row.protocol, row.variant) for row in rows):
        ends = [record for key, record in last.items() if key[:2] == (name, variant)]
        cells = []
        for values in ([r.risk for r in ends], [r.error for r in ends]):
            spread = f"{statistics.stdev(values):.1e}" if len(values) > 1 else "-"
            cells.append(f"{statistics.fmean(values):12.5g} {spread:>9s}")
        lines.append(
            f"{f'{name}, {variant}':44s} {len(ends):4d} {max(r.step for r in ends):7d} "
            + " ".join(cells)
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when every run is finished, 1 or 130 when not."""
    parser = argparse.ArgumentParser(
        prog="python -m deqlib experiments", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all; see --list")
    parser.add_argument("--list", action="store_true", help="say what there is, and what it costs")
    parser.add_argument("--seeds", type=int, help="how many seeds (default: the paper's)")
    parser.add_argument(
        "--out", type=Path, default=Path("experiments"), help="folder (default: experiments)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--backend", default="loky", help="loky: this machine (default); or dask")
    parser.add_argument("--scheduler", help="address of the Dask scheduler")
    options = parser.parse_args(arguments)
    if options.list:
        print(listing())
        return 0
    if options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; it must be at least 1")
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}; it must be at least 1")
    if options.backend not in runner.BACKENDS:
        parser.error(
            f"--backend is {options.backend!r}; it must be one of {', '.join(runner.BACKENDS)}"
        )
    if options.backend == "dask" and options.scheduler is None:
        parser.error("--backend dask needs --scheduler, the address of the cluster's scheduler")
    if options.backend != "dask" and options.scheduler is not None:
        parser.error(f"--scheduler is {options.scheduler!r}; it goes with --backend dask only")
    try:
        jobs = runner.plan(options.names, options.seeds)
    except ValueError as error:
        parser.error(str(error))
    folder: Path = options.out
    if folder.exists() and not folder.is_dir():
        parser.error(f"--out is {str(folder)!r}, which is a file; it must be a folder")

    there = [job for job in jobs if runner.path_of(folder, job).exists()]
    stale = sum(runner.load(folder, job) is None for job in there)
    if stale:
        print(f"{stale} finished runs are of other code or another length; they are made again.")
    try:
        runner.run(
            jobs, folder, workers=options.jobs, backend=options.backend,
            scheduler=options.scheduler,
        )  # fmt: skip
    except (KeyboardInterrupt, runner.ClusterError) as error:
        finished = sum(runner.load(folder, job) is not None for job in jobs)
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        print(
            f"Stopped: {why}. {finished} of {len(jobs)} runs are finished and kept in {folder}; "
            "the same command goes on from there.",
            file=sys.stderr,
        )
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    rows = runner.gather(folder, jobs)
    words = ["python -m deqlib experiments", *dict.fromkeys(job.protocol for job in jobs)]
    if len(words) == 1 + len(PROTOCOLS):
        words = words[:1]
    if options.seeds is not None:
        words.append(f"--seeds {options.seeds}")
    write(folder / "results.csv", " ".join(words), rows)
    print(summary(rows))
    print(f"\n{len(jobs)} runs, {len(rows)} records: {folder / 'results.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
