"""The gateway below its listeners, in a process of its own: outbox, registry of devices, dispatcher, client.

The first argument says what is done with the job's pushes:

batches    accepted in batches of 1,000, sent, and their outcomes written
parts      the same work part by part, each alone: accepting, claiming and settling, making, sending
fan-out    one notification accepted for that many devices, sent, and its outcomes written
send-many  what a fan-out is compared with: `send_many` of the same notifications
backlog    accepted while nothing is sent; then the memory, and the drain
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import trio

import fastpush
from benchmarks import data
from benchmarks.contenders import Job
from benchmarks.contenders.stopwatch import cpu_seconds, status_octets
from fastpush.gateway.apps import Apps, AppSettings, CredentialSettings
from fastpush.gateway.devices import Devices, Registration, open_devices
from fastpush.gateway.dispatcher import Dispatcher
from fastpush.gateway.dispatcher.making import Maker
from fastpush.gateway.outbox import Audience, Claimed, End, Entry
from fastpush.gateway.outbox.sqlite import OutboxLimits, SqliteOutbox, open_outbox
from fastpush.gateway.storage import Limits, Storage, open_storage

APP = "opmanager"
BATCH = 1_000
AT_ONCE = 8
LIMITS = Limits(low_water_octets=0, low_water_share=0.0)


class Watch:
    """CPU of the process and time on the clock, by name."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        cpu, wall = cpu_seconds(), time.perf_counter()
        yield
        self.figures[name] = {"cpu_seconds": cpu_seconds() - cpu, "wall_seconds": time.perf_counter() - wall}


class House(NamedTuple):
    storage: Storage
    outbox: SqliteOutbox
    devices: Devices
    apps: Apps
    client: fastpush.Client

    async def fill(self, count: int) -> None:
        """Have that many devices, without tags, by one statement."""
        await self.devices.register(APP, Registration(device_token="00" * 32))
        number = await self.storage.read(
            lambda connection: connection.execute("SELECT app, environment FROM audience").fetchone()
        )
        await self.storage.write(
            lambda connection: connection.execute(
                "WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
                " INSERT INTO audience SELECT ?, '', randomblob(32), ? FROM n",
                (count, *number),
            )
        )


@asynccontextmanager
async def open_house(job: Job) -> AsyncGenerator[tuple[House, trio.Nursery], None]:
    key = fastpush.SigningKey.from_file(Path(job.key_file), key_id=data.KEY_ID, team_id=data.TEAM_ID)
    settings = AppSettings(
        name=APP, topic=data.TOPIC, credential=CredentialSettings(), host=job.host, port=job.port,
        ca_file=Path(job.ca_file), max_connections=job.connections,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=os.environ.get("FASTPUSH_BENCHMARK_DIRECTORY")) as folder:
        async with (
            open_storage(Path(folder) / "gateway.db", LIMITS) as storage,
            trio.open_nursery() as nursery,
        ):
            outbox = await open_outbox(storage, limits=OutboxLimits(pending_after=60.0))
            await nursery.start(outbox.run)
            apps = await nursery.start(Apps([settings], credentials={APP: key}).run)
            while apps[APP].client is None:
                await apps[APP].line("production").changed()
            await apps[APP].client.wait_ready()
            devices = await open_devices(storage)
            await nursery.start(devices.run)
            yield House(storage, outbox, devices, apps, apps[APP].client), nursery
            nursery.cancel_scope.cancel()


def entry(device_token: str | None, number: int) -> Entry:
    return Entry(device_token, data.body(number), expiration=data.EXPIRATION)


async def accept(outbox: SqliteOutbox, tokens: Sequence[str]) -> None:
    """In batches of 1,000, some at once."""
    starts = iter(range(0, len(tokens), BATCH))

    async def work() -> None:
        for start in starts:
            batch = tokens[start : start + BATCH]
            await outbox.accept(APP, [entry(each, start + place) for place, each in enumerate(batch)])

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(work)


class Counter:
    """Counts outcomes, and tells when all are there."""

    def __init__(self, expected: int) -> None:
        self.left = expected
        self.accepted = 0
        self.done = trio.Event()

    def heard(self, outcomes: Any) -> None:
        accepted = outcomes.accepted + sum([end.outcome == "accepted" for end in outcomes.ends])
        self.accepted += accepted
        self.left -= outcomes.accepted + len(outcomes.ends)
        if self.left <= 0:
            self.done.set()


async def batches(job: Job, watch: Watch) -> int:
    tokens = list(data.device_tokens(job.seed, job.warm_up + job.pushes))
    accepted = 0
    async with open_house(job) as (house, nursery):
        dispatcher = Dispatcher(house.outbox, house.devices, house.apps)
        await nursery.start(dispatcher.run)
        for name, part in (("warm-up", tokens[: job.warm_up]), ("batches", tokens[job.warm_up :])):
            counter = Counter(len(part))
            dispatcher.on_outcomes(counter.heard)
            with watch.measured(name):
                await accept(house.outbox, part)
                await counter.done.wait()
            accepted += counter.accepted
    return accepted


async def parts(job: Job, watch: Watch) -> int:
    tokens = list(data.device_tokens(job.seed, job.pushes))
    accepted = 0
    async with open_house(job) as (house, _):
        with watch.measured("accept"):
            await accept(house.outbox, tokens)
        claims: list[Claimed] = []
        with watch.measured("claim"):
            while found := await house.outbox.claim(APP, BATCH):
                claims += found
        maker = Maker(APP, None)
        with watch.measured("make"):
            made = [maker.notification(claim) for claim in claims]
        with watch.measured("send"):
            async with house.client.send_many(made) as responses:
                async for batch in responses.batches():
                    accepted += sum([response.accepted for response in batch])
        with watch.measured("settle"):
            now = time.time()
            for start in range(0, len(claims), BATCH):
                await house.outbox.settle(
                    [
                        End(claim.batch, claim.index, "accepted", now, 200)
                        for claim in claims[start : start + BATCH]
                    ]
                )
    return accepted


async def fan_out(job: Job, watch: Watch) -> int:
    accepted = 0
    async with open_house(job) as (house, nursery):
        await house.fill(job.pushes)
        dispatcher = Dispatcher(house.outbox, house.devices, house.apps)
        await nursery.start(dispatcher.run)
        waits = []
        counter = Counter(job.pushes)
        dispatcher.on_outcomes(counter.heard)
        with watch.measured("fan-out"):
            started = time.perf_counter()
            await house.outbox.accept_fanout(APP, Audience(), entry(None, 0))
            waits.append(time.perf_counter() - started)
            await counter.done.wait()
        accepted += counter.accepted
    watch.figures["acceptance"] = waits
    return accepted


async def acceptance(job: Job, watch: Watch) -> int:
    """How long it takes to accept a fan-out to all of them, one after the other and with nothing sent."""
    waits = []
    async with open_house(job) as (house, _):
        await house.fill(job.pushes)
        await house.outbox.pause(APP)
        for _ in range(300):
            started = time.perf_counter()
            await house.outbox.accept_fanout(APP, Audience(), entry(None, 0))
            waits.append(time.perf_counter() - started)
    watch.figures["waits"] = sorted(waits)
    return job.pushes


async def backlog(job: Job, watch: Watch) -> int:
    """Accepted while the app is paused; then the memory, and the drain."""
    async with open_house(job) as (house, nursery):
        await house.outbox.pause(APP)
        dispatcher = Dispatcher(house.outbox, house.devices, house.apps)
        await nursery.start(dispatcher.run)
        counter = Counter(job.pushes)
        dispatcher.on_outcomes(counter.heard)
        tokens = data.device_tokens(job.seed, job.pushes)
        for _ in range(job.pushes // BATCH):
            await house.outbox.accept(APP, [entry(next(tokens), place) for place in range(BATCH)])
        watch.figures["waiting_octets"] = status_octets("VmRSS")
        with watch.measured("backlog"):
            await house.outbox.resume(APP)
            await counter.done.wait()
    return counter.accepted


async def send_many(job: Job, watch: Watch) -> int:
    """Of the same fields, out of a generator."""
    tokens = list(data.device_tokens(job.seed, job.pushes))
    payload = fastpush.Payload.raw(data.body(0))

    def notifications() -> Iterator[fastpush.Notification]:
        for device_token in tokens:
            yield fastpush.Notification(
                device_token,
                payload,
                push_type=data.PUSH_TYPE,
                priority=data.PRIORITY,
                expiration=data.EXPIRATION,
                collapse_id=data.THREAD_ID,
            )

    accepted = 0
    async with open_house(job) as (house, _):
        with watch.measured("send-many"):
            async with house.client.send_many(notifications()) as responses:
                async for batch in responses.batches():
                    for response in batch:
                        accepted += response.accepted
    return accepted


HOW: dict[str, Callable[[Job, Watch], Any]] = {
    "batches": batches,
    "parts": parts,
    "fan-out": fan_out,
    "send-many": send_many,
    "acceptance": acceptance,
    "backlog": backlog,
}


async def main() -> None:
    watch = Watch()
    job = Job.from_arguments()
    accepted = await HOW[sys.argv[1]](job, watch)
    print(
        json.dumps({"accepted": accepted, "peak_octets": status_octets("VmHWM")} | watch.figures), flush=True
    )


if __name__ == "__main__":
    trio.run(main)
