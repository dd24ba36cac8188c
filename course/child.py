"""The process that a submission runs in. Started by `course.run`, never imported by it.

It imports torch, gives up what a submission does not need, and then answers requests, one JSON
object a line: run the notebook's cells, or call one of its functions. It is never told what is
right. Whatever the notebook prints goes elsewhere; answers have a channel of their own.

What is given up: memory beyond a limit, large files, many processes; and, where the kernel has
Landlock (Linux 5.13 and later), writing outside the working folder, reading anything but Python and
the system's libraries, TCP connections, and signals to other processes.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import sys
from collections.abc import Callable
from typing import Any

MEGABYTE = 1 << 20
LARGEST_FILE = 64 * MEGABYTE
SPARE_ADDRESSES = 1024 * MEGABYTE  # libraries that a notebook may still load are mapped, not used
MOST_NUMBERS = 100_000


# --- what is given up --------------------------------------------------------------------------


def limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def give_up(memory: int, seconds: int, processes: int) -> None:
    """Limits of the operating system; all are inherited by whatever the submission starts."""
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, LARGEST_FILE)
    limit(resource.RLIMIT_NOFILE, 256)
    limit(resource.RLIMIT_CPU, seconds)
    limit(resource.RLIMIT_NPROC, processes)
    try:  # torch maps far more than it uses, so the limit is on what comes on top of that
        with open("/proc/self/statm") as statm:
            mapped = int(statm.read().split()[0]) * resource.getpagesize()
        limit(resource.RLIMIT_AS, mapped + memory + SPARE_ADDRESSES)
    except OSError:
        pass  # no /proc, as on macOS, which does not keep this limit anyway


class Ruleset(ctypes.Structure):
    _fields_ = [(n, ctypes.c_uint64) for n in ("fs", "net", "scoped")]


class Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


CREATE, ADD_RULE, RESTRICT = 444, 445, 446  # the system calls' numbers, alike on all machines
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8


def confine(own: str) -> bool:
    """Let the kernel keep this process and its children inside the folder ``own``.

    True where that is so; False where the system has no Landlock.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        return False
    rights = (1 << (13 + (version >= 2) + (version >= 3) + (version >= 5))) - 1
    rules = Ruleset(rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = libc.syscall(CREATE, ctypes.byref(rules), ctypes.c_size_t(size), ctypes.c_uint32(0))
    if ruleset < 0:
        return False

    def allow(path: str, what: int) -> None:
        if not os.path.exists(path):
            return
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = Beneath(what & rights, folder)
        answer = libc.syscall(ADD_RULE, ruleset, 1, ctypes.byref(rule), ctypes.c_uint32(0))
        os.close(folder)
        if answer:
            raise OSError(ctypes.get_errno(), f"no rule for {path}")

    look = EXECUTE | READ_FILE | READ_DIR
    for path in {sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/bin", "/etc"}:
        allow(path, look)
    for path in ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"):
        allow(path, READ_FILE | WRITE_FILE)
    allow(own, rights)
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges, which the next call asks for
    confined = libc.syscall(RESTRICT, ruleset, ctypes.c_uint32(0)) == 0
    os.close(ruleset)
    return confined


# --- answers -----------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A result as JSON can carry it. Nothing is pickled: the grader reads numbers and words."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        if value.size > MOST_NUMBERS:
            raise ValueError(f"returned {value.size} numbers; at most {MOST_NUMBERS}")
        if value.dtype.kind not in "biuf":
            raise ValueError(f"returned an array of {value.dtype}; real numbers are due")
        return value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    raise ValueError(f"returned a {type(value).__name__}; numbers, tensors and dicts are due")


def said(error: BaseException) -> str:
    """The kind of an error and its first line, without what differs from run to run."""
    try:
        text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    except Exception:
        text = ""
    text = re.sub(r"0x[0-9a-fA-F]+", "0x…", text.replace(os.getcwd(), "~"))
    text = "".join(c if c.isprintable() else "?" for c in text)
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and "memory" in str(error).lower()
        and "alloc" in str(error).lower()
    )


def failure(error: BaseException) -> dict[str, str]:
    if out_of_memory(error):
        return {"kind": "memory", "error": ""}
    if isinstance(error, NotImplementedError):
        return {"kind": "todo", "error": ""}
    return {"kind": "raised", "error": said(error)}


# --- the notebook ------------------------------------------------------------------------------


def seed_everything() -> None:
    import random

    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def run_cells(
    cells: list[str], skip: list[int], space: dict[str, Any], tell: Callable[..., None]
) -> None:
    """Run the cells one after the other; one that fails does not stop the next."""
    seed_everything()
    for number, source in enumerate(cells):
        if number in skip:
            continue
        tell(cell=number)
        source = re.sub(r"^\s*[%!].*$", "pass", source, flags=re.M)  # magics and shell commands
        try:
            exec(compile(source, f"<cell {number + 1}>", "exec"), space)
        except BaseException as error:
            tell(cell=number, **failure(error))
    tell(loaded=True)


def call(name: str, arguments: dict[str, Any], space: dict[str, Any]) -> dict[str, Any]:
    import torch

    function = space.get(name)
    if not callable(function):
        return {"kind": "missing", "error": ""}
    given = {
        key: torch.tensor(one["tensor"], dtype=torch.float64) if "tensor" in one else one["plain"]
        for key, one in arguments.items()
    }
    seed_everything()
    try:
        return {"value": plain(function(**given))}
    except BaseException as error:
        return failure(error)


def main(requests: int, answers: int) -> None:
    import numpy as np
    import torch

    torch.linalg.eigvalsh(torch.eye(3, dtype=torch.float64))  # loads what is loaded on first use
    np.linalg.eigvalsh(np.eye(3))
    sys.modules["deqlib"] = None  # type: ignore[assignment]  # the tasks ask for one's own code
    own = os.getcwd()
    with open(requests, encoding="utf-8") as lines, open(answers, "w", encoding="utf-8") as out:

        def tell(**answer: Any) -> None:
            out.write(json.dumps({"token": token, **answer}) + "\n")
            out.flush()

        token = ""
        space: dict[str, Any] = {"__name__": "__main__"}
        for line in lines:
            request = json.loads(line)
            token = request.pop("token")
            if "limits" in request:
                give_up(**request["limits"])
                tell(ready=True, confined=confine(own))
            elif "cells" in request:
                run_cells(request["cells"], request["skip"], space, tell)
            else:
                tell(**call(request["call"], request["arguments"], space))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
