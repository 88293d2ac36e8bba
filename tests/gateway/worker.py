"""A process with an outbox under load, to be killed: `python -m tests.gateway.worker PATH SETTINGS`.

It accepts batches, claims them, and settles them, as ingest and dispatcher would. Each acknowledgement and
each "sent" is a line on stdout, after the fact, as the answer to a client or the frame to APNs would be.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys

import trio

from fastpush.gateway.outbox import End, Entry, Idempotency, Retry
from fastpush.gateway.outbox.sqlite import OutboxLimits, open_outbox
from fastpush.gateway.storage import Limits, StorageUnknown, open_storage

APP = "com.example.app"


def tell(kind: str, names: list[str], **more: object) -> None:
    lines = [json.dumps({"kind": kind, "id": name} | more) + "\n" for name in names]
    os.write(1, "".join(lines).encode())


async def main(path: str, settings: dict) -> None:
    limits = Limits(
        low_water_octets=0, low_water_share=0.0, reserve_octets=4_096,
        synchronous=settings.get("synchronous", "FULL"),
    )  # fmt: skip
    chance = random.Random(settings["seed"])
    async with open_storage(path, limits) as storage:
        outbox = await open_outbox(storage, limits=OutboxLimits(ready_entries=500, pending_after=60.0))
        os.write(2, b"ready\n")

        def keyed(turn: int) -> bool:
            return bool(turn % 2) or settings.get("keyed", False)

        async def produce(producer: int) -> None:
            chance = random.Random(f"{settings['seed']} {producer}")
            for turn in range(settings.get("turns", 1 << 40)):
                size = chance.choice([1, 1, 1, 5, 40])
                names = [f"{settings['life']}-{producer}-{turn}-{index}" for index in range(size)]
                entries = [
                    Entry(name, b'{"aps":{}}', delivery="once" if index % 7 == 3 else "resend", trace=name)
                    for index, name in enumerate(names)
                ]
                tell("offer", names)
                key = names[0]
                idempotency = Idempotency("worker", key, hashlib.sha256(key.encode()).digest())
                try:
                    await outbox.accept(APP, entries, idempotency=idempotency if keyed(turn) else None)
                except StorageUnknown:
                    if keyed(turn):
                        acceptance = await outbox.accept(APP, entries, idempotency=idempotency)
                        assert acceptance.count == len(entries)
                        tell("ack", names)
                    else:
                        tell("nack", names, code="unknown")
                else:
                    tell("ack", names)

        async def send() -> None:
            seen = 0
            while True:
                claims = await outbox.claim(APP, 200)
                if not claims:
                    if settings.get("turns"):
                        parked = await storage.read(
                            lambda connection: connection.execute("SELECT count(*) FROM retry").fetchone()[0]
                        )
                        if not parked:
                            return
                        await trio.sleep(0.005)  # parked for a moment
                        continue
                    seen = await outbox.wait_for_work(seen)
                    continue
                now = 1_000.0
                ends, retries, sent = [], [], []
                for claim in claims:
                    if claim.attempts == 0 and chance.random() < 0.1:
                        retries.append(Retry(claim.batch, claim.index, now, 1, now, 503))
                        continue
                    sent.append(claim.entry.trace)
                    ends.append(End(claim.batch, claim.index, "accepted", now, 200, "", claim.attempts + 1))
                tell("seen", sent, fate="accepted")
                await outbox.settle(ends, retries)

        async with trio.open_nursery() as nursery:
            for producer in range(settings.get("producers", 8)):
                nursery.start_soon(produce, producer)
            if settings.get("sends", True):
                nursery.start_soon(send)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], json.loads(sys.argv[2]))
