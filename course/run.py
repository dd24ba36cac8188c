"""Run a submission in a process of its own, with limits, and hand back what its functions return.

The process is a fresh interpreter in a folder of its own that is removed afterwards, with nothing
of the grader's environment. It is ended, with everything that it started, when it takes too long,
uses too much memory, or starts too many processes. See `course.child` for what it gives up itself.

Memory is watched as resident size, every few milliseconds, beside the limit on addresses that the
child sets: torch maps from 0.5 GB to tens of GB (a build for GPUs) without using them, so a limit
on addresses alone would have to be a guess, while resident size is what the machine runs out of.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from torch import Tensor

CHILD = Path(__file__).with_name("child.py")
START_SECONDS = 120.0  # for Python and torch to start on a busy machine
MOST_PROCESSES = 16
SPARE_PROCESSES = 1024  # threads that all programs of this user may start meanwhile count, too
MOST_ANSWER = 4 << 20  # bytes
POLL_SECONDS = 0.02
SUBREAPER = 36


@dataclass(frozen=True)
class Limits:
    """Wall-clock seconds for loading and for each task, and megabytes beyond Python with torch."""

    seconds: float = 20.0
    megabytes: int = 1024

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"the time is {self.seconds} s; it must be positive")
        if self.megabytes < 64:
            raise ValueError(f"the memory is {self.megabytes} MB; it must be at least 64")


class EndedError(Exception):
    """The submission's process is gone; the message says why."""


def available() -> None:
    """Raise where the grader cannot keep a submission within limits."""
    if os.name != "posix":
        raise OSError(
            "the grader needs Linux or macOS: on Windows there are no process groups and limits "
            "to keep a submission in; run it in WSL or in a container"
        )


def adopt_orphans() -> None:
    """On Linux, what a submission leaves behind becomes our child, so that we can end it."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def encoded(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        key: {"tensor": one.tolist()} if isinstance(one, Tensor) else {"plain": one}
        for key, one in arguments.items()
    }


class Submission:
    """A notebook's cells, running in a process of their own."""

    def __init__(self, limits: Limits) -> None:
        available()
        adopt_orphans()
        self.limits = limits
        self.confined = False
        self.folder = tempfile.TemporaryDirectory(prefix="grade-", ignore_cleanup_errors=True)
        self.before = {p.pid for p in psutil.Process().children()}
        requests, self.to_child = os.pipe()
        self.from_child, answers = os.pipe()
        self.printed, output = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(CHILD), str(requests), str(answers)],
            cwd=self.folder.name,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(requests, answers),
            start_new_session=True,
        )
        for fd in (requests, answers, output):
            os.close(fd)
        os.set_blocking(self.to_child, False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.from_child, selectors.EVENT_READ)
        self.selector.register(self.printed, selectors.EVENT_READ)
        self.buffer = b""
        self.ceiling = float("inf")
        self.looked = 0.0
        self.token = ""

    def environment(self) -> dict[str, str]:
        own = self.folder.name
        return {
            "PATH": "/usr/bin:/bin",
            "HOME": own,
            "TMPDIR": own,
            "MPLCONFIGDIR": own,
            "MPLBACKEND": "Agg",
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self) -> Submission:
        user = os.getuid()
        mine = sum(p.info["num_threads"] or 0 for p in psutil.process_iter(["uids", "num_threads"])
                   if p.info["uids"] and p.info["uids"].real == user)  # fmt: skip
        limits = {
            "memory": self.limits.megabytes << 20,
            "seconds": int(60 + 20 * self.limits.seconds),
            "processes": mine + SPARE_PROCESSES,
        }
        try:
            self.ask({"limits": limits})
            ready = self.answer(START_SECONDS)
        except EndedError as error:
            self.__exit__()
            raise OSError(f"Python with torch did not start: {error}") from None
        self.confined = bool(ready.get("confined"))
        used = psutil.Process(self.process.pid).memory_info().rss
        self.ceiling = used + (self.limits.megabytes << 20)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.selector.close()
        for fd in (self.to_child, self.from_child, self.printed):
            with contextlib.suppress(OSError):
                os.close(fd)
        self.folder.cleanup()

    # --- talking to it

    def ask(self, request: dict[str, Any]) -> None:
        self.token = secrets.token_hex(8)  # an answer that was written before its question is void
        line = json.dumps({"token": self.token, **request}).encode() + b"\n"
        deadline = time.monotonic() + START_SECONDS
        while line:
            try:
                line = line[os.write(self.to_child, line) :]
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EndedError("it does not listen") from None
                time.sleep(POLL_SECONDS)
            except BrokenPipeError:
                raise EndedError(self.epitaph()) from None

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next answer to the last question, within so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            while b"\n" in self.buffer:
                line, self.buffer = self.buffer.split(b"\n", 1)
                found = self.understood(line)
                if found is not None:
                    return found
            if len(self.buffer) > MOST_ANSWER:
                self.end()
                raise EndedError("its answer is longer than any answer needs to be")
            if time.monotonic() > deadline:
                self.end()
                raise EndedError(f"it did not end within {seconds:g} s")
            self.watch()
            for key, _ in self.selector.select(POLL_SECONDS):
                data = os.read(key.fd, 1 << 16)
                if key.fd == self.from_child:
                    self.buffer += data
                    if not data:
                        raise EndedError(self.epitaph())
                elif not data:
                    self.selector.unregister(key.fd)  # what is printed is read and thrown away

    def understood(self, line: bytes) -> dict[str, Any] | None:
        try:
            found = json.loads(line, parse_int=float)
        except (ValueError, RecursionError):
            return None
        ours = isinstance(found, dict) and found.pop("token", None) == self.token
        return found if ours else None

    def load(self, cells: list[str], skip: list[int]) -> dict[int, dict[str, Any]]:
        """Run the notebook's cells. Returns what failed, by the cell's number.

        A cell that ends the process is named by ``cell`` on the EndedError.
        """
        failed: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + self.limits.seconds
        self.ask({"cells": cells, "skip": skip})
        current = -1
        try:
            while True:
                left = max(0.0, deadline - time.monotonic())
                told = self.answer_within(left)
                if told.get("loaded"):
                    return failed
                current = int(told.get("cell", current))
                if "kind" in told:
                    failed[current] = told
        except EndedError as error:
            error.cell = current  # type: ignore[attr-defined]
            raise

    def answer_within(self, left: float) -> dict[str, Any]:
        try:
            return self.answer(left)
        except EndedError as error:
            if "did not end" in str(error):
                raise EndedError(f"it did not end within {self.limits.seconds:g} s") from None
            raise

    def call(self, name: str, arguments: dict[str, Any], seconds: float) -> dict[str, Any]:
        self.ask({"call": name, "arguments": encoded(arguments)})
        return self.answer_within(seconds)

    # --- watching and ending it

    def tree(self) -> list[psutil.Process]:
        """The process and all that it started, also what it tried to hide.

        What it left behind is our own child by now; children that we had before are not touched.
        """
        found: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process().children():
                if child.pid == self.process.pid or child.pid not in self.before:
                    found.append(child)
                    with contextlib.suppress(psutil.Error):
                        found += child.children(recursive=True)
        return found

    def watch(self) -> None:
        now = time.monotonic()
        try:
            total, count = psutil.Process(self.process.pid).memory_info().rss, 1
        except psutil.Error:
            return
        if now - self.looked > 10 * POLL_SECONDS:
            self.looked = now
            others = [one for one in self.tree() if one.pid != self.process.pid]
            count += len(others)
            for one in others:  # what they share with the process they came from counts once
                with contextlib.suppress(psutil.Error):
                    total += one.memory_full_info().uss
        if count > MOST_PROCESSES:
            self.end()
            raise EndedError(f"it started more than {MOST_PROCESSES} processes")
        if total > self.ceiling:
            self.end()
            raise EndedError(self.memory_sentence())

    def memory_sentence(self) -> str:
        return f"it ran out of memory: more than {self.limits.megabytes} MB"

    def epitaph(self) -> str:
        """Why the process ended by itself."""
        try:
            status = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.end()
            return "it closed its line to the grader"
        self.end()
        if status < 0:
            return f"it was ended by signal {signal.Signals(-status).name}"
        return f"it ended the process (exit status {status})"

    def end(self) -> None:
        """End the process and everything that it started."""
        for _ in range(100):
            alive = self.tree()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            for one in alive:
                with contextlib.suppress(psutil.Error):
                    one.kill()
            psutil.wait_procs(alive, timeout=1)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=1)
            if not self.tree():
                break
