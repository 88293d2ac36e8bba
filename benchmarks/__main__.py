"""Without a name: those that take seconds, at their usual size. The measures are explained in README.md."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots, publish, targets
from benchmarks.reporting import conditions_line
from benchmarks.servers import NotInstalled

NAMES = {
    "micro": "nanoseconds of the parts: values, JSON, the HTTP/2 engine; no sockets",
    "instructions": "machine instructions of the parts, counted by callgrind; steady on a busy machine",
    "encode": "from an alarm to its JSON, beside orjson, msgspec and json",
    "ingest": "the gateway over HTTP: CPU and rate of a notification accepted, and brought to its outcome",
    "gateway": "from acceptance to the recorded outcome, by part; a fan-out beside send_many; memory",
    "outbox": "the gateway's outbox: rows and commits a second, with the trio thread busy too",
    "console": "the console's pages and search, with a million outcomes stored",
    "send": "CPU, rate and memory of a push, beside h2load and the peers, on haproxy",
    "sign": "the provider token: out of the cache, and signed anew",
    "latency": "from the intended send time, by load, round trip and body; use of the windows",
    "simulator": "the simulated APNs: requests a second on one processor",
    "scale": "CPU, memory and system calls from 10,000 to ten million pushes, over 1 to 16 connections",
}
USUAL = ("micro", "encode", "sign", "instructions", "send", "latency", "scale", "simulator", "outbox")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--json", action="store_true", help="one JSON object to each benchmark, on a line of its own"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="keep NAME.json of each there, and the plots of them"
    )
    commands = parser.add_subparsers(dest="name", metavar="NAME")
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in NAMES}
    for name, text in NAMES.items():
        modules[name].add_arguments(commands.add_parser(name, help=text, description=modules[name].__doc__))
    publish.add_arguments(
        commands.add_parser("publish", help="put kept figures into the pages", description=publish.__doc__)
    )
    arguments = parser.parse_args(argv)
    if arguments.name == "publish":
        return publish.main(arguments, USUAL)
    if arguments.name is None:
        # Without a name: each with its defaults.
        todo = [(name, parser.parse_args([name])) for name in USUAL]
    else:
        todo = [(arguments.name, arguments)]
    complete = True
    results = {}
    for name, chosen in todo:
        try:
            result = modules[name].run(chosen)
        except NotInstalled as reason:
            print(f"{name}: not run: {reason}\n", file=sys.stderr, flush=True)
            complete = False
            continue
        results[name] = result
        complete = complete and not result.get("no_figure")
        if arguments.json:
            print(json.dumps(result), flush=True)
        else:
            print(modules[name].table(result))
            print("  " + conditions_line(result["conditions"]) + "\n", flush=True)
        if arguments.output is not None:
            # Each as soon as it is there: the next may take minutes, or fail.
            keep(result, arguments.output)
    if arguments.name is None and not arguments.json:
        print(targets.table([results]))
    return 0 if complete else 1


def keep(result: dict[str, Any], directory: Path) -> None:
    """Write the result down, and draw what can be seen of it."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{result['benchmark']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    try:
        written = [path, *plots.draw_all([result], directory)]
    except plots.NotInstalled as reason:
        written = [path]
        print(str(reason), file=sys.stderr)
    for one in written:
        print(f"wrote {one}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
