"""Put kept figures into README.md, benchmarks/README.md and docs/images, and say which targets hold.

`--runs` measures first: all of it once, and again what has to hold on several runs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots, targets
from benchmarks.measure import ROOT
from benchmarks.reporting import Table, conditions_line, say

REPEATED = ("send", "encode", "scale")
"""Whose targets are to hold on each of several runs."""
PAGE = ROOT / "benchmarks" / "README.md"
FRONT = ROOT / "README.md"
IMAGES = ROOT / "docs" / "images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, help="where the runs are: 1/send.json, 2/send.json, …")
    parser.add_argument("--runs", type=int, default=0, help="measure as many first, into that directory")
    parser.add_argument("--dry", action="store_true", help="write nothing; only say which targets hold")


def main(arguments: argparse.Namespace, usual: Sequence[str]) -> int:
    for number in range(1, arguments.runs + 1):
        for name in usual if number == 1 else REPEATED:
            say(f"run {number} of {arguments.runs}: {name}")
            where = str(arguments.directory / str(number))
            # 1 means that a contender has no figure, which the table says.
            subprocess.run([sys.executable, "-m", "benchmarks", "--output", where, name], check=False)
    runs = read(arguments.directory)
    if not runs:
        print(f"no results in {arguments.directory}/1 and so on; --runs 3 makes them", file=sys.stderr)
        return 2
    checked = targets.table(runs)
    print(checked)
    if not arguments.dry:
        first = dict(runs[0])
        PAGE.write_text(filled(PAGE.read_text(), sections(first, checked)))
        FRONT.write_text(filled(FRONT.read_text(), {"speed": in_words(first["send"])}))
        for path in plots.draw_all(list(first.values()), arguments.directory):
            shutil.copy(path, IMAGES)
        say(f"wrote {PAGE.relative_to(ROOT)}, {FRONT.name} and {IMAGES.relative_to(ROOT)}")
    return 0 if all(row[-1] == "holds" for row in checked.rows) else 1


def read(directory: Path) -> list[dict[str, dict[str, Any]]]:
    """What each run kept, by the benchmark's name."""
    runs = []
    for place in sorted(directory.iterdir() if directory.is_dir() else [], key=lambda one: one.name):
        if place.is_dir() and place.name.isdigit():
            results = [json.loads(path.read_text()) for path in sorted(place.glob("*.json"))]
            runs.append({result["benchmark"]: result for result in results})
    return runs


def sections(results: dict[str, dict[str, Any]], checked: Table) -> dict[str, str]:
    """What stands between the marks of the page, by their names."""
    text = {"targets": markdown(checked)}
    for name, result in results.items():
        rows = importlib.import_module(f"benchmarks.{name}").table(result)
        text[name] = f"{markdown(rows)}\n\n{conditions_line(result['conditions'])}"
    return text


def filled(page: str, text: dict[str, str]) -> str:
    """Replace what stands between `<!-- NAME -->` and `<!-- end -->`."""

    def replaced(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- {name} -->\n{text[name]}\n<!-- end -->" if name in text else found[0]

    return re.sub(r"<!-- (?P<name>[a-z]+) -->\n.*?<!-- end -->", replaced, page, flags=re.DOTALL)


def markdown(rows: Table) -> str:
    """The table, and its notes as lines below."""
    lines = [rows.columns, *rows.rows]
    left = rows.on_the_left()
    marks = ["---" if place in left else "---:" for place in range(len(rows.columns))]
    shown = [lines[0], marks, *lines[1:]]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in shown)
    return "\n\n".join([table, *rows.notes])


def in_words(send: dict[str, Any]) -> str:
    """For those who read no table."""
    by_name = {one["name"]: one for one in send["figures"]}
    bulk, awaited, fan_out = (by_name[name] for name in ("bulk", "awaited", "fan-out"))
    conditions = send["conditions"]
    cost, ratio = bulk["cpu_microseconds"], bulk["ratio"]
    lines = [
        f"A push of `send_many` costs {cost:.1f} µs of processor time, **{ratio:.2f} times** what h2load",
        "(nghttp2's load generator, in C) spends on the same request; with one payload for all it is",
        f"{fan_out['ratio']:.2f} times, awaited by its own task {awaited['ratio']:.1f} times.",
    ]
    peers = [
        f"{title} {by_name[name]['to_bulk']:.0f}"
        for name, title in (("pycurl", "pycurl"), ("node-apn", "@parse/node-apn"), ("aioapns", "aioapns"))
        if name in by_name and by_name[name].get("to_bulk")
    ]
    if peers:
        lines.append(f"Beside `send_many` a push costs {', '.join(peers)} times as much.")
    date = conditions["date"].split()[0]
    lines.append(f"(`{conditions['command']}`; {date} at {conditions['commit']}, {conditions['cpu']},")
    lines.append(f"{conditions['cores']} cores, Python {conditions['python']}, {conditions['sink']}.)")
    return "\n".join(lines)
