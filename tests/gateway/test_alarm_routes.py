"""GET /v1/alarms and acknowledging: what a key sees, what a phone sees, and what the others are shown."""

from __future__ import annotations

import msgspec

from fastpush.gateway.sources import Event
from tests.gateway.alarm_house import APP, alarm_house


def event(severity: str, entity: str = "core_Poll", **fields) -> Event:
    return Event(
        **{"source": "opm1", "entity": entity, "device": "core", "category": "Switch", "severity": severity}
        | fields
    )


async def test_a_key_lists_all_alarms_by_pages_and_filters(tmp_path) -> None:
    async with alarm_house(tmp_path) as house:
        for number in range(5):
            await house.alarms.record(event("trouble", f"e{number}", device=f"sw-{number}", raw="body"))
        await house.alarms.record(event("clear", "e3"))
        page = (await house.client.get("/v1/alarms?limit=2")).json()
        assert [alarm["entity"] for alarm in page["alarms"]] == ["e4", "e3"]
        seen = len(page["alarms"])
        while page["next"]:
            page = (await house.client.get(f"/v1/alarms?limit=2&after={page['next']}")).json()
            seen += len(page["alarms"])
        assert seen == 5

        async def entities(query: str) -> list[str]:
            answer = await house.client.get(f"/v1/alarms?{query}")
            return [alarm["entity"] for alarm in answer.json()["alarms"]]

        assert await entities("state=open&device=SW-*") == ["e4", "e2", "e1", "e0"]
        assert await entities("state=cleared") == ["e3"]
        assert await entities("severity=clear,critical") == ["e3"]
        assert await entities("tag=duty") == []
        assert len(await entities("tag=duty&tag=net")) == 5
        for query, field in [
            ("state=closed", "state"), ("severity=bad", "severity"), ("limit=0", "limit"),
            ("limit=501", "limit"), ("after=x", "after"), ("limit=%C2%B2", "limit"),
        ]:  # fmt: skip
            refused = await house.client.get(f"/v1/alarms?{query}")
            assert (refused.status_code, refused.json()["field"]) == (400, field)


async def test_an_alarm_is_shown_with_all_that_happened_to_it(tmp_path) -> None:
    async with alarm_house(tmp_path) as house:
        posted = await house.post(
            b"src=opm1&entity=a&displayName=sw&category=Switch&severity=Trouble&message=x"
        )
        name = posted.json()["id"]
        await house.post(b"src=opm1&entity=a&displayName=sw&category=Switch&severity=Clear")
        answer = (await house.client.get(f"/v1/alarms/{name}")).json()
        assert answer["alarm"]["state"] == "cleared"
        assert [verdict["rule"] for verdict in answer["verdicts"]] == ["clear.open", "first.new"]
        first = answer["verdicts"][1]
        assert first["raw"] == "src=opm1&entity=a&displayName=sw&category=Switch&severity=Trouble&message=x"
        assert (first["routes"], first["tags"], first["push"]) == (
            ["network"],
            ["net"],
            posted.json()["push"],
        )
        batch = await house.outbox.find_batch(int(first["push"]))
        assert batch.source == "opm1"
        assert answer["next"] is None
        page = (await house.client.get(f"/v1/alarms/{name}?limit=1")).json()
        older = (await house.client.get(f"/v1/alarms/{name}?limit=1&before={page['next']}")).json()
        assert [page["verdicts"][0], older["verdicts"][0]] == answer["verdicts"]
        for missing in ("A" * 43, "x", "%00"):
            assert (await house.client.get(f"/v1/alarms/{missing}")).status_code == 404


async def test_a_phone_sees_the_alarms_that_were_told_to_its_tags(tmp_path) -> None:
    async with alarm_house(tmp_path) as house:
        net = (await house.alarms.record(event("trouble", "switch"))).id
        duty = (await house.alarms.record(event("critical", "server", category="Server"))).id
        jo, al = await house.phone("jo", "net", number=1), await house.phone("al", "duty", number=2)
        nobody = await house.phone("", number=3)

        async def seen(phone) -> list[str]:
            answer = await house.client.get("/v1/alarms", headers=phone)
            return [alarm["id"] for alarm in answer.json()["alarms"]]

        assert (await seen(jo), await seen(al), await seen(nobody)) == ([net], [duty], [])
        assert (await house.client.get("/v1/alarms?tag=duty", headers=jo)).json()["alarms"] == []
        assert (await house.client.get(f"/v1/alarms/{net}", headers=jo)).status_code == 200
        assert (await house.client.get(f"/v1/alarms/{duty}", headers=jo)).status_code == 404
        taken = await house.client.post(f"/v1/alarms/{duty}/acknowledge", headers=jo)
        assert taken.status_code == 404
        assert house.alarms.open_count(APP, ["duty"]) == 1
        assert (await house.client.get("/v1/alarms/unreadable", headers=jo)).status_code == 403


async def test_who_takes_an_alarm_is_shown_silently_to_all_who_were_told(tmp_path) -> None:
    async with alarm_house(tmp_path) as house:
        name = (await house.alarms.record(event("critical"))).id
        jo = await house.phone("jo", "net")
        for _ in range(3):  # a phone that repeats
            answer = await house.client.post(f"/v1/alarms/{name}/acknowledge", headers=jo)
            assert answer.status_code == 200
            assert (answer.json()["state"], answer.json()["acknowledged_by"]) == ("acknowledged", "jo")
        late = await house.client.post(f"/v1/alarms/{name}/acknowledge")
        assert late.json()["acknowledged_by"] == "jo"
        pushes = await house.pushes()
        assert len(pushes) == 2
        payload = msgspec.json.decode(pushes[1].entry.payload)
        assert payload["aps"]["alert"]["subtitle"] == "Acknowledged by jo"
        assert (payload["aps"]["interruption-level"], "sound" in payload["aps"]) == ("passive", False)
        assert pushes[1].entry.collapse_id == pushes[0].entry.collapse_id
        assert pushes[1].audience == pushes[0].audience
        assert house.alarms.open_count(APP, ["net"]) == 0
        log = [record for record in await house.keys.log.read() if record.action == "alarm.acknowledge"]
        assert [(record.name, record.target) for record in log] == [("jo", name)]
        verdicts = (await house.client.get(f"/v1/alarms/{name}")).json()["verdicts"]
        assert [(verdict["rule"], verdict["by"]) for verdict in verdicts] == [
            ("acknowledged", "jo"), ("first.new", ""),
        ]  # fmt: skip


async def test_an_acknowledgement_means_the_opening_that_the_phone_was_told_of(tmp_path) -> None:
    async with alarm_house(tmp_path) as house:
        name = (await house.alarms.record(event("critical"))).id
        told = msgspec.json.decode((await house.pushes())[0].entry.payload)["opm"]["gen"]
        await house.alarms.record(event("clear"))
        path, body = f"/v1/alarms/{name}/acknowledge", msgspec.json.encode({"generation": told})
        cleared = await house.client.post(path, content=body)
        assert (cleared.status_code, cleared.json()["state"]) == (200, "cleared")
        await house.alarms.record(event("critical"))
        refused = await house.client.post(path, content=body)
        assert (refused.status_code, refused.json()["field"]) == (409, "generation")
        assert house.alarms.open_count(APP, ["net"]) == 1
        assert (await house.client.post(path, content=b'{"generation":2}')).json()["state"] == "acknowledged"
        for wrong, status in ((b"{", 400), (b'{"generation":"x"}', 422), (b'{"by":"al"}', 422)):
            assert (await house.client.post(path, content=wrong)).status_code == status


async def test_what_nobody_could_read_is_there_to_be_looked_at(tmp_path) -> None:
    async with alarm_house(tmp_path) as house:
        for body in (b"\x00\x01\xff", b"core is down, hurry", b"<html>no</html>"):
            answer = (await house.post(body, "text/plain")).json()
            assert (answer["status"], answer["result"]) == ("ok", "unreadable")
        page = (await house.client.get("/v1/alarms/unreadable?limit=2")).json()
        assert [post["raw"] for post in page["posts"]] == ["<html>no</html>", "core is down, hurry"]
        assert page["posts"][0]["source"] == "opmanager"
        rest = (await house.client.get(f"/v1/alarms/unreadable?before={page['next']}")).json()
        assert [post["raw"] for post in rest["posts"]] == ["\x00\x01\\xff"]
        assert house.alarms.statistics().unreadable == 3


async def test_the_routes_want_a_key_for_alarms(tmp_path) -> None:
    async with alarm_house(tmp_path) as house:
        name = (await house.alarms.record(event("critical"))).id
        wrong = (await house.keys.create("sender", ["notify"])).secret
        for method, path in [
            ("GET", "/v1/alarms"), ("GET", f"/v1/alarms/{name}"), ("GET", "/v1/alarms/unreadable"),
            ("POST", f"/v1/alarms/{name}/acknowledge"),
        ]:  # fmt: skip
            for value, status in (("", 401), (f"Bearer {wrong}", 403)):
                answer = await house.client.request(method, path, headers={"Authorization": value})
                assert answer.status_code == status
            query = f"{path}?token={house.key}"
            assert (
                await house.client.request(method, query, headers={"Authorization": ""})
            ).status_code == 401
