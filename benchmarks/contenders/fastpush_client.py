"""fastpush as a contender, by its public interface; the first argument says how it is used.
A second one is the number of connections.

bulk     `send_many`, a payload and an alert made for every push, responses taken as `batches()`
each     the same, responses taken one by one
fan-out  `send_many`, one payload for all
awaited  `send`, awaited by as many tasks as there are streams; a payload and an alert made for every push
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import trio

import fastpush
from benchmarks import data
from benchmarks.contenders.stopwatch import Contest


def notifications(device_tokens: Iterable[str]) -> Iterator[fastpush.Notification]:
    """Make everything anew for each push: the text, the alert, the payload, the notification."""
    devices = itertools.cycle(data.DEVICES)
    for device_token, device in zip(device_tokens, devices, strict=False):
        alert = fastpush.Alert(title=data.TITLE, body=device + data.REMARK)
        payload = fastpush.Payload(alert=alert, sound=data.SOUND, thread_id=data.THREAD_ID)
        yield fastpush.Notification(
            device_token,
            payload,
            push_type=data.PUSH_TYPE,
            priority=data.PRIORITY,
            expiration=data.EXPIRATION,
        )


def notifications_of_one_payload(device_tokens: Iterable[str]) -> Iterator[fastpush.Notification]:
    alert = fastpush.Alert(title=data.TITLE, body=data.alert_body(0))
    payload = fastpush.Payload(alert=alert, sound=data.SOUND, thread_id=data.THREAD_ID)
    for device_token in device_tokens:
        yield fastpush.Notification(
            device_token,
            payload,
            push_type=data.PUSH_TYPE,
            priority=data.PRIORITY,
            expiration=data.EXPIRATION,
        )


async def bulk(client: fastpush.Client, device_tokens: list[str]) -> int:
    accepted = 0
    async with client.send_many(notifications(device_tokens)) as responses:
        async for batch in responses.batches():
            for response in batch:
                accepted += response.accepted
    return accepted


async def each(client: fastpush.Client, device_tokens: list[str]) -> int:
    accepted = 0
    async with client.send_many(notifications(device_tokens)) as responses:
        async for response in responses:
            accepted += response.accepted
    return accepted


async def fan_out(client: fastpush.Client, device_tokens: list[str]) -> int:
    accepted = 0
    async with client.send_many(notifications_of_one_payload(device_tokens)) as responses:
        async for batch in responses.batches():
            for response in batch:
                accepted += response.accepted
    return accepted


async def awaited(client: fastpush.Client, device_tokens: list[str], tasks: int) -> int:
    accepted = 0
    waiting = notifications(device_tokens)

    async def work() -> None:
        nonlocal accepted
        for one in waiting:
            response = await client.send(one)
            accepted += response.accepted

    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(work)
    return accepted


async def main() -> None:
    contest = Contest()
    job, how = contest.job, sys.argv[1]
    connections = int(sys.argv[2]) if len(sys.argv) > 3 else 1

    async def send(device_tokens: list[str]) -> int:
        if how == "awaited":
            return await awaited(client, device_tokens, connections * job.streams)
        return await {"bulk": bulk, "each": each, "fan-out": fan_out}[how](client, device_tokens)

    key = fastpush.SigningKey.from_file(Path(job.key_file), key_id=data.KEY_ID, team_id=data.TEAM_ID)
    async with fastpush.open_client(
        key, topic=data.TOPIC, host=job.host, port=job.port, ca_file=job.ca_file, max_connections=connections
    ) as client:
        await client.wait_ready()
        accepted = await send(contest.warm_up_tokens)
        with contest.measured():
            accepted += await send(contest.device_tokens)
    contest.report(accepted, f"trio {trio.__version__}, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    trio.run(main)
