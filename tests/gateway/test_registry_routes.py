"""Keys, enrolments and devices over HTTP: what each principal reaches, and what it does not."""

import json

import pytest

from fastpush.gateway.app import admin_app, ingest_app
from tests.gateway.asgi import ask
from tests.gateway.registry_house import APP, NOW, OTHER, open_house, token


class Front:
    """Both listeners."""

    def __init__(self, house):
        self.house = house
        gateway = house.gateway()
        self.ingest, self.admin = ingest_app(gateway), admin_app(gateway)

    async def key(self, *scopes, apps=None):
        return (await self.house.keys.create("somebody", scopes, apps)).secret

    async def __call__(self, method, path, key=None, value=None, *, admin=False, body=None, kind=None):
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        if kind is not None:
            headers["Content-Type"] = kind
        content = body if body is not None else b"" if value is None else json.dumps(value).encode()
        return await ask(self.admin if admin else self.ingest, method, path, body=content, headers=headers)

    async def enrol(self, *tags, user="alice", app=APP):
        key = await self.key("devices")
        wanted = {"app": app, "user": user, "tags": tags}
        return (await self("POST", "/v1/enrolments", key, wanted)).json["device_secret"]


@pytest.fixture
async def front(tmp_path):
    async with open_house(tmp_path) as house:
        yield Front(house)


async def test_a_phone_from_its_code_to_its_end(front):
    keeper = await front.key("devices")
    made = await front(
        "POST", "/v1/enrolment-codes", keeper, {"app": APP, "user": "alice", "tags": ["net"]}, admin=True
    )
    assert made.status == 201
    enrolled = await front("POST", "/v1/enrolments", value={"code": made.json["code"]})
    assert enrolled.status == 201
    secret = enrolled.json["device_secret"]
    registered = await front("PUT", f"/v1/devices/{token(1).upper()}", secret, {"locale": "de"})
    assert registered.json == {
        "device_token": token(1), "app": APP, "environment": "production", "user": "alice", "tags": ["net"],
        "locale": "de", "registered_at": NOW, "seen_at": NOW, "dead_at": None, "dead_reason": None,
    }  # fmt: skip
    assert (await front("GET", f"/v1/devices/{token(1)}", secret)).json == registered.json
    assert (await front("PUT", f"/v1/devices/{token(2)}", secret, {})).status == 200
    assert (await front("GET", f"/v1/devices/{token(1)}", secret)).status == 403
    assert (await front("DELETE", f"/v1/devices/{token(2)}", secret)).status == 204
    assert (await front("GET", f"/v1/devices/{token(2)}", secret)).status == 401
    assert (await front("POST", "/v1/enrolments", value={"code": made.json["code"]})).status == 401


async def test_a_phones_secret_opens_nothing_else(front):
    """Another's device, another app, lists, feeds, administration: 403, whether or not it is there."""
    mine, other = await front.enrol(), await front.enrol(user="bob")
    await front("PUT", f"/v1/devices/{token(1)}", mine, {})
    await front("PUT", f"/v1/devices/{token(2)}", other, {})
    for number in (2, 3):
        for method in ("GET", "DELETE"):
            answer = await front(method, f"/v1/devices/{token(number)}", mine)
            assert (answer.status, answer.json["detail"]) == (
                403, "A phone's secret is good for its own device token only.",
            )  # fmt: skip
    for value in ({"app": OTHER}, {"user": "bob"}, {"tags": ["admin"]}):
        assert (await front("PUT", f"/v1/devices/{token(1)}", mine, value)).status == 403
    assert (await front("PUT", f"/v1/devices/{token(2)}", mine, {})).status == 403
    assert (await front("GET", "/v1/device-events", mine)).status == 403
    assert (await front("POST", "/v1/enrolments", mine, {"app": APP, "tags": ["admin"]})).status == 403
    assert (await front("DELETE", "/v1/enrolments/fpd_x", mine)).status == 403
    for method, path in (
        ("GET", "/v1/keys"), ("POST", "/v1/keys"), ("DELETE", "/v1/keys/fpk_x"), ("GET", "/v1/audit"),
        ("GET", "/v1/devices"), ("POST", "/v1/devices"), ("GET", "/v1/devices.csv"),
        ("GET", "/v1/devices.ndjson"), ("POST", "/v1/enrolment-codes"), ("GET", "/v1/enrolment-codes"),
        ("DELETE", "/v1/enrolment-codes/K7QM"),
    ):  # fmt: skip
        assert (await front(method, path, mine, admin=True)).status == 403, (method, path)
        assert (await front(method, path, admin=True)).status == 401, (method, path)
        notify = await front.key("notify", "alarms", "console")
        assert (await front(method, path, notify, admin=True)).status == 403, (method, path)
    assert await front.house.devices.count(APP) == 2


async def test_administration_is_not_on_the_senders_listener(front):
    root = await front.key("admin", "devices")
    for path in ("/v1/keys", "/v1/audit", "/v1/enrolment-codes", "/v1/devices.csv"):
        assert (await front("GET", path, root)).status == 404


async def test_a_key_of_one_app_sees_nothing_of_the_other(front):
    await front.house.register(1, app=OTHER, user="bob")
    keeper = await front.key("devices", apps=[APP])
    assert (await front("GET", f"/v1/devices/{token(1)}", keeper)).status == 404
    assert (await front("GET", f"/v1/devices/{token(1)}?app={OTHER}", keeper)).status == 403
    assert (await front("DELETE", f"/v1/devices/{token(1)}?app={OTHER}", keeper)).status == 403
    assert (await front("PUT", f"/v1/devices/{token(1)}", keeper, {"app": OTHER})).status == 403
    assert (await front("GET", f"/v1/devices?app={OTHER}", keeper, admin=True)).status == 403
    assert (await front("GET", f"/v1/device-events?app={OTHER}", keeper)).status == 403
    front.house.devices.report(OTHER, [(token(1), 410, "Unregistered", int(NOW * 1e3), NOW)])
    await front.house.devices.settle()
    assert (await front("GET", "/v1/device-events", keeper)).json == {"events": [], "next": "0"}
    everybody = await front.key("devices")
    assert (await front("GET", "/v1/device-events", everybody)).json["events"][0]["user"] == "bob"
    assert (await front("GET", "/v1/device-events?after=1", everybody)).json == {"events": [], "next": "1"}
    assert (await front("PUT", f"/v1/devices/{token(1)}", everybody, {"app": "nix"})).status == 404
    assert (await front("PUT", f"/v1/devices/{token(1)}", everybody, {})).status == 422, "which of the two?"


async def test_an_administrator_of_one_app_makes_no_keys_for_others(front):
    root = await front.key("admin")
    mine = await front.key("admin", apps=[APP])
    for apps in (None, [OTHER], [APP, OTHER]):
        wanted = {"name": "x", "scopes": ["notify"], "apps": apps}
        assert (await front("POST", "/v1/keys", mine, wanted, admin=True)).status == 403
        assert (await front("POST", "/v1/keys", root, wanted, admin=True)).status == 201
    made = await front(
        "POST", "/v1/keys", mine, {"name": "x", "scopes": ["admin"], "apps": [APP]}, admin=True
    )
    assert made.status == 201
    seen = (await front("GET", "/v1/keys", mine, admin=True)).json["keys"]
    assert {tuple(key["apps"]) for key in seen} == {(APP,)}
    there = (await front("GET", "/v1/keys", root, admin=True)).json["keys"]
    hidden = next(key["key_id"] for key in there if key["apps"] is None)
    assert (await front("DELETE", f"/v1/keys/{hidden}", mine, admin=True)).status == 404
    assert (await front("GET", "/v1/audit", mine, admin=True)).status == 403
    assert (await front("DELETE", f"/v1/keys/{made.json['key_id']}", mine, admin=True)).status == 200
    assert (await front("GET", "/v1/keys", made.json["secret"], admin=True)).status == 401


async def test_keys_are_never_shown_again(front):
    root = await front.key("admin")
    made = await front("POST", "/v1/keys", root, {"name": "x", "scopes": ["notify"]}, admin=True)
    secret = made.json["secret"].split("_")[2].encode()
    for path in ("/v1/keys", "/v1/audit"):
        answer = await front("GET", path, root, admin=True)
        assert answer.status == 200
        assert secret not in answer.body


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"name": "a\0b", "scopes": ["notify"]}, "name"),
        ({"name": "x", "scopes": ["root"]}, "scopes"),
        ({"name": "x", "scopes": "notify"}, "scopes"),
        ({"name": "x", "scopes": ["notify"], "app": "typo"}, "app"),
        ({"name": "x", "scopes": ["notify"], "expires_at": 1}, "expires_at"),
        ({"name": "x", "scopes": ["notify"], "expires_at": 1_827_008_392_275}, "expires_at"),
        ({"name": "x", "scopes": ["notify"], "expires_at": 1e300}, "expires_at"),
        ({"name": "x", "scopes": ["notify"], "apps": ["typo"]}, "apps"),
        ({"scopes": ["notify"]}, "name"),
    ],
)
async def test_a_key_that_cannot_be_made_is_told(front, value, field):
    answer = await front("POST", "/v1/keys", await front.key("admin"), value, admin=True)
    assert (answer.status, answer.json.get("field")) == (422, field)


@pytest.mark.parametrize("shown", ["abc", "x" * 64, "a" * 402, "%00" * 64, "ä" * 32])
async def test_what_is_no_device_token_is_refused_on_each_route(front, shown):
    key = await front.key("devices", apps=[APP])
    for method in ("PUT", "GET", "DELETE"):
        answer = await front(method, f"/v1/devices/{shown}", key, {})
        assert answer.status == 422
        assert shown not in answer.json["detail"]


async def test_enrolling_takes_a_code_or_a_key_and_not_both(front):
    keeper = await front.key("devices", apps=[APP])
    assert (await front("POST", "/v1/enrolments", keeper, {"code": "K7QM3XPD9R", "user": "x"})).status == 422
    assert (await front("POST", "/v1/enrolments", value={})).status == 401
    assert (await front("POST", "/v1/enrolments", await front.key("notify"), {"app": APP})).status == 403
    enrolled = await front("POST", "/v1/enrolments", keeper, {"user": "alice"})
    assert (enrolled.status, enrolled.json["app"]) == (201, APP)
    gone = f"/v1/enrolments/{enrolled.json['enrolment_id']}"
    assert (await front("DELETE", gone, await front.key("devices", apps=[OTHER]))).status == 404
    assert (await front("DELETE", gone, keeper)).status == 204
    assert (await front("PUT", f"/v1/devices/{token(1)}", enrolled.json["device_secret"], {})).status == 401


async def test_devices_go_in_and_out_by_the_file(front):
    keeper = await front.key("devices", apps=[APP])
    csv = f"device_token,user,tags\n{token(1)},alice,net;night\nnonsense,,\n".encode()
    answer = await front("POST", "/v1/devices", keeper, admin=True, body=csv, kind="text/csv; charset=utf-8")
    assert answer.json["imported"] == 1
    assert [problem["line"] for problem in answer.json["problems"]] == [3]
    answer = await front("POST", "/v1/devices", keeper, admin=True, body=b"x\n", kind="application/x-ndjson")
    assert (answer.status, answer.json["imported"], answer.json["refused"]) == (422, 0, 1)
    assert (await front("POST", "/v1/devices", keeper, admin=True, body=csv, kind="text/plain")).status == 415
    listed = (await front("GET", "/v1/devices?tag=net&user=alice", keeper, admin=True)).json
    assert [device["device_token"] for device in listed["devices"]] == [token(1)]
    assert listed["next"] is None
    out = await front("GET", "/v1/devices.csv", keeper, admin=True)
    assert out.headers["content-type"] == "text/csv; charset=utf-8"
    assert token(1).encode() in out.body
    assert (await front("GET", "/v1/devices.ndjson", keeper, admin=True)).json["tags"] == ["net", "night"]
    actions = [record.action for record in await front.house.keys.log.read()][1:]
    assert actions == ["devices.imported", "devices.exported", "devices.exported"]


async def test_an_upload_that_is_cut_off_keeps_what_came(front):
    """And nobody is told that it was all."""
    key = await front.key("devices", apps=[APP])
    lines = "".join(json.dumps({"device_token": token(number)}) + "\n" for number in range(1, 701)).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/x-ndjson"}
    assert await ask(front.admin, "POST", "/v1/devices", body=lines, headers=headers, cut=True) is None
    assert await front.house.devices.count(APP) == 500


async def test_no_key_is_ever_in_the_log(front, caplog, monkeypatch):
    """Not of a header, not of a query, also where a route breaks."""
    key = await front.key("devices", "alarms")
    monkeypatch.setattr(front.house.devices, "get", None, raising=False)
    caplog.set_level("DEBUG")
    answer = await front("GET", f"/v1/devices/{token(0xABCDEF)}?app={APP}&token={key}", key)
    assert answer.status == 500
    assert key.split("_")[2] not in caplog.text
    assert key.split("_")[2].encode() not in answer.body
    assert token(0xABCDEF) not in caplog.text
