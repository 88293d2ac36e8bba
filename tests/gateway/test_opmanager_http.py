"""Every body that OpManager was ever seen to send, through a real socket: answer, verdict, and push."""

from __future__ import annotations

import os
import time
from base64 import b64encode
from contextlib import suppress
from pathlib import Path

import msgspec
import orjson
import pytest
import trio

from fastpush.gateway.signatures import read_signing_secret, sign
from fastpush.gateway.sources.opmanager import parse
from fastpush.gateway.storage import Limits
from tests.gateway.alarm_house import alarm_house, answered, shown

BODIES = Path(__file__).parent.parent / "data/opmanager"
EXPECTED = orjson.loads((BODIES / "expected.json").read_bytes())
RESULTS = BODIES / "results.json"
WRITE = bool(os.environ.get("FASTPUSH_WRITE_RESULTS"))
"""Writes results.json anew in place of holding against it; read the difference before it is kept."""


@pytest.mark.parametrize("name", sorted(EXPECTED))
async def test_a_body_gives_its_answer_and_its_push(name: str, tmp_path) -> None:
    """For a Clear also what it does to an alarm that is open."""
    body, kind = (BODIES / f"{name}.body").read_bytes(), EXPECTED[name]["content_type"]
    async with alarm_house(tmp_path) as house:
        response = await house.post(body, kind)
        found = {"answer": answered(response), "pushed": [shown(push) for push in await house.pushes()]}
        unreadable = await house.alarms.unreadable()
    event = parse(body, kind)
    if event.severity == "clear" and not event.is_test:
        (tmp_path / "open").mkdir()
        async with alarm_house(tmp_path / "open") as house:
            await house.alarms.record(msgspec.structs.replace(event, severity="critical", at=None))
            response = await house.post(body, kind)
            found["open"] = {
                "answer": answered(response), "pushed": [shown((await house.pushes())[-1])],
            }  # fmt: skip
    assert response.status_code == 200
    if unreadable:
        assert [post.octets for post in unreadable] == [len(body)]
    assert bool(unreadable) == (found["answer"]["result"] == "unreadable")
    results = orjson.loads(RESULTS.read_bytes()) if RESULTS.exists() else {}
    if WRITE:
        results[name] = found
        RESULTS.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")
    assert found == results[name]


def test_every_body_has_a_result_and_every_push_is_a_notification() -> None:
    results = orjson.loads(RESULTS.read_bytes())
    assert set(results) == set(EXPECTED)
    for result in results.values():
        for push in (*result["pushed"], *result.get("open", {}).get("pushed", ())):
            assert len(push["payload"].encode()) <= 4_096
            assert push["payload"].startswith('{"aps":{')
            assert orjson.loads(push["payload"])["opm"]["id"] == push["collapse_id"][2:]


ALARM = (
    b'{"alarmid":"4092","entity":"core_Poll","stringseverity":"Critical","displayName":"core","message":"x"}'
)


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/json", "application/xml", "multipart/form-data", "x/y; charset=\xfe"],
)
async def test_a_wrong_content_type_does_no_harm(kind: str, tmp_path) -> None:
    async with alarm_house(tmp_path) as house:
        response = await house.client.post(
            "/v1/opmanager",
            content=ALARM,
            headers=[(b"Content-Type", kind.encode("latin-1"))] if kind else [],
        )
        assert answered(response)["rule"] == "first.new"


async def test_a_key_may_come_wherever_opmanager_can_put_it(tmp_path) -> None:
    """Header, Basic, or the URL where no header can be set; and it must be a key for alarms."""
    async with alarm_house(tmp_path) as house:
        basic = b64encode(f"opmanager:{house.key}".encode()).decode()
        for headers, query in [
            ({"Authorization": f"Bearer {house.key}"}, ""),
            ({"Authorization": f"Basic {basic}"}, ""),
            ({"X-Api-Key": house.key}, ""),
            ({}, f"?token={house.key}"),
        ]:
            response = await house.stranger.post(f"/v1/opmanager{query}", content=ALARM, headers=headers)
            assert (response.status_code, response.json()["status"]) == (200, "ok")
        other = (await house.keys.create("sender", ["notify", "admin"])).secret
        elsewhere = (await house.keys.create("elsewhere", ["alarms"], ["another"])).secret
        phone = await house.phone("jo", "net")
        for headers, status in [
            ({"Authorization": ""}, 401),
            ({"Authorization": "Bearer fpk_wrong"}, 401),
            ({"Authorization": f"Bearer {other}"}, 403),
            ({"Authorization": f"Bearer {elsewhere}"}, 403),
            (phone, 403),
        ]:
            response = await house.post(ALARM, **headers)
            assert response.status_code == status
            assert response.headers["content-type"] == "application/problem+json"
        assert house.alarms.statistics().rules == {"first.new": 1, "repeat.counted": 3}


async def test_a_key_that_signs_signs_the_body(tmp_path) -> None:
    async with alarm_house(tmp_path) as house:
        key = await house.keys.create("signer", ["alarms"], signed=True)
        now, secret = int(time.time()), read_signing_secret(key.secret)

        async def post(body: bytes, number: str):
            headers = {
                "Authorization": f"Bearer {key.key_id}", "webhook-id": number, "webhook-timestamp": str(now),
                "webhook-signature": sign(secret, number, now, ALARM),
            }  # fmt: skip
            return await house.post(body, **headers)

        assert (await post(ALARM, "1")).json()["rule"] == "first.new"
        assert (await post(ALARM + b" ", "2")).status_code == 401


async def test_the_instance_is_the_body_s_src_else_the_url_s_else_the_key_s(tmp_path) -> None:
    async with alarm_house(tmp_path) as house:
        ids = {
            (await house.post(body, query=query)).json()["id"]
            for body in (ALARM, b'{"src":"opm1",' + ALARM[1:])
            for query in ("", "?source=opm2", "?source=opm1")
        }
        rows = {listed.row.source: listed.id for listed in await house.alarms.list()}
        assert set(rows) == {"opmanager", "opm1", "opm2"}
        assert ids == set(rows.values())
        for query in ("?source=%00%0a%e2%80%ae", "?source=%ff", "?" + "&" * 10_000, "?source=" + "x" * 9_000):
            assert (await house.post(ALARM, query=query)).status_code == 200
        names = [listed.row.source for listed in await house.alarms.list()]
        assert all(name.isprintable() and len(name) <= 256 for name in names)


class Listener:
    """What of the watchdog a webhook reaches: who was heard of."""

    def __init__(self) -> None:
        self.sources: list[str] = []

    def heard(self, source: str) -> None:
        self.sources.append(source)


async def test_the_watchdog_hears_of_every_post_also_of_one_that_is_no_alarm(tmp_path) -> None:
    """A test or an unreadable body shows as well as an alarm that OpManager still reaches us."""
    watchdog = Listener()
    async with alarm_house(tmp_path, watchdog=watchdog) as house:
        for body in (b'{"src":"opm1",' + ALARM[1:], b"", b"nothing known"):
            await house.post(body)
        await house.post(ALARM, Authorization="Bearer wrong")
        assert watchdog.sources == ["opm1", "opmanager", "opmanager"]


async def test_a_bare_4_of_applications_manager_is_a_warning(tmp_path) -> None:
    async with alarm_house(tmp_path) as house:
        body = b"entity=a&displayName=app&severity=4"
        assert (await house.post(body)).json()["severity"] == "service_down"
        query = "?product=applications-manager&source=apm"
        assert (await house.post(body, query=query)).json()["severity"] == "attention"
        refused = await house.post(body, query="?product=nagios")
        assert (refused.status_code, refused.json()["field"]) == (400, "product")


async def test_a_test_is_told_that_it_works_and_changes_nothing(tmp_path) -> None:
    async with alarm_house(tmp_path) as house:
        template = (
            b'{"alarmid":"$alarmid","entity":"$entity","stringseverity":"$stringseverity","message":"x"}'
        )
        answer = (await house.post(template)).json()
        assert answer["result"] == "test"
        assert "The webhook works" in answer["detail"]
        assert await house.alarms.list() == []
        assert house.alarms.statistics().tests == 1


async def test_put_does_too_and_get_says_what_does(tmp_path) -> None:
    async with alarm_house(tmp_path) as house:
        assert (await house.client.put("/v1/opmanager", content=ALARM)).json()["verdict"] == "first"
        refused = await house.client.get("/v1/opmanager")
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST, PUT")


async def test_a_long_body_is_read_as_far_as_it_is_read_and_one_without_end_refused(tmp_path) -> None:
    async with alarm_house(tmp_path) as house:
        long = ALARM[:-2] + b"y" * 1_000_000 + ALARM[-2:]
        answer = (await house.post(long)).json()
        assert answer["rule"] == "first.new"
        assert "cut_body" in answer["quirks"]
        head = f"POST /v1/opmanager HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {house.key}\r\n"
        stream = await trio.open_tcp_stream("127.0.0.1", house.port)
        async with stream:
            await stream.send_all(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            with trio.fail_after(10), suppress(trio.BrokenResourceError):
                for _ in range(6):
                    await stream.send_all(b"100000\r\n" + bytes(0x100000) + b"\r\n")
            with trio.fail_after(10):
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 413")


async def test_a_full_disk_is_said_and_nothing_of_it_was_stored(tmp_path) -> None:
    async with alarm_house(tmp_path) as house:
        await house.post(ALARM)
        key = house.key
    full = Limits(low_water_octets=1 << 60, reserve_octets=4_096)
    async with alarm_house(tmp_path, limits=full) as house:
        clear = ALARM.replace(b"Critical", b"Clear")
        for body in (clear, ALARM.replace(b"core", b"edge"), b"nothing known"):
            response = await house.post(body, Authorization=f"Bearer {key}")
            assert response.status_code == 503
            assert response.json()["stored"] is False
            assert "retry-after" in response.headers
        assert (await house.alarms.list())[0].row.state == "open"


async def test_a_storm_on_a_hundred_connections_is_taken_whole(tmp_path) -> None:
    """As when an uplink is gone: each device is posted three times on its way to Critical."""
    async with alarm_house(tmp_path) as house:
        rules = []

        async def post(number: int, severity: bytes) -> None:
            body = ALARM.replace(b"core", b"sw-%d" % number).replace(b"Critical", severity)
            response = await house.post(body)
            assert response.status_code == 200, response.text
            rules.append(response.json()["rule"])

        for severity in (b"Attention", b"Trouble", b"Critical"):
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(post, number, severity)
        assert rules == ["first.new"] * 100 + ["escalated.rank"] * 200
        assert house.alarms.open_count("opmanager", ["duty"]) == 100
        assert len(await house.pushes()) == 300
