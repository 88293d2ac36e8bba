"""fastpush over a generator of notifications; reports its CPU, its memory and its system calls."""

from __future__ import annotations

import json
import time
from pathlib import Path

import trio

import fastpush
from benchmarks import data
from benchmarks.contenders import Job
from benchmarks.contenders.fastpush_client import notifications
from benchmarks.contenders.stopwatch import cpu_seconds, status_octets


async def main() -> None:
    job = Job.from_arguments()
    key = fastpush.SigningKey.from_file(Path(job.key_file), key_id=data.KEY_ID, team_id=data.TEAM_ID)
    accepted = octets_early = 0
    async with fastpush.open_client(
        key,
        topic=data.TOPIC,
        host=job.host,
        port=job.port,
        ca_file=job.ca_file,
        max_connections=job.connections,
    ) as client:
        await client.wait_ready()
        cpu, wall = cpu_seconds(), time.perf_counter()
        # The device tokens, too, are made on the way: their cost is in the figure.
        source = notifications(data.device_tokens(job.seed, job.pushes))
        async with client.send_many(source) as responses:
            async for batch in responses.batches():
                for response in batch:
                    accepted += response.accepted
                if not octets_early and accepted >= job.pushes // 100:
                    octets_early = status_octets("VmRSS")
        cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
        connections = client.statistics().connections
        report = {
            "accepted": accepted,
            "cpu_seconds": cpu,
            "wall_seconds": wall,
            "octets_early": octets_early,
            "octets_late": status_octets("VmRSS"),
            "peak_octets": status_octets("VmHWM"),
            "write_calls": sum(one.write_calls for one in connections),
            "connections": sum(one.requests > 0 for one in connections),
        }
    print(json.dumps(report), flush=True)


trio.run(main)
