"""`fastpush outbox` and `fastpush backup`, on a gateway that runs and on one that does not."""

import json
import os
import sqlite3
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from fastpush.gateway.control import socket_path, trusted
from fastpush.gateway.http import open_listener, serve
from fastpush.gateway.offline import open_administration
from fastpush.gateway.outbox import Audience, Entry
from fastpush.gateway.outbox.sqlite import open_outbox
from fastpush.gateway.storage import open_storage

ROOT = Path(__file__).resolve().parent.parent.parent
APP = "com.example.a-rather-long-name.opmanager"


async def fastpush(*arguments, code=0, **environment):
    done = await trio.run_process(
        [sys.executable, "-m", "fastpush", *map(str, arguments)], cwd=ROOT, check=False,
        capture_stdout=True, capture_stderr=True, env=os.environ | environment,
    )  # fmt: skip
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == code, out + err
    return out, err


@pytest.fixture
async def database(tmp_path):
    path = tmp_path / "gateway.db"
    async with open_storage(path) as storage:
        outbox = await open_outbox(storage)
        await outbox.accept(APP, [Entry("ab" * 32, b"{}")] * 1_200)
        await outbox.accept_fanout("b", Audience(), Entry(None, b"{}"))
    return path


@asynccontextmanager
async def stopped(path):
    yield


@asynccontextmanager
async def running(path):
    async with (
        open_storage(path) as storage,
        open_administration(storage) as application,
        trio.open_nursery() as nursery,
    ):
        listener = open_listener(f"unix:{socket_path(path)}", mode=0o600)
        await nursery.start(serve, trusted(application), [listener])
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("gateway", [stopped, running])
async def test_an_operators_hand_on_the_outbox(database, gateway, tmp_path):
    config = tmp_path / "fastpush.toml"
    config.write_text('[storage]\npath = "gateway.db"\n')
    async with gateway(database):
        out, err = await fastpush("outbox", "list", "--config", config)
        head, second, first = lines = out.splitlines()
        assert max(map(len, lines)) <= 80
        assert head.split() == ["app", "waiting", "fan-outs", "oldest", "state"]
        assert first.split()[:3] == [APP[:33] + "…", "1,200", "0"]
        assert second.split()[:3] == ["b", "0", "1"]
        assert err == ("The gateway is stopped.\n" if gateway is stopped else "")
        out, _ = await fastpush("outbox", "pause", APP, "--database", database)
        assert out == f"{APP}: paused, 1,200 waiting\n"
        out, _ = await fastpush("outbox", "list", "--json", FASTPUSH_CONFIG=str(config))
        apps = {app["app"]: app for app in json.loads(out)["apps"]}
        assert (apps[APP]["paused"], apps["b"]["paused"]) == (True, False)
        out, _ = await fastpush("outbox", "resume", APP, "--json", "--database", database)
        assert json.loads(out)["paused"] is False
        _, err = await fastpush("outbox", "purge", APP, "--database", database, code=2)
        assert "it cannot be undone: say --yes" in err
        out, _ = await fastpush("outbox", "purge", APP, "--yes", "--database", database)
        assert out == f"{APP}: 1,200 ended unsent\n"
        _, err = await fastpush("outbox", "pause", "c", "--database", database, code=1)
        assert err.startswith("Error: no such app: The outbox knows these apps: b, com.example")


@pytest.mark.parametrize("gateway", [stopped, running])
async def test_a_backup_of_a_gateway(database, gateway, tmp_path):
    copy = tmp_path / "copy.db"
    async with gateway(database):
        out, _ = await fastpush("backup", copy, "--database", database, "--json")
        assert json.loads(out)["octets"] == copy.stat().st_size
        out, _ = await fastpush("backup", copy, "--database", database)
        assert "octets in" in out
        with sqlite3.connect(copy) as connection:
            assert connection.execute("SELECT sum(count) FROM waiting").fetchone() == (1_200,)
        connection.close()
        folder = tmp_path / "copies"
        folder.mkdir()
        await fastpush("backup", folder, "--database", database)
        assert [file.name[:8] for file in folder.iterdir()] == ["gateway-"]
        _, err = await fastpush("backup", tmp_path / "no" / "copy.db", "--database", database, code=1)
        assert "could not be copied" in err
        other = tmp_path / "notes.txt"
        other.write_text("mine")
        _, err = await fastpush("backup", other, "--database", database, code=1)
        assert "is no backup of a gateway; it was left as it is" in err
        assert other.read_text() == "mine"
        _, err = await fastpush("backup", copy, "--database", tmp_path / "none.db", code=1)
        assert "does not exist, and no gateway listens at" in err


async def test_what_is_wrong_is_one_line(tmp_path):
    config = tmp_path / "fastpush.toml"
    config.write_text("[storage\n")
    _, err = await fastpush("outbox", "list", "--config", config, code=2)
    assert "fastpush.toml:1" in err
    assert "Traceback" not in err
    (tmp_path / "gateway.db").write_bytes(b"Dear operator,\n" * 100)
    _, err = await fastpush("outbox", "list", "--database", tmp_path / "gateway.db", code=1)
    assert "not a database" in err
    assert len(err.splitlines()) == 1
