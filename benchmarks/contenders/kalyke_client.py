"""kalyke-apns as a contender: it signs a provider token and opens a connection for every message."""

from __future__ import annotations

import asyncio
import os
import uuid
from importlib.metadata import version

from kalyke import ApnsClient, ApnsConfig, ApnsPriority, ApnsPushType  # type: ignore[import-not-found,unused-ignore]

from benchmarks import data
from benchmarks.contenders.stopwatch import Contest

AT_ONCE = 10  # connections, each used once


async def main() -> None:
    contest = Contest()
    job = contest.job
    # It has no setting for the authorities to trust, nor for the host.
    os.environ["SSL_CERT_FILE"] = job.ca_file

    class Client(ApnsClient):  # type: ignore[misc,unused-ignore]
        @property
        def _base_url(self) -> str:
            return f"https://{job.host}:{job.port}"

    client = Client(
        use_sandbox=False, team_id=data.TEAM_ID, auth_key_id=data.KEY_ID, auth_key_filepath=job.key_file
    )

    async def send(device_tokens: list[str]) -> int:
        accepted = 0
        waiting = enumerate(device_tokens)

        async def work() -> None:
            nonlocal accepted
            for index, device_token in waiting:
                config = ApnsConfig(
                    topic=data.TOPIC,
                    push_type=ApnsPushType.ALERT,
                    identifier=str(uuid.uuid4()),
                    priority=ApnsPriority.IMMEDIATELY,
                    expiration=data.EXPIRATION,
                )
                await client.send_message(device_token, data.content(index), config)
                accepted += 1

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        return accepted

    accepted = await send(contest.warm_up_tokens)
    with contest.measured():
        accepted += await send(contest.device_tokens)
    contest.report(accepted, f"kalyke-apns {version('kalyke-apns')}, httpx2 {version('httpx2')}")


asyncio.run(main())
