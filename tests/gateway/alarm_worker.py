"""A process that takes alarms, to be killed: `python -m tests.gateway.alarm_worker PATH SETTINGS`.

Each event that was recorded is a line on stdout, after the fact, as the answer to OpManager would be.
"""

from __future__ import annotations

import json
import os
import random
import sys

import trio

from fastpush.gateway.alarm_book import open_alarms
from fastpush.gateway.outbox.sqlite import open_outbox
from fastpush.gateway.routes import Route, Routes
from fastpush.gateway.sources import Event
from fastpush.gateway.storage import Limits, open_storage

APP = "com.example.opmanager"
ROUTES = Routes(
    [
        Route(name="all", tags=("net",)),
        Route(name="worst", tags=("duty",), severity=("critical", "service_down")),
    ]
)
WORDS = ["critical", "service_down", "trouble", "attention", "info", "clear", "clear", "clear"]


def tell(**event: object) -> None:
    os.write(1, (json.dumps(event) + "\n").encode())


async def main(path: str, settings: dict) -> None:
    limits = Limits(low_water_octets=0, low_water_share=0.0, reserve_octets=4_096)
    chance = random.Random(settings["seed"])
    async with open_storage(path, limits) as storage, trio.open_nursery() as nursery:
        outbox = await open_outbox(storage)
        alarms = await open_alarms(storage, outbox, ROUTES, app=APP)
        tell(kind="ready", count=alarms.open_count(APP, ["net"]))
        os.write(2, b"ready\n")

        async def post(producer: int) -> None:
            for turn in range(settings.get("turns", 1 << 40)):
                entity = f"e{chance.randrange(200)}"  # others post about the same alarms
                if chance.random() < 0.1:
                    name = settings["names"].get(entity)
                    if name is not None:
                        await alarms.acknowledge(name, f"user {producer}")
                    continue
                event = Event(
                    source="opm1",
                    entity=entity,
                    device=entity,
                    severity=chance.choice(WORDS),
                    message=chance.choice(["a", "b"]),
                    raw=f"{producer} {turn}",
                )
                recorded = await alarms.record(event)
                settings["names"][entity] = recorded.id
                tell(kind="ack", id=recorded.id, rule=recorded.rule, push=recorded.push)

        settings["names"] = {}
        for producer in range(settings.get("producers", 16)):
            nursery.start_soon(post, producer)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], json.loads(sys.argv[2]))
