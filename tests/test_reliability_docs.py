"""docs/reliability.md names tests: they must be there, and those that bear an id must be named."""

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/reliability.md"
TESTS = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def functions(name):
    """The docstrings of a file's functions."""
    tree = ast.parse(TESTS[name].read_text())
    return {
        node.name: ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, FUNCTIONS)
    }


def rows():
    return re.findall(r"^\| ([^|]+) \| ([^|]+) \| (`[^|]+`) \|$", PAGE.read_text(), re.MULTILINE)


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", "".join(tests for *_, tests in rows()))
    assert len(rows()) >= 20
    assert len(named) >= 30
    missing = [f"{name}::{test}" for name, test in named if name not in TESTS or test not in functions(name)]
    assert not missing


def test_a_test_that_says_an_id_is_on_the_page():
    """A docstring that begins with `D12:` claims to show it."""
    page = {fault.strip(): tests for faults, _, tests in rows() for fault in faults.split(",")}
    astray = []
    for name in TESTS:
        for test, docstring in functions(name).items():
            claimed = re.match(r"((?:[DOS]\d{1,2}(?:, )?)+)[.:]", docstring)
            for fault in re.findall(r"[DOS]\d{1,2}", claimed[1]) if claimed else ():
                if f"{name}::{test}`" not in page.get(fault, ""):
                    astray.append(f"{fault} {name}::{test}")
    assert not astray
