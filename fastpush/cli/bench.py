"""`fastpush bench`: the benchmarks of a checkout."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click

from fastpush._begun_as_command import INTERRUPTED
from fastpush.cli.running import Misuse

__all__ = ["bench"]

ROOT = Path(__file__).resolve().parent.parent.parent


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Measure fastpush beside other senders; all on loopback.

    What comes behind `bench` goes to `python -m benchmarks` as it is. Only in a
    checkout: the benchmarks are not installed.
    """
    if not (ROOT / "benchmarks" / "__main__.py").is_file():
        raise Misuse(
            "the benchmarks are in fastpush's sources and are not installed with it; "
            "in a checkout run: make bench"
        )
    # -P and the path: neither a folder `benchmarks` where we are nor another install is taken for it.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "benchmarks", *arguments], env=os.environ | {"PYTHONPATH": path}
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; it is the child's
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    raise SystemExit(INTERRUPTED if code == -signal.SIGINT else code)
