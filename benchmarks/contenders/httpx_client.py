"""httpx as a contender: a general HTTP client under trio, as many tasks as there are streams."""

from __future__ import annotations

import uuid
from importlib.metadata import version

import httpx
import trio

from benchmarks import data
from benchmarks.contenders.stopwatch import Contest


async def main() -> None:
    contest = Contest()
    job = contest.job
    client = httpx.AsyncClient(
        base_url=f"https://{job.host}:{job.port}",
        http1=False,
        http2=True,
        verify=contest.tls_context(),
        limits=httpx.Limits(max_connections=1),
        timeout=60.0,
        headers={
            "authorization": "bearer " + job.provider_token,
            "apns-topic": data.TOPIC,
            "apns-push-type": data.PUSH_TYPE,
            "apns-priority": str(data.PRIORITY),
            "apns-expiration": str(data.EXPIRATION),
        },
    )

    async def send(device_tokens: list[str]) -> int:
        accepted = 0
        waiting = enumerate(device_tokens)

        async def work() -> None:
            nonlocal accepted
            for index, device_token in waiting:
                response = await client.post(
                    f"/3/device/{device_token}",
                    content=data.body(index),
                    headers={"apns-id": str(uuid.uuid4())},
                )
                accepted += response.status_code == 200

        async with trio.open_nursery() as nursery:
            for _ in range(min(job.streams, len(device_tokens))):
                nursery.start_soon(work)
        return accepted

    async with client:
        accepted = await send(contest.warm_up_tokens)
        with contest.measured():
            accepted += await send(contest.device_tokens)
    contest.report(accepted, f"httpx {version('httpx')}, h2 {version('h2')}")


trio.run(main)
