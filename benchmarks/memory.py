"""Peak memory of one run, seen from outside: the growth of the process's resident set.

Each measurement is a forked child that runs once (so that programs are compiled and caches full),
resets the kernel's high-water mark and runs again. The allocator is told to hand every large block
back at once, else the second run would live in what the first one freed. Linux with glibc only.
Fork before jax is imported: its threads do not survive.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path

M_MMAP_THRESHOLD = -3


def _resident(field: str) -> int:
    """VmRSS or VmHWM in bytes."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if field in s)
    return 1024 * int(line.split()[1])


def peak(run: Callable[[], object]) -> float:
    """Bytes; NaN where it cannot be measured."""
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        grown = float("nan")
        try:
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
            run()
            Path("/proc/self/clear_refs").write_text("5")
            before = _resident("VmRSS")
            run()
            grown = float(_resident("VmHWM") - before)
        finally:
            os.write(writer, struct.pack("d", grown))
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        (bytes_,) = struct.unpack("d", answer.read(8))
    os.waitpid(child, 0)
    return bytes_
