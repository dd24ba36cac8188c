"""Binder, Colab and the development container install what the chapters need, and that is enough.

`make test` runs every chapter in a kernel that refuses all other packages (tests/declared).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import colab
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
DECLARED = ROOT / "tests" / "declared"
KERNEL = "ipykernel_launcher"
CHAPTERS = sorted(ROOT.glob("notebooks/*.ipynb"))


def run_python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh Python that reads tests/declared, as `make test` lets kernels do."""
    environment = {**os.environ, "PYTHONPATH": f"{DECLARED}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("package", ["bs4", "plotly", "pytest", "distributed"])
def test_a_kernel_refuses_what_a_reader_may_not_have(package: str) -> None:
    kernel = run_python(f"import {package}", KERNEL)
    assert kernel.returncode != 0
    assert f"No module named '{package}'" in kernel.stderr
    asked = run_python(f"import importlib.util as u; assert not u.find_spec({package!r})", KERNEL)
    assert asked.returncode == 0, asked.stderr
    assert run_python(f"import {package}").returncode == 0


def test_a_kernel_has_what_a_reader_has() -> None:
    kernel = run_python("import torch, scipy, sklearn, ipywidgets, myst_nb", KERNEL)
    assert kernel.returncode == 0, kernel.stderr


def test_the_makefile_lets_kernels_read_it() -> None:
    assert re.search(r"^test: export PYTHONPATH := .*tests/declared", makefile(), flags=re.M)


def makefile() -> str:
    return (ROOT / "Makefile").read_text(encoding="utf-8")


def test_binder_installs_the_library_with_the_tested_versions() -> None:
    lines = (ROOT / ".binder" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert "-e .[notebooks]" in lines
    assert "-c ../constraints.txt" in lines
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {Requirement(pin).name for pin in pins if pin and not pin.startswith("#")}
    named = {line for line in lines if not line.startswith("-")}
    assert named == {"jupyterlab", "jupyterlab-myst"}
    assert named <= pinned
    assert (ROOT / ".binder" / "runtime.txt").read_text().strip() == "python-3.11"


def test_the_container_uses_targets_that_exist() -> None:
    text = (ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8")
    container = json.loads(text)
    commands = [word for key, word in container.items() if key.endswith("Command")]
    labels = [port["label"] for port in container["portsAttributes"].values()]
    targets = re.findall(r"make ([\w-]+)", " ".join(commands + labels))
    assert sorted(targets) == ["lab", "serve", "setup"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile(), flags=re.M), target
    assert "PORT   ?= 8000" in makefile()


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_carries_the_cell_for_colab(path: Path) -> None:
    assert json.loads(path.read_text(encoding="utf-8"))["cells"][1] == colab.cell()


def run_cell(
    monkeypatch: pytest.MonkeyPatch, on_colab: bool, fetched: bool
) -> tuple[list[list[str]], list[str]]:
    """The commands that the cell for Colab runs, and the folders it enters."""
    commands: list[list[str]] = []
    folders: list[str] = []
    if on_colab:
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setattr(os.path, "isdir", lambda path: fetched)
    monkeypatch.setattr(os, "chdir", folders.append)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    exec("".join(colab.cell()["source"]), {})
    return commands, folders


def test_the_cell_does_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_cell(monkeypatch, on_colab=False, fetched=False) == ([], [])


def test_the_cell_installs_on_colab_once(monkeypatch: pytest.MonkeyPatch) -> None:
    commands, folders = run_cell(monkeypatch, on_colab=True, fetched=False)
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    clone, install = commands
    assert clone == ["git", "clone", "--depth=1", config["repository"]["url"], "/content/book"]
    assert install[-2:] == ["install", "/content/book[notebooks]"]
    assert folders == ["/content/book/notebooks"]
    assert run_cell(monkeypatch, on_colab=True, fetched=True) == ([], folders)


def test_the_cell_follows_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "_config.yml").write_text("repository: {url: https://example.org/fork}\n")
    forked = colab.cell(tmp_path)
    assert "https://example.org/fork" in "".join(forked["source"])
    first = {"cell_type": "markdown", "id": "title", "metadata": {}, "source": ["# A chapter"]}
    last = {**forked, "id": "last", "execution_count": 1, "source": ["1 + 1"]}
    notebook = {"cells": [first, last]}
    for setup in (forked, colab.cell(), colab.cell()):  # an old cell is replaced, not doubled
        colab.put(notebook, setup)
        assert [one["id"] for one in notebook["cells"]] == ["title", "colab", "last"]
        assert notebook["cells"][1] == setup
        assert last["execution_count"] == 2
