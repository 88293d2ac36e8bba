"""The units and the container file in deploy/: what a linter, and systemd itself, say of them."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import trio

from fastpush.cli import main
from fastpush.gateway.config.sections import Config
from fastpush.gateway.serve import END_WITHIN
from fastpush.gateway.storage.store import CLOSE_WITHIN
from fastpush.simulator import open_simulator
from tests.gateway.processes import TOPIC, ask, running, until, write_settings

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
ANALYZE = shutil.which("systemd-analyze")
STRACE = shutil.which("strace")


def unit(name):
    """The settings of a unit, with all values of each."""
    settings = {}
    for line in (DEPLOY / name).read_text().splitlines():
        if "=" in line and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            settings.setdefault(key, []).append(value)
    return settings


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_the_service_is_exposed_to_little():
    done = subprocess.run(
        [ANALYZE, "security", "--offline=true", "--no-pager", DEPLOY / "fastpush.service"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for fastpush\.service: ([0-9.]+)", done.stdout)
    if found is None:
        pytest.skip(f"systemd-analyze does not work offline here: {done.stderr[:200]}")
    assert float(found[1]) <= 1.5


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_systemd_understands_every_line():
    done = subprocess.run(
        [ANALYZE, "verify", DEPLOY / "fastpush.service", DEPLOY / "fastpush.socket"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    told = [
        line for line in done.stderr.splitlines() if "fastpush" in line and "is not executable" not in line
    ]
    assert not told


def test_the_service_ends_in_time_and_comes_back():
    service, listener = unit("fastpush.service"), unit("fastpush.socket")
    assert END_WITHIN <= 25 < int(service["TimeoutStopSec"][0])
    assert int(service["TimeoutStopSec"][0]) >= END_WITHIN + CLOSE_WITHIN
    assert service["Restart"] == ["always"]
    assert service["User"] == ["fastpush"]
    assert service["StateDirectory"] == ["fastpush"]
    assert not any(key.startswith(("LoadCredential", "SetCredential")) for key in service)
    assert listener["FileDescriptorName"] == ["ingest"]
    assert service["ExecStart"] == ["/opt/fastpush/bin/fastpush serve --config /etc/fastpush/fastpush.toml"]
    assert "serve" in main.commands


def allowed_calls():
    """The system calls that the unit's filter lets through, groups expanded by systemd."""
    groups = {}

    def expand(name):
        if not name.startswith("@"):
            return {name}
        if name not in groups:
            text = subprocess.run(
                [ANALYZE, "syscall-filter", name], capture_output=True, text=True, check=True
            )
            words = [line.strip() for line in text.stdout.splitlines()[1:]]
            groups[name] = set()
            for word in words:
                if word and not word.startswith("#"):
                    groups[name] |= expand(word)
        return groups[name]

    allowed = set()
    for value in unit("fastpush.service")["SystemCallFilter"]:
        names = set().union(*(expand(word) for word in value.removeprefix("~").split()))
        allowed = allowed - names if value.startswith("~") else allowed | names
    return allowed


@pytest.mark.slow
@pytest.mark.skipif(ANALYZE is None or STRACE is None, reason="needs systemd-analyze and strace")
async def test_the_gateway_makes_no_system_call_that_the_filter_forbids(tmp_path):
    """From its start over an alarm, a push and a reload to its end."""
    calls = tmp_path / "calls"
    async with open_simulator(topics=[TOPIC]) as simulator:
        file = write_settings(tmp_path, simulator)
        before = [STRACE, "-f", "-qq", "-c", "-o", str(calls)]
        async with running(file, before=before) as gateway:
            port = gateway.port()
            answer = await ask(
                port, "/v1/opmanager", b'{"entity":"a","displayName":"a","stringseverity":"Trouble"}'
            )
            assert answer.status == 200
            await ask(port, "/v1/notifications", b'{"device_token":"%064x","alert":"x"}' % 1)
            await until(lambda: simulator.ledger.seen)
            children = trio.Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children")
            child = int((await children.read_text()).split()[0])
            os.kill(child, signal.SIGHUP)
            await gateway.wait_for_word("RELOADING=1")
            os.kill(child, signal.SIGTERM)
            assert await gateway.wait() == 0
    made = set(re.findall(r"^ .* ([a-z_0-9]+)$", calls.read_text(), re.MULTILINE)) - {"total", "syscall"}
    assert {"fdatasync", "pwrite64", "accept4"} <= made
    if os.geteuid() == 0:
        made.discard("fchown")  # SQLite's, as root only
    # These two are let through by name: execve starts the process before the filter applies.
    assert made - allowed_calls() == set()


def test_the_container_file_is_as_a_linter_wants_it():
    """Two stages, pinned bases, a number for a user, JSON for what runs, a health check, no secret."""
    text = re.sub(r"\\\n\s*", " ", (DEPLOY / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    of = {}
    for line in lines:
        of.setdefault(line.split()[0], []).append(line.split(None, 1)[1])
    assert len(of["FROM"]) == 2
    assert all(re.match(r"python:3\.\d+-slim-\w+( AS build)?$", each) for each in of["FROM"])
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", of["USER"][-1])
    last_run = max(number for number, line in enumerate(lines) if line.startswith("RUN"))
    assert lines.index(f"USER {of['USER'][-1]}") > last_run
    assert of["ENTRYPOINT"] == ['["fastpush"]']
    assert of["CMD"] == ['["serve"]']
    assert "/healthz" in of["HEALTHCHECK"][0]
    assert of["STOPSIGNAL"] == ["SIGTERM"]
    for run in of["RUN"]:
        assert "sudo" not in run
        if "apt-get install" in run:
            assert "--no-install-recommends" in run
            assert "rm -rf /var/lib/apt/lists/*" in run
    assert "COPY . ." in lines
    assert (ROOT / ".dockerignore").read_text().startswith("*\n"), "only what is named goes into the build"
    sections = Config.__struct_fields__
    for name in re.findall(r"FASTPUSH_([A-Z_]+?)__", of["ENV"][0]):
        assert name.lower() in sections
