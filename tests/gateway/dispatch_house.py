"""A gateway without its listeners: storage, outbox, dispatcher, and a simulated APNs."""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import trio

from fastpush.credentials import SigningKey
from fastpush.gateway.apps import Apps, AppSettings, CredentialSettings
from fastpush.gateway.dispatcher import Dispatcher
from fastpush.gateway.outbox import Entry
from fastpush.gateway.outbox.packing import read_log
from fastpush.gateway.outbox.sqlite import open_outbox
from fastpush.gateway.storage import Limits, open_storage
from fastpush.proof import NOBODY
from fastpush.simulator import TrustedKey, open_simulator
from tests.ledger import Account

APP = "com.example.app"
LIMITS = Limits(low_water_octets=0, low_water_share=0.0)
BODY = b'{"aps":{"alert":"Core switch down"}}'


class Page(NamedTuple):
    device_tokens: list[str]
    environments: str
    last: bool


class Registry:
    """The devices that the dispatcher asks for, in memory."""

    def __init__(self, device_tokens=(), environments=None):
        self.device_tokens = sorted(device_tokens)
        self.environments_of = environments or {}
        self.reported = []
        self.learnt = {}
        self.broken = None
        self.cured = trio.Event()

    async def page(self, app, audience, after="", limit=1_000):
        await trio.lowlevel.checkpoint()
        tokens = self.device_tokens
        if audience.any_of:
            tokens = [token for token in tokens if token.startswith(audience.any_of)]
        start = bisect_right(tokens, after)
        found = tokens[start : start + limit]
        letters = "".join([self.environments_of.get(token, "p") for token in found])
        return Page(found, letters, start + limit >= len(tokens))

    async def environments(self, app, device_tokens):
        await trio.lowlevel.checkpoint()
        words = {"p": "production", "d": "development"}
        return {
            token: words[self.environments_of[token]]
            for token in device_tokens
            if token in self.environments_of
        }

    def report(self, app, verdicts, *, accepted=0):
        self.reported += verdicts

    def breaker(self, app):
        return self.broken

    async def breaker_closed(self, app):
        await self.cured.wait()

    def cure(self):
        self.broken = None
        self.cured.set()

    async def learn_environment(self, app, device_token, environment):
        await trio.lowlevel.checkpoint()
        self.learnt[device_token] = environment
        self.environments_of[device_token] = environment[0]


def token(number):
    return f"{number + 1:064x}"


def entry(number, **fields):
    fields.setdefault("expiration", int(time.time()) + 86_400)
    return Entry(token(number), BODY, **fields)


def settings(apns, *, name=APP, **more):
    return AppSettings(
        name=name, topic=APP, credential=CredentialSettings(), host=apns.host, port=apns.port,
        ca_file=apns.ca_file, **more,
    )  # fmt: skip


async def until(holds, within=10.0):
    """Wait until something holds that nobody tells."""
    with trio.fail_after(within):
        while not holds():  # noqa: ASYNC110
            await trio.sleep(0.002)


class House:
    """What `open_house` gives."""

    def __init__(self, storage, outbox, devices, apps, dispatcher):
        self.storage = storage
        self.outbox = outbox
        self.devices = devices
        self.apps = apps
        self.dispatcher = dispatcher
        self.told = []
        self.names = {}
        self.account = Account()
        dispatcher.on_outcomes(self.told.append)

    async def accept(self, entries, app=APP):
        """Accept a batch, and remember what was promised."""
        acceptance = await self.outbox.accept(app, entries)
        for index, one in enumerate(entries):
            name = self.names[acceptance.batch, index] = str_of(acceptance.apns_id(index))
            self.account.add({"kind": "offer", "id": name, "expiration": one.expiration or None})
            self.account.add({"kind": "ack", "id": name})
        return acceptance

    async def until_quiet(self, within=20.0):
        """Wait until nothing waits."""
        await until(
            lambda: (
                not any(each.count or each.fanouts for each in self.outbox.waiting().values())
                and not self.dispatcher.busy
            ),
            within,
        )

    def ends(self):
        """How many ended how, as the listeners were told."""
        found = {}
        for outcomes in self.told:
            if outcomes.accepted:
                found["accepted"] = found.get("accepted", 0) + outcomes.accepted
            for end in outcomes.ends:
                found[end.outcome] = found.get(end.outcome, 0) + 1
        return found


def str_of(octets):
    digits = octets.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


@asynccontextmanager
async def open_house(path, apps, *, credentials, standbys=None, devices=None, clock=time.time, **options):
    """Everything below ingest, with these settings of apps and their credentials by name."""
    async with AsyncExitStack() as stack:
        storage = await stack.enter_async_context(open_storage(path, LIMITS))
        nursery = await stack.enter_async_context(trio.open_nursery())
        outbox = await open_outbox(storage, clock=clock)
        await nursery.start(outbox.run)
        opened = await nursery.start(Apps(apps, credentials=credentials, standbys=standbys).run)
        registry = devices or Registry()
        dispatcher = Dispatcher(outbox, registry, opened, clock=clock, **options)
        house = House(storage, outbox, registry, opened, dispatcher)
        await nursery.start(dispatcher.run)
        yield house
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_all(
    path, *, faults=(), devices=None, app=None, options=None, standby=False, both=False, **simulator
):
    """A simulator with its ledger in a file, and a house with one app for it.

    `standby`: with a second key; `both`: with a simulator of the development environment, too.
    """
    ledger = Path(path).with_suffix(".apns")
    app = dict(app or {})
    if standby:
        app["standby"] = CredentialSettings()
    async with AsyncExitStack() as stack:
        apns = await stack.enter_async_context(
            open_simulator(topics=[APP], faults=list(faults), ledger_file=ledger, **simulator)
        )
        apns.ledger_path = ledger
        issued = apns.issue_signing_key()
        key = SigningKey.from_bytes(issued.p8, key_id=issued.key_id, team_id=issued.team_id)
        credentials = {APP: key}
        development = None
        if both:
            development = await stack.enter_async_context(
                open_simulator(topics=[APP], environment="development", authority=apns.authority)
            )
            point = TrustedKey.point_of(issued.public_key)
            development.trust_key(TrustedKey(issued.key_id, issued.team_id, point))
            app |= {
                "environment": "both",
                "development_host": development.host,
                "development_port": development.port,
            }
        house = await stack.enter_async_context(
            open_house(
                path,
                [settings(apns, **app)],
                credentials=credentials,
                devices=devices,
                standbys={APP: apns.signing_key()} if standby else None,
                **(options or {}),
            )
        )
        house.key, house.development = key, development
        yield apns, house


async def judge(apns, house, **allowed):
    """Let the ledger's checker compare what was promised, what APNs saw, and what is recorded."""
    account = house.account
    for line in apns.ledger_path.read_text().splitlines():
        seen = json.loads(line)
        if seen["device_token"] != NOBODY:  # what proves a new credential
            account.add({"kind": "seen", "id": seen["apns_id"], "at": seen["at"], "fate": seen["fate"]})
    records = await house.storage.read(ends_on_disk)
    for place, name in house.names.items():
        ends = records.get(place, ())
        for outcome in ends:
            account.add({"kind": "end", "id": name, "state": outcome})
        if not ends:
            account.add({"kind": "waiting", "id": name})
    verdict = account.check(**allowed)
    assert verdict.good, f"{verdict}\n{json.dumps(dict(apns.ledger.counts))}"
    return verdict


def ends_on_disk(connection):
    """Every recorded end, by batch and index."""
    ends = {}
    for batch, log in connection.execute("SELECT batch, log FROM outcome WHERE log IS NOT NULL").fetchall():
        for fate in read_log(log):
            if fate.attempt.outcome != "retry":
                ends.setdefault((batch, fate.place), []).append(fate.attempt.outcome)
    return ends
