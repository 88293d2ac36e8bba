"""Without a name: those that take seconds, at their usual size. The measures are explained in README.md."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence

from benchmarks.reporting import conditions_line
from benchmarks.servers import NotInstalled

NAMES = {
    "micro": "nanoseconds of the parts: values, JSON, the HTTP/2 engine; no sockets",
    "instructions": "machine instructions of the parts, counted by callgrind; steady on a busy machine",
    "send": "CPU, rate and memory of a push, beside h2load and the peers, on haproxy",
    "simulator": "the simulated APNs: requests a second on one processor",
    "soak": "memory over ten million pushes; takes minutes",
}
USUAL = ("micro", "send", "simulator")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--json", action="store_true", help="one JSON object to each benchmark, on a line of its own"
    )
    commands = parser.add_subparsers(dest="name", metavar="NAME")
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in NAMES}
    for name, text in NAMES.items():
        modules[name].add_arguments(commands.add_parser(name, help=text, description=modules[name].__doc__))
    arguments = parser.parse_args(argv)
    if arguments.name is None:
        # Without a name: each with its defaults.
        todo = [(name, parser.parse_args([name])) for name in USUAL]
    else:
        todo = [(arguments.name, arguments)]
    complete = True
    for name, chosen in todo:
        try:
            result = modules[name].run(chosen)
        except NotInstalled as reason:
            print(f"{name}: not run: {reason}\n", file=sys.stderr, flush=True)
            complete = False
            continue
        complete = complete and not result.get("no_figure")
        if arguments.json:
            print(json.dumps(result), flush=True)
        else:
            print(modules[name].table(result))
            print("  " + conditions_line(result["conditions"]) + "\n", flush=True)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
