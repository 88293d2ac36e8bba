"""The dispatcher's decisions, one by one, without sockets: slots, verdicts, the newest, the circuit."""

import math

import pytest
import trio
import trio.testing

from fastpush.errors import CredentialRefused, InvalidNotification, NotSent, OutcomeUnknown
from fastpush.gateway.dispatcher.circuit import FIRST_RATE, Circuit, Ramp
from fastpush.gateway.dispatcher.making import Maker
from fastpush.gateway.dispatcher.newest import Newest
from fastpush.gateway.dispatcher.slots import Slots
from fastpush.gateway.dispatcher.upkeep import keep_up
from fastpush.gateway.dispatcher.verdicts import Patience, Way, due_after, judge, known_reason
from fastpush.gateway.outbox import Audience, Claimed, End, Entry, Retry
from fastpush.notification import Notification, Payload, Response
from tests.clocks import story_clock

NOW = 1_800_000_000.0
BATCH = int(NOW * 1_000) << 20
TOKEN = "ab" * 32
NOTIFICATION = Notification(TOKEN, Payload(alert="a"))


@pytest.fixture
def clock():
    return story_clock(0)


# Slots.


async def take(flow, most, taken):
    taken.append((flow, await flow.acquire(most)))


async def test_slots_bound_what_is_in_memory_and_come_back(clock):
    slots = Slots(1_000)
    flow = slots.flow(slots.add(1_000), high=False)
    assert await flow.acquire(700) == 700
    assert await flow.acquire(700) == 200
    with trio.move_on_after(1) as scope:
        await flow.acquire(1)
    assert scope.cancelled_caught
    flow.release(900)
    assert slots.held == flow.share.held == 0
    assert await flow.acquire(5) == 5


async def test_the_last_tenth_is_for_high_priority():
    slots = Slots(1_000)
    share = slots.add(500)
    normal, high = slots.flow(share, high=False), slots.flow(share, high=True)
    assert await normal.acquire(1_000) == 450
    assert slots.free(normal) == 0
    assert await high.acquire(1_000) == 50


async def test_an_app_that_keeps_its_slots_leaves_each_other_its_share():
    slots = Slots(1_000)
    flows = [slots.flow(slots.add(1_000), high=False) for _ in range(3)]
    most = 1_000 - 2 * (250 // 3) - 100  # all but the others' shares and the tenth for high priority
    assert await flows[0].acquire(1_000) == most
    assert await flows[1].acquire(1_000) == 250 // 3
    assert await flows[2].acquire(1_000) == 250 // 3
    assert slots.held <= slots.total


async def test_who_waits_gets_slots_by_turns():
    """High priority first; then a quantum each, whatever anybody asks for."""
    slots = Slots(10_000)
    shares = [slots.add(10_000) for _ in range(3)]
    holder = slots.flow(shares[2], high=True)
    held = await holder.acquire(10_000)
    first, second = (slots.flow(share, high=False) for share in shares[:2])
    high = slots.flow(shares[0], high=True)
    own = [slots.free(flow) for flow in (first, second)]
    assert own == [833, 833]  # what nobody can take from them
    assert await first.acquire(833) == await second.acquire(833) == 833
    taken = []
    async with trio.open_nursery() as nursery:
        for flow, most in ((first, 5_000), (second, 600), (high, 1_000)):
            nursery.start_soon(take, flow, most, taken)
        await trio.testing.wait_all_tasks_blocked()
        assert taken == []
        holder.release(4_000)
    got = dict(taken)
    assert got[high] == 1_000
    assert got[second] == 600  # by turns: all that it asked for
    assert got[first] == 4_000 - 1_000 - 600 - 1_000  # the last tenth is left
    assert held == 10_000 - 2 * 833


# Verdicts.


def response(outcome, **fields):
    return Response(NOTIFICATION, outcome, **fields)


def decide(answer, *, before=0, chance=1.0, now=NOW, patience=None, **fields):
    fields = {"expiration": int(NOW) + 86_400} | fields
    return judge(
        answer, Entry(TOKEN, b"{}", **fields), batch=BATCH, index=7, device_token=None, before=before,
        now=now, chance=chance, patience=patience or Patience(),
    )  # fmt: skip


def rejected(status, reason, **fields):
    return response("rejected", status=status, reason=reason, **fields)


UNKNOWN = response("unknown", error=OutcomeUnknown("lost"))


@pytest.mark.parametrize(
    ("answer", "fields", "outcome", "reason"),
    [
        (rejected(410, "Unregistered"), {}, "rejected", "Unregistered"),
        (rejected(400, "BadTopic"), {}, "rejected", "BadTopic"),
        (response("expired"), {}, "expired", ""),
        (UNKNOWN, {"delivery": "once"}, "unknown", "lost"),
        (UNKNOWN, {"expiration": 0}, "unknown", "lost"),
        (rejected(503, "Shutdown", retryable=True), {"expiration": 0}, "failed", "Shutdown"),
        (response("not_sent", error=InvalidNotification("x", field="topic")), {}, "failed", "Invalid topic"),
    ],
)  # fmt: skip
def test_what_ends(answer, fields, outcome, reason):
    end = decide(answer, **fields)
    assert isinstance(end, End)
    assert (end.outcome, end.reason, end.index) == (outcome, reason, 7)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (rejected(503, "ServiceUnavailable", retryable=True, attempts=3), "ServiceUnavailable"),
        (rejected(429, "TooManyRequests", retryable=True, attempts=3), "TooManyRequests"),
        (rejected(403, "ExpiredProviderToken", attempts=3), "ExpiredProviderToken"),
        (response("unknown", error=OutcomeUnknown("lost"), attempts=3), "Lost"),
        (response("not_sent", error=NotSent("closed"), attempts=3, retryable=True), "NotSent"),
    ],
)
def test_what_is_tried_again(answer, reason):
    retry = decide(answer)
    assert isinstance(retry, Retry)
    assert (retry.reason, retry.attempts, retry.due_at) == (reason, 3, NOW + 15)


@pytest.mark.parametrize("reason", ["InvalidProviderToken", "Forbidden", "BadCertificate"])
def test_a_refused_credential_costs_a_notification_nothing(reason):
    assert decide(rejected(403, reason)) is Way.HELD
    assert decide(response("not_sent", error=CredentialRefused("x"))) is Way.HELD


def test_a_device_token_of_another_environment_may_go_elsewhere():
    assert decide(rejected(400, "BadDeviceToken")) is Way.ELSEWHERE


def test_the_wait_doubles_up_to_a_quarter_of_an_hour_and_obeys_retry_after():
    patience = Patience()
    waits = [due_after(patience, rounds, 1.0, None) for rounds in range(9)]
    assert waits == [15, 30, 60, 120, 240, 480, 900, 900, 900]
    assert due_after(patience, 0, 0.0, None) == 7.5
    assert due_after(patience, 0, 0.0, 100.0) == 100.0
    answer = rejected(503, "ServiceUnavailable", retryable=True, attempts=3)
    assert decide(answer, before=3).due_at == NOW + 30
    assert decide(answer, before=3).attempts == 6


def test_the_last_try_is_before_the_expiration_and_the_end_after_it():
    answer = rejected(503, "ServiceUnavailable", retryable=True)
    retry = decide(answer, expiration=int(NOW) + 10)
    assert retry.due_at == NOW + 9
    end = decide(answer, expiration=int(NOW) + 1)
    assert (end.outcome, end.reason, end.status) == ("expired", "ServiceUnavailable", 503)


def test_after_the_last_try_it_has_failed():
    answer = rejected(503, "ServiceUnavailable", retryable=True)
    late = decide(answer, now=NOW + 86_400, expiration=int(NOW) + 10**6)
    assert (late.outcome, late.reason) == ("failed", "ServiceUnavailable")
    many = decide(answer, before=20, patience=Patience(tries=20))
    assert (many.outcome, many.attempts) == ("failed", 21)


def test_reasons_of_strangers_are_no_labels():
    assert [known_reason(reason) for reason in ("", "Unregistered", "<script>")] == [
        "",
        "Unregistered",
        "other",
    ]


# The newest.


def test_the_newest_of_a_device_and_collapse_id():
    newest = Newest()
    newest.see(TOKEN, "a", 10, 5)
    newest.see(TOKEN, "a", 9, 6)
    newest.see(TOKEN, "b", 11, 0)
    assert newest.is_superseded(TOKEN, "a", 10, 4)
    assert newest.is_superseded(TOKEN, "a", 9, 9)
    assert not newest.is_superseded(TOKEN, "a", 10, 5)
    assert not newest.is_superseded("cd" * 32, "a", 1, 0)


def test_a_device_of_a_fan_out_gives_way_to_a_newer_one_for_the_same_audience():
    newest = Newest()
    newest.see_fanout(10, "a", Audience(any_of=("x",)))
    newest.see_fanout(20, "a", Audience(any_of=("x",)))
    newest.see_fanout(11, "b", Audience())
    newest.see_fanout(21, "b", Audience(any_of=("x",)))
    assert newest.is_superseded(TOKEN, "a", 10, -1)
    assert not newest.is_superseded(TOKEN, "a", 20, -1)
    assert not newest.is_superseded(TOKEN, "b", 11, -1)  # the newer one may not be for it
    assert not newest.is_superseded(TOKEN, "a", 5, -1)  # of which nothing is known


def test_what_is_remembered_of_the_newest_is_bounded(monkeypatch):
    monkeypatch.setattr("fastpush.gateway.dispatcher.newest.MOST_PAIRS", 100)
    newest = Newest()
    for number in range(1_000):
        newest.see(f"{number:064x}", "a", number, 0)
    assert len(newest._pairs) == 100
    assert newest.is_superseded(f"{999:064x}", "a", 1, 0)


# The circuit.


def test_the_circuit_opens_closes_and_waits_longer_each_time():
    circuit, now = Circuit(), 100.0
    assert not circuit.count(0, 19, now, 1.0)  # too few to tell
    assert not circuit.count(100, 60, now, 1.0)
    waits = []
    for _ in range(6):
        assert circuit.count(0, 1_000, now, 1.0)
        assert circuit.is_open(now)
        waits.append(circuit.until - now)
        now = circuit.until
        assert not circuit.is_open(now)
    assert waits == [5, 10, 20, 40, 60, 60]
    assert not circuit.count(1_000, 0, now, 1.0)
    assert circuit.count(0, 5_000, now, 1.0)
    assert circuit.until - now == 5


def test_what_follows_a_pause_goes_out_slowly_at_first():
    ramp = Ramp()
    assert ramp.take(5.0) == 0.0
    ramp.begin(100.0)
    assert ramp.take(99.0) == 1.0
    sent, by_second = 0, []
    for tick in range(10_000):
        while ramp.take(100.0 + tick / 1_000) == 0.0:
            sent += 1
            if sent > 10**6:
                break
        if tick % 1_000 == 999:
            by_second.append(sent)
            if sent > 10**5:
                break
    assert by_second[0] <= FIRST_RATE / math.log(2.0) + 2
    assert by_second[3] > 10 * by_second[0]


# Making and upkeep.


def test_the_badge_is_filled_in_where_an_entry_asks_for_it():
    maker = Maker("app", lambda app, tags: 3 if (app, tags) == ("app", ("ops",)) else 0)
    entry = Entry(None, b'{"aps":{"alert":"a"},"x":1}', badge=True)
    ops = Audience(any_of=("ops",))
    assert maker.payload(entry, ops).encode() == b'{"aps":{"badge":3,"alert":"a"},"x":1}'
    assert maker.payload(Entry(None, b'{"aps":{}}', badge=True), ops).encode() == b'{"aps":{"badge":3}}'
    assert maker.payload(Entry(None, b'{"aps":{}}'), ops).encode() == b'{"aps":{}}'
    assert Maker("app", None).payload(entry, ops).encode() == entry.payload


@pytest.mark.parametrize(
    ("fields", "collapse_id"),
    [
        ({}, "00000000-0000-0000-0000-000000000001"),
        ({"collapse_id": "a"}, "a"),
        ({"delivery": "once"}, None),
        ({"push_type": "voip"}, None),
    ],
)
def test_an_alert_that_has_no_collapse_id_gets_its_apns_id(fields, collapse_id):
    """So that a repetition after a lost connection replaces it; not where there is no repetition."""
    entry = Entry(TOKEN, b'{"aps":{}}', expiration=int(NOW), **fields)
    made = Maker("app", None).notification(Claimed(1, 0, (1).to_bytes(16, "big"), entry))
    assert (made.apns_id, made.collapse_id) == ("00000000-0000-0000-0000-000000000001", collapse_id)


async def test_a_task_that_fails_begins_anew_and_says_so_without_its_message(clock, caplog):
    times = []

    async def fail_twice():
        times.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if len(times) < 3:
            raise KeyError(TOKEN)

    await keep_up("app", fail_twice)
    assert [times[1] - times[0], times[2] - times[1]] == [1.0, 2.0]
    assert "KeyError" in caplog.text
    assert TOKEN not in caplog.text
