"""What APNs' answers do to a device: the rule of the 410, the other environment, the breaker."""

import sqlite3

import pytest
import trio
import trio.testing

from fastpush.gateway.devices import Verdict, changes, verdicts
from fastpush.gateway.devices.verdicts import Judge
from fastpush.gateway.outbox import Audience
from tests.clocks import story_clock
from tests.gateway.registry_house import APP, NOW, OTHER, open_house, token


@pytest.fixture
def clock():
    return story_clock(0)


@pytest.fixture
async def house(tmp_path):
    async with open_house(tmp_path) as house:
        yield house


async def alive(house, app=APP):
    return [int(one, 16) for one in (await house.devices.page(app, Audience())).device_tokens]


def gone(number, at=NOW, reason="Unregistered", sent_at=NOW):
    return Verdict(token(number), 410, reason, None if at is None else int(at * 1_000), sent_at)


def bad(number, sent_at=NOW, reason="BadDeviceToken", **fields):
    return Verdict(token(number), 400, reason, None, sent_at, **fields)


async def believed(house):
    """Long enough for a doubtful verdict, then what follows from it."""
    for app in house.devices._judge._apps.values():
        app.doubtful = type(app.doubtful)((seen, at - 60.0, verdict) for seen, at, verdict in app.doubtful)
    await house.devices.settle()


# The 410 (apns.md: "drop the token only if the app has not registered the same token after that time").


@pytest.mark.parametrize(("after_registration", "dies"), [(-1, False), (0, True), (1, True)])
async def test_a_410_counts_from_its_own_time(house, after_registration, dies):
    """To the millisecond, and whatever the time is here."""
    await house.register(1)
    at = int(NOW * 1_000) + after_registration
    house.devices.report(APP, [Verdict(token(1), 410, "Unregistered", at, NOW + 3_600)])
    await house.devices.settle()
    assert await alive(house) == ([] if dies else [1])


@pytest.mark.parametrize("reason", ["Unregistered", "ExpiredToken"])
async def test_a_410_without_a_time_counts_from_the_send(house, reason):
    await house.register(1)
    house.devices.report(APP, [gone(1, None, reason, sent_at=NOW - 0.001)])
    await house.devices.settle()
    assert await alive(house) == [1], "sent before it registered again"
    house.devices.report(APP, [gone(1, None, reason, sent_at=NOW)])
    await house.devices.settle()
    assert await alive(house) == []


async def test_a_device_that_registers_again_lives_again(house):
    await house.register(1, "network")
    house.devices.report(APP, [gone(1)])
    await house.devices.settle()
    dead = await house.devices.get(APP, token(1))
    assert (dead.dead_at, dead.dead_reason) == (NOW, "Unregistered"), "the app can see that it was refused"
    house.clock.now += 1
    again = await house.register(1, "network")
    assert (again.dead_at, again.dead_reason) == (None, None)
    assert await alive(house) == [1]
    house.devices.report(APP, [gone(1)])  # an answer that was on its way all the time
    await house.devices.settle()
    assert await alive(house) == [1]


async def test_a_registration_that_comes_before_the_verdict_is_written_wins(house):
    await house.register(1)
    house.devices.report(APP, [gone(1, NOW + 1)])
    house.clock.now += 2
    await house.register(1)
    await house.devices.settle()
    assert await alive(house) == [1]


async def test_other_answers_leave_a_device_alone(house):
    await house.register(1)
    for status, reason in ((429, "TooManyRequests"), (503, "ServiceUnavailable"), (413, "PayloadTooLarge"),
                           (403, "InvalidProviderToken"), (400, "BadTopic"), (200, "")):  # fmt: skip
        house.devices.report(APP, [(token(1), status, reason, None, NOW)])
    await believed(house)
    assert await alive(house) == [1]


async def test_a_verdict_on_a_stranger_does_nothing(house):
    await house.register(1)
    house.devices.report(APP, [gone(2)])
    house.devices.report("nix", [gone(1)])
    await house.devices.settle()
    assert await alive(house) == [1]
    assert list(await house.devices.events()) == []


# The feed.


async def test_dead_device_tokens_come_as_a_feed(house):
    for number in (1, 2, 3):
        await house.register(number, user="alice", environment="development")
    await house.register(1, app=OTHER)
    house.clock.now += 10
    house.devices.report(APP, [gone(1)._replace(apns_id=bytes(range(16))), gone(2, None, sent_at=NOW + 1)])
    house.devices.report(OTHER, [gone(1)])
    await house.devices.settle()
    first, second, third = await house.devices.events()
    assert (first.id, first.app, first.device_token, first.user) == (1, APP, token(1), "alice")
    assert (first.status, first.reason, first.environment) == (410, "Unregistered", "development")
    assert (first.at, first.unregistered_at, first.sent_at) == (NOW + 10, NOW, NOW)
    assert first.apns_id == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert (second.unregistered_at, second.sent_at, second.apns_id) == (None, NOW + 1, None)
    assert [event.id for event in await house.devices.events(1, 1)] == [2]
    assert [event.id for event in await house.devices.events(app=OTHER)] == [third.id]
    assert list(await house.devices.events(app="nix")) == []


async def test_a_dead_device_is_told_once(house):
    await house.register(1)
    house.devices.report(APP, [gone(1), gone(1)])
    await house.devices.settle()
    house.devices.report(APP, [gone(1)])
    await house.devices.settle()
    assert len(await house.devices.events()) == 1


# BadDeviceToken.


async def test_a_device_token_is_tried_in_the_other_environment_before_it_is_dead(house):
    await house.register(1, "network")
    house.clock.now += 1
    house.devices.report(APP, [bad(1)])
    await believed(house)
    page = await house.devices.page(APP, Audience(any_of=("network",)))
    assert (page.device_tokens, page.environments) == ([token(1)], "d")
    house.devices.report(APP, [bad(1, sent_at=NOW)])  # another push that went to production still
    await believed(house)
    assert await alive(house) == [1]
    house.devices.report(APP, [bad(1, sent_at=NOW + 2)])
    await believed(house)
    assert await alive(house) == []
    assert [event.reason for event in await house.devices.events()] == ["BadDeviceToken"]


async def test_an_environment_that_was_learned_is_kept(house):
    await house.register(1)
    house.devices.report(APP, [bad(1)])
    await believed(house)
    await house.devices.learn_environment(APP, token(1), "development")
    assert (await house.devices.get(APP, token(1))).environment == "development"
    house.clock.now += 10
    house.devices.report(APP, [bad(1, sent_at=NOW + 5)])
    await believed(house)
    assert (await house.devices.get(APP, token(1))).environment == "production", "tried anew, not in a loop"
    house.devices.report(APP, [bad(1, sent_at=NOW + 11)])
    await believed(house)
    assert await alive(house) == []


@pytest.mark.parametrize("verdict", [bad(1, certain=True), bad(1, reason="DeviceTokenNotForTopic")])
async def test_a_device_token_without_another_environment_is_dead(house, verdict):
    await house.register(1)
    house.devices.report(APP, [verdict])
    await believed(house)
    assert await alive(house) == []


# The breaker.


async def test_a_fault_of_ours_empties_no_registry(house):
    """A wrong topic refuses everybody: nothing is deleted, not even the first ones, and it is told."""
    for number in range(1, 101):
        await house.register(number)
    house.devices.report(APP, [], accepted=1_000)
    assert house.devices.breaker(APP) is None
    for number in range(1, 101):
        house.devices.report(APP, [bad(number, reason="DeviceTokenNotForTopic")])
    house.devices.report(APP, [gone(1)])
    await believed(house)
    assert len(await alive(house)) == 100
    told = house.devices.breaker(APP)
    assert "41 of the last 200 answers" in told
    assert "DeviceTokenNotForTopic" in told
    assert house.devices.breaker(OTHER) is None
    house.devices.close_breaker(APP)
    assert house.devices.breaker(APP) is None
    house.devices.report(APP, [gone(1)])
    await house.devices.settle()
    assert len(await alive(house)) == 99, "now it counts again"


def counted(good, wrong, **fields):
    judge = Judge()
    judge.report(APP, [], good, 0.0)
    judge.report(APP, [bad(number, **fields) for number in range(wrong)], 0, 0.0)
    return judge


@pytest.mark.parametrize(
    ("good", "wrong", "opens"),
    [
        (160, 40, False), (159, 41, True), (1_000, 40, False), (1_000, 41, True),
        (0, 10, False), (0, 11, True), (50, 12, False), (50, 13, True),
    ],
)  # fmt: skip
def test_the_breaker_opens_above_a_fifth_of_the_last_200(good, wrong, opens):
    """And not for a handful, where there are few phones."""
    assert (counted(good, wrong).breaker(APP) is not None) == opens


@pytest.mark.parametrize(
    ("status", "reason", "counts"),
    [
        (400, "BadDeviceToken", True),
        (400, "DeviceTokenNotForTopic", True),
        (403, "InvalidProviderToken", True),
        (403, "", True),
        (410, "Unregistered", False),
        (429, "TooManyRequests", False),
        (503, "", False),
        (400, "BadTopic", False),
    ],
)
def test_what_counts_for_the_breaker(status, reason, counts):
    judge = Judge()
    judge.report(APP, [(token(number), status, reason, None, NOW) for number in range(200)], 0, 0.0)
    assert (judge.breaker(APP) is not None) == counts


def test_the_breaker_closes_when_apns_accepts_again():
    judge = counted(0, 200)
    assert judge.breaker(APP) is not None
    judge.report(APP, [], 179, 0.0)
    assert judge.breaker(APP) is not None
    judge.report(APP, [], 1, 0.0)
    assert judge.breaker(APP) is None


@pytest.mark.parametrize(
    "cure", [lambda judge: judge.report(APP, [], 200, 0.0), lambda judge: judge.close_breaker(APP)]
)
async def test_who_waits_for_the_breaker_is_told_when_it_closes(cure, clock):
    judge = Judge()
    await judge.closed(APP)
    for _ in range(2):
        judge.report(APP, [bad(number) for number in range(200)], 0, 0.0)
        with trio.fail_after(1.0):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(judge.closed, APP)
                await trio.testing.wait_all_tasks_blocked()
                assert nursery.child_tasks
                cure(judge)
        assert judge.breaker(APP) is None


def test_only_the_last_200_count():
    judge = counted(0, 10)
    for _ in range(30):
        judge.report(APP, [], 7, 0.0)
    judge.report(APP, [bad(n) for n in range(40)], 0, 0.0)
    assert judge.breaker(APP) is None
    judge.report(APP, [bad(0)], 0, 0.0)
    assert judge.breaker(APP) is not None


def test_what_may_be_our_fault_waits():
    """For 200 further answers or a minute; a 410 does not."""
    judge = Judge()
    judge.report(APP, [bad(1), gone(2)], 0, 0.0)
    assert judge.take(10, 0.0) == [(APP, gone(2))]
    assert judge.take(10, 59.9) == []
    assert judge.take(10, 60.0) == [(APP, bad(1))]
    judge.report(APP, [bad(3)], 0, 100.0)
    judge.report(APP, [], 199, 100.0)
    assert judge.take(10, 100.0) == []
    judge.report(APP, [], 1, 100.0)
    assert judge.take(10, 100.0) == [(APP, bad(3))]


def test_verdicts_in_memory_are_bounded(monkeypatch):
    monkeypatch.setattr(verdicts, "MOST", 5)
    judge = Judge()
    judge.report(APP, [gone(n) for n in range(8)], 0, 0.0)
    assert judge.forgotten == 3
    taken = judge.take(10, 0.0)
    assert len(taken) == 5
    judge.give_back(taken)
    judge.report(APP, [gone(9)], 0, 0.0)
    assert judge.forgotten == 4
    assert judge.take(10, 0.0) == taken


async def test_waiting_ends_when_something_is_believed(clock):
    judge = Judge()
    judge.report(APP, [bad(1)], 0, trio.current_time())
    started = trio.current_time()
    await judge.wait()
    assert trio.current_time() - started == 60.0
    assert judge.take(1, trio.current_time())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(judge.wait)
        await trio.testing.wait_all_tasks_blocked()
        judge.report(APP, [gone(1)], 0, trio.current_time())


async def test_what_was_reported_is_written_by_run_and_at_its_end(house):
    await house.register(1)
    await house.register(2)
    async with trio.open_nursery() as nursery:
        await nursery.start(house.devices.run)
        house.devices.report(APP, [gone(1)])
        await house.devices.wait_for_events(0)
        assert await alive(house) == [2]
        house.devices.report(APP, [gone(2)])
        nursery.cancel_scope.cancel()
    assert await alive(house) == []


async def test_what_the_disk_refuses_is_written_by_run_a_second_later(house, monkeypatch, clock):
    """Who asks for it to be written now does not wait for the disk to be cured."""
    clock.holds.append(lambda: house.storage.pending_rows > 0)
    await house.register(1)
    write, refusals = changes.apply_verdicts, []

    def refuse(connection, **fields):
        refusals.append(fields)
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    monkeypatch.setattr(changes, "apply_verdicts", refuse)
    house.devices.report(APP, [gone(1)])
    started = trio.current_time()
    assert not await house.devices.settle()
    assert trio.current_time() < started + 1.0
    assert len(refusals) == 1
    monkeypatch.setattr(changes, "apply_verdicts", write)
    async with trio.open_nursery() as nursery:
        await nursery.start(house.devices.run)
        await house.devices.wait_for_events(0)
        nursery.cancel_scope.cancel()
    assert await alive(house) == []
    assert await house.devices.settle()
