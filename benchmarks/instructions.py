"""Machine instructions of a push, part by part, counted by callgrind: the same at every run, however busy.

`values` are made and checked, `encode` makes payloads and their JSON, `engine` speaks HTTP/2, `connection` is
the compiled way from a notification to octets and from octets to a response, the engine's part included; no
sockets. The counts depend on the versions of Python, compiler and orjson; `instructions.json` keeps both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import measure
from benchmarks.reporting import Table
from benchmarks.servers import NotInstalled

ROOT = Path(__file__).resolve().parent.parent
KEPT = Path(__file__).with_suffix(".json")
COUNTED = Path(__file__).with_name("counted.py")
WITHIN = 600.0  # seconds


class Counts(NamedTuple):
    each: dict[str, float]
    """Instructions to a push, by `part/case`."""
    failed: dict[str, str]
    """Parts that could not run, with the reason."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", action="store_true", help=f"write the counts to {KEPT.relative_to(ROOT)}")
    parser.add_argument(
        "--profiles", metavar="DIR", type=Path, help="keep callgrind's files there, for callgrind_annotate"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    counts = count(ROOT, arguments.profiles)
    if counts.failed:
        raise RuntimeError(f"could not be counted: {counts.failed}")
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {"versions": {}, "instructions": {}}
    result = {
        "benchmark": "instructions",
        "conditions": measure.conditions(),
        "versions": versions(),
        "instructions": counts.each,
        "kept": kept,
    }
    if arguments.keep:
        new = {"versions": result["versions"], "instructions": counts.each}
        KEPT.write_text(json.dumps(new, indent=2) + "\n")
    return result


def table(result: dict[str, Any]) -> Table:
    kept = result["kept"]
    rows = Table("instructions: to a push, by callgrind", ("part", "count", "kept", "change"))
    for name, now in result["instructions"].items():
        before = kept["instructions"].get(name)
        rows.add(
            name,
            f"{now:,.0f}",
            "" if before is None else f"{before:,.0f}",
            "" if before is None else f"{100 * (now / before - 1):+.1f} %",
        )
    whole = result["instructions"]["encode/alarm-whole"] / result["instructions"]["yardstick/alarm-by-orjson"]
    rows.note(f"the alarm's objects and JSON, to the building of its dict and orjson.dumps: {whole:.2f}")
    for name, now in result["versions"].items():
        if kept["versions"].get(name, now) != now:
            rows.note(f"kept with {name} {kept['versions'][name]}; this is {now}")
    return rows


def count(tree: Path, profiles: Path | None = None) -> Counts:
    """Count the instructions of the fastpush that is built in `tree`.

    Raises:
      NotInstalled: there is no valgrind.
      RuntimeError: the counted program failed.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise NotInstalled("valgrind is missing: apt install valgrind")
    with tempfile.TemporaryDirectory(prefix="instructions-") as folder:
        place = profiles or Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob("callgrind.out*"):
            old.unlink()
        ended = subprocess.run(
            [
                valgrind,
                "--tool=callgrind",
                "--quiet",
                f"--callgrind-out-file={place}/callgrind.out",
                "--dump-before=getppid",
                sys.executable,
                "-X",
                "frozen_modules=on",
                str(COUNTED),
                str(tree),
            ],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=WITHIN,
            check=False,
        )
        if ended.returncode != 0:
            raise RuntimeError(f"the counted program failed:\n{ended.stderr[-2000:]}")
        told = json.loads(ended.stdout.splitlines()[-1])
        stretches = [(str(name), int(pushes)) for name, pushes in told["stretches"]]
        return Counts(per_push(stretches, totals(place)), told["failed"])


def totals(place: Path) -> list[int]:
    """What each dump counted, in the order in which they were written; the one at the end is left out."""
    found = []
    for number in range(1, 1 + len(list(place.glob("callgrind.out.*")))):
        text = (place / f"callgrind.out.{number}").read_text()
        summary = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
        if summary is None:
            raise RuntimeError(f"callgrind.out.{number} has no sum")
        found.append(int(summary[1]))
    return found


def per_push(stretches: list[tuple[str, int]], dumps: list[int]) -> dict[str, float]:
    """The difference of a case's two lengths, to a push.

    A stretch begins and ends with a dump: what the first holds came before it, the second is its count. One
    more dump stands behind the last stretch.
    """
    if len(dumps) < 2 * len(stretches):
        raise RuntimeError(f"{len(stretches)} stretches were told, but callgrind wrote {len(dumps)} dumps")
    counted: dict[str, list[tuple[int, int]]] = {}
    for (name, pushes), instructions in zip(stretches, dumps[1::2], strict=False):
        counted.setdefault(name, []).append((pushes, instructions))
    each = {}
    for name, runs in counted.items():
        (short, at_short), (long, at_long) = runs
        each[name] = round((at_long - at_short) / (long - short), 1)
    return each


def versions() -> dict[str, str]:
    compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=False).stdout
    valgrind = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=False).stdout
    return {
        "Python": platform.python_version(),
        "machine": platform.machine(),
        "Cython": version("Cython"),
        "compiler": compiler.splitlines()[0] if compiler else "unknown",
        "orjson": version("orjson"),
        "valgrind": valgrind.strip().removeprefix("valgrind-"),
    }
