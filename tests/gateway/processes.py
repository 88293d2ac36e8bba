"""A gateway as a process of its own, with real signals, and a load of requests on it."""

import inspect
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import uuid
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import trio

from fastpush.gateway.demo.sender import Sender
from fastpush.gateway.outbox.packing import REST, read_log, unpack_entries

ROOT = Path(__file__).resolve().parent.parent.parent
TOPIC = "com.example.opmanager"
SETTINGS = """\
[ingest]
listen = [{ingest}]
{more_ingest}
[admin]
listen = ["127.0.0.1:0"]
[storage]
path = "gateway.db"
low_water_mib = 1
low_water_percent = 0
{more_storage}
[auth]
open_scopes = ["notify", "alarms", "devices"]
[apps.opm]
topic = "com.example.opmanager"
host = "{host}"
port = {port}
ca_file = "ca.pem"
[apps.opm.credential]
key_file = "key.p8"
key_id = "SIMULATOR1"
team_id = "{team_id}"
{more}
"""


def wait_until_ready(process):
    """Read what a worker says on standard error until it is ready for its load."""
    said = []
    while said[-1:] != [b"ready\n"]:
        said.append(process.stderr.readline())
        assert said[-1], b"".join(said).decode()


def drop_cut_line(told):
    """Take the line that a kill cut from the end of what a worker told."""
    with told.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        start = max(0, end - 1_048_576)  # far more than a worker writes at once
        file.seek(start)
        file.truncate(start + file.read().rfind(b"\n") + 1)


def write_settings(folder, simulator, *, ingest="127.0.0.1:0", more="", more_ingest="", more_storage=""):
    """A configuration for an app at the simulator; a second call writes it anew."""
    if not (folder / "key.p8").exists():
        (folder / "key.p8").write_bytes(simulator.issue_signing_key(key_id="SIMULATOR1").p8)
        (folder / "key.p8").chmod(0o600)
        (folder / "ca.pem").write_bytes(simulator.ca_pem)
    file = folder / "fastpush.toml"
    addresses = ", ".join(f'"{each}"' for each in ([ingest] if isinstance(ingest, str) else ingest))
    file.write_text(SETTINGS.format(
        ingest=addresses, host=simulator.host, port=simulator.port, team_id=simulator.team_id, more=more,
        more_ingest=more_ingest, more_storage=more_storage,
    ))  # fmt: skip
    return file


class Process:
    """One `fastpush serve`. What it says to its supervisor is in `told`, its log in `log`."""

    def __init__(self, popen, bell, log):
        self.popen = popen
        self.pid = popen.pid
        self.told = []
        self._bell, self._log = bell, log

    @property
    def log(self):
        return self._log.read_text()

    @property
    def lines(self):
        """The log's lines as objects."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def port(self, listener="ingest"):
        (line,) = [line for line in self.lines if line["event"] == "started"]
        return int(line[listener].rpartition(":")[2])

    async def wait_for_word(self, word, within=20.0):
        """Wait until it tells its supervisor a word, READY=1 for one; fail where it ends before."""
        with trio.fail_after(within):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._fail_at_end, word)
                while not any(word in each for each in self.told):
                    self.told.append((await self._bell.recv(4_096)).decode())
                nursery.cancel_scope.cancel()

    def hear(self):
        """Take what it has told and nobody has waited for."""
        with suppress(BlockingIOError):
            while True:
                self.told.append(os.read(self._bell.fileno(), 4_096).decode())

    async def _fail_at_end(self, word):
        await self.wait(None)
        raise AssertionError(f"it ended with {self.popen.returncode} before {word}:\n{self.log[-3_000:]}")

    async def wait(self, within=30.0):
        """Wait for its end and return the exit code."""
        await until(lambda: self.popen.poll() is not None, within)
        return self.popen.returncode

    async def end(self, within=25.0):
        """SIGTERM, and its exit code."""
        self.popen.terminate()
        return await self.wait(within)

    def peak_octets(self):
        """The most memory it has had."""
        return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())[1]) * 1024


async def until(true, within=10.0):
    """Wait until something outside of this process is true; there is nobody who could tell."""
    with trio.fail_after(float("inf") if within is None else within):
        while not (await found if inspect.isawaitable(found := true()) else found):  # noqa: ASYNC110
            await trio.sleep(0.005)


@asynccontextmanager
async def running(file, *, sockets=(), ready=True, environ=None, before=()):
    """Run a gateway; what is left of it is killed at the end of the block."""
    folder = file.parent
    number = len(list(folder.glob("log.*")))
    log, at = folder / f"log.{number}", folder / f"bell.{number}"
    bell = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with bell, log.open("wb") as out:
        await bell.bind(os.fspath(at))
        popen = subprocess.Popen(  # noqa: ASYNC220
            [*before, sys.executable, "-m", "fastpush", "serve", "--config", os.fspath(file)],
            cwd=ROOT,
            env=os.environ | {"NOTIFY_SOCKET": os.fspath(at)} | (environ or {}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            pass_fds=[each.fileno() for each in sockets],
        )
        process = Process(popen, bell, log)
        try:
            if ready:
                await process.wait_for_word("READY=1")
            yield process
        finally:
            popen.kill()
            popen.wait()
            at.unlink()


@contextmanager
def listening(number=1):
    """Sockets that outlive the gateways they are handed to."""
    sockets = [socket.create_server(("127.0.0.1", 0), backlog=2_048) for _ in range(number)]
    try:
        yield sockets
    finally:
        for each in sockets:
            each.close()


class Load:
    """Notifications under apns-ids of their own, from several connections, with a record of each answer.

    Args:
      account: told offers, acknowledgements and refusals.
      device_token: from a number to whom it goes.
      fields: more of each notification.
    """

    def __init__(self, account, *, device_token=None, fields=None, rate=2_000, size=20, connections=8):
        self.account = account
        self.device_token = device_token or (lambda number: f"{number:064x}")
        self.fields = fields or (lambda number: {})
        self.rate, self.size, self.connections = rate, size, connections
        self.count = 0
        self.refused_connections = 0
        self.stop = False

    def batch(self):
        items = []
        for number in range(self.count, self.count + self.size):
            apns_id = str(uuid.UUID(int=0x4000_8000_0000_0000_0000 + number + (7 << 100)))
            fields = self.fields(number)
            self.account.add({"kind": "offer", "id": apns_id, "expiration": fields.get("expiration")})
            items.append({"device_token": self.device_token(number), "apns_id": apns_id,
                          "payload": {"aps": {"alert": f"number {number}"}}} | fields)  # fmt: skip
        self.count += self.size
        return items

    def note(self, items, answer):
        """None stands for a connection that was lost, or a gateway that was not there."""
        if answer is not None and answer.status == 202:
            event = {"kind": "ack"}
        elif answer is not None and answer.body.get("stored") is False:
            event = {"kind": "nack", "code": "no"}
        else:
            event = {"kind": "nack", "code": "unknown"}
        for item in items:
            self.account.add(event | {"id": item["apns_id"]})

    async def run(self, port):
        """Send at the rate until cancelled or `stop` is set; who cannot connect tries again."""
        started, sent = trio.current_time(), 0

        async def send():
            nonlocal sent
            async with Sender(port) as sender:
                while not self.stop:
                    await trio.sleep_until(started + sent * self.size / self.rate)
                    sent += 1
                    items = self.batch()
                    answer = None
                    try:
                        answer = await sender.post("/v1/notifications", json.dumps(items).encode())
                    except OSError as error:
                        self.refused_connections += "all attempts" in str(error)
                        await trio.sleep(0.01)
                    finally:
                        self.note(items, answer)

        async with trio.open_nursery() as nursery:
            for _ in range(self.connections):
                nursery.start_soon(send)


async def drained(folder, within=60.0):
    """Wait until nothing waits in the outbox of the gateway that runs in a folder."""

    async def nothing_waits():
        outbox = await ask_control(folder / "gateway.db.control", "/v1/outbox")
        return not any(app["waiting"] or app["fanouts"] for app in outbox["apps"])

    await until(nothing_waits, within)


async def ask(port, target, body=None, content_type="application/json"):
    """One request on a connection of its own."""
    async with Sender(port) as sender:
        return await (sender.get(target) if body is None else sender.post(target, body, content_type))


async def ask_control(path, target, method="GET", body=b"", content_type="application/json"):
    """A request over the control socket."""
    stream = await trio.open_unix_socket(os.fspath(path))
    async with stream:
        await stream.send_all(
            f"{method} {target} HTTP/1.1\r\nHost: control\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            + body
        )
        octets = b""
        with suppress(trio.BrokenResourceError):
            async for part in stream:
                octets += part
    head, _, text = octets.partition(b"\r\n\r\n")
    assert b" 20" in head.splitlines()[0], octets[:2_000]
    return json.loads(text)


def dump(database, account):
    """Tell an account what the file says of each notification, by its own apns-id."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    for batch, head, count in connection.execute("SELECT id, head, count FROM batch").fetchall():
        entries = unpack_entries(head, None, count)
        ends, rest = {}, None
        for (log,) in connection.execute("SELECT log FROM outcome WHERE batch = ? ORDER BY id", (batch,)):
            for fate in read_log(log):
                if fate.place == REST:
                    rest = fate.attempt.outcome
                elif fate.attempt.outcome != "retry":
                    ends.setdefault(fate.place, []).append(fate.attempt.outcome)
        for index, entry in enumerate(entries):
            if entry.apns_id is None:
                continue
            name = str(uuid.UUID(bytes=bytes(entry.apns_id)))
            for state in ends.get(index, [rest] if rest else []):
                account.add({"kind": "end", "id": name, "state": state})
            if index not in ends and rest is None:
                account.add({"kind": "waiting", "id": name})
    connection.close()


def add_seen(account, simulator):
    """Tell an account what the simulator saw."""
    account.seen += [(seen.apns_id.lower(), seen.at, seen.fate) for seen in simulator.ledger.seen]
