"""docs/notification.md names every public name, argument and limit, and its example runs."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import fastpush.notification
from fastpush import LiveActivity

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs/notification.md").read_text()


def sections() -> dict[str, str]:
    parts = re.split(r"^## `?([\w.]+| In .*)`?.*$", DOCUMENT, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def arguments() -> list[tuple[str, str]]:
    """Class and argument, from the typed faces of the compiled modules."""
    found = [("LiveActivity", name) for name in inspect.signature(LiveActivity).parameters]
    for stub in ("_encode.pyi", "_notification.pyi"):
        for kind in ast.parse((ROOT / "fastpush" / stub).read_text()).body:
            if isinstance(kind, ast.ClassDef):
                for function in kind.body:
                    if isinstance(function, ast.FunctionDef) and not function.name.startswith("__"):
                        found.append((kind.name, function.name))
                    if isinstance(function, ast.FunctionDef) and function.name in {"__new__", "__init__"}:
                        named = [*function.args.args[1:], *function.args.kwonlyargs]
                        found += [(kind.name, argument.arg) for argument in named]
    return sorted(set(found))


def test_the_stubs_were_read():
    assert len(arguments()) > 60
    assert ("Payload", "url_args") in arguments()
    assert ("Response", "retry_after") in arguments()


@pytest.mark.parametrize(("kind", "name"), arguments())
def test_every_argument_and_attribute_is_documented(kind, name):
    assert re.search(rf"\b{name}\b", sections()[kind])


@pytest.mark.parametrize("name", fastpush.notification.__all__)
def test_every_public_name_is_documented(name):
    assert f"`{name}" in DOCUMENT


def test_the_limits_and_suffixes_are_told_as_they_are():
    for name in fastpush.notification.__all__:
        if name.startswith("MAX_"):
            row = next(line for line in DOCUMENT.splitlines() if f"`{name}`" in line)
            assert str(getattr(fastpush.notification, name)) in row
    for push_type, suffix in fastpush.notification.TOPIC_SUFFIXES.items():
        assert re.search(
            rf"^\| `{push_type}` \| {re.escape(f'`{suffix}`' if suffix else '')}", DOCUMENT, re.M
        )


def test_the_example_runs():
    example = "\n".join(line[4:] for line in DOCUMENT.splitlines() if line.startswith("    "))
    names: dict[str, object] = {}
    exec(compile(example, "docs/notification.md", "exec"), names)
    assert names["notification"].collapse_id == "sw-core-01"
