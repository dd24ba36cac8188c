"""The tools behind the site: stored runs that notice a change, a refresh that changes nothing."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import refresh

ROOT = Path(__file__).parents[1]


def load(path: str) -> ModuleType:
    """A module of the site, which is not a package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


notebook_cache = load("book/_ext/notebook_cache.py")
public_site = load("book/_ext/public_site.py")


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """The smallest folder that the notebooks' cache can read."""
    (tmp_path / "deqlib" / "theorems").mkdir(parents=True)
    (tmp_path / "deqlib" / "linear.py").write_text("one = 1\n")
    (tmp_path / "deqlib" / "theorems" / "base.py").write_text("two = 2\n")
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    (tmp_path / "requirements.txt").write_text("torch>=2.4\n")
    return tmp_path


def edit_formula(book: Path) -> None:
    (book / "deqlib" / "theorems" / "base.py").write_text("two = 3\n")


def rename_module(book: Path) -> None:
    (book / "deqlib" / "linear.py").rename(book / "deqlib" / "line.py")


def pin_another(book: Path) -> None:
    (book / "constraints.txt").write_text("torch==2.12.0\n")


def ask_for_another(book: Path) -> None:
    (book / "requirements.txt").write_text("torch>=2.5\n")


@pytest.mark.parametrize("change", [edit_formula, rename_module, pin_another, ask_for_another])
def test_stored_runs_depend_on_the_library_and_its_pins(
    book: Path, change: Callable[[Path], None]
) -> None:
    before = notebook_cache.digest(book)
    assert notebook_cache.digest(book) == before
    change(book)
    assert notebook_cache.digest(book) != before


def test_stored_runs_of_older_states_are_removed(book: Path) -> None:
    app: Any = SimpleNamespace(outdir=book / "_build" / "html", srcdir=book)
    config = SimpleNamespace(nb_execution_cache_path="")
    old = book / "_build" / ".jupyter_cache" / "0123456789abcdef"
    old.mkdir(parents=True)
    notebook_cache.choose_cache(app, config)
    current = Path(config.nb_execution_cache_path)
    assert current.parent == old.parent
    assert not old.exists()
    current.mkdir()
    notebook_cache.choose_cache(app, config)
    assert current.exists()


def write_notebook(path: Path, *sources: str) -> None:
    cells = [
        {
            "cell_type": "code",
            "execution_count": 7,
            "metadata": {"execution": {"iopub.execute_input": "now"}},
            "outputs": [],
            "source": source,
        }
        for source in sources
    ]
    notebook = {"cells": cells, "metadata": {"mine": 1}, "nbformat": 4, "nbformat_minor": 4}
    path.write_text(json.dumps(notebook))


def test_a_second_refresh_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chapter.ipynb"
    write_notebook(path, "print(1)\nprint(2)", "3")
    first = path.read_text()

    monkeypatch.setattr(sys, "argv", ["refresh.py", "--check", str(path)])
    assert refresh.main() == 1
    assert path.read_text() == first

    monkeypatch.setattr(sys, "argv", ["refresh.py", str(path)])
    assert refresh.main() == 0
    stored = path.read_text()
    notebook = json.loads(stored)
    assert notebook["metadata"] == refresh.METADATA
    assert [c["id"] for c in notebook["cells"]] == ["cell-01", "cell-02"]
    assert [c["execution_count"] for c in notebook["cells"]] == [1, 2]
    assert [c["metadata"] for c in notebook["cells"]] == [{}, {}]
    assert notebook["cells"][0]["outputs"][0]["text"] == ["1\n", "2\n"]

    assert refresh.main() == 0
    assert path.read_text() == stored
    assert "unchanged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "said"),
    [("1 / 0", "ZeroDivisionError"), ("import sys; print(1, file=sys.stderr)", "stderr")],
)
def test_refresh_refuses_errors_and_stderr(
    source: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "chapter.ipynb"
    write_notebook(path, source)
    before = path.read_text()
    monkeypatch.setattr(sys, "argv", ["refresh.py", str(path)])
    assert refresh.main() == 1
    assert path.read_text() == before
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("end", ["", "/", ".git"])
def test_public_address_follows_from_the_repository(end: str) -> None:
    address = public_site.public_address(f"https://github.com/owner/name{end}")
    assert address == "https://owner.github.io/name/"


@pytest.mark.parametrize("url", ["https://github.com/owner", "https://example.org/owner/name"])
def test_no_public_address_is_guessed(url: str) -> None:
    with pytest.raises(ValueError, match=r"repository\.url is .*; it must be"):
        public_site.public_address(url)


def test_descriptions_are_plain_and_short() -> None:
    assert public_site.plain_mathematics(r"(I-W)(I-W)^\top+UU^\top") == "(I-W)(I-W)ᵀ+UUᵀ"
    assert public_site.plain_mathematics(r"\theta^*+\lambda_{\min}(S)") == "θ*+λ_min(S)"
    assert public_site.shortened("One sentence. Another.") == "One sentence. Another."
    first = "word " * 40 + "end."
    assert public_site.shortened(f"{first} " + "more " * 40) == first
    assert len(public_site.shortened("word " * 100)) <= public_site.LONGEST + 2
