"""What the pages tell to paste works as it stands, on the gateway that docs/serve.md sets up for a trial."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import orjson
import pytest
import trio

from tests.gateway.processes import ROOT, running

pytestmark = pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("jq") and shutil.which("bash")),
    reason="bash, curl or jq is not installed",
)
SERVE = "fastpush serve --config fastpush.toml\n"


def blocks(page):
    text = (ROOT / "docs" / page).read_text()
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]


class Terminal:
    """A shell in an empty directory, with `fastpush` on its path, and other ports than the pages have."""

    def __init__(self, folder):
        (folder / "bin").mkdir()
        command = folder / "bin/fastpush"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m fastpush "$@"\n')
        command.chmod(0o755)
        self.folder = folder / "empty"
        self.folder.mkdir()
        self.ports = dict(zip(("2197", "8080", "8081"), free_ports(3), strict=True))
        self.environ = os.environ | {
            "PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        }  # fmt: skip

    def fit(self, text):
        return re.sub(r"\b(2197|8080|8081)\b", lambda found: self.ports[found[0]], text)

    async def paste(self, *texts):
        """Run them in one shell; the objects that it printed, one a line."""
        strict = 'set -euo pipefail\ncurl() { command curl -sS --fail-with-body "$@"; echo; }\n'
        done = await trio.run_process(
            ["bash", "-c", strict + self.fit("\n".join(texts))], cwd=self.folder, env=self.environ,
            capture_stdout=True, capture_stderr=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{texts}\n{done.stdout.decode()}\n{done.stderr.decode()}"
        return [orjson.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]

    @contextmanager
    def left_running(self, text):
        """In a terminal of its own; until it says that it is there."""
        command = [*text.split(), "--port", self.ports["2197"]]
        with subprocess.Popen(
            command, cwd=self.folder, env=self.environ, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert any("from another terminal" in line for line in process.stdout)
                yield
            finally:
                process.kill()


async def test_the_trial_and_what_the_other_pages_do_with_it(tmp_path):
    terminal = Terminal(tmp_path)
    (simulate,) = [each for each in blocks("serve.md") if "simulate" in each]
    (serve,) = [each for each in blocks("serve.md") if "[ingest]" in each]
    assert serve.endswith(SERVE)
    with terminal.left_running(simulate):
        await terminal.paste(serve.removesuffix(SERVE))
        async with running(Path(terminal.folder / "fastpush.toml")) as gateway:
            enrolled = (await terminal.paste(*blocks("authentication.md")))[-1]
            assert enrolled["tags"] == ["network"]
            assert enrolled["device_secret"].startswith("fpd_")
            (registered,) = await terminal.paste(*blocks("devices.md"))
            assert (registered["user"], registered["tags"], registered["locale"]) == (
                "alice", ["network"], "de-CH",
            )  # fmt: skip
            key, *alarm = [each for each in blocks("opmanager.md") if "KEY" in each]
            posts, clear, look = alarm[:4], alarm[4], alarm[5:]
            told = await terminal.paste(key, *posts, *look, clear)
            assert [each["rule"] for each in told if "rule" in each] == [
                "first.new", "lowered.rank", "lowered.rank", "escalated.rank", "clear.open",
            ]  # fmt: skip
            assert told[-2]["acknowledged_by"] == "opmanager"
            (sent,) = await terminal.paste(*blocks("http-api.md")[:2])
            assert sent["count"] == 1
            await terminal.paste(*blocks("console.md"))
            assert await gateway.end() == 0


def test_no_page_sets_a_variable_that_the_gateway_would_read():
    """Such as FASTPUSH_ADMIN: the next `fastpush serve` from that shell takes it for the table [admin]."""
    pages = sorted((ROOT / "docs").glob("*.md"))
    assert pages
    set_there = [
        f"{page.name}: {found}"
        for page in pages
        for block in blocks(page.name)
        for found in re.findall(r"^(?:export )?.*\bFASTPUSH\w*=", block, re.MULTILINE)
    ]
    assert not set_there
