"""The documentation tells the truth as far as a machine can see.

Its Python compiles, its commands have these options, its links lead somewhere, and every public name
stands in it.
"""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import click
import pytest

import fastpush
from fastpush.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for fence in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, fence.start()) + 1
            found.append(Block(str(page.relative_to(ROOT)), line, fence[1], fence[2]))
    return found


BLOCKS = blocks()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_python_in_the_documentation_compiles(block: Block) -> None:
    """A fragment may stand inside an `async def`: top-level await, and `async with`, are let through."""
    compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_names_of_fastpush_in_the_documentation_exist(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "fastpush"
        ):
            assert hasattr(fastpush, node.attr) or node.attr in {"aio", "blocking", "simulator"}, node.attr


def commands() -> list[tuple[Block, str]]:
    return [
        (block, line.strip())
        for block in BLOCKS
        if block.language in {"sh", "console"}
        for line in block.text.replace("\\\n", " ").splitlines()
        if re.match(r"(\$ )?fastpush ", line.strip())
    ]


@pytest.mark.parametrize(("block", "line"), commands(), ids=str)
def test_commands_in_the_documentation_have_only_options_that_exist(block: Block, line: str) -> None:
    words = shlex.split(line.removeprefix("$ "), comments=True)[1:]
    assert isinstance(main, click.Group)
    if not words[0].startswith("-"):
        command: click.Command = main
        options = {"--help"}
        for word in words:
            if isinstance(command, click.Group) and not word.startswith("-"):
                assert word in command.commands, f"{block}: {command.name} has no command {word}"
                command = command.commands[word]
                options |= {option for parameter in command.params for option in parameter.opts}
            elif word.startswith("--"):
                assert word.split("=")[0] in options, f"{block}: {command.name} has no {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name} links to {target}"


def test_every_public_name_stands_in_the_reference() -> None:
    reference = (ROOT / "docs/reference.md").read_text()
    assert not [name for name in fastpush.__all__ if f"`{name}`" not in reference]


def test_every_public_name_has_a_docstring() -> None:
    assert not [name for name in fastpush.__all__ if not (getattr(fastpush, name).__doc__ or "").strip()]


def test_every_page_is_found_from_the_index() -> None:
    index = (ROOT / "docs/index.md").read_text()
    unlisted = [
        page for page in (ROOT / "docs").rglob("*.md") if page.name != "index.md" and page.name not in index
    ]
    assert not unlisted


def test_the_readme_is_short_and_shows_code_early() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    assert next(number for number, line in enumerate(lines, 1) if line.startswith("```python")) < 40


def test_each_option_of_the_command_line_is_explained() -> None:
    """In `--help` itself, and by name in docs/cli.md."""
    documented = (ROOT / "docs/cli.md").read_text()
    assert isinstance(main, click.Group)
    below: list[click.Command] = [main]
    while below:
        command = below.pop()
        if isinstance(command, click.Group):
            below += command.commands.values()
        for parameter in command.params:
            if isinstance(parameter, click.Option) and command is not main:
                assert parameter.help, f"fastpush {command.name} {parameter.opts[0]} has no help"
                assert f"`{parameter.opts[0]}`" in documented, f"{parameter.opts[0]} is not in docs/cli.md"
