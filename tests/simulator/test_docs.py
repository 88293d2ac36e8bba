"""docs/simulator.md: its programs run, and nothing that exists is left out."""

import dataclasses
import inspect
import re
import sys
from pathlib import Path

import pytest
import trio

from fastpush import simulator as package
from fastpush.simulator import PROFILES, Fault, Ledger, Report, Simulator, open_simulator
from fastpush.simulator._server import FATES

PAGE = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PRINTED = ["200 1\n", "3\n", "True 5000\n"]


def named(name):
    return re.search(rf"`[^`]*\b{re.escape(name)}\b[^`]*`", PAGE)


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
async def test_the_programs_run(number):
    with trio.fail_after(30):
        done = await trio.run_process(
            [sys.executable, "-W", "error", "-c", PROGRAMS[number]],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert done.stderr.decode() == ""
    assert done.stdout.decode().startswith(PRINTED[number])


def test_every_program_is_tried():
    assert len(PROGRAMS) == len(PRINTED)


def test_every_profile_stands_in_the_table():
    section = PAGE.partition("### Profiles")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", section, re.MULTILINE) == sorted(PROFILES)


def test_every_option_fault_field_and_method_stands_in_it():
    wanted = list(inspect.signature(open_simulator).parameters)
    for kind in (Fault, *Fault.__subclasses__()):
        wanted += [kind.__name__] if kind is not Fault else []
        wanted += [field.name for field in dataclasses.fields(kind)]
    wanted += [name for name, _ in inspect.getmembers(Simulator, inspect.isfunction) if name[0] != "_"]
    wanted += [field.name for field in dataclasses.fields(Report)]
    wanted += [*FATES, *[name for name in vars(Ledger) if name in ("seen", "counts", "accepted", "check")]]
    assert [name for name in wanted if not named(name)] == []


def test_every_public_name_has_a_docstring():
    missing = [name for name in package.__all__ if not (getattr(package, name).__doc__ or "").strip()]
    assert missing == []
