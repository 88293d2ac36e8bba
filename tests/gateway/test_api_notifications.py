"""POST /v1/notifications with JSON, and what can be asked about it afterwards."""

from __future__ import annotations

import json
import os
import time
import uuid

import pytest
import trio

import fastpush
from fastpush.gateway.api import Gateway
from fastpush.gateway.app import ingest_app
from fastpush.gateway.counters import Counters
from fastpush.gateway.outbox import End, Retry
from fastpush.gateway.outbox.sqlite import OutboxLimits
from tests.gateway.asgi import ask
from tests.gateway.dispatch_house import open_all
from tests.gateway.gateways import TOKENS, Keys, Known, open_gateway, waiting

JSON = {"Content-Type": "application/json"}
ONE = {"device_token": TOKENS[0], "alert": {"title": "Core switch down"}}


async def post(app, value, path="/v1/notifications", **headers):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    named = {name.replace("_", "-"): each for name, each in headers.items()}
    return await ask(app, "POST", path, body=body, headers=JSON | named)


async def test_one_notification_is_on_disk_when_it_is_answered(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        app = ingest_app(gateway)
        before = int(time.time())
        answer = await post(app, ONE)
        assert answer.status == 202
        told = answer.json
        assert told["app"] == "opm"
        assert told["count"] == 1
        [apns_id] = told["ids"]
        assert apns_id == str(uuid.UUID(apns_id))
        assert answer.headers["location"] == f"/v1/notifications/{apns_id}"
        [entry] = await waiting(gateway)
        assert entry.device_token == TOKENS[0]
        assert json.loads(entry.payload) == {"aps": {"alert": {"title": "Core switch down"}}}
        assert (entry.push_type, entry.priority, entry.delivery, entry.high) == ("alert", 10, "resend", False)
        assert before + 86_400 <= entry.expiration <= time.time() + 86_400
        assert entry.trace == answer.headers["x-request-id"]
        assert gateway.counters.notifications == {"opm": 1}


async def test_every_field_of_the_content_arrives_as_the_library_writes_it(tmp_path):
    """The same JSON as `Payload` makes from the same fields, and each field of the notification."""
    alert = {
        "title": "t", "subtitle": "s", "body": "b", "launch_image": "l", "title_loc_key": "tk",
        "title_loc_args": ["1"], "subtitle_loc_key": "sk", "subtitle_loc_args": ["2"], "loc_key": "lk",
        "loc_args": ["3"], "action_loc_key": "a", "summary_arg": "sa", "summary_arg_count": 3,
    }  # fmt: skip
    content = {
        "badge": 7, "thread_id": "th", "category": "c", "content_available": True, "mutable_content": True,
        "target_content_id": "w", "interruption_level": "critical", "relevance_score": 0.75,
        "filter_criteria": "f", "content_changed": True, "url_args": ["u"], "data": {"alarm": {"id": 17}},
    }  # fmt: skip
    sound = {"name": "siren", "critical": True, "volume": 0.5}
    addressed = {
        "device_token": TOKENS[0].upper(), "topic": "com.example.opm", "push_type": "alert", "priority": 5,
        "expiration": 1_900_000_000, "collapse_id": "sw-core-1", "delivery": "once", "urgent": True,
        "apns_id": "7E4F35C7-2B2E-4C79-8B9B-8D5D14B3F9B1", "app": "opm",
    }  # fmt: skip
    async with open_gateway(tmp_path) as gateway:
        answer = await post(ingest_app(gateway), {"alert": alert, "sound": sound, **content, **addressed})
        assert answer.status == 202
        assert answer.json["ids"] == ["7e4f35c7-2b2e-4c79-8b9b-8d5d14b3f9b1"]
        [entry] = await waiting(gateway)
        payload = fastpush.Payload(
            alert=fastpush.Alert(**alert), sound=fastpush.Sound("siren", critical=True, volume=0.5), **content
        )
        assert entry.payload == payload.encode()
        assert entry.device_token == TOKENS[0]
        assert (entry.topic, entry.priority, entry.expiration) == ("com.example.opm", 5, 1_900_000_000)
        assert (entry.collapse_id, entry.delivery, entry.high) == ("sw-core-1", "once", True)
        assert entry.apns_id == uuid.UUID(addressed["apns_id"]).bytes


def test_nothing_of_the_library_lacks_over_http():
    """Each argument of Payload, Alert, Sound and Notification is a field."""
    import inspect

    from fastpush.gateway.api.notifications.body import AlertBody, NotificationBody, SoundBody

    def arguments(kind):
        text = inspect.getdoc(kind)
        names = set()
        for line in text[text.index("Args:") : text.index("Raises:")].splitlines():
            if line.startswith("  ") and not line.startswith("   ") and ":" in line:
                names |= {name.strip() for name in line.partition(":")[0].split(",")}
        return names

    fields = set(NotificationBody.__struct_fields__)
    assert arguments(fastpush.Payload) <= fields
    assert arguments(fastpush.Notification) - {"payload"} <= fields
    assert arguments(fastpush.Alert) == set(AlertBody.__struct_fields__)
    assert arguments(fastpush.Sound) == set(SoundBody.__struct_fields__)


async def test_ready_json_goes_out_octet_by_octet(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        ready = b'{ "aps": {"alert":"a"},\t"x": 1.50 }'
        body = b'{"device_token":"%s","payload":%s}' % (TOKENS[0].encode(), ready)
        assert (await post(ingest_app(gateway), body)).status == 202
        [entry] = await waiting(gateway)
        assert entry.payload == ready


async def test_one_content_for_several_devices(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        answer = await post(ingest_app(gateway), {"device_tokens": TOKENS[:3], "alert": "Hello"})
        assert (answer.status, answer.json["count"], len(answer.json["ids"])) == (202, 3, 3)
        assert answer.headers["location"] == f"/v1/batches/{answer.json['batch']}"
        entries = await waiting(gateway)
        assert [entry.device_token for entry in entries] == TOKENS[:3]
        assert len({entry.payload for entry in entries}) == 1


async def test_an_array_is_accepted_as_a_whole_or_not_at_all(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        app = ingest_app(gateway)
        good = [{"device_token": token, "alert": "a"} for token in TOKENS[:1_000]]
        bad = [*good[:3], {"device_token": TOKENS[3], "alert": {"title": "x", "loc_args": ["a", "\ud800"]}}]
        answer = await post(app, bad)
        assert answer.status in (400, 422)
        bad[3]["alert"] = {"title": "x", "summary_arg_count": -1}
        answer = await post(app, bad)
        assert (answer.status, answer.json["field"]) == (422, "notifications[3].alert.summary_arg_count")
        assert gateway.outbox.waiting() == {}
        answer = await post(app, good)
        assert (answer.status, answer.json["count"], len(set(answer.json["ids"]))) == (202, 1_000, 1_000)
        assert [entry.device_token for entry in await waiting(gateway)] == TOKENS[:1_000]


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"device_token": "xyz"}, 422, "device_token"),
        ({"device_token": None}, 422, "device_token"),
        ({"device_token": 7}, 422, "device_token"),
        ({"device_tokens": [TOKENS[0]]}, 422, "device_token"),
        ({"device_token": None, "device_tokens": []}, 422, "device_tokens"),
        ({"device_token": None, "device_tokens": [*TOKENS[:2], "0"]}, 422, "device_tokens[2]"),
        ({"device_token": None, "device_tokens": ["00"] * 1_001}, 422, "device_tokens"),
        (
            {"device_token": None, "device_tokens": TOKENS[:2], "apns_id": str(uuid.UUID(int=1))},
            422,
            "apns_id",
        ),
        ({"alert": None}, 422, "alert"),
        ({"alert": {"titel": "x"}}, 422, "alert.titel"),
        ({"alert": {"body": 3}}, 422, "alert.body"),
        ({"colour": "red"}, 422, "colour"),
        ({"badge": -1}, 422, "badge"),
        ({"badge": 1.5}, 422, "badge"),
        ({"sound": {"volume": 2}}, 422, "sound.volume"),
        ({"interruption_level": "loud"}, 422, "interruption_level"),
        ({"relevance_score": 1.01}, 422, "relevance_score"),
        ({"data": {"aps": 1}}, 422, "data"),
        ({"data": {"x": "y" * 5_000}}, 422, "payload"),
        ({"payload": {"aps": {}}}, 422, "payload"),
        ({"alert": None, "payload": [1]}, 422, "payload"),
        ({"priority": 7}, 422, "priority"),
        ({"expiration": 3_600}, 422, "expiration"),
        ({"collapse_id": "c" * 65}, 422, "collapse_id"),
        ({"apns_id": "7"}, 422, "apns_id"),
        ({"push_type": "background"}, 422, "alert"),
        ({"delivery": "twice"}, 422, "delivery"),
        ({"topic": "com.other.app"}, 403, "topic"),
        ({"app": "other"}, 404, "app"),
        ({"device_token": None, "audience": {}}, 422, "audience.everyone"),
        ({"device_token": None, "audience": {"everyone": True, "all_of": ["a"]}}, 422, "audience.everyone"),
        ({"device_token": None, "audience": {"any_of": [""]}}, 422, "audience.any_of[0]"),
        ({"audience": {"any_of": ["a"]}}, 422, "audience"),
    ],
)
async def test_what_is_wrong_is_refused_by_its_field(tmp_path, change, status, field):
    """With the library's own message where it is the library's own check; nothing is stored."""
    async with open_gateway(tmp_path) as gateway:
        answer = await post(ingest_app(gateway), {**ONE, **change})
        assert (answer.status, answer.json["field"]) == (status, field)
        assert answer.headers["content-type"] == "application/problem+json"
        assert TOKENS[0] not in answer.body.decode()
        assert gateway.outbox.waiting() == {}


async def test_messages_are_the_librarys(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        app = ingest_app(gateway)
        with pytest.raises(fastpush.InvalidNotification) as raised:
            fastpush.Notification("00", fastpush.Payload(alert="a"), collapse_id="c" * 65)
        answer = await post(app, {**ONE, "collapse_id": "c" * 65})
        assert answer.json["detail"] == f"{raised.value}."


NASTY = {
    "empty": b"",
    "cut off": b'{"alert"',
    "no object": b"3",
    "BOM": b"\xef\xbb\xbf{}",
    "not UTF-8": b'{"device_token":"\xff"}',
    "not UTF-8 in ready JSON": b'{"device_token":"00","payload":{"a":"\xff"}}',
    "NaN": b'{"device_token":"00","data":{"a":NaN}}',
    "1e999": b'{"device_token":"00","data":{"a":1e999}}',
    "250,000 digits": b'{"device_token":"00","badge":' + b"1" * 250_000 + b"}",
    "24,000 members": b'{"device_token":"00","data":{%s}}' % b",".join(b'"%d":1' % n for n in range(24_000)),
    "deep": b'{"device_token":"00","data":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    "rather deep": b'{"device_token":"00","data":{"a":' + b"[" * 16 + b"]" * 16 + b"}}",
    "rather deep, ready": b'{"device_token":"00","payload":{"a":' + b"[" * 16 + b"]" * 16 + b"}}",
    "lone surrogate": b'{"device_token":"00","alert":"\\ud800"}',
    "lone surrogate in data": b'{"device_token":"00","data":{"a":"\\udc00"}}',
    "control character": b'{"device_token":"00","alert":"a\x00b"}',
    "trailing": b'{"device_token":"00","alert":"a"}x',
    "array of nothing": b"[]",
    "array of arrays": b"[[]]",
    "array too long": b"[" + b"{}," * 1_000 + b"{}]",
}


@pytest.mark.parametrize("body", NASTY.values(), ids=NASTY)
async def test_hostile_json_is_refused_at_once(tmp_path, body):
    async with open_gateway(tmp_path) as gateway:
        started = time.process_time()
        answer = await post(ingest_app(gateway), body)
        assert answer.status in (400, 413, 422)
        assert answer.json["title"]
        assert time.process_time() - started < 0.5  # 20 ms on a quiet machine
        assert gateway.outbox.waiting() == {}


def mutated(chance, octets):
    """Valid JSON with some of it lost, doubled, or turned into something else."""
    found = bytearray(octets)
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(found) + 1)
        end = min(len(found), start + chance.choice((1, 1, 2, 8, 40)))
        found[start:end] = chance.choice(
            (b"", found[start:end] * 2, b"null", b"[", b"{", b'"', b"\\u", b"-", b"1e999", b"\xff", b"\x00",
             b",", chance.randbytes(3))
        )  # fmt: skip
    return bytes(found)


@pytest.mark.slow
async def test_ten_thousand_broken_bodies(tmp_path, seed):
    """S6: each gets an answer that is no 5xx, and nobody's memory grows."""
    whole = json.dumps(
        {
            "device_tokens": TOKENS[:2],
            "alert": {"title": "t", "loc_args": ["a", "b"], "summary_arg_count": 1},
            "badge": 3, "sound": {"name": "x", "critical": True, "volume": 0.5}, "relevance_score": 0.25,
            "data": {"a": [1, {"b": None}], "c": 1.5e3}, "expiration": 1_900_000_000, "collapse_id": "c",
            "delivery": "once",
        }
    ).encode()  # fmt: skip
    ready = b'[{"device_token":"aa11","payload":{"aps":{"alert":"a"},"x":[1,2,{"y":"\\u00fc"}]}}]'
    async with open_gateway(tmp_path) as gateway:
        app, statuses, before = ingest_app(gateway), set(), None
        for number in range(10_000):
            if number == 1_000:
                before = resident()
            statuses.add((await post(app, mutated(seed, seed.choice((whole, ready))))).status)
        assert statuses <= {202, 400, 404, 413, 422}
        assert {202, 400, 422} <= statuses
        assert resident() - before < 24 << 20  # what was accepted waits in memory


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_fifteen_brackets_in_a_text_are_no_depth():
    from fastpush.gateway.api.notifications.body import depth

    assert depth(b'{"a":"[[[[[[[[[[[[[[[[[[[[\\"{{{","b":[{}]}') == 3


async def test_of_two_equal_members_the_last_counts(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        assert (await post(ingest_app(gateway), b'{"device_token":"00","alert":1,"alert":"b"}')).status == 422
        assert (
            await post(ingest_app(gateway), b'{"device_token":"00","alert":"a","alert":"b"}')
        ).status == 202
        [entry] = await waiting(gateway)
        assert entry.payload == b'{"aps":{"alert":"b"}}'


async def test_bodies_that_are_too_large(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        app = ingest_app(gateway)
        padding = b" " * (256 << 10)
        assert (await post(app, json.dumps(ONE).encode() + padding)).status == 413
        assert (await post(app, b"[" + json.dumps(ONE).encode() + padding + b"]")).status == 202
        assert (await post(app, b"[" + padding * 16 + b"]")).status == 413
        one = b'{"device_token":"00","alert":"%s"}' % (b"x" * (256 << 10))
        answer = await post(app, b"[%s]" % one)
        assert (answer.status, answer.json["field"]) == (413, "notifications[0]")


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"Content-Type": "application/x-www-form-urlencoded"}, "Content-Type"),
        ({"Content-Type": ""}, "Content-Type"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, "Content-Encoding"),
    ],
)
async def test_other_forms_of_body_are_415(tmp_path, headers, field):
    async with open_gateway(tmp_path) as gateway:
        answer = await ask(ingest_app(gateway), "POST", "/v1/notifications", body=b"{}", headers=headers)
        assert (answer.status, answer.json["field"]) == (415, field)


# Which app, and who may.


async def test_the_app_is_named_or_the_only_one(tmp_path):
    keys = Keys(all=Known(), one=Known(apps=frozenset(["b"])), none=Known(scopes=frozenset()))
    async with open_gateway(tmp_path, apps=("a", "b"), keys=keys) as gateway:
        app = ingest_app(gateway)
        answer = await post(app, ONE)
        assert (answer.status, answer.json["field"]) == (422, "app")
        assert (await post(app, {**ONE, "app": "a"})).json["app"] == "a"
        assert (await post(app, ONE, "/v1/notifications?app=b")).json["app"] == "b"
        assert (await post(app, {**ONE, "app": "a"}, "/v1/notifications?app=b")).json["field"] == "app"
        assert (await post(app, ONE, authorization="Bearer one")).json["app"] == "b"
        assert (await post(app, {**ONE, "app": "a"}, authorization="Bearer one")).status == 403
        assert (await post(app, ONE, authorization="Bearer none")).status == 403
        assert (await post(app, ONE, authorization="Bearer unknown")).status == 401
        mixed = [{**ONE, "app": "a"}, {**ONE, "app": "b"}]
        assert (await post(app, mixed)).json["field"] == "notifications[1].app"


async def test_a_suffix_of_the_topic_is_the_apps(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        voip = {**ONE, "push_type": "voip", "topic": "com.example.opm.voip"}
        assert (await post(ingest_app(gateway), voip)).status == 202


async def test_another_app_is_not_told_what_there_is(tmp_path):
    """404 as for what never was."""
    keys = Keys(a=Known(apps=frozenset(["a"])), b=Known(apps=frozenset(["b"])))
    async with open_gateway(tmp_path, apps=("a", "b"), keys=keys) as gateway:
        app = ingest_app(gateway)
        told = (await post(app, ONE)).json
        for path in (f"/v1/notifications/{told['ids'][0]}", f"/v1/batches/{told['batch']}"):
            assert (await ask(app, "GET", path)).status == 200
            hidden = await ask(app, "GET", path, headers={"Authorization": "Bearer b"})
            never = await ask(app, "GET", path[:-1] + ("0" if path[-1] != "0" else "1"))
            assert (hidden.status, hidden.json) == (never.status, never.json)
            assert hidden.status == 404


# Idempotency.


async def test_the_same_key_and_content_is_one_acceptance(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        app = ingest_app(gateway)
        first = await post(app, ONE, idempotency_key="k")
        again = await post(app, ONE, idempotency_key="k")
        assert (again.status, again.json) == (202, first.json)
        assert "idempotency-replayed" not in first.headers
        assert again.headers["idempotency-replayed"] == "true"
        other = await post(app, {**ONE, "badge": 1}, idempotency_key="k")
        assert (other.status, other.json["field"]) == (409, "Idempotency-Key")
        assert len(await waiting(gateway)) == 1
        assert gateway.counters.notifications == {"opm": 1}


async def test_keys_of_two_senders_are_two_keys(tmp_path):
    keys = Keys(a=Known(key_id="a"), b=Known(key_id="b"))
    async with open_gateway(tmp_path, keys=keys) as gateway:
        app = ingest_app(gateway)
        for sender in "ab":
            assert (await post(app, ONE, idempotency_key="k", authorization=f"Bearer {sender}")).status == 202
        assert len(await waiting(gateway)) == 2


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "ü"])
async def test_an_idempotency_key_is_visible_ascii(tmp_path, key):
    async with open_gateway(tmp_path) as gateway:
        named = key.encode().decode("latin-1") if key != "ü" else "ü"
        headers = {**JSON, "Idempotency-Key": named}
        answer = await ask(
            ingest_app(gateway), "POST", "/v1/notifications", body=json.dumps(ONE).encode(), headers=headers
        )
        assert (answer.status, answer.json["field"]) == (400, "Idempotency-Key")


# Audiences.


async def test_a_fan_out_is_one_row(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        app = ingest_app(gateway)
        value = {"audience": {"any_of": ["noc", "admin"], "none_of": ["off"]}, "alert": "Down"}
        first = await post(app, value, idempotency_key="k")
        assert (first.status, first.json["count"], first.json["ids"]) == (202, None, [])
        assert (await post(app, value, idempotency_key="k")).json == first.json
        [fanout] = await gateway.outbox.claim_fanouts("opm")
        assert (fanout.audience.any_of, fanout.audience.none_of) == (("noc", "admin"), ("off",))
        assert fanout.entry.device_token is None
        status = await ask(app, "GET", first.headers["location"])
        assert (status.json["kind"], status.json["count"], status.json["waiting"]) == ("fanout", 0, None)


async def test_everyone_must_be_said(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        assert (await post(ingest_app(gateway), {"audience": {"everyone": True}, "alert": "a"})).status == 202


# Prefer: wait.


async def test_who_waits_gets_the_outcomes_when_all_have_ended(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        app, dispatcher = ingest_app(gateway), gateway.dispatcher
        answer = await post(app, [ONE, ONE], prefer="wait=3")
        assert answer.status == 202
        assert answer.headers["preference-applied"] == "wait=3"
        dispatcher.ends = {
            0: End(1, 0, "accepted", 5.0, 200),
            1: End(1, 1, "rejected", 6.0, 400, "BadDeviceToken", 2),
        }
        answer = await post(app, [ONE, ONE], prefer="respond-async, wait=100")
        assert (answer.status, answer.headers["preference-applied"]) == (200, "wait=10")
        outcomes = answer.json["outcomes"]
        assert [(one["outcome"], one["status"], one["reason"]) for one in outcomes] == [
            ("accepted", 200, None),
            ("rejected", 400, "BadDeviceToken"),
        ]
        assert [within for _, within in dispatcher.asked] == [3, 10]


async def test_without_a_preference_nobody_waits(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        answer = await post(ingest_app(gateway), ONE, prefer="return=minimal")
        assert "preference-applied" not in answer.headers
        assert gateway.dispatcher.asked == []


async def test_the_outcomes_are_those_of_apns(tmp_path):
    """Through dispatcher, client and TLS to the simulated APNs and back, within the wait."""
    async with open_all(tmp_path / "gateway.db") as (apns, house):
        apns.mark_unregistered(TOKENS[1], time.time())
        gateway = Gateway(
            storage=house.storage, outbox=house.outbox, devices=house.devices, keys=Keys(), alarms=None,
            apps=house.apps, notices=None, config=None, clock=time.time, counters=Counters(),
            dispatcher=house.dispatcher,
        )  # fmt: skip
        app = ingest_app(gateway)
        answer = await post(app, {"device_tokens": TOKENS[:2], "alert": "a"}, prefer="wait=10")
        assert (answer.status, answer.headers["preference-applied"]) == (200, "wait=10")
        assert [(one["outcome"], one["status"], one["reason"]) for one in answer.json["outcomes"]] == [
            ("accepted", 200, None),
            ("rejected", 410, "Unregistered"),
        ]
        for one in answer.json["outcomes"]:
            status = (await ask(app, "GET", f"/v1/notifications/{one['apns_id']}")).json
            assert status["outcome"] == one["outcome"]
            assert [attempt["outcome"] for attempt in status["attempts"]] == [one["outcome"]]


# What became of it.


async def test_a_notification_tells_its_attempts(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        app = ingest_app(gateway)
        answer = await post(app, {**ONE, "collapse_id": "c"})
        where = answer.headers["location"]
        status = (await ask(app, "GET", where)).json
        assert (status["outcome"], status["attempts"]) == ("waiting", [])
        assert status["device_token"] == "0000…0001"
        assert status["payload"] == {"aps": {"alert": {"title": "Core switch down"}}}
        assert (status["source"], status["collapse_id"]) == ("nagios", "c")
        [claim] = await gateway.outbox.claim("opm", 1)
        end = End(claim.batch, claim.index, "rejected", 1_900_000_000.5, 410, "Unregistered")
        await gateway.outbox.settle([end])
        status = (await ask(app, "GET", where)).json
        assert status["outcome"] == "rejected"
        assert status["attempts"] == [
            {
                "at": 1_900_000_000.5, "outcome": "rejected", "status": 410, "reason": "Unregistered",
                "attempts": 1, "due_at": None, "apns_unique_id": None,
            }
        ]  # fmt: skip
        batch = (await ask(app, "GET", f"/v1/batches/{answer.json['batch']}")).json
        assert (batch["outcomes"], batch["waiting"], batch["kind"]) == ({"rejected": 1}, 0, "batch")


async def test_apples_own_id_is_kept_beside_ours(tmp_path):
    """And beside the end alone: what is written before and after it in the same log stays what it is."""
    async with open_gateway(tmp_path) as gateway:
        app = ingest_app(gateway)
        ids = [(await post(app, ONE)).json["ids"][0] for _ in range(2)]
        first, second = await gateway.outbox.claim("opm", 2)
        at, unique = 1_900_000_000.0, "b6f0a1d5-31c2-4c4e-9f0e-77c1aa02fe5b"
        await gateway.outbox.settle([], [Retry(first.batch, first.index, at + 9.0, 1, at, 503, "Shutdown")])
        ends = [
            End(first.batch, first.index, "accepted", at + 9.5, 200, "", 2, apns_unique_id=unique),
            End(second.batch, second.index, "accepted", at + 9.5, 200),
        ]
        await gateway.outbox.settle(ends)
        told = [(await ask(app, "GET", f"/v1/notifications/{each}")).json["attempts"] for each in ids]
        assert [[one["apns_unique_id"] for one in each] for each in told] == [[None, unique], [None]]
        assert [[one["due_at"] for one in each] for each in told] == [[at + 9.0, None], [None]]


async def test_an_apns_id_in_capitals_is_found(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        app = ingest_app(gateway)
        [apns_id] = (await post(app, ONE)).json["ids"]
        assert (await ask(app, "GET", f"/v1/notifications/{apns_id.upper()}")).status == 200


@pytest.mark.parametrize("path", ["/v1/notifications/7", "/v1/batches/x", f"/v1/batches/{1 << 63}"])
async def test_what_is_no_id_is_400(tmp_path, path):
    async with open_gateway(tmp_path) as gateway:
        assert (await ask(ingest_app(gateway), "GET", path)).status == 400


# Overload.


async def test_an_app_with_too_much_waiting_is_503(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        app = ingest_app(gateway)
        gateway.outbox.max_waiting["opm"] = 2
        assert (await post(app, [ONE, ONE])).status == 202
        answer = await post(app, ONE)
        assert (answer.status, answer.json["stored"]) == (503, False)
        assert 24 <= int(answer.headers["retry-after"]) <= 36


async def test_a_full_outbox_is_503_and_urgent_still_gets_in(tmp_path):
    async with open_gateway(tmp_path, outbox_limits=OutboxLimits(waiting_entries=10)) as gateway:
        app = ingest_app(gateway)
        assert (await post(app, [ONE] * 9)).status == 202
        answer = await post(app, ONE)
        assert (answer.status, answer.json["stored"]) == (503, False)
        assert (await post(app, {**ONE, "urgent": True})).status == 202


async def test_large_requests_at_once_are_bounded(tmp_path):
    """64 MiB of bodies may be in memory; what would come on top is refused before it is read."""
    async with open_gateway(tmp_path) as gateway:
        app = ingest_app(gateway)
        blocked = trio.Event()

        async def hold(receive_nothing=None):
            scope = {
                "type": "http", "method": "POST", "path": "/v1/notifications", "query_string": b"",
                "headers": [(b"content-type", b"application/json")], "state": {}, "client": None,
            }  # fmt: skip

            async def receive():
                await blocked.wait()
                return {"type": "http.disconnect"}

            async def send(message):
                raise AssertionError

            await app(scope, receive, send)

        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(hold)
            await trio.testing.wait_all_tasks_blocked()
            answer = await post(app, ONE)
            assert (answer.status, answer.json["stored"]) == (503, False)
            blocked.set()
        assert (await post(app, ONE)).status == 202


# Health.


async def test_ready_until_the_gateway_drains(tmp_path):
    draining = False
    async with open_gateway(tmp_path, draining=lambda: draining) as gateway:
        app = ingest_app(gateway)
        assert (await ask(app, "GET", "/healthz")).json == {"status": "ok"}
        answer = await ask(app, "GET", "/readyz")
        assert (answer.status, answer.json) == (
            200,
            {"ready": True, "reasons": [], "apps": {"opm": "running"}},
        )
        draining = True
        answer = await ask(app, "GET", "/readyz")
        assert (answer.status, answer.json["ready"]) == (503, False)
        assert answer.json["reasons"] == ["draining: the gateway is about to end"]
        assert (await ask(app, "GET", "/healthz")).status == 200
