"""fastpush at a given rate, in an open loop; the first argument says how it is used.

stream  `send_many` over an async generator that yields each push when it is due; taken as `batches()`
tasks   a task for each push, started when it is due, which awaits `send`
"""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import trio

import fastpush
from benchmarks import data
from benchmarks.contenders.pacing import PacedJob, PacedReport
from benchmarks.contenders.stopwatch import cpu_seconds

AT_ONCE = 64  # without a rate: pushes between two looks at the clock
TASKS = 1_000  # without a rate: under way at once, of `tasks`


class Pacer:
    """The schedule, and when each push was intended, in hand and answered."""

    def __init__(self, job: PacedJob) -> None:
        self.job = job
        # Names of devices are at hand; a body is made for each push.
        self._tail = data.alert_body_for(0, job.body_octets)[len(data.DEVICES[0]) :]
        self._tokens = data.device_tokens(job.seed, 1 << 32)
        self.intended: list[float] = []
        self.submitted: list[float] = []
        self.answered: list[float] = []
        self.accepted = 0

    def push(self, intended: float) -> fastpush.Notification:
        """Make the next one. Its number is in the first eight digits of its device token."""
        index = len(self.intended)
        self.intended.append(intended)
        self.submitted.append(trio.current_time())
        self.answered.append(math.nan)
        body = data.DEVICES[index % len(data.DEVICES)] + self._tail
        alert = fastpush.Alert(title=data.TITLE, body=body)
        return fastpush.Notification(
            next(self._tokens),
            fastpush.Payload(alert=alert, sound=data.SOUND, thread_id=data.THREAD_ID),
            push_type=data.PUSH_TYPE,
            priority=data.PRIORITY,
            expiration=data.EXPIRATION,
        )

    def note(self, response: fastpush.Response, now: float) -> None:
        self.answered[int(response.notification.device_token[:8], 16)] = now
        self.accepted += response.accepted

    async def due(self) -> AsyncIterator[float]:
        """The intended time of each push, when it has come."""
        job, begun = self.job, trio.current_time()
        if not job.rate:
            while (now := trio.current_time()) < begun + job.seconds:
                for _ in range(AT_ONCE):
                    yield now
            return
        sent = 0
        for number in range(1, round(job.seconds / job.tick) + 1):
            tick = begun + number * job.tick
            await trio.sleep_until(tick)
            for _ in range(math.floor(number * job.tick * job.rate + 1e-6) - sent):
                sent += 1
                yield tick


async def stream(client: fastpush.Client, pacer: Pacer) -> None:
    async def pushes() -> AsyncIterator[fastpush.Notification]:
        async for intended in pacer.due():
            yield pacer.push(intended)

    async with client.send_many(pushes()) as responses:
        async for batch in responses.batches():
            now = trio.current_time()
            for response in batch:
                pacer.note(response, now)


async def tasks(client: fastpush.Client, pacer: Pacer) -> None:
    limit = trio.Semaphore(TASKS)

    async def send(push: fastpush.Notification) -> None:
        response = await client.send(push)
        pacer.note(response, trio.current_time())
        if not pacer.job.rate:
            limit.release()

    async with trio.open_nursery() as nursery:
        async for intended in pacer.due():
            if not pacer.job.rate and not limit.value:
                await limit.acquire()
                limit.release()
            if not pacer.job.rate:
                limit.acquire_nowait()
            nursery.start_soon(send, pacer.push(intended))


async def main() -> None:
    job, how = PacedJob.from_arguments(), {"stream": stream, "tasks": tasks}[sys.argv[1]]
    key = fastpush.SigningKey.from_file(Path(job.key_file), key_id=data.KEY_ID, team_id=data.TEAM_ID)
    async with fastpush.open_client(
        key,
        topic=data.TOPIC,
        host=job.host,
        port=job.port,
        ca_file=job.ca_file,
        max_connections=job.connections,
    ) as client:
        await client.wait_ready()
        pacer = Pacer(job)
        cpu = cpu_seconds()
        await how(client, pacer)
        cpu = cpu_seconds() - cpu
    rows = list(zip(pacer.intended, pacer.submitted, pacer.answered, strict=True))
    PacedReport.of(job, rows, pacer.accepted, cpu).print()


if __name__ == "__main__":
    trio.run(main)
