"""docs/client.md names all that a client has, and what it shows runs."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastpush
from fastpush import apart, client, connection, events, pool, retry
from fastpush.simulator import open_simulator
from tests.peers import TOPIC, push, pushes

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs/client.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
EVENTS = [
    events.Connected,
    events.Draining,
    events.Lost,
    events.CredentialWasRefused,
    events.DeviceTokenDead,
]


def public(kind):
    return [name for name in vars(kind) if not name.startswith("_")]


@pytest.mark.parametrize(
    "name",
    [
        *inspect.signature(fastpush.open_client).parameters,
        *public(fastpush.Client),
        *public(fastpush.Responses),
        *(field.name for field in dataclasses.fields(events.ClientStatistics)),
        *(field.name for field in dataclasses.fields(events.ConnectionStatistics)),
    ],
)
def test_every_name_is_explained(name):
    assert re.search(rf"`[^`]*\b{name}\b[^`]*`", DOCUMENT)


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_is_explained_with_its_fields(event):
    assert f"`{event.__name__}({', '.join(event._fields)})`" in DOCUMENT


def test_no_event_is_left_out():
    assert set(events.ClientEvent.__args__) == set(EVENTS)


def test_the_figures_are_those_of_the_code():
    for words in (
        f"up to {client.DRAIN_WITHIN:g} s for what is queued",
        "without an answer, after three answers 500 in a row" * (connection.STRIKES == 3),
        f"{connection.REQUEST_WITHIN:g} s passed without an answer",
        f"goes on for up to {connection.DRAIN_WITHIN:g} s",
        f"nothing comes for {connection.SILENCE_IN_FLIGHT:g} s",
        f"Three attempts within {retry.PATIENCE:g} s" * (retry.MAX_ATTEMPTS == 3),
        f"lost {pool.STALL_BEFORE_GROWTH * 1000:g} ms",
        f"back-off of up to {retry.MAX_BACKOFF:g} s",
    ):
        assert words
        assert words in DOCUMENT.replace("\n", " ")
    assert pool.WARM_CONNECTIONS == 2
    assert apart.REJECTED_LATELY == 600
    assert pool.PROBE_EVERY == 60


def test_the_program_runs():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKS[0]], capture_output=True, cwd=ROOT, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("block", BLOCKS[1:], ids=range(len(BLOCKS) - 1))
async def test_the_fragments_run(block, capsys):
    async with open_simulator() as apns:
        key = apns.signing_key()
        where = {"host": apns.host, "port": apns.port, "ca_file": apns.ca_file}
        apns.mark_unregistered(push(1).device_token)
        async with fastpush.open_client(key, topic=TOPIC, **where) as it:
            names = {
                "fastpush": fastpush, "client": it, "key": key, "where": where,
                "notification": push(1), "notifications": pushes(100),
            }  # fmt: skip
            code = compile(block, "docs/client.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            running = eval(code, names)
            if running is not None:
                await running
        if "dead" in names:
            assert names["dead"] == [push(1).device_token]
        if "print(response.outcome, response.status" in block:
            assert capsys.readouterr().out == "rejected 410 Unregistered\n"
