"""The examples run, and the ones that make a file make that file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


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
