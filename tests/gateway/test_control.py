"""The door to a gateway's administration: its socket while it runs, its file while it is stopped."""

import json
import os
import shutil
import socket
import stat
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from fastpush.cli.control import Refused, open_control
from fastpush.cli.running import Failure
from fastpush.gateway.control import is_trusted, socket_path, trusted
from fastpush.gateway.http import open_listener, serve
from fastpush.gateway.outbox import Entry
from fastpush.gateway.outbox.sqlite import open_outbox
from fastpush.gateway.problems import Problem
from fastpush.gateway.storage import open_storage

ROOT = Path(__file__).resolve().parent.parent.parent


async def echo(scope, receive, send):
    """Tells what it was asked; `/problem` refuses, `/many` streams back, `/early` does not read."""
    if scope["type"] != "http":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return

    async def body():
        while True:
            message = await receive()
            yield message.get("body", b"")
            if not message.get("more_body"):
                return

    async def answer(status, content, kind=b"application/json"):
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        async for chunk in content:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def one(content):
        yield content

    path = scope["path"]
    if path == "/many":
        await answer(200, body(), b"application/x-ndjson")
    elif path == "/early":
        await answer(413, one(Problem(413, "too large", "enough").body()), b"application/problem+json")
    elif path == "/problem":
        problem = Problem(409, "in use", "it is paused already", field="app", stored=False)
        await answer(409, one(problem.body()), b"application/problem+json")
    elif path == "/nothing":
        await answer(204, one(b""))
    elif path == "/garbage":
        await answer(500, one(b"<h1>no</h1>"), b"text/html")
    else:
        told = {
            "method": scope["method"],
            "path": path,
            "query": scope["query_string"].decode(),
            "body": b"".join([part async for part in body()]).decode(),
            "trusted": is_trusted(scope),
        }
        await answer(200, one(json.dumps(told).encode()))


@asynccontextmanager
async def running(database):
    """A gateway's control socket, with `echo` behind it."""
    async with trio.open_nursery() as nursery:
        listener = open_listener(f"unix:{socket_path(database)}", mode=0o600)
        await nursery.start(serve, trusted(echo), [listener])
        yield listener
        nursery.cancel_scope.cancel()


@pytest.fixture
async def database(tmp_path):
    return tmp_path / "gateway.db"


async def test_a_running_gateway_is_asked_over_its_socket(database):
    async with running(database):
        assert stat.S_IMODE(socket_path(database).stat().st_mode) == 0o600
        async with open_control(database) as control:
            assert control.running
            told = await control.ask(
                "POST", "/v1/outbox/a%20b/pause", {"why": "night"}, app="x y", after=None
            )
            assert told == {
                "method": "POST",
                "path": "/v1/outbox/a b/pause",
                "query": "app=x+y",
                "body": '{"why":"night"}',
                "trusted": True,
            }
            assert await control.ask("DELETE", "/nothing") is None
            with pytest.raises(Refused) as refused:
                await control.ask("POST", "/problem")
            assert str(refused.value) == "in use: it is paused already (app)"
            assert (refused.value.status, refused.value.members["stored"]) == (409, False)
            with pytest.raises(Refused, match="the gateway answered 500"):
                await control.ask("GET", "/garbage")


async def test_a_long_body_goes_up_while_its_answer_comes_down(database):
    sent = 0

    async def lines():
        nonlocal sent
        for number in range(2_000):
            sent += 1
            yield b'{"number":%d}\n' % number + b" " * 1_000

    async with running(database), open_control(database) as control:
        got = b""
        async with control.stream("POST", "/many", lines()) as chunks:
            async for chunk in chunks:
                if not got:
                    assert sent < 2_000, "the whole body was sent before the first answer"
                got += chunk
        assert [json.loads(line)["number"] for line in got.split(b"\n")[:-1]] == list(range(2_000))
        with pytest.raises(Refused, match="too large: enough"):
            async with control.stream("POST", "/early", lines()):
                pass


async def test_a_client_on_another_listener_is_not_trusted():
    forged = {"type": "http", "state": {}, "headers": [(b"control", b"true")]}
    assert not is_trusted(forged)
    assert not is_trusted({"type": "http"})


async def test_a_socket_that_a_dead_process_left_is_no_gateway(database):
    left = socket.socket(socket.AF_UNIX)
    left.bind(os.fspath(socket_path(database)))
    left.close()
    with pytest.raises(Failure, match=r"gateway\.db does not exist, and no gateway listens at"):
        async with open_control(database):
            pass
    assert not database.exists()


async def test_a_process_that_holds_the_file_and_does_not_listen_is_told_of(database):
    async with open_storage(database):
        with pytest.raises(Failure) as refused:
            async with open_control(database):
                pass
    said = str(refused.value)
    assert f"in use by another process (its id is {os.getpid()})" in said
    assert said.endswith(
        "It does not listen at " + f"{socket_path(database)}: is it starting, or no gateway?"
    )
    assert "\n" not in said


AS_ANOTHER = """
import os, sys, trio
from fastpush.cli.control import open_control
from fastpush.cli.running import Failure
os.setgid(65534); os.setuid(65534)
async def main():
    async with open_control(sys.argv[1]): pass
try:
    trio.run(main)
except Failure as failure:
    print(failure)
"""


@pytest.mark.parametrize("state", ["running", "stopped"])
async def test_another_users_gateway_is_told_as_such(state):
    if os.geteuid() != 0:
        pytest.skip("becoming another user takes root")
    # pytest's own directories are closed to others.
    folder = Path("/tmp") / f"fastpush-control-{os.getpid()}-{state}"
    folder.mkdir(mode=0o755)
    database = folder / "gateway.db"
    try:
        async with open_storage(database):
            pass

        async def ask():
            done = await trio.run_process(
                [sys.executable, "-c", AS_ANOTHER, str(database)], cwd=ROOT, capture_stdout=True
            )
            return done.stdout.decode()

        if state == "running":
            async with running(database):
                said = await ask()
            assert f"{socket_path(database)} belongs to the user root, not to you" in said
        else:
            said = await ask()
            assert f"{database} belongs to the user root, not to you" in said
        assert "sudo -u root fastpush" in said
    finally:
        shutil.rmtree(folder)


async def test_a_stopped_gateways_file_is_opened_and_answers_the_same(database):
    async with open_storage(database) as storage:
        outbox = await open_outbox(storage)
        await outbox.accept("com.example.app", [Entry("ab" * 32, b"{}"), Entry("cd" * 32, b"{}")])
    async with open_control(database) as control:
        assert not control.running
        found = await control.ask("GET", "/v1/outbox")
        (app,) = found["apps"]
        assert (app["app"], app["waiting"], app["paused"]) == ("com.example.app", 2, False)
        assert (await control.ask("POST", "/v1/outbox/com.example.app/pause"))["paused"]
        assert await control.ask("POST", "/v1/outbox/com.example.app/purge") == {
            "app": "com.example.app",
            "purged": 2,
        }
        with pytest.raises(Refused, match="no such app: The outbox knows these apps: "):
            await control.ask("POST", "/v1/outbox/other/pause")
        copy = database.with_name("copy.db")
        made = await control.ask("POST", "/v1/backup", {"destination": str(copy)})
        assert made == {"destination": str(copy), "octets": copy.stat().st_size}
        with pytest.raises(Refused, match="is the database itself"):
            await control.ask("POST", "/v1/backup", {"destination": str(database)})
        async with control.stream("GET", "/v1/outbox") as chunks:
            assert json.loads(b"".join([chunk async for chunk in chunks]))["apps"][0]["waiting"] == 0
    async with open_storage(database) as storage:  # and it is free again, with what was done
        assert (await open_outbox(storage)).waiting()["com.example.app"].paused
