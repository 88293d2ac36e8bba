"""What must hold of the tree as a whole: one version, types, no build products, reasons for dependencies."""

from __future__ import annotations

import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def tracked() -> list[str]:
    """What git keeps; outside a clone, in an unpacked source distribution, there is nothing to ask."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git clone")
    return [name for name in listed.stdout.split("\0") if name]


def test_the_version_is_written_in_one_place() -> None:
    written = [
        name
        for name in tracked()
        if name.endswith((".py", ".pyx", ".toml", ".cfg", ".md"))
        and re.search(r"^(__version__|version)\s*[:=]", (ROOT / name).read_text(), re.MULTILINE)
    ]
    assert written == ["pyproject.toml"]


def test_the_changelog_knows_the_version_or_is_ahead_of_it() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    sections = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert len(sections) == 1 or sections[1].startswith(PROJECT["version"])


def test_we_ship_types() -> None:
    assert (ROOT / "fastpush/py.typed").exists()
    without = [
        name for name in tracked() if name.endswith(".pyx") and not (ROOT / name).with_suffix(".pyi").exists()
    ]
    assert not without, "a compiled module without its typed face"


def test_every_compiled_module_is_built() -> None:
    setup = (ROOT / "setup.py").read_text()
    sources = [name for name in tracked() if name.startswith("fastpush/") and name.endswith(".pyx")]
    left_out = [name for name in sources if f'"{name[:-4].replace("/", ".")}"' not in setup]
    assert sources
    assert not left_out, "not in setup.py"


def test_every_source_is_in_the_sdist() -> None:
    """A wheel is built from the sdist, and what is not among the package's data does not come into it."""
    patterns = ["*.py"]
    for package, data in PYPROJECT["tool"]["setuptools"]["package-data"].items():
        patterns += data if package == "*" else [f"{package.replace('.', '/')}/{each}" for each in data]
    sources = [name for name in tracked() if name.startswith("fastpush/")]
    left_out = [
        name
        for name in sources
        if not any(fnmatch(name, each) or fnmatch(name.split("/")[-1], each) for each in patterns)
    ]
    assert sources
    assert not left_out, "not in package-data"


def test_no_build_product_is_in_git() -> None:
    products = re.compile(r"\.(c|so|o|pyc|pyd)$|egg-info/|(^|/)(build|dist|\.venv|__pycache__)/")
    assert not [name for name in tracked() if products.search(name)]


def test_scripts_may_be_run() -> None:
    for name in [".ci/run", "scripts/prepare.sh"]:
        assert (ROOT / name).stat().st_mode & 0o111, f"{name} has no run bit"


def test_nothing_names_a_path_of_one_machine() -> None:
    mine = re.compile(r"/(home|Users|root|work|farm)/[a-z]|/tmp/bash|\bpypi\.org|files\.pythonhosted")
    found = []
    for name in tracked():
        if name.endswith((".ndjson", ".der", ".p12", ".png")):
            continue
        for number, line in enumerate((ROOT / name).read_text(errors="replace").splitlines(), 1):
            if mine.search(line) and name != "tests/test_house.py":
                found.append(f"{name}:{number}: {line.strip()[:80]}")
    assert not found


@pytest.mark.parametrize("requirement", PROJECT["dependencies"])
def test_every_runtime_dependency_has_a_floor_and_a_reason(requirement: str) -> None:
    """docs/dependencies.md has a row with the name, the same floor, and one sentence."""
    parts = re.fullmatch(r"(?P<name>[\w-]+)(\[\w+\])?>=(?P<floor>[\d.]+)(,<[\d.]+)?", requirement)
    assert parts, f"{requirement} has no floor"
    documented = (ROOT / "docs/dependencies.md").read_text()
    row = re.search(
        rf"^\| {parts['name']} \| {re.escape(parts['floor'])} \| .{{20,}}\. \|$", documented, re.MULTILINE
    )
    assert row, f"docs/dependencies.md has no row for {requirement}"


def test_every_dependency_of_the_tests_is_named_with_its_use() -> None:
    documented = (ROOT / "docs/dependencies.md").read_text()
    for requirement in PROJECT["optional-dependencies"]["test"]:
        name = re.match(r"[\w-]+", requirement)[0]
        assert re.search(rf"^\| {name} \| .+ \|$", documented, re.MULTILINE), (
            f"{name} is not in docs/dependencies.md"
        )
