"""What the demo plays on: a simulated APNs here, the gateway in a process of its own, and what they need."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any, final

import orjson
import trio

from fastpush.gateway.auth import open_authenticator
from fastpush.gateway.demo.phone import Phone, Shown
from fastpush.gateway.demo.sender import Sender
from fastpush.gateway.devices import Registration, open_devices
from fastpush.gateway.storage import open_storage
from fastpush.proof import NOBODY
from fastpush.simulator import Answer as Answered
from fastpush.simulator import Delivery, Simulator, open_simulator

__all__ = ["APP", "DAYS_LEFT", "DemoFailed", "Stage", "is_of", "notice_of", "open_stage"]

APP = "opmanager"
TOPIC = "com.example.opmanager"
DEVICE_TOKEN = "d0" * 32
DAYS_LEFT = 9
"""Of the certificate, so that the watchdog has something to say."""
START_WITHIN, END_WITHIN = 20.0, 30.0  # seconds

CONFIGURATION = """\
# Made by `fastpush demo`; it goes with it. To begin for yourself: fastpush.example.toml
[ingest]
listen = ["fd://{ingest}"]

[admin]
listen = ["fd://{admin}"]

[storage]
path = "gateway.db"
low_water_mib = 1
low_water_percent = 0

[apps.{app}]
topic = "{topic}"
host = "{host}"
port = {port}
ca_file = "simulator-ca.pem"

[apps.{app}.credential]
certificate_file = "push.pem"

# Nobody wants to watch the 15 s that are usual.
[dispatch]
first_retry_seconds = 1.0

[[routes]]
name = "on call"
tags = ["oncall"]
"""


class DemoFailed(Exception):
    """The demo cannot go on; the message says why."""


@final
@dataclass
class Stage:
    """All that a scene needs.

    Attributes:
      say: prints a line.
      folder: with the configuration, the key, the database and the gateway's log.
      phone: plays the only registered device.
      console: its address, with a ticket that logs in once.
      key: of OpManager, for its webhook; `sender` uses it, and `watcher` an administrator's.
      accepted, lost, doubled: of all alarms so far, by the simulator's count.
    """

    say: Callable[[str], None]
    folder: Path
    simulator: Simulator
    phone: Phone
    ingest_port: int
    console: str
    key: str
    gateway: trio.Process
    sender: Sender
    watcher: Sender
    alarms: int = 0
    accepted: int = 0
    lost: int = 0
    doubled: int = 0
    _came: trio.Event = field(default_factory=trio.Event)
    _shown: list[Shown] = field(default_factory=list)
    _notices: list[Shown] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Of the webhook."""
        return f"http://127.0.0.1:{self.ingest_port}/v1/opmanager"

    def ring(self, delivery: Delivery) -> None:
        """A push has reached the phone: an alarm, or what the watchdog has to say."""
        shown = self.phone.take(delivery)
        (self._shown if notice_of(delivery) is None else self._notices).append(shown)
        self._came.set()
        self._came = trio.Event()

    async def next_push(self, devices: str = "", within: float = 5.0) -> Shown:
        """Wait for a push that nobody has taken yet, of a device whose name begins so. Raises DemoFailed.

        The reader may post alarms while a scene plays: what it does not ask for stays for later.
        """
        with trio.move_on_after(within):
            while True:
                for shown in self._shown:
                    if is_of(shown.delivery, devices):
                        self._shown.remove(shown)
                        return shown
                await self._came.wait()
        raise DemoFailed(f"no push reached the phone within {within:g} s")

    async def next_notice(self, within: float = 20.0) -> Shown:
        """Wait for a push of the watchdog that no scene has taken yet. Raises DemoFailed."""
        with trio.move_on_after(within):
            while not self._notices:
                await self._came.wait()
            return self._notices.pop(0)
        raise DemoFailed(f"the watchdog told the phone nothing within {within:g} s")

    def complaint(self) -> str:
        """The last that the gateway complained of."""
        log = (self.folder / "gateway.log").read_text(errors="replace").splitlines()
        bad = [line for line in log if '"level":"error"' in line or line.startswith("Error: ")]
        return bad[-1] if bad else "the gateway complains of nothing"

    def cpu_seconds(self) -> float | None:
        """Processor time of the gateway's process so far; None where the system does not tell."""
        try:
            fields = Path(f"/proc/{self.gateway.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_of(delivery: Delivery, devices: str) -> bool:
    """Whether a push is of an alarm of the demo's own, of a device whose name begins so; "" is of any."""
    alarm: dict[str, Any] = orjson.loads(delivery.payload).get("opm", {})
    return str(alarm.get("entity", "")).startswith(devices)


@asynccontextmanager
async def open_stage(say: Callable[[str], None]) -> AsyncGenerator[Stage, None]:
    """Set everything up, and take it down again: processes, sockets and the folder.

    Raises:
      DemoFailed: the gateway does not start.
    """
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(_folder())
        simulator = await stack.enter_async_context(open_simulator(topics=[TOPIC], seed=1))
        early: list[Delivery] = []  # the watchdog's warning comes while the gateway starts
        simulator.on_delivery(DEVICE_TOKEN, early.append)
        simulator.faults.add(_what_time_it_is())
        _write(folder / "push.pem", _certificate(simulator, DAYS_LEFT))
        _write(folder / "renewed.pem", _certificate(simulator, 396))
        _write(folder / "simulator-ca.pem", simulator.ca_pem)
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2048)) for _ in "ia"]
        text = CONFIGURATION.format(
            ingest=sockets[0].fileno(), admin=sockets[1].fileno(), app=APP, topic=TOPIC, host=simulator.host,
            port=simulator.port,
        )  # fmt: skip
        _write(folder / "fastpush.toml", text.encode())
        key, console_key = await _prepare(folder / "gateway.db")
        gateway = await stack.enter_async_context(_gateway(folder, sockets))
        ingest_port, admin_port = (each.getsockname()[1] for each in sockets)
        async with Sender(admin_port, console_key) as admin:
            ticket = await admin.post("/v1/console-tickets", b"")
        sender, watcher = Sender(ingest_port, key), Sender(ingest_port, console_key)
        stack.push_async_callback(sender.aclose)
        stack.push_async_callback(watcher.aclose)
        stage = Stage(
            say=say,
            folder=folder,
            simulator=simulator,
            phone=Phone(DEVICE_TOKEN),
            ingest_port=ingest_port,
            console=f"http://127.0.0.1:{admin_port}{ticket.body['path']}",
            key=key,
            gateway=gateway,
            sender=sender,
            watcher=watcher,
        )
        simulator.on_delivery(DEVICE_TOKEN, stage.ring)
        for delivery in early:
            stage.ring(delivery)
        yield stage


def notice_of(delivery: Delivery) -> dict[str, Any] | None:
    """What a push of the watchdog says for the app; None of an alarm's."""
    found: dict[str, Any] | None = orjson.loads(delivery.payload).get("notice")
    return found


def _certificate(simulator: Simulator, days: float) -> bytes:
    """A provider certificate with so many days left, and its key."""
    ends = time.time() + days * 86_400 + 3_600
    issued = simulator.issue_provider_certificate(TOPIC, valid_until=ends)
    return issued.certificate_pem + issued.key_pem


def _what_time_it_is() -> Answered:
    """The watchdog asks APNs for the time before it warns; the simulator has a date for it, once."""
    date = formatdate(usegmt=True).encode()
    return Answered(
        status=400, reason="BadDeviceToken", device_token=NOBODY, times=1, fields=((b"date", date),)
    )


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="fastpush-demo-"))  # mode 0700
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, octets: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(octets)


async def _prepare(database: Path) -> tuple[str, str]:
    """Make the keys, and register the phone, as `fastpush keys` and the phone's app would."""
    async with open_storage(database) as storage:
        keys = await open_authenticator(storage)
        devices = await open_devices(storage, keys=keys)
        webhook = await keys.create("OpManager", {"alarms"})
        console = await keys.create("demo console", {"console", "admin", "alarms", "devices", "notify"})
        await devices.register(
            APP, Registration(device_token=DEVICE_TOKEN, user="you", tags=("oncall", "admin"))
        )
        return webhook.secret, console.secret


@asynccontextmanager
async def _gateway(folder: Path, sockets: Sequence[socket.socket]) -> AsyncGenerator[trio.Process, None]:
    """Run `fastpush serve` until the end of the block; ready when the block begins."""
    bell = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with bell, (folder / "gateway.log").open("wb") as log:
        await bell.bind(os.fspath(folder / "notify"))
        environ = {name: text for name, text in os.environ.items() if not name.startswith("FASTPUSH_")}
        environ["NOTIFY_SOCKET"] = os.fspath(folder / "notify")
        environ["PYTHONPATH"] = os.fspath(Path(__file__).parents[3])

        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "fastpush", "serve", "--config", os.fspath(folder / "fastpush.toml")],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[each.fileno() for each in sockets],
            start_new_session=True,  # Ctrl-C is for us; we end it in order
        )
        try:
            await _until_ready(process, bell, folder / "gateway.log")
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            with trio.move_on_after(END_WITHIN, shield=True):
                await process.wait()
            if process.returncode is None:
                process.kill()
                with trio.CancelScope(shield=True):  # not for long: nothing can put this off
                    await process.wait()


async def _until_ready(process: trio.Process, bell: trio.socket.SocketType, log: Path) -> None:
    async def watch(scope: trio.CancelScope) -> None:
        await process.wait()
        scope.cancel()

    with trio.move_on_after(START_WITHIN):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            while b"READY=1" not in await bell.recv(4_096):
                pass
            nursery.cancel_scope.cancel()
            return
    text = await trio.Path(log).read_text(errors="replace")
    said = re.findall(r"Error: (.*)", text) or ["it said nothing"]
    what = "did not get ready" if process.returncode is None else "ended"
    raise DemoFailed(f"the gateway {what}: {said[-1]}")
