"""Grade submissions of the problem set.

    python -m course.grade SUBMISSION.ipynb --seed N
    python -m course.grade FOLDER --seed N --csv grades.csv --reports reports

The seed draws the instances. Keep it to yourself until the grades are out: the same seed gives
everybody the same instances, and the same submission the same report, byte for byte.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from course import tasks
from course.run import EndedError, Limits, Submission, available

LARGEST_NOTEBOOK = 20 << 20
MOST_BAD_CELLS = 3
UNRUN = {"check", "explore"}  # tags of cells that are the student's business, not the grader's


@dataclass(frozen=True)
class PartReport:
    name: str
    points: int
    of: int
    said: str
    """What is wrong, in a sentence; empty where nothing is."""


@dataclass(frozen=True)
class TaskReport:
    name: str
    title: str
    parts: list[PartReport]

    @property
    def points(self) -> int:
        return sum(part.points for part in self.parts)

    @property
    def of(self) -> int:
        return sum(part.of for part in self.parts)


@dataclass(frozen=True)
class Report:
    submission: str
    tasks: list[TaskReport]
    notes: list[str] = field(default_factory=list)
    """What happened besides: cells that failed, limits that this system cannot keep."""

    @property
    def points(self) -> int:
        return sum(task.points for task in self.tasks)

    @property
    def of(self) -> int:
        return sum(task.of for task in self.tasks)

    def text(self) -> str:
        lines = [f"{self.submission}: {self.points} of {self.of} points"]
        lines += [f"  note: {note}" for note in self.notes]
        for number, task in enumerate(self.tasks, 1):
            lines += ["", f"{number}. {task.title} ({task.name}): {task.points} of {task.of}"]
            wrongs = {part.said for part in task.parts}
            if len(wrongs) == 1 and "" not in wrongs:  # one thing went wrong with all of it
                lines.append(f"   {wrongs.pop()}")
                continue
            for part in task.parts:
                said = f": {part.said}" if part.said else ""
                lines.append(f"   {part.points}/{part.of}  {part.name}{said}")
        return "\n".join(lines) + "\n"

    def json(self) -> str:
        whole = {"points": self.points, "of": self.of, **asdict(self)}
        return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def cells_of(path: Path) -> list[str]:
    """The code cells that a grader runs.

    Raises:
        ValueError: a sentence about why this is no notebook.
    """
    if path.stat().st_size > LARGEST_NOTEBOOK:
        raise ValueError(f"the file is larger than {LARGEST_NOTEBOOK >> 20} MB; clear its outputs")
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
        kept = [c for c in cells if not UNRUN & set(c.get("metadata", {}).get("tags", []))]
        return ["".join(cell["source"]) for cell in kept]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("the file is not a notebook that can be read (.ipynb, format 4)") from None


def sentence(answer: dict[str, Any], submission: Submission, name: str) -> str:
    """Why a call gave no value."""
    return {
        "missing": f"the notebook defines no function {name}",
        "todo": "still to do: it raises NotImplementedError",
        "memory": submission.memory_sentence(),
        "raised": f"it raised {answer.get('error')}",
    }.get(str(answer.get("kind")), "it gave no answer that can be read")


def judged(part: tasks.Part, value: Any) -> PartReport:
    try:
        said = part.judge(value) or ""
    except ValueError as error:
        said = str(error)
    return PartReport(part.name, 0 if said else part.points, part.points, said)


class Grader:
    """One submission and the instances of one seed."""

    def __init__(self, path: Path, seed: int, limits: Limits) -> None:
        self.path, self.seed, self.limits = path, seed, limits
        self.cells = cells_of(path)
        self.skip: list[int] = []
        self.notes: list[str] = []
        self.running: Submission | None = None

    def start(self) -> Submission:
        """A process in which the notebook's cells have been run."""
        if self.running is not None:
            return self.running
        for _ in range(MOST_BAD_CELLS + 1):
            submission = Submission(self.limits).__enter__()
            if not submission.confined:
                self.note("this system has no Landlock: writing outside is not prevented")
            try:
                failed = submission.load(self.cells, self.skip)
            except EndedError as error:
                submission.__exit__()
                bad = getattr(error, "cell", -1)
                self.note(f"code cell {bad + 1}: {error}; the grading goes on without it")
                self.skip.append(bad)
                continue
            for number, answer in failed.items():
                if answer.get("kind") != "todo":
                    said = sentence(answer, submission, "")
                    self.note(f"code cell {number + 1}: {said}")
            self.running = submission
            return submission
        raise EndedError(f"more than {MOST_BAD_CELLS} cells of the notebook end its process")

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def stop(self) -> None:
        if self.running is not None:
            self.running.__exit__()
            self.running = None

    def task(self, task: tasks.Task, calls: list[tasks.Call]) -> TaskReport:
        parts: list[PartReport] = []
        gone = ""
        for call in calls:
            answer: dict[str, Any] = {}
            if not gone:
                try:
                    running = self.start()
                    answer = running.call(task.name, call.arguments, self.limits.seconds)
                    if "value" not in answer:
                        gone_now = sentence(answer, running, task.name)
                        parts += [PartReport(p.name, 0, p.points, gone_now) for p in call.parts]
                        if answer.get("kind") == "memory":
                            self.stop()
                        continue
                except EndedError as error:
                    gone = str(error)
                    self.stop()
            if gone:
                parts += [PartReport(p.name, 0, p.points, gone) for p in call.parts]
            else:
                parts += [judged(part, answer["value"]) for part in call.parts]
        return TaskReport(task.name, task.title, parts)

    def report(self) -> Report:
        try:
            done = [self.task(task, calls) for task, calls in tasks.calls(self.seed)]
        finally:
            self.stop()
        return Report(self.path.name, done, self.notes)


def grade(path: Path, seed: int, limits: Limits | None = None) -> Report:
    """The report on one submission.

    A file that is no notebook gets a report, too, with no points and a note that says why.
    """
    available()
    try:
        return Grader(path, seed, limits or Limits()).report()
    except ValueError as error:
        none = [
            TaskReport(
                task.name,
                task.title,
                [PartReport(p.name, 0, p.points, str(error)) for c in calls for p in c.parts],
            )
            for task, calls in tasks.calls(seed)
        ]
        return Report(path.name, none, [str(error)])


def write_csv(path: Path, reports: Sequence[Report]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = [task.name for task in tasks.TASKS]
        writer.writerow(["submission", *names, "points", "of", "notes"])
        for one in reports:
            points = [task.points for task in one.tasks]
            name = one.submission  # a spreadsheet would take some first letters for a formula
            name = f"'{name}" if name[0] in "=+-@" else name
            writer.writerow([name, *points, one.points, one.of, "; ".join(one.notes)])


def parser() -> argparse.ArgumentParser:
    limits = Limits()
    it = argparse.ArgumentParser(
        prog="python -m course.grade",
        description="Grade a submission of the problem set, or a folder of them.",
    )
    it.add_argument("submission", type=Path, help="a notebook, or a folder of notebooks")
    it.add_argument("--seed", type=int, required=True, help="draws the instances; unpublished")
    it.add_argument(
        "--time",
        type=float,
        default=limits.seconds,
        metavar="S",
        help="seconds for loading the notebook and for each call (default %(default)g)",
    )
    it.add_argument(
        "--memory",
        type=int,
        default=limits.megabytes,
        metavar="MB",
        help="megabytes beyond what Python with torch needs (default %(default)s)",
    )
    it.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON, too")
    it.add_argument("--csv", type=Path, metavar="FILE", help="a folder: one line a submission")
    it.add_argument("--reports", type=Path, metavar="FOLDER", help="a folder: one text each")
    return it


def main(arguments: Sequence[str] | None = None) -> int:
    it = parser()
    given = it.parse_args(arguments)
    try:
        available()
        limits = Limits(given.time, given.memory)
        if given.seed < 0:
            raise ValueError(f"the seed is {given.seed}; it must be at least 0")
        if not given.submission.exists():
            raise ValueError(f"there is no {given.submission}")
        many = given.submission.is_dir()
        paths = sorted(given.submission.glob("*.ipynb")) if many else [given.submission]
        if not paths:
            raise ValueError(f"there is no .ipynb in {given.submission}")
        if many and given.json:
            raise ValueError("--json is for one submission; for a folder use --csv and --reports")
        if not many and (given.csv or given.reports):
            raise ValueError("--csv and --reports are for a folder; for one submission use --json")
    except (ValueError, OSError) as error:
        it.error(str(error))
    reports = []
    if given.reports:
        given.reports.mkdir(parents=True, exist_ok=True)
    for path in paths:
        report = grade(path, given.seed, limits)
        reports.append(report)
        if given.reports:
            (given.reports / f"{path.stem}.txt").write_text(report.text(), encoding="utf-8")
        print(report.text() if not many else f"{report.points:3d} of {report.of}  {path.name}")
        if given.json:
            given.json.write_text(report.json(), encoding="utf-8")
    if given.csv:
        write_csv(given.csv, reports)
    return 0


if __name__ == "__main__":
    sys.exit(main())
