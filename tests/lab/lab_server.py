"""A JupyterLab as `make lab` starts it, in a folder of its own, and a browser to drive it.

Nothing of the repository is written to: the notebooks are copies without outputs, in a folder whose
name holds a space, and settings, workspaces and runtime files of Jupyter stay in a folder beside
it. Server, kernels and browser end with the tests, also when one fails.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from browsing import PATIENCE, missing

ROOT = Path(__file__).parents[2]
EXPLORABLES = ("cobweb", "sphere", "landscape", "link", "rate")
CHAPTER = "06_conservation_law.ipynb"
TOKEN = "for-this-test-only"

# What `make lab` cannot be told on its command line; with "none" every cell is in the page at once.
SERVER = {"ServerApp": {"open_browser": False, "allow_root": True, "port_retries": 0}}
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}


@dataclass(frozen=True)
class Lab:
    """A running server: its address, and the folder that it shows."""

    address: str
    folder: Path

    def url(self, notebook: str) -> str:
        """Each notebook in a workspace of its own: a common one would open the other, too."""
        workspace = Path(notebook).stem
        return f"{self.address}/lab/workspaces/{workspace}/tree/{notebook}?token={TOKEN}"

    def ask(self, method: str, path: str) -> Any:
        request = Request(
            f"{self.address}{path}", method=method, headers={"Authorization": f"token {TOKEN}"}
        )
        with urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read() or "null")


def tagged(tag: str) -> list[dict[str, Any]]:
    """The cells of all chapters that carry this tag."""
    cells = [
        cell
        for path in sorted(ROOT.glob("notebooks/*.ipynb"))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    ]
    return [cell for cell in cells if tag in cell["metadata"].get("tags", [])]


def write_notebook(path: Path, cells: list[dict[str, Any]], metadata: Any) -> None:
    for cell in cells:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook), encoding="utf-8")


@contextmanager
def make_lab(base: Path) -> Iterator[Lab]:
    """`make lab` with copies of the notebooks, and all that it writes, in this folder."""
    if shutil.which("make") is None:
        missing("no make on PATH, which starts JupyterLab")
    folder = base / "the book"
    folder.mkdir()
    chapter = json.loads((ROOT / "notebooks" / CHAPTER).read_text(encoding="utf-8"))
    write_notebook(folder / CHAPTER, chapter["cells"], chapter["metadata"])
    cells = []
    for name in EXPLORABLES:
        (cell,) = tagged(f"explorable-{name}")
        cells.append({**cell, "id": name})
    write_notebook(folder / "explorables.ipynb", cells, chapter["metadata"])

    for name, settings in SETTINGS.items():
        extension, plugin = name.split("/")
        where = base / f"config/lab/user-settings/@jupyterlab/{extension}"
        where.mkdir(parents=True, exist_ok=True)
        (where / f"{plugin}.jupyterlab-settings").write_text(json.dumps(settings))
    (base / "config/jupyter_server_config.json").write_text(json.dumps(SERVER))

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(base / "config"),
        "JUPYTER_RUNTIME_DIR": str(base / "runtime"),
        "JUPYTER_DATA_DIR": str(base / "data"),
        "IPYTHONDIR": str(base / "ipython"),
        "JUPYTER_PORT": str(port),
        "JUPYTER_TOKEN": TOKEN,
    }
    # -o: the environment that runs this test is ready, so make must not install anything
    venv = Path(sys.prefix)
    command = ["make", "-f", str(ROOT / "Makefile"), "-o", str(venv / ".ready"), "lab"]
    running = Lab(f"http://127.0.0.1:{port}", folder)
    with (base / "server.log").open("w+") as log:
        server = subprocess.Popen(
            [*command, f"VENV={venv}"], cwd=folder, env=environment, stdout=log, stderr=log,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            wait_for(running, server, base / "server.log")
            yield running
        finally:
            stop(running, server)


def wait_for(lab: Lab, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            lab.ask("GET", "/api/status")
            return
        except (URLError, OSError):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"make lab did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)


def stop(lab: Lab, server: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, its kernels with it; end what is left of its process group."""
    try:
        lab.ask("POST", "/api/shutdown")
        server.wait(timeout=30)
    except (URLError, OSError, subprocess.TimeoutExpired):
        for kind in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(server.pid, kind)
                server.wait(timeout=10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
