"""Every line that the gateway may write, by its source: a short sentence, and fields that are documented."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = [
    *sorted((ROOT / "fastpush/gateway").rglob("*.py")),
    ROOT / "fastpush/cli/serve.py",
]
METHODS = {"debug", "info", "warning", "error", "critical", "exception"}


class Line(NamedTuple):
    where: str
    event: ast.expr
    positional: int
    fields: dict[str, ast.expr]


def lines_of(source: str, name: str = "x.py") -> Iterator[Line]:
    tree = list(ast.walk(ast.parse(source)))
    aliases = {
        ast.unparse(node.targets[0])
        for node in tree
        if isinstance(node, ast.Assign)
        and re.search(r"\blog(ger)?\.(info|warning)\b", ast.unparse(node.value))
    }
    for node in tree:
        if not isinstance(node, ast.Call) or not node.args:
            continue
        call = ast.unparse(node.func)
        owner, _, method = call.rpartition(".")
        if (owner in ("logger", "log") and method in METHODS) or call in {*aliases, "self._warn"}:
            own = node.args[1:] if call == "self._warn" else node.args
            fields = {each.arg: each.value for each in node.keywords if each.arg not in (None, "exc_info")}
            yield Line(f"{name}:{node.lineno}", own[0], len(own), fields)


LINES = [
    line for path in SOURCES for line in lines_of(path.read_text(), path.relative_to(ROOT).as_posix())
]  # fmt: skip
DOCUMENTED = set(
    re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", (ROOT / "docs/log.md").read_text(), re.M)))
)


def faults(line: Line) -> list[str]:
    found = []
    if isinstance(line.event, ast.JoinedStr | ast.BinOp):
        found.append("values belong into fields, not into the event")
    if isinstance(line.event, ast.Constant) and "%" in str(line.event.value):
        found.append("values belong into fields, not into the event")
    if line.positional > 1:
        found.append("a value without a name")
    found += [f"`{name}` is not in docs/log.md" for name in line.fields if name not in DOCUMENTED]
    return found


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.where)
def test_a_line_is_a_sentence_and_named_values(line):
    assert not faults(line)


@pytest.mark.parametrize(
    "source",
    [
        'logger.warning(f"{app}: claims wait")',
        'logger.warning("%s: claims wait", app)',
        'logger.warning("claims wait %s" % app)',
        'logger.warning("claims wait", app)',
        'logger.warning("claims wait", application="opm")',
        'self._warn("trouble", "a post of %d octets")',
        'tell = logger.info if good else logger.warning\ntell("%s is good", app)',
    ],
)
def test_a_line_that_is_not_is_seen(source):
    (line,) = lines_of(source)
    assert faults(line)


def test_there_are_lines_in_most_parts():
    assert len(LINES) > 50
    assert len({line.where.split("/")[2] for line in LINES}) > 10
