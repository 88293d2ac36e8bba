"""A gateway for the tests of its routes: real storage and outbox, and whoever is not there stands in."""

from __future__ import annotations

import threading
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace

import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fastpush.gateway.api import Gateway
from fastpush.gateway.app import body_rule, ingest_app
from fastpush.gateway.apps import AppSettings, CredentialSettings
from fastpush.gateway.config import sections
from fastpush.gateway.config.sections import AdminSettings, Config, IngestSettings, StorageSettings
from fastpush.gateway.counters import Counters
from fastpush.gateway.http import open_listener, serve
from fastpush.gateway.outbox.sqlite import OutboxLimits, open_outbox
from fastpush.gateway.problems import Problem
from fastpush.gateway.serve import Service
from fastpush.gateway.storage import Limits, open_storage

LIMITS = Limits(low_water_octets=0, low_water_share=0.0)
TOKENS = [f"{number:064x}" for number in range(1, 2_001)]


@dataclass(frozen=True)
class Known:
    """Principal and authenticator in one: the key's name is the key itself."""

    name: str = "nagios"
    kind: str = "key"
    scopes: frozenset[str] = frozenset(("notify",))
    apps: frozenset[str] | None = None
    key_id: str = "k1"

    def may(self, scope, app=None):
        return scope in self.scopes and (app is None or self.apps is None or app in self.apps)

    def require(self, scope, app=None):
        if not self.may(scope, app):
            raise Problem(403, "not allowed", f"The key lacks {scope}.")

    def choose_app(self, named, configured):
        if named is None:
            mine = [app for app in configured if self.apps is None or app in self.apps]
            if len(mine) == 1:
                return mine[0]
            raise Problem(422, "app missing", "There are several apps.", field="app")
        self.require("notify", named)
        if named not in configured:
            raise Problem(404, "no such app", field="app")
        return named


class Keys:
    """Bearer KEY by the table; without any Authorization the first of it."""

    def __init__(self, **known):
        self.known = known or {"first": Known()}

    def is_signed(self, scope):
        return False

    async def authenticate(self, scope, *, query_token=False, body=None):
        await trio.lowlevel.checkpoint()
        shown = dict(scope["headers"]).get(b"authorization")
        if shown is None:
            return next(iter(self.known.values()))
        found = self.known.get(shown.decode().removeprefix("Bearer "))
        if found is None:
            raise Problem(401, detail="Wrong.", headers={"WWW-Authenticate": "Bearer"})
        return found


class Waits:
    """A dispatcher that has `ends` for whoever waits."""

    def __init__(self):
        self.ends = {}
        self.asked = []

    async def wait_for(self, acceptance, within):
        self.asked.append((acceptance.batch, within))
        await trio.lowlevel.checkpoint()
        return self.ends


def app_named(name, topic):
    settings = AppSettings(name=name, topic=topic, credential=CredentialSettings())
    return SimpleNamespace(settings=settings, state="running")


@asynccontextmanager
async def open_gateway(folder, *, apps=("opm",), keys=None, outbox_limits=None, **others):
    async with open_storage(folder / "gateway.db", LIMITS) as storage, trio.open_nursery() as nursery:
        outbox = await open_outbox(storage, limits=outbox_limits or OutboxLimits())
        await nursery.start(outbox.run)
        gateway = Gateway(
            storage=storage,
            outbox=outbox,
            devices=None,
            keys=keys or Keys(),
            alarms=None,
            apps={name: app_named(name, f"com.example.{name}") for name in apps},
            notices=None,
            config=None,
            clock=time.time,
            counters=Counters(),
            dispatcher=Waits(),
        )
        yield replace(gateway, **others)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def serving_gateway(gateway, *, app=None, **options):
    """The gateway's ingest on a socket of loopback; gives the port."""
    listener = open_listener("127.0.0.1:0")
    stop = trio.Event()
    async with trio.open_nursery() as nursery:

        async def run(task_status):
            await serve(
                app or ingest_app(gateway),
                [listener],
                body_rules=body_rule,
                shutdown_trigger=stop.wait,
                task_status=task_status,
                **options,
            )

        await nursery.start(run)
        yield listener.port
        stop.set()


async def waiting(gateway, app="opm"):
    """All entries that wait, claimed."""
    return [claim.entry for claim in await gateway.outbox.claim(app, 100_000)]


@contextmanager
def running_gateway(folder, *, app="opm"):
    """A whole gateway in a thread of its own, whose APNs cannot be reached: addresses, a key, the gateway."""
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.p8").write_bytes(pem)
    (folder / "key.p8").chmod(0o600)
    credential = sections.CredentialSettings(
        key_file=folder / "key.p8", key_id="ABC123DEFG", team_id="DEF123GHIJ"
    )
    settings = sections.AppSettings(
        name=app, topic="com.example.opm", credential=credential, host="127.0.0.1", port=9
    )  # fmt: skip
    config = Config(
        apps={app: settings},
        ingest=IngestSettings(listen=("127.0.0.1:0",)),
        admin=AdminSettings(listen=("127.0.0.1:0",)),
        storage=StorageSettings(path=folder / "gateway.db", low_water_mib=0, low_water_percent=0),
    )
    there, found, failed = threading.Event(), {}, []

    async def main():
        service = Service(config)
        async with trio.open_nursery() as nursery:
            started = await nursery.start(service.run)
            everything = ("notify", "devices", "alarms", "admin", "console")
            _, secret = await started.gateway.keys.create("tester", everything, None, None)
            found.update(
                ingest=started.ingest[0], admin=started.admin[0], key=secret, gateway=started.gateway,
                stop=service.stop, token=trio.lowlevel.current_trio_token(),
            )  # fmt: skip
            there.set()

    def run():
        try:
            trio.run(main)
        except BaseException as error:
            failed.append(error)
        finally:
            there.set()

    thread = threading.Thread(target=run)
    thread.start()
    there.wait(20)
    assert not failed, failed
    try:
        yield found
    finally:
        for _ in range(2):  # the second cuts short the waiting for APNs
            trio.from_thread.run_sync(found["stop"], trio_token=found["token"])
        thread.join(30)
    assert not failed, failed
    assert not thread.is_alive()
