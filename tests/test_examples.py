"""The examples run, and the ones that make a file make that file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from fastpush.simulator import Simulator, open_simulator

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}  # a checkout that is not installed will do


def test_alarms_are_made_byte_for_byte_as_they_are_kept() -> None:
    made = subprocess.run([sys.executable, EXAMPLES / "make_alarms.py"], capture_output=True, check=True)
    assert made.stdout == (EXAMPLES / "alarms.ndjson").read_bytes()


def test_alarms_differ_in_device_token_and_text_and_fit_an_apns_payload() -> None:
    lines = (EXAMPLES / "alarms.ndjson").read_bytes().splitlines()
    alarms = [json.loads(line) for line in lines]
    assert len(alarms) == 10_000
    assert len({alarm["device_token"] for alarm in alarms}) == 10_000
    assert len({alarm["payload"]["aps"]["alert"]["body"] for alarm in alarms}) == 10_000
    assert max(map(len, lines)) < 4_096
    assert max(len(alarm["collapse_id"].encode()) for alarm in alarms) <= 64
    assert any(not line.isascii() for line in lines)


def test_another_seed_gives_other_alarms() -> None:
    made = subprocess.run(
        [sys.executable, EXAMPLES / "make_alarms.py", "--count", "3", "--seed", "1"],
        capture_output=True,
        check=True,
    )
    lines = made.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0] not in (EXAMPLES / "alarms.ndjson").read_bytes()


@pytest.fixture
async def apns() -> AsyncIterator[Simulator]:
    async with open_simulator(topics=["com.example.opmanager"]) as simulator:
        yield simulator


async def run(
    name: str, apns: Simulator, *arguments: str, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run an example against a simulator, as its first lines say."""
    key = apns.issue_signing_key()
    return await trio.run_process(
        [
            sys.executable, EXAMPLES / name,
            apns.signing_key_file(key), key.team_id, "com.example.opmanager", *arguments,
            apns.host, str(apns.port), apns.ca_file,
        ],
        stdin=stdin, capture_stdout=True, capture_stderr=True, env=ENVIRONMENT,
    )  # fmt: skip


async def test_send_one(apns: Simulator) -> None:
    done = await run("send_one.py", apns, "a1" * 32)
    assert done.stdout.startswith(b"accepted ")
    apns.mark_unregistered("b2" * 32)
    done = await run("send_one.py", apns, "b2" * 32)
    assert done.stdout == b"rejected Unregistered\n"
    assert [seen.fate for seen in apns.ledger.seen] == ["accepted", "rejected"]


async def test_send_many_names_the_dead_device_tokens(apns: Simulator) -> None:
    apns.mark_unregistered("b2" * 32)
    done = await run(
        "send_many.py", apns, stdin=b"".join(b"%064x\n" % number for number in range(300)) + b"b2" * 32
    )
    assert done.stdout.decode().split() == ["b2" * 32]
    assert b"300 accepted" in done.stderr
    assert b"1 rejected" in done.stderr


async def test_the_readme_s_program_sends(apns: Simulator, tmp_path: Path) -> None:
    """As it stands there, but for the key's file and ids, the address, and the authority to trust."""
    readme = (ROOT / "README.md").read_text()
    program = re.search(r"^```python\n(import trio.*?)^```$", readme, re.MULTILINE | re.DOTALL)[1]
    key = apns.issue_signing_key()
    for shown, ours in [
        ('"AuthKey_ABC123DEFG.p8"', f'"{apns.signing_key_file(key)}"'),
        ("ABC123DEFG", key.key_id),
        ("DEF123GHIJ", key.team_id),
        (
            "open_client(key, ",
            f'open_client(key, host="{apns.host}", port={apns.port}, ca_file="{apns.ca_file}", ',
        ),
    ]:
        assert shown in program
        program = program.replace(shown, ours)
    done = await trio.run_process(
        [sys.executable, "-"], stdin=program.encode(), capture_stdout=True, env=ENVIRONMENT
    )
    assert done.stdout == b"accepted \n"


def test_run_alarms_sends_all_and_ends() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "run_alarms.py", "--json"],
        capture_output=True,
        env=ENVIRONMENT,
        check=True,
    )
    assert json.loads(done.stdout)["accepted"] == 10_000
    assert b"10,000 accepted" in done.stderr
