"""aioapns as a contender: asyncio over h2, as many tasks as there are streams."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib.metadata import version

from aioapns import APNs, NotificationRequest, PushType
from aioapns.connection import APNsProductionClientProtocol

from benchmarks import data
from benchmarks.contenders.stopwatch import Contest


async def main() -> None:
    contest = Contest()
    job = contest.job
    # It has no setting for the host.
    APNsProductionClientProtocol.APNS_SERVER = job.host
    APNsProductionClientProtocol.APNS_PORT = job.port
    client = APNs(
        key=contest.signing_key(),
        key_id=data.KEY_ID,
        team_id=data.TEAM_ID,
        topic=data.TOPIC,
        max_connections=1,
        ssl_context=contest.tls_context(),
    )

    async def send(device_tokens: list[str]) -> int:
        accepted = 0
        waiting: Iterator[tuple[int, str]] = enumerate(device_tokens)

        async def work() -> None:
            nonlocal accepted
            for index, device_token in waiting:
                request = NotificationRequest(
                    device_token,
                    data.content(index),
                    time_to_live=86_400,
                    priority=data.PRIORITY,
                    push_type=PushType.ALERT,
                )
                result = await client.send_notification(request)
                accepted += result.is_successful

        await asyncio.gather(*(work() for _ in range(job.streams)))
        return accepted

    accepted = await send(contest.warm_up_tokens)
    with contest.measured():
        accepted += await send(contest.device_tokens)
    contest.report(accepted, f"aioapns {version('aioapns')}, h2 {version('h2')}")


asyncio.run(main())
