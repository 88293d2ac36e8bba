"""Kills, power cuts and failing disks: what was acknowledged is kept, and sent as it may be."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from fastpush.gateway.outbox import Entry
from fastpush.gateway.outbox.packing import REST, read_log, unpack_entries
from fastpush.gateway.outbox.sqlite import open_outbox
from fastpush.gateway.storage import Limits, open_storage
from tests.gateway import backlog
from tests.gateway.processes import drop_cut_line, wait_until_ready
from tests.gateway.small_disk import run_on_small_disk
from tests.gateway.worker import APP
from tests.ledger import Account

ROOT = Path(__file__).resolve().parent.parent.parent
STRACE = shutil.which("strace")
needs_strace = pytest.mark.skipif(STRACE is None, reason="strace is not installed")


def start(path, out, *, before=(), **settings):
    command = [*before, sys.executable, "-m", "tests.gateway.worker", str(path), json.dumps(settings)]
    with out.open("ab") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.PIPE)


def dump(path, account):
    """Tell the account what the file says of each notification; return those that are there twice."""
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    names = {}
    for batch, head, count in connection.execute("SELECT id, head, count FROM batch").fetchall():
        entries = unpack_entries(head, None, count)
        ends = {}
        rest = None
        for (log,) in connection.execute("SELECT log FROM outcome WHERE batch = ? ORDER BY id", (batch,)):
            for fate in read_log(log):
                if fate.place == REST:
                    rest = fate.attempt.outcome
                elif fate.attempt.outcome != "retry":
                    ends.setdefault(fate.place, []).append(fate.attempt.outcome)
        for index, entry in enumerate(entries):
            names[entry.trace] = names.get(entry.trace, 0) + 1
            for state in ends.get(index, [rest] if rest else []):
                account.add({"kind": "end", "id": entry.trace, "state": state})
            if index not in ends and rest is None:
                account.add({"kind": "waiting", "id": entry.trace})
    connection.close()
    return [name for name, count in names.items() if count > 1]


def finish(path, out, life):
    """Send all that is left."""
    with start(path, out, seed=0, life=life, producers=0, turns=1) as process:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()[-2_000:]


@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.night])])
def test_a_kill_at_any_moment_loses_nothing(tmp_path, kills, seed):
    """D1: and what is sent twice is at most what was in flight, and never what is sent once."""
    path, out = tmp_path / "gateway.db", tmp_path / "told.ndjson"
    slowest = 0.0
    for life in range(kills):
        started = time.monotonic()
        with start(path, out, seed=seed.getrandbits(32), life=life) as process:
            wait_until_ready(process)
            slowest = max(slowest, time.monotonic() - started)
            time.sleep(seed.uniform(0.0, 0.5))  # the moment of the kill
            process.kill()
            process.communicate()
        drop_cut_line(out)
    finish(path, out, kills)
    account = Account()
    for line in out.read_text().splitlines():
        account.add({"at": 0.0} | json.loads(line))
    assert dump(path, account) == []
    verdict = account.check(duplicates_allowed=200 * kills)
    assert verdict.good, verdict
    once = [name for name in account.offered if int(name.rsplit("-", 1)[1]) % 7 == 3]
    seen = [name for name, *_ in account.seen]
    assert len(seen) > 100
    for name in once:
        assert seen.count(name) <= 1, f"{name} was to be sent once"
    print(
        f"{len(account.acked)} acknowledged, {len(seen) - len(set(seen))} sent twice, start {slowest:.2f} s"
    )


# Order of system calls.


def flushed_before_told(trace):
    """Of the acknowledgements in a trace: those after a flush of the log that covers them, and the others."""
    name = re.compile(r"\d+-\d+-\d+-0(?!\d)")
    written, flushes, begun = {}, [], {}
    good, bad = set(), set()
    for number, line in enumerate(trace.read_text(errors="replace").splitlines()):
        pid, _, call = line.partition(" ")
        call = call.strip()
        if call.startswith("pwrite64(") and "-wal>" in call:
            # Octets are octal escapes, of three digits where a digit follows.
            for found in name.findall(re.sub(r"\\[0-7]{1,3}", " ", call)):
                written.setdefault(found, number)
        elif call.startswith("fdatasync(") and "-wal>" in call:
            begun[pid] = number
            if call.endswith("= 0"):
                flushes.append((begun.pop(pid), number))
        elif "fdatasync resumed" in call and pid in begun:
            began = begun.pop(pid)
            if call.endswith("= 0"):
                flushes.append((began, number))
        elif call.startswith("write(1<"):
            for told in re.findall(r'\{\\"kind\\": \\"ack\\", \\"id\\": \\"(\d+-\d+-\d+-0)\\"', call):
                covered = told in written and any(
                    written[told] < began and done < number for began, done in flushes[-50:]
                )
                (good if covered else bad).add(told)
    return good, bad


@needs_strace
@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_no_acknowledgement_leaves_before_the_flush_that_covers_it(tmp_path, synchronous):
    """D2: 1,000 of them; and the check sees it where the log is not flushed."""
    path, out, trace = tmp_path / "gateway.db", tmp_path / "told.ndjson", tmp_path / "trace"
    before = [STRACE, "-f", "-y", "-s", "5000", "-e", "trace=pwrite64,fdatasync,write", "-o", str(trace)]
    settings = {"seed": 1, "life": 0, "turns": 140, "sends": False, "synchronous": synchronous}
    with start(path, out, before=before, **settings) as process:
        _, errors = process.communicate(timeout=120)
        if b"ptrace" in errors:
            pytest.skip(f"strace may not trace here: {errors.decode()[:200]}")
        assert process.returncode == 0, errors.decode()[-2_000:]
    good, bad = flushed_before_told(trace)
    assert len(good) + len(bad) >= 1_000
    if synchronous == "FULL":
        assert not bad, f"{len(bad)} of {len(good) + len(bad)}"
    else:
        assert len(bad) > len(good)


# Power cuts: what was written after the last flush may be there, or not, or in part.


@pytest.mark.parametrize("variants", [150, pytest.param(1_000, marks=[pytest.mark.slow, pytest.mark.night])])
async def test_a_power_cut_keeps_what_was_flushed(tmp_path, variants, seed):
    """D3: the log's tail cut or its sectors zeroed, after each acknowledgement."""
    path = tmp_path / "gateway.db"
    limits = Limits(low_water_octets=0, low_water_share=0.0, reserve_octets=4_096)
    flushed = []  # what the log holds at each acknowledgement
    async with open_storage(path, limits) as storage:
        outbox = await open_outbox(storage)
        for turn in range(40):
            await outbox.accept(APP, [Entry("t", bytes(seed.randint(1, 9_000)), trace=f"0-0-{turn}-0")])
            flushed.append(os.stat(f"{path}-wal").st_size)
        database, log = path.read_bytes(), path.with_name("gateway.db-wal").read_bytes()
    for variant in range(variants):
        acked = seed.randrange(len(flushed) - 1)
        end = flushed[acked]
        following = flushed[min(acked + seed.randint(1, 3), len(flushed) - 1)]
        tail = bytearray(log[end:following])
        if variant % 2:
            tail = tail[: seed.randrange(len(tail) + 1)]
        for sector in range(0, len(tail), 512):
            if seed.random() < 0.3:
                tail[sector : sector + 512] = bytes(len(tail[sector : sector + 512]))
        copy = tmp_path / "copy.db"
        copy.write_bytes(database)
        copy.with_name("copy.db-wal").write_bytes(log[:end] + tail)
        account = Account()
        assert dump(copy, account) == []
        assert {f"0-0-{turn}-0" for turn in range(acked + 1)} <= account.waiting
        for name in tmp_path.glob("copy.db*"):
            name.unlink()


# Failing disks.


# The number is of the writing thread's calls; the first ones are those of opening.
@needs_strace
@pytest.mark.parametrize(
    ("call", "when"),
    [
        *(("fdatasync", when) for when in (27, 34, 41, 55)),
        *(("pwrite64", when) for when in (90, 131, 172, 203)),
    ],
)
def test_a_failed_flush_is_answered_with_unknown_and_nothing_acknowledged_is_lost(tmp_path, call, when):
    """D7: a repetition under the same key is one notification, also where the failed one comes back."""
    path, out = tmp_path / "gateway.db", tmp_path / "told.ndjson"
    inject = f"inject={call}:error=EIO:when={when}"
    before = [STRACE, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject]
    with start(path, out, before=before, seed=when, life=0, turns=60, producers=4) as process:
        _, errors = process.communicate(timeout=120)
        if b"ptrace" in errors:
            pytest.skip(f"strace may not trace here: {errors.decode()[:200]}")
        assert process.returncode == 0, errors.decode()[-2_000:]
        assert b"the disk failed" in errors
        assert b"disk I/O error" in errors
    finish(path, out, 1)
    account = Account()
    for line in out.read_text().splitlines():
        account.add(json.loads(line))
    assert dump(path, account) == []
    verdict = account.check(duplicates_allowed=200)
    assert verdict.good, verdict
    assert len(account.acked) > 100


@needs_strace
@pytest.mark.parametrize(
    ("call", "when"),
    [("fdatasync", when) for when in (14, 21, 28, 35)]
    + [("pwrite64", when) for when in (75, 110, 160, 200)]
    + [
        pytest.param(call, when, marks=[pytest.mark.slow, pytest.mark.night])
        for call, first, last in [("fdatasync", 1, 40), ("pwrite64", 1, 200)]
        for when in range(first, last + 1, 1 if call == "fdatasync" else 4)
    ],
)
def test_a_failed_flush_and_a_kill_right_after_it_leave_one_of_each(tmp_path, call, when):
    """D7: what came back all the same is one with the sender's repetition."""
    path, out = tmp_path / "gateway.db", tmp_path / "told.ndjson"
    inject = f"inject={call}:error=EIO:signal=KILL:when={when}"
    before = [STRACE, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject]
    settings = {"seed": when, "life": 0, "turns": 40, "producers": 4, "keyed": True}
    with start(path, out, before=before, **settings) as process:
        _, errors = process.communicate(timeout=120)
        if b"ptrace" in errors:
            pytest.skip(f"strace may not trace here: {errors.decode()[:200]}")
        assert process.returncode != 0
    drop_cut_line(out)
    # All senders repeat all that they sent, under the same keys.
    with start(path, out, **settings) as process:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()[-2_000:]
    finish(path, out, 1)
    account = Account()
    for line in out.read_text().splitlines():
        account.add({"at": 0.0} | json.loads(line))
    assert dump(path, account) == []
    verdict = account.check(duplicates_allowed=200)
    assert verdict.good, verdict
    assert len(account.acked) > 100


# A full disk.

FILL = """
import sys, os, time, trio
from fastpush.gateway.outbox import End, Entry, Retry
from fastpush.gateway.outbox.sqlite import OutboxLimits, open_outbox
from fastpush.gateway.storage import Limits, StorageFull, open_storage
folder = sys.argv[1]

async def main():
    limits = Limits(low_water_octets=2 << 20, low_water_share=0.0, reserve_octets=512 << 10)
    async with open_storage(folder + "/gateway.db", limits) as storage:
        outbox = await open_outbox(storage, limits=OutboxLimits(pending_after=60.0))
        ids, turn = [], 0
        try:
            while True:
                entries = [Entry(f"{turn}-{n}", os.urandom(600)) for n in range(20)]
                taken = await outbox.accept("app", entries)
                ids += [taken.apns_id(n) for n in range(20)]
                turn += 1
        except StorageFull:
            pass
        assert len(ids) > 1_000, len(ids)
        # What was in flight gets its end, each in its own commit: the disk is below its mark.
        ended, now = set(), time.time()
        claims = await outbox.claim("app", 10_000)
        while claims:
            some, claims = claims[:20], claims[20:]
            once = [c for c in some if not c.attempts and c.index == 7]
            later = [Retry(c.batch, c.index, now, 1, now, 503) for c in once]
            done = [c for c in some if c.attempts or c.index != 7]
            await outbox.settle([End(c.batch, c.index, "accepted", now, 200) for c in done], later)
            ended |= {c.apns_id for c in done}
            claims = claims or await outbox.claim("app", 10_000)
        try:
            await outbox.accept("app", [Entry("late", b"{}")])
        except StorageFull:
            pass
        else:
            sys.exit("accepted on a full disk")
        assert ended == set(ids), (len(ended), len(ids))
        assert outbox.waiting()["app"].count == 0
        os.unlink(folder + "/ballast")
        with trio.fail_after(5):
            while storage.full:
                await trio.sleep(0.05)
        await outbox.accept("app", [Entry("again", b"{}")])
        outcomes = [(await outbox.find(one)).outcome for one in ids[::97]]
        assert set(outcomes) == {"accepted"}, outcomes
        print("good", len(ids))

trio.run(main)
"""


async def test_on_a_full_disk_what_was_accepted_gets_its_ends(tmp_path):
    """D5: refused from the low-water mark on, all ends recorded, and it goes on by itself."""
    printed = await run_on_small_disk(tmp_path, FILL)
    assert printed.startswith("good"), printed


# A large backlog.


REOPEN = """
import json, re, sys, time, trio
started = time.perf_counter()
from fastpush.gateway.outbox import End
from fastpush.gateway.outbox.sqlite import OutboxLimits, open_outbox
from fastpush.gateway.storage import Limits, open_storage

async def main():
    limits = Limits(low_water_octets=0, low_water_share=0.0, reserve_octets=4096)
    opening = time.perf_counter()
    async with open_storage(sys.argv[1], limits) as storage:
        outbox = await open_outbox(storage)
        ready = time.perf_counter() - opening
        claims = await outbox.claim("com.example.app", 1000)
        first = time.perf_counter() - opening
        count = outbox.waiting()["com.example.app"].count
        drained = 0
        draining = time.perf_counter()
        while claims and drained < int(sys.argv[2]):
            await outbox.settle([End(c.batch, c.index, "accepted", 0.0, 200) for c in claims])
            drained += len(claims)
            claims = await outbox.claim("com.example.app", 1000)
        rate = drained / (time.perf_counter() - draining)
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
    print(json.dumps([ready, first, count, peak, rate]))

trio.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("batches", "size"), [(1_000, 1_000), (1_000_000, 1)], ids=["packed", "single"])
async def test_a_backlog_of_a_million_is_ready_at_once_and_takes_little_memory(tmp_path, batches, size):
    """D12."""
    path = tmp_path / "gateway.db"
    await backlog.fill(path, APP, batches, size)
    done = await trio.run_process(
        [sys.executable, "-c", REOPEN, str(path), "100000"], cwd=ROOT, capture_stdout=True
    )
    ready, first, count, peak, rate = json.loads(done.stdout)
    print(f"ready {ready:.2f} s, first claim {first:.2f} s, {peak / 1e6:.0f} MB, drained {rate:,.0f}/s")
    assert count == batches * size
    assert ready <= 2.0
    assert first <= 2.0
    assert peak <= 150e6
