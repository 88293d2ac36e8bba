"""However a command is ended, it says so in one line: Ctrl-C while it is being imported, and a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastpush import _begun_as_command
from fastpush.cli import main
from tests.gateway.test_registry_cli import stopped
from tests.test_cli import ENVIRONMENT, FASTPUSH, ROOT

# Python reads it before anything else: Ctrl-C comes at the very moment in which a module is looked for.
INTERRUPT_AT = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
"""


def interrupted_at(module: str, folder: Path, *arguments: str, **how) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(INTERRUPT_AT)
    path = os.pathsep.join([str(folder), ENVIRONMENT["PYTHONPATH"]])
    return subprocess.run(
        [*FASTPUSH, *arguments],
        env=ENVIRONMENT | {"PYTHONPATH": path, "INTERRUPT_AT": module, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        **how,
    )


@pytest.mark.parametrize("command", sorted(main.commands))
@pytest.mark.parametrize("module", ["fastpush.client", "fastpush.cli.simulate"])
def test_ctrl_c_while_a_command_is_imported_is_one_line(command: str, module: str, tmp_path: Path) -> None:
    done = interrupted_at(module, tmp_path, command, "--help")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("fastpush.gateway.demo", ["demo"]),
        ("fastpush.gateway.demo.stage", ["demo"]),
        ("fastpush.gateway.supervisor", ["serve"]),
        ("fastpush.gateway.config", ["serve", "--check"]),
    ],
)
def test_ctrl_c_while_a_command_imports_its_own_is_too(
    module: str, arguments: list[str], tmp_path: Path
) -> None:
    done = interrupted_at(module, tmp_path, *arguments)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "interrupted")


def test_ctrl_c_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """So does a shell with what it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = interrupted_at("fastpush.client", tmp_path, "--help")
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: fastpush")


@pytest.mark.parametrize(
    ("arguments", "original", "it_is"),
    [
        (["/usr/bin/fastpush", "demo"], ["/usr/bin/python3", "/usr/bin/fastpush", "demo"], True),
        (["-m", "demo"], ["python", "-m", "fastpush", "demo"], True),
        (["-m", "fastpush"], ["python", "-m", "pytest", "fastpush"], False),
        (["-m"], ["python", "-mfastpush"], False),
        (["program.py"], ["python", "program.py"], False),
        ([""], ["python"], False),
        ([], ["python"], False),
    ],
)
def test_a_program_that_imports_us_keeps_its_ctrl_c(arguments, original, it_is) -> None:
    assert _begun_as_command.is_command(arguments, original) is it_is


def test_in_a_program_of_ones_own_ctrl_c_is_pythons() -> None:
    program = "import signal, fastpush; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, check=True, timeout=60)


# Nobody takes the output.


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of a gateway that was stopped, with a name so short that a Unix socket fits."""
    with tempfile.TemporaryDirectory(prefix="fp-") as name:
        stopped(Path(name))
        yield Path(name)


def on_full_disk(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    with open("/dev/full", "w") as full:
        return subprocess.run(
            [*FASTPUSH, *arguments],
            env=ENVIRONMENT | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": ""} | environment,
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )


FULL = "Error: cannot write: No space left on device\n"


@pytest.mark.parametrize("command", sorted(set(main.commands) - {"bench"}))
def test_output_that_nobody_can_take_is_one_line(command: str, tmp_path: Path) -> None:
    done = on_full_disk(command, "--help", folder=tmp_path)
    assert (done.returncode, done.stderr) == (1, FULL)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        ["demo", "--once"],
        ["simulate", "--port", "0"],
        ["simulate", "--port", "0", "--json"],
        ["keys", "list", "--json", "--database", "{folder}/gateway.db"],
        ["keys", "list", "--database", "{folder}/gateway.db"],
    ],
    ids=" ".join,
)
def test_so_is_what_a_command_prints_at_work(arguments: list[str], folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    filled = [argument.format(folder=folder) for argument in arguments]
    done = on_full_disk(*filled, folder=folder)
    assert (done.returncode, done.stderr) == (1, FULL)
    assert {path.name for path in folder.iterdir()} <= before


def test_so_it_is_without_a_buffer(tmp_path: Path) -> None:
    done = on_full_disk("--help", folder=tmp_path, PYTHONUNBUFFERED="1")
    assert (done.returncode, done.stderr) == (1, FULL)


def test_an_error_that_is_not_the_outputs_keeps_its_traceback(tmp_path: Path, monkeypatch) -> None:
    """Only what nobody is to blame for is put so shortly."""
    monkeypatch.setattr(main.commands["backup"], "callback", lambda **_: os.stat(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError):
        main(["backup", str(tmp_path / "copy")], prog_name="fastpush")


def test_without_a_standard_output_a_command_does_its_work(folder: Path) -> None:
    """`fastpush keys list >&-`"""
    command = f'exec "{sys.executable}" -m fastpush keys list --database "{folder}/gateway.db" >&-'
    done = subprocess.run(["sh", "-c", command], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
