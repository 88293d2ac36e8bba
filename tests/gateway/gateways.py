"""A gateway for the tests of its routes: real storage and outbox, and whoever is not there stands in."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace

import trio

from fastpush.gateway.api import Gateway
from fastpush.gateway.app import body_rule, ingest_app
from fastpush.gateway.apps import AppSettings, CredentialSettings
from fastpush.gateway.counters import Counters
from fastpush.gateway.http import open_listener, serve
from fastpush.gateway.outbox.sqlite import OutboxLimits, open_outbox
from fastpush.gateway.problems import Problem
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
