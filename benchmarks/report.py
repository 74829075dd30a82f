"""What the benchmarks share: figures with their spread, where they were measured, one report.

    .venv/bin/python -m benchmarks.report     merges runs/bench/*.json into report.json, report.md

A section is one benchmark's JSON file: machine, commit, versions, and tables of figures.
"""

from __future__ import annotations

import datetime
import json
import operator
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

if TYPE_CHECKING:
    from ppd_serve.release import Release

OUT = Path("runs/bench")
STUDIO = Path("ppd_serve/assets/studio")
REPEATS = 5
PACKAGES = ("torch", "diffusers", "transformers", "ray", "faiss-cpu", "numpy")
_REACHED = {"≥": operator.ge, "≤": operator.le}


class Figure(NamedTuple):
    """A value; of several measurements the median, with its quartiles. ``goal``: "≥ 2.2", say."""

    value: float
    low: float | None = None
    high: float | None = None
    goal: str = ""

    @property
    def reached(self) -> bool | None:
        """None where nothing was aimed at."""
        if not self.goal:
            return None
        sign, number = self.goal.split()
        return bool(_REACHED[sign](self.value, float(number)))


Tables = Mapping[str, Mapping[str, Figure | float]]
"""Title → name of a figure (its unit included) → figure."""


def spread(values: Sequence[float], goal: str = "") -> Figure:
    """Median and quartiles."""
    if len(values) == 1:
        return Figure(values[0], goal=goal)
    low, median, high = statistics.quantiles(values, method="inclusive")
    return Figure(median, low, high, goal)


def ratios(above: Sequence[float], below: Sequence[float], goal: str = "") -> Figure:
    """Of what was measured in turn: a drift of the machine's speed meets both."""
    return spread([a / b for a, b in zip(above, below, strict=True)], goal)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median_seconds(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """After once to warm up."""
    run()
    return statistics.median(seconds(run) for _ in range(repeats))


def about(release: Release | None = None) -> dict[str, Any]:
    """Where, when and with what. The load is what others asked of the machine before we began."""
    memory = psutil.virtual_memory().total / 2**30
    found = {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB",
        "load": round(os.getloadavg()[0], 1),
        "commit": _commit(),
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | _versions(),
    }
    return found | ({"release": f"{release.name} {release.version}"} if release else {})


def write(out: Path, where: Mapping[str, Any], tables: Tables) -> None:
    """One section, to ``out`` and to the terminal. ``where`` is ``about``'s, and more at will."""
    told = {title: {name: _told(figure) for name, figure in table.items()}
            for title, table in tables.items()}  # fmt: skip
    section = {**where, "tables": told}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(section, indent=1, ensure_ascii=False) + "\n")
    print(markdown(out.stem, section))


def markdown(title: str, section: Mapping[str, Any]) -> str:
    where = {key: value for key, value in section.items() if key != "tables"}
    where["versions"] = ", ".join(f"{name} {v}" for name, v in section["versions"].items())
    lines = [f"## {title}", "", "; ".join(f"{key}: {value}" for key, value in where.items())]
    for name, table in section["tables"].items():
        aimed = any("goal" in figure for figure in table.values())
        lines += ["", f"| {name} | value, or median (quartiles) |{' goal |' if aimed else ''}"]
        lines.append("|---|---|---|" if aimed else "|---|---|")
        for figure, told in table.items():
            goal = f" {told.get('goal', '')}{_mark(told)} |" if aimed else ""
            lines.append(f"| {figure} | {_shown(told)} |{goal}")
    return "\n".join(lines) + "\n"


def merge(place: Path = OUT) -> None:
    """All sections as one."""
    report = place / "report.json"
    files = sorted(file for file in place.glob("*.json") if file != report)
    sections = {file.stem: json.loads(file.read_text()) for file in files}
    report.write_text(json.dumps(sections, indent=1, ensure_ascii=False) + "\n")
    told = [markdown(name, section) for name, section in sections.items()]
    report.with_suffix(".md").write_text("\n".join(["# What was measured", "", *told]))


def _told(figure: Figure | float) -> dict[str, Any]:
    if not isinstance(figure, Figure):
        return {"value": _rounded(figure)}
    found: dict[str, Any] = {"value": _rounded(figure.value)}
    if figure.low is not None and figure.high is not None:
        found["quartiles"] = [_rounded(figure.low), _rounded(figure.high)]
    if figure.goal:
        found |= {"goal": figure.goal, "reached": figure.reached}
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _shown(told: Mapping[str, Any]) -> str:
    if "quartiles" not in told:
        return f"{told['value']:,g}"
    low, high = told["quartiles"]
    return f"{told['value']:,g} ({low:,g}–{high:,g})"


def _mark(told: Mapping[str, Any]) -> str:
    return {None: "", True: " ✓", False: " ✗"}[told.get("reached")]


def _processor() -> str:
    """Its maker's name for it, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _versions() -> dict[str, str]:
    """Of those that are there: a GPU's benchmark needs no Ray."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _commit() -> str:
    asked = ["git", "describe", "--always", "--dirty"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git here
        told = ""
    return told or "unknown"


if __name__ == "__main__":
    merge()
