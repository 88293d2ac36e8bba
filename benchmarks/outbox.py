"""The outbox: accepted, claimed and settled on disk, with the trio thread idle and with it saturated.

Saturated means that another task keeps Python busy, lets other tasks run only each millisecond, and makes a
system call each 100 us, as a loop that serves sockets does: each lets go of Python's lock and takes it back
at once. The disk's own rate of flushes stands beside it: a commit cannot be faster.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

from benchmarks import data, measure
from benchmarks.reporting import Table
from fastpush.gateway.outbox import Audience, End, Entry
from fastpush.gateway.outbox.sqlite import OutboxLimits, open_outbox
from fastpush.gateway.storage import Limits, open_storage

APP = "com.example.app"
LIMITS = Limits(low_water_octets=0, low_water_share=0.0)
CASES = [(FANOUT := 0, 1), (1, 64), (100, 16), (1_000, 4)]
"""Notifications to a batch, and how many batches are under way at once; fan-outs come each 10 ms."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure (default 3)")
    parser.add_argument("--directory", help="on the disk to measure (default: the current one)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    directory = arguments.directory or os.getcwd()
    figures = []
    for size, senders in CASES:
        for saturated in (False, True):
            with tempfile.TemporaryDirectory(dir=directory) as folder:
                figures.append(
                    trio.run(measure_one, Path(folder), size, senders, saturated, arguments.seconds)
                )
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        flushes = flushes_of_the_disk(Path(folder) / "probe", arguments.seconds)
    return {
        "benchmark": "outbox",
        "conditions": measure.conditions(),
        "figures": figures,
        "flushes_per_second": flushes,
    }


def flushes_of_the_disk(path: Path, seconds: float) -> float:
    """fdatasync of 4 KiB, one after the other."""
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        started, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - started) < seconds:
            os.pwrite(file, bytes(4_096), 4_096 * (count % 256))
            os.fdatasync(file)
            count += 1
        return count / passed
    finally:
        os.close(file)


async def measure_one(
    folder: Path, size: int, senders: int, saturated: bool, seconds: float
) -> dict[str, Any]:
    tokens = list(data.device_tokens(1, 10_000))
    waits: list[float] = []
    ended = 0
    async with open_storage(folder / "gateway.db", LIMITS) as storage:
        outbox = await open_outbox(storage, limits=OutboxLimits(pending_after=60.0))

        async def accept(sender: int) -> None:
            number = sender * 1_000
            while True:
                entries = [
                    Entry(
                        tokens[(number + index) % len(tokens)],
                        data.body(number + index),
                        expiration=1_900_000_000,
                    )
                    for index in range(size)
                ]
                number += size
                started = time.perf_counter()
                await outbox.accept(APP, entries)
                waits.append(time.perf_counter() - started)

        async def fan_out() -> None:
            audience, entry = Audience(any_of=("all",)), Entry(None, data.body(1), expiration=1_900_000_000)
            while True:
                started = time.perf_counter()
                acceptance = await outbox.accept_fanout(APP, audience, entry)
                waits.append(time.perf_counter() - started)
                await outbox.settle_page(acceptance.batch, "", accepted=0, ends=[], retries=[], last=True)
                await trio.sleep(0.01)  # the pace of this case, see CASES

        async def settle() -> None:
            nonlocal ended
            seen = 0
            while True:
                claims = await outbox.claim(APP, 1_000)
                if not claims:
                    seen = await outbox.wait_for_work(seen)
                    continue
                now = time.time()
                await outbox.settle([End(claim.batch, claim.index, "accepted", now, 200) for claim in claims])
                ended += len(claims)

        async def keep_busy() -> None:
            one, other = socket.socketpair()
            with one, other:
                while True:
                    until = time.perf_counter() + 0.001
                    while (now := time.perf_counter()) < until:
                        while time.perf_counter() < now + 100e-6:
                            sum(range(20))
                        one.send(b"x")
                        other.recv(1)
                    await trio.lowlevel.checkpoint()

        cpu = time.process_time()
        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            if saturated:
                nursery.start_soon(keep_busy)
            if size == FANOUT:
                nursery.start_soon(fan_out)
            else:
                for sender in range(senders):
                    nursery.start_soon(accept, sender)
                for _ in range(2):
                    nursery.start_soon(settle)
            await trio.sleep(seconds)
            passed = time.perf_counter() - started
            cpu = time.process_time() - cpu
            accepted, done = len(waits) * max(1, size), ended
            nursery.cancel_scope.cancel()
        figures = storage.statistics()
    waits.sort()
    return {
        "batch": size,
        "at_once": senders,
        "saturated": saturated,
        "accepted_per_second": accepted / passed,
        "ended_per_second": done / passed,
        "cpu_microseconds": None
        if saturated or size == FANOUT
        else 1e6 * cpu / max(1, (accepted + done) / 2),
        "commit_p50": figures.commit_p50,
        "commit_p99": figures.commit_p99,
        "accept_p50": statistics.median(waits) if waits else math.inf,
        "accept_p99": waits[int(len(waits) * 0.99)] if waits else math.inf,
        "commits": figures.commits,
    }


def table(result: dict[str, Any]) -> Table:
    rows = Table(
        "outbox: accepted with fsync, claimed, and ends recorded with fsync",
        (
            "batch x at once",
            "trio thread",
            "accepted/s",
            "ended/s",
            "us CPU each",
            "commit p50",
            "p99",
            "accept p50",
            "p99",
        ),
    )
    for one in result["figures"]:
        rows.add(
            f"{one['batch']:,} x {one['at_once']}" if one["batch"] else "a fan-out",
            "saturated" if one["saturated"] else "free",
            f"{one['accepted_per_second']:,.0f}",
            f"{one['ended_per_second']:,.0f}",
            "" if one["cpu_microseconds"] is None else f"{one['cpu_microseconds']:.1f}",
            *(
                f"{1e3 * one[name]:.1f} ms"
                for name in ("commit_p50", "commit_p99", "accept_p50", "accept_p99")
            ),
        )
    rows.note(f"the disk alone: {result['flushes_per_second']:,.0f} flushes of 4 KiB a second")
    return rows
