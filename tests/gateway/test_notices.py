"""Notices: every channel on its own, each telling once, also when channels fail and processes die."""

import json

import pytest
import trio
from starlette.requests import Request

from fastpush.gateway.api import Gateway
from fastpush.gateway.api.notices import admin_routes, routes
from fastpush.gateway.counters import Counters
from fastpush.gateway.notices import NotTold, is_echo, open_notices
from fastpush.gateway.notices.values import EVERY_CHANNEL, Judgement, Notice
from fastpush.gateway.sources import Event
from fastpush.gateway.storage import Limits, open_storage

ROOMY = Limits(low_water_octets=0, low_water_share=0.0, reserve_octets=4_096)
NOW = 1_800_000_000.0
DAY = 86_400.0


def notice(stage=10, **fields):
    return Notice(
        **{
            "id": "certificate:a", "kind": "certificate", "severity": 3, "title": "Nine days", "body": "B.",
            "cure": "C.", "entity": "apns-cert-com.example.app", "channels": EVERY_CHANNEL, "stage": stage,
            "apps": ("opmanager",), "name": "com.example.app", "expires_at": NOW + 9.2 * DAY,
        } | fields
    )  # fmt: skip


class Carrier:
    """Tells a list; fails as long as it is told to, or waits until it is let go."""

    def __init__(self, channel, fails=0, lasting=False):
        self.channel, self.fails, self.lasting = channel, fails, lasting
        self.told = []
        self.tries = 0
        self.gate = trio.Event()
        self.gate.set()
        self.happened = trio.lowlevel.ParkingLot()

    async def until(self, *, told=0, tries=0):
        """Wait for so many tellings, or tries of one."""
        with trio.fail_after(5):
            while len(self.told) < told or self.tries < tries:
                await self.happened.park()

    async def tell(self, telling):
        self.tries += 1
        self.happened.unpark_all()
        await self.gate.wait()
        if self.fails:
            self.fails -= 1
            raise NotTold("no route to the server", lasting=self.lasting)
        self.told.append((telling.change, telling.notice.stage))
        self.happened.unpark_all()
        return "250 queued"


class Life:
    """One process; its clock is the wall's and does not move by itself."""

    def __init__(self, path, *carriers, now=NOW):
        self.path, self.carriers, self.now = path, carriers, now

    async def __aenter__(self):
        self._storage = open_storage(self.path, ROOMY)
        storage = await self._storage.__aenter__()
        self.notices = await open_notices(storage, self.carriers, clock=lambda: self.now)
        self._nursery = trio.open_nursery()
        self.nursery = await self._nursery.__aenter__()
        await self.nursery.start(self.notices.run)
        return self.notices

    async def __aexit__(self, *error):
        self.nursery.cancel_scope.cancel()
        await self._nursery.__aexit__(*error)
        await self._storage.__aexit__(*error)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "gateway.db"


async def tell(notices, *told):
    await notices.apply(Judgement(tell=told), NOW)


@pytest.fixture
def patient_clock(monkeypatch):
    """Pauses between tries pass at once."""
    monkeypatch.setattr("fastpush.gateway.notices.store.FIRST_PAUSE", 0.001)


async def test_a_channel_that_fails_holds_up_no_other(path, patient_clock):
    email, webhook = Carrier("email", fails=3), Carrier("webhook")
    email.gate = trio.Event()
    async with Life(path, email, webhook) as notices:
        await tell(notices, notice())
        await webhook.until(told=1)
        assert not email.told
        email.gate.set()
        with trio.fail_after(5):
            await notices.wait_told()
        assert email.told == [("raised", 10)]
        assert email.tries == 4
        (shown,) = await notices.shown()
        by = {one.channel: (one.state, one.detail) for one in shown.tellings}
        assert by == {
            "console": ("told", ""), "app": ("told", ""), "email": ("told", "250 queued"),
            "webhook": ("told", "250 queued"),
        }  # fmt: skip


async def test_what_was_not_told_is_told_by_the_next_process_and_nothing_twice(path):
    email, webhook = Carrier("email", fails=99), Carrier("webhook")
    async with Life(path, email, webhook) as notices:
        await tell(notices, notice())
        await webhook.until(told=1)
        await email.until(tries=1)
    email.fails = 0
    async with Life(path, email, webhook) as notices:
        with trio.fail_after(5):
            await notices.wait_told()
    assert email.told == webhook.told == [("raised", 10)]
    async with Life(path, email, webhook) as notices:
        assert [one.id for one in notices.standing()] == ["certificate:a"]
    assert email.told == webhook.told == [("raised", 10)]


async def test_a_newer_telling_overtakes_one_that_waits(path, patient_clock):
    email = Carrier("email", fails=1)
    email.gate = trio.Event()
    async with Life(path, email) as notices:
        await tell(notices, notice(10))
        await email.until(tries=1)
        await tell(notices, notice(3))
        await tell(notices, notice(2))
        email.gate.set()
        with trio.fail_after(5):
            await notices.wait_told()
        states = [one.state for _, one in await notices.history() if one.channel == "email"]
    assert email.told == [("raised", 2)]
    assert states == ["superseded", "superseded", "told"]


async def test_what_was_never_told_is_not_withdrawn(path):
    email, webhook = Carrier("email"), Carrier("webhook")
    email.gate = trio.Event()
    async with Life(path, email, webhook) as notices:
        await tell(notices, notice(id="other"))  # keeps the channel busy
        await email.until(tries=1)
        await tell(notices, notice())
        await webhook.until(told=2)
        await notices.apply(Judgement(withdraw=("certificate:a",)), NOW)
        email.gate.set()
        with trio.fail_after(5):
            await notices.wait_told()
        assert [one.id for one in notices.standing()] == ["other"]
    assert email.told == [("raised", 10)]
    assert webhook.told == [("raised", 10), ("raised", 10), ("withdrawn", 10)]


async def test_a_notice_that_cannot_be_told_holds_up_no_other(path):
    """A push about a dead app waits for days; one about another app goes out at once."""

    class Picky(Carrier):
        async def tell(self, telling):
            if telling.notice.id == "certificate:a":
                self.tries += 1
                raise NotTold("not reached")
            return await super().tell(telling)

    push = Picky("push")
    async with Life(path, push) as notices:
        await tell(notices, notice())
        await tell(notices, notice(3, id="certificate:b"))
        await push.until(told=1)
        await tell(notices, notice(2, id="certificate:b"))
        await push.until(told=2)
    assert push.told == [("raised", 3), ("raised", 2)]


async def test_a_lasting_failure_is_not_repeated(path):
    email = Carrier("email", fails=1, lasting=True)
    async with Life(path, email) as notices:
        await tell(notices, notice())
        with trio.fail_after(5):
            await notices.wait_told()
        (shown,) = await notices.shown()
        assert ("email", "failed", "no route to the server") in [
            (one.channel, one.state, one.detail) for one in shown.tellings
        ]
    assert email.tries == 1


async def test_a_carrier_that_breaks_is_a_failed_telling(path, caplog, patient_clock):
    class Broken(Carrier):
        async def tell(self, telling):
            if not self.tries:
                self.tries += 1
                raise ZeroDivisionError("secret")
            return await super().tell(telling)

    email = Broken("email")
    async with Life(path, email) as notices:
        await tell(notices, notice())
        with trio.fail_after(5):
            await notices.wait_told()
    assert email.told == [("raised", 10)]


async def test_other_carriers_take_over_what_waits_and_repeat_nothing(path):
    """One is exchanged while it fails, one is new, one is gone; what was told is not told again."""
    failing, better = Carrier("webhook", fails=99), Carrier("webhook")
    mail, added = Carrier("email"), Carrier("opmanager")
    async with Life(path, failing, mail) as notices:
        await tell(notices, notice())
        await failing.until(tries=1)
        await mail.until(told=1)
        notices.use_carriers([better, added])
        await better.until(told=1)  # and not only when the other's pause is over
        with trio.fail_after(5):
            await notices.wait_told()
        assert (mail.told, added.told) == ([("raised", 10)], [])
        assert failing.tries == 1
        await tell(notices, notice(3))
        for carrier in (better, added):
            await carrier.until(told=carrier.told.count(("raised", 10)) + 1)
        assert (better.told[-1], added.told) == (("raised", 3), [("raised", 3)])
        assert mail.told == [("raised", 10)], "it is gone"
        notices.use_carriers([better, added, mail])
        await notices.apply(Judgement(withdraw=("certificate:a",)), NOW)
        await mail.until(told=2)
        assert mail.told[-1] == ("withdrawn", 3)


async def test_a_trial_goes_by_every_channel_and_leaves_nothing_behind(path):
    email, webhook = Carrier("email", fails=1), Carrier("webhook")
    async with Life(path, email, webhook) as notices:
        trials = await notices.trial()
        assert [(one.channel, one.told, one.detail) for one in trials] == [
            ("email", False, "no route to the server"),
            ("webhook", True, "250 queued"),
        ]
        assert webhook.told == [("trial", None)]
        assert not await notices.shown()
        assert not await notices.history()


# What phones and the console see.


class Principal:
    def __init__(self, kind, scopes=(), apps=None):
        self.kind, self.scopes, self.apps = kind, frozenset(scopes), apps

    def require(self, scope, app=None):
        if scope not in self.scopes:
            raise PermissionError(scope)


class Keys:
    def __init__(self, principal):
        self.principal = principal

    async def authenticate(self, scope, **kwargs):
        return self.principal


async def answer(notices, principal, method="GET", path="/v1/notices"):
    gateway = Gateway(
        storage=None, outbox=None, devices=None, keys=Keys(principal), alarms=None, apps=None,
        notices=notices, config=None, clock=lambda: NOW, counters=Counters(),
    )  # fmt: skip
    found = [*routes(gateway), *admin_routes(gateway)]
    (route, *_) = [one for one in found if one.path == path and method in one.methods]
    response = await route.endpoint(Request({"type": "http", "method": method, "path": path, "headers": []}))
    return json.loads(response.body)


async def test_phones_see_what_concerns_their_app_and_the_console_all_of_it(path):
    async with Life(path, Carrier("email")) as notices:
        quiet = ("console", "log", "email")
        await tell(
            notices,
            notice(),
            notice(id="certificate:b", apps=("other",), stage=30, channels=quiet, expires_at=NOW + 29 * DAY),
            notice(
                id="clock:", kind="clock", apps=(), stage=None, severity=2, title="Clock", expires_at=None
            ),
        )
        with trio.fail_after(5):
            await notices.wait_told()
        phone = await answer(notices, Principal("device", apps={"opmanager"}))
        assert [one["id"] for one in phone["notices"]] == ["clock:", "certificate:a"]
        assert phone["notices"][1]["category"] == "OPM_CERT"
        assert phone["notices"][1]["title"] == "Push certificate com.example.app expires in 9 days"
        assert phone["notices"][1]["told"] == []
        other = await answer(notices, Principal("device", apps={"other"}))
        assert [one["id"] for one in other["notices"]] == ["clock:"], "30 days ahead is not for phones"
        console = await answer(notices, Principal("key", {"console"}))
        assert [one["id"] for one in console["notices"]] == ["clock:", "certificate:a", "certificate:b"]
        assert {one["channel"] for one in console["notices"][2]["told"]} == {"console", "email"}
        with pytest.raises(PermissionError):
            await answer(notices, Principal("key", {"notify"}))
        trials = await answer(notices, Principal("key", {"admin"}), "POST", "/v1/notices/trials")
        assert trials == {"trials": [{"channel": "email", "told": True, "detail": "250 queued"}]}


def test_our_own_alarm_is_known_when_it_comes_back():
    assert is_echo(Event(source="opm", entity="apns-cert-com.example.app", message="whatever"))
    assert is_echo(Event(source="opm", entity="fastpush-clock-", message=""))
    assert is_echo(Event(source="opm", message="fastpush: Push certificate expires in 9 days"))
    assert not is_echo(Event(source="opm", entity="core-sw_Poll", message="fastpush: is a funny name"))
    assert not is_echo(Event(source="opm", entity="core-sw_Poll", message="down"))
