"""Many runs: on one core, on all of them, or on a cluster; interrupted at any moment and resumed.

A run is finished when its file stands in the folder. Files appear whole or not at all, and only
the process that gives out the runs writes them, so that workers may die and a cluster needs no
common disk. A file also says which code and which length made it: after a change of either it
counts as stale and its run is made again.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import hashlib
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import torch
from tqdm import tqdm  # not tqdm.auto: its notebook bar ignores "only in a terminal"

from deqlib import activations, dynamics, linear, single_index
from deqlib.experiments import PROTOCOLS, protocol
from deqlib.experiments.protocol import Record
from deqlib.experiments.table import Row, replace

BACKENDS = ("loky", "dask")
SHARED = (protocol, activations, dynamics, linear, single_index)
"""Modules that decide a run's numbers, beside the protocol's own."""
PATIENCE = 3
"""How often a pool of workers may break without a single run finished in between."""


class Job(NamedTuple):
    """One run that is due."""

    protocol: str
    variant: str
    seed: int
    steps: int


class ClusterError(RuntimeError):
    """The workers cannot do the runs; the message says why."""


def plan(names: Sequence[str], seeds: int | None = None) -> list[Job]:
    """The runs of the protocols named (all of them without names), in the order of the table.

    Raises:
        ValueError: for an unknown name or seeds < 1.
    """
    for name in names:
        if name not in PROTOCOLS:
            raise ValueError(f"no experiment is called {name!r}; there are {', '.join(PROTOCOLS)}")
    return [
        Job(name, variant, seed, one.steps)
        for name, one in PROTOCOLS.items()
        if name in names or not names
        for variant in one.variants
        for seed in one.seeds(seeds)
    ]


@functools.cache
def fingerprint(name: str) -> str:
    """A string that changes with the code behind a protocol, but not with comments or docstrings.

    It also names the version of torch, since another one may round otherwise.
    """
    code = hashlib.sha256(torch.__version__.encode())
    own = inspect.getmodule(PROTOCOLS[name].run)
    for module in (own, *SHARED):
        assert module is not None
        code.update(meaning(inspect.getsource(module)).encode())
    return code.hexdigest()[:16]


def meaning(source: str) -> str:
    """Python source without its comments, layout and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                statement
                for statement in body
                if not (
                    isinstance(statement, ast.Expr)
                    and isinstance(statement.value, ast.Constant)
                    and isinstance(statement.value.value, str)
                )
            ]
    return ast.dump(tree)


def perform(job: Job) -> tuple[Job, str, list[Record]]:
    """One run, in whatever process; with the fingerprint of the code that made it."""
    one = PROTOCOLS[job.protocol]
    return job, fingerprint(job.protocol), one(job.variant, job.seed, job.steps)


def path_of(folder: Path, job: Job) -> Path:
    """Where the finished run stands: protocol, variant and seed, in letters a file may have."""
    variant = re.sub(r"[^\w]+", "-", job.variant)
    return folder / "runs" / f"{job.protocol}--{variant}--{job.seed}.json"


def store(folder: Path, job: Job, code: str, records: Iterable[Record]) -> None:
    """Put a finished run into the folder, whole or not at all."""
    content = {**job._asdict(), "code": code, "records": list(records)}
    replace(path_of(folder, job), json.dumps(content))


def load(folder: Path, job: Job) -> list[Record] | None:
    """The records of a finished run; None if there is none, or one of other code or length."""
    try:
        content = json.loads(path_of(folder, job).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:  # not of our making: treat it as stale
        return None
    due = {**job._asdict(), "code": fingerprint(job.protocol)}
    if not isinstance(content, dict) or {key: content.get(key) for key in due} != due:
        return None
    return [Record(*values) for values in content["records"]]


def gather(folder: Path, jobs: Sequence[Job]) -> list[Row]:
    """The records of finished runs as rows, in the order of the jobs.

    Raises:
        ValueError: if one of them is not finished.
    """
    rows = []
    for job in jobs:
        records = load(folder, job)
        if records is None:
            raise ValueError(f"{job} is not finished in {folder}")
        rows += [Row(job.protocol, job.variant, job.seed, record) for record in records]
    return rows


def run(
    jobs: Sequence[Job],
    folder: Path,
    *,
    workers: int = 1,
    backend: str = "loky",
    scheduler: str | None = None,
    progress: bool | None = None,
) -> None:
    """Make every run of ``jobs`` that is not finished in ``folder``.

    Args:
        jobs: from `plan`.
        folder: where finished runs stand and appear; one command at a time.
        workers: how many processes of this machine, with backend "loky".
        backend: "loky" for this machine, "dask" for a Dask cluster.
        scheduler: the cluster's address, such as "tcp://127.0.0.1:8786", with backend "dask".
        progress: show a bar; by default only in a terminal.

    Raises:
        ClusterError: where the workers break again and again, run other code than this, or the
            package for Dask is missing. Finished runs stay.
        ValueError: for wrong input.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}")
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    if (backend == "dask") != (scheduler is not None):
        raise ValueError(
            f"scheduler is {scheduler!r} with backend {backend!r}; backend 'dask' needs the "
            "address of its scheduler, and no other takes one"
        )
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if load(folder, job) is None]
    missing.sort(key=lambda job: -PROTOCOLS[job.protocol].seconds)  # the longest first
    with tqdm(
        total=len(jobs), initial=len(jobs) - len(missing), desc="runs", unit="run", leave=False,
        disable=None if progress is None else not progress,
    ) as bar:  # fmt: skip
        broken = 0
        while missing:
            try:
                for job, code, records in _results(missing, workers, backend, scheduler):
                    if code != fingerprint(job.protocol):
                        raise ClusterError(
                            f"a worker runs other code of {job.protocol!r} than this process; "
                            "install the same Python, torch and deqlib on all machines"
                        )
                    store(folder, job, code, records)
                    bar.update()
                    broken = 0
            except BrokenProcessPool as error:
                broken += 1
                if broken == PATIENCE:
                    raise ClusterError(
                        f"the workers broke {PATIENCE} times without finishing a run ({error})"
                    ) from error
            missing = [job for job in missing if load(folder, job) is None]


def _results(
    jobs: Sequence[Job], workers: int, backend: str, scheduler: str | None
) -> Iterator[tuple[Job, str, list[Record]]]:
    """Results as they come, in any order."""
    with ExitStack() as stack:
        options: dict[str, Any] = {"backend": backend, "n_jobs": workers}
        if backend == "dask":
            options.update(n_jobs=-1, client=stack.enter_context(_client(scheduler)))
        elif workers > 1:
            options["inner_max_num_threads"] = 1
        stack.enter_context(joblib.parallel_config(**options))
        pool = joblib.Parallel(return_as="generator_unordered", batch_size=1)
        results = pool(joblib.delayed(perform)(job) for job in jobs)
        yield from stack.enter_context(closing(results))


def _client(scheduler: str | None) -> Any:
    """A connection to a Dask cluster."""
    try:
        from distributed import Client
    except ImportError:
        raise ClusterError(
            "backend 'dask' needs the package distributed; pip install 'deqlib[dask]'"
        ) from None
    try:
        return Client(scheduler, timeout=10, set_as_default=False)
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        raise ClusterError(f"no Dask scheduler answers at {scheduler!r} ({error})") from None
