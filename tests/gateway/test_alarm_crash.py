"""A gateway that is killed: of each event row, verdict and push are there, or none of them is."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from fastpush.gateway.alarm_table import name_of, read_row, read_told
from fastpush.gateway.outbox.packing import unpack_entries
from tests.gateway.processes import drop_cut_line, wait_until_ready

ROOT = Path(__file__).resolve().parent.parent.parent


def start(path, out, **settings):
    command = [sys.executable, "-m", "tests.gateway.alarm_worker", str(path), json.dumps(settings)]
    with out.open("ab") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.PIPE)


def examine(path):
    """Hold rows, verdicts and pushes in the file against each other; the verdicts and the badge's count."""
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    alarms = {
        name_of(alarm.hex()): (last, opened, is_open, unread, read_row(row))
        for alarm, last, opened, is_open, unread, row in connection.execute(
            "SELECT id, last, opened, open, unread, row FROM alarm"
        )
    }
    verdicts, by_alarm = {}, {}
    for number, alarm, previous, told in connection.execute(
        "SELECT id, alarm, previous, told FROM alarm_verdict ORDER BY id"
    ):
        name = name_of(alarm.hex())
        verdicts[number] = name, previous, read_told(told)
        by_alarm.setdefault(name, []).append(number)
    pushes = {
        number: unpack_entries(head, None, 1)[0].trace
        for number, head in connection.execute("SELECT id, head FROM fanout")
    }
    octets = connection.execute("SELECT octets FROM alarm_history").fetchone()[0]
    held = connection.execute("SELECT sum(length(told) + 64) FROM alarm_verdict").fetchone()[0]
    connection.close()
    assert octets == (held or 0)
    # Each push has its verdict and each verdict its push.
    told = {verdict.push: name for name, _, verdict in verdicts.values() if verdict.push}
    assert told == pushes
    assert set(by_alarm) == set(alarms)
    for name, numbers in by_alarm.items():
        last, opened, is_open, unread, row = alarms[name]
        assert last == numbers[-1]
        assert [verdicts[number][1] for number in numbers] == [0, *numbers[:-1]]  # none is missing between
        happened = [verdicts[number][2] for number in numbers]
        assert (row.generation, row.severity) == (happened[-1].generation, happened[-1].severity)
        openings = [
            number for number, each in zip(numbers, happened, strict=True) if each.rule[:5] == "first"
        ]
        assert opened == (openings or numbers[:1])[-1]
        assert is_open == (row.state == "open")
        assert unread == row.counts_in_badge
        assert row.generation == len(openings)
    return verdicts, sum(unread for _, _, _, unread, _ in alarms.values())


@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.night])])
def test_a_kill_at_any_moment_leaves_row_verdict_and_push_together(tmp_path, kills, seed):
    path, out = tmp_path / "gateway.db", tmp_path / "told.ndjson"
    badge, acked = 0, []
    for _ in range(kills):
        before = out.stat().st_size if out.exists() else 0
        with start(path, out, seed=seed.getrandbits(32)) as process:
            wait_until_ready(process)
            time.sleep(seed.uniform(0.0, 0.3))  # the moment of the kill
            process.kill()
            process.communicate()
        drop_cut_line(out)
        for line in out.read_bytes()[before:].splitlines():
            event = json.loads(line)
            if event["kind"] == "ready":
                assert event["count"] == badge  # as the file had it after the last kill
            else:
                acked.append((event["id"], event["rule"], event["push"]))
        verdicts, badge = examine(path)
    found = Counter((name, told.rule, told.push) for name, _, told in verdicts.values())
    missing = Counter(acked) - found
    assert not missing
    assert len(acked) > 500
    print(f"{len(acked)} answered, {len(verdicts) - len(acked)} recorded and not answered")
