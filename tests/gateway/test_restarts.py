"""A restart or an upgrade under webhooks refuses no connection: the listening socket outlives the process."""

import json

import pytest
import trio

from fastpush.gateway.demo.sender import Sender
from fastpush.simulator import open_simulator
from tests.gateway.processes import (
    TOPIC,
    ask_control,
    drained,
    listening,
    running,
    until,
    write_settings,
)

PHONE = "ab" * 32
ROUTES = '[[routes]]\nname = "on call"\ntags = ["oncall"]\n'


@pytest.mark.slow
async def test_twenty_restarts_under_webhooks_refuse_none_and_lose_none(tmp_path):
    """Each alarm is posted once, on a connection of its own, as OpManager does, and is answered with 200.

    The simulator counts what arrives: each alarm once, by the id in its payload.
    """
    restarts, rate = 20, 50
    arrived = []
    async with open_simulator(topics=[TOPIC]) as simulator:
        simulator.on_delivery(PHONE, lambda each: arrived.append(json.loads(each.payload)["opm"]["id"]))
        with listening() as sockets:
            port = sockets[0].getsockname()[1]
            file = write_settings(tmp_path, simulator, ingest=f"fd://{sockets[0].fileno()}", more=ROUTES)
            answers, slowest = [], 0.0
            stop, more = trio.Event(), trio.Event()

            async def post(number):
                nonlocal slowest
                device = f"sw-{number:05}"
                alarm = {"displayName": device, "entity": f"{device}_Poll", "stringseverity": "Critical",
                         "message": "no answer"}  # fmt: skip
                begun = trio.current_time()
                async with Sender(port) as sender:
                    answer = await sender.post("/v1/opmanager", json.dumps(alarm).encode())
                slowest = max(slowest, trio.current_time() - begun)
                answers.append((answer.status, answer.body["id"]))
                more.set()

            async def some_answers():
                """Fifteen of this life, so that it ends in full flow."""
                nonlocal more
                before = len(answers)
                while len(answers) < before + 15:
                    more = trio.Event()
                    await more.wait()

            async def opmanager(nursery):
                started, number = trio.current_time(), 0
                while not stop.is_set():
                    nursery.start_soon(post, number)
                    number += 1
                    await trio.sleep_until(started + number / rate)

            async with trio.open_nursery() as posting:
                ends = []
                async with running(file, sockets=sockets) as gateway:
                    await register(tmp_path)
                    posting.start_soon(opmanager, posting)
                    await some_answers()
                    ends.append(await gateway.end())
                for _ in range(restarts - 1):
                    async with running(file, sockets=sockets) as gateway:
                        await some_answers()
                        ends.append(await gateway.end())
                async with running(file, sockets=sockets) as gateway:
                    stop.set()
                    await until(lambda: len(posting.child_tasks) == 0, 20)
                    await drained(tmp_path)
                    ends.append(await gateway.end())
    assert ends == [0] * (restarts + 1)
    assert len(answers) > 300
    assert {status for status, _ in answers} == {200}
    assert len(arrived) == len(set(arrived)), "doubled"
    assert set(arrived) == {name for _, name in answers}, "lost"
    print(f"{len(answers)} alarms over {restarts} restarts, the slowest answer took {slowest:.2f} s")


async def register(folder):
    """Put the phone into the registry, as an import would."""
    line = json.dumps({"device_token": PHONE, "tags": ["oncall"]}).encode() + b"\n"
    await ask_control(
        folder / "gateway.db.control", "/v1/devices?app=opm", "POST", line, "application/x-ndjson"
    )
